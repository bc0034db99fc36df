"""Promise: HotpotQA's files of either form become MemAgent's files, without the leak of places; what is wrong is named."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.data.audit import audit
from memfactory.data.documents import split_documents
from memfactory.data.hotpotqa import hotpotqa, read_items

REAL = Path(__file__).parents[2] / "shared" / "benchdata" / "hotpotqa"
LEAK = {
    50: {11, 18, 27, 29, 37, 41, 42, 43, 44, 48},
    100: {5, 13, 23, 25, 54, 60, 77, 87, 91, 92},
    200: {7, 10, 17, 81, 88, 96, 109, 154, 177, 191},
}
"""Places of an item's own ten documents in the files that MemAgent's script writes, from 1."""
Rows = list[dict[str, Any]]


def record(number: int, documents: int = 10) -> dict[str, Any]:
    """A record of the official form: the first two of its documents are gold."""
    titles = [f"Title {number}.{at}" for at in range(documents)]
    return {
        "_id": f"id{number}",
        "question": f"What is told in {number}?",
        "answer": f"answer {number}",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [[titles[0], 0], [titles[1], 1], [titles[1], 0]],
        "context": [[title, [f"{title} says one thing.", f" And {title} another."]] for title in titles],
    }


def hub_form(row: dict[str, Any]) -> dict[str, Any]:
    """The same record as the Hugging Face hub has it."""
    context, facts = zip(*row["context"], strict=True), zip(*row["supporting_facts"], strict=True)
    return {
        "id": row["_id"],
        **{key: row[key] for key in ("question", "answer", "type", "level")},
        "context": dict(zip(("title", "sentences"), map(list, context), strict=True)),
        "supporting_facts": dict(zip(("title", "sent_id"), map(list, facts), strict=True)),
    }


def write(folder: Path, rows: Any, name: str = "hotpot.json") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if name.endswith(".jsonl") else json.dumps(rows), encoding="utf-8")
    return str(path)


def made(source: str | list[str], number: int = 8, **options: Any) -> Rows:
    return list(hotpotqa(number, source=[source] if isinstance(source, str) else source, **options))


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path, [record(number) for number in range(30)])


def test_records_have_the_schema_of_the_evaluation_files(source: str) -> None:
    for index, row in enumerate(made(source, docs=50)):
        assert set(row) == {"context", "input", "answers", "num_docs", "index", "evidence", "evidence_titles"}
        assert (row["input"], row["answers"]) == (f"What is told in {index}?", [f"answer {index}"])
        assert (row["index"], row["num_docs"]) == (index, 50)
        documents = split_documents(row["context"])
        assert len(documents) == len({*documents}) == 50
        assert f"Title {index}.0\nTitle {index}.0 says one thing. And Title {index}.0 another." in documents
        assert {f"Title {index}.{at}" for at in range(10)} <= {document.partition("\n")[0] for document in documents}
        assert [documents[number - 1].partition("\n")[0] for number in row["evidence"]] == row["evidence_titles"]


def test_both_forms_and_json_lines_give_the_same_records(tmp_path: Path, source: str) -> None:
    rows = [record(number) for number in range(30)]
    expected = made(source, docs=30)
    assert made(write(tmp_path, [hub_form(row) for row in rows], "hub.json"), docs=30) == expected
    assert made(write(tmp_path, rows, "lines.jsonl"), docs=30) == expected
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist([hub_form(row) for row in rows]), tmp_path / "hub.parquet")
    assert made(str(tmp_path / "hub.parquet"), docs=30) == expected


def test_a_record_depends_on_the_seed_and_its_number_alone(source: str) -> None:
    assert made(source, 3, docs=40, seed=2) == made(source, 20, docs=40, seed=2)[:3]
    assert [r["context"] for r in made(source, 3, docs=40, seed=2)] != [r["context"] for r in made(source, 3, docs=40, seed=3)]


def test_questions_are_the_same_at_every_length_and_documents_are_nested(source: str) -> None:
    for short, long in zip(made(source, docs=20), made(source, docs=250), strict=True):
        assert all(short[key] == long[key] for key in ("input", "answers", "index", "evidence_titles"))
        assert {*split_documents(short["context"])} < {*split_documents(long["context"])}


@pytest.mark.parametrize("docs", LEAK)
def test_the_legacy_order_puts_own_documents_where_memagents_script_does(source: str, docs: int) -> None:
    for index, row in enumerate(made(source, docs=docs, legacy_shuffle=True)):
        titles = [document.partition("\n")[0] for document in split_documents(row["context"])]
        assert {at for at, title in enumerate(titles, 1) if title.startswith(f"Title {index}.")} == LEAK[docs]


def test_the_legacy_order_is_one_permutation_and_the_new_one_is_not(source: str) -> None:
    order = list(range(50))
    random.Random(4).shuffle(order)
    legacy, repaired = made(source, 20, docs=50, legacy_shuffle=True), made(source, 20, docs=50)
    assert {tuple(row["evidence"]) for row in legacy} == {(order.index(0) + 1, order.index(1) + 1)}
    assert len({tuple(row["evidence"]) for row in repaired}) > 15


def test_the_audit_sees_the_leak_and_passes_the_repair(tmp_path: Path) -> None:
    source = write(tmp_path, [record(number) for number in range(200)])
    leaked, repaired = (audit("hotpotqa", made(source, 200, docs=50, legacy_shuffle=legacy)) for legacy in (True, False))
    assert leaked.gold_p is not None and leaked.gold_p < 1e-9 and "not spread evenly" in " ".join(leaked.problems())
    assert repaired.gold_p is not None and repaired.gold_p > 0.01 and repaired.oracle == 1.0 and repaired.problems() == []


def test_a_missing_gold_document_is_counted(tmp_path: Path) -> None:
    rows = [record(number) for number in range(4)]
    rows[2]["supporting_facts"].append(["A document that is not there", 0])
    assert audit("hotpotqa", made(write(tmp_path, rows), 4, docs=12)).oracle == 0.75


def test_records_without_documents_are_skipped_counted_and_keep_the_numbers_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [record(number) for number in range(6)]
    rows[0]["context"], rows[3]["context"] = None, []
    with caplog.at_level(logging.WARNING):
        found = made(write(tmp_path, rows), 4, docs=15)
    assert [row["index"] for row in found] == [1, 2, 4, 5]
    assert "2 of 6 records skipped" in caplog.text


def test_documents_of_the_same_title_or_text_appear_once(tmp_path: Path) -> None:
    rows = [record(number, documents=4) for number in range(5)]
    rows[0]["context"].append(rows[0]["context"][0])  # twice in one item
    rows[1]["context"].append(["Title 0.0", ["Another text under a title of item 0."]])
    rows[2]["context"].append(rows[0]["context"][1])  # in two items
    source = write(tmp_path, rows)
    (first, *_) = made(source, 1, docs=20)
    titles = [document.partition("\n")[0] for document in split_documents(first["context"])]
    assert len(titles) == len({*titles}) == 20  # 4 x 5 documents; the other text of `Title 0.0` is left out
    assert len(first["evidence"]) == 2


def test_a_pool_that_is_too_small_gives_its_size(source: str) -> None:
    with pytest.raises(ConfigError, match=r"docs=301: the pool of .*hotpot.json holds 300 documents.*at most 300.*--from"):
        made(source, docs=301)
    assert len(split_documents(made(source, 1, docs=300)[0]["context"])) == 300


def test_the_pool_is_of_all_files_and_numbers_go_on(tmp_path: Path, source: str) -> None:
    more = write(tmp_path, [record(number) for number in range(100, 105)], "more.json")
    rows = made([source, more], 32, docs=350)
    assert [row["index"] for row in rows] == list(range(32)) and rows[30]["answers"] == ["answer 100"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 31}, "number=31, but .* has 30 usable questions. Ask for at most 30"),
        ({"docs": 9}, "docs=9: .* 10 documents of its own"),
    ],
)
def test_requests_that_the_file_cannot_meet_say_what_it_can(source: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(source, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, r"record 1: `question` must be a text, got ''"),
        ({"answer": None}, r"record 1: `answer` must be a text, got None\. Keys here: _id, question"),
        ({"context": "text"}, r"record 1: `context` and `supporting_facts` must be lists"),
        ({"context": [["title", "no list of sentences"]]}, r"record 1: `context` and"),
        ({"context": {"title": ["a", "b"], "sentences": [["x"]]}}, r"record 1: `context` and"),
        ({"supporting_facts": [["title"]]}, r"record 1: `context` and"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(write(tmp_path, [record(0), record(1) | change]), 1, docs=10)


@pytest.mark.parametrize(
    ("content", "message"), [({"data": []}, "must hold a list"), ([], "no usable record"), (["text"], "record 0: expected")]
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(write(tmp_path, content), 1)


def test_a_missing_file_says_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none.json.*hotpotqa.github.io.*synth_hop"):
        made(str(tmp_path / "none.json"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's records are not here")
def test_real_records_of_both_forms() -> None:
    official, hub = str(REAL / "hotpot_dev_distractor_200.json"), str(REAL / "hf_form_20.json")
    items = read_items([Path(hub)])
    assert len(items) == 20 and items == read_items([Path(official)])[:20]
    rows = made(official, 128, docs=100)
    checks = audit("hotpotqa", rows)
    assert checks.oracle == 1.0 and checks.gold_p is not None and checks.gold_p > 0.001
    legacy = made(official, 128, docs=50, legacy_shuffle=True)
    assert {number for row in legacy for number in row["evidence"]} <= LEAK[50]
