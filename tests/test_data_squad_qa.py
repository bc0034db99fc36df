"""Promise: RULER's question answering is made from SQuAD's or HotpotQA's file at the length asked for, evidence known, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tasks_helpers import HOTPOT

from memfactory.common.errors import ConfigError, DataError
from memfactory.data.documents import split_documents
from memfactory.data.squad_qa import ANSWER_TOKENS, qa


def words(text: str) -> int:
    return len(text.split())


def squad(articles: int = 4, paragraphs: int = 10) -> dict[str, Any]:
    """Paragraphs of thirty words with two questions each, one of which has no answer."""

    def paragraph(article: int, number: int) -> dict[str, Any]:
        name = f"p{article}x{number}"
        asked = [
            {"question": f"What is {name}?", "id": name, "answers": [{"text": f"v{name}", "answer_start": at} for at in (0, 9)]},
            {"question": f"What is not {name}?", "id": f"{name}n", "answers": [], "is_impossible": True},
        ]  # fmt: skip
        return {"context": f"The value of {name} is v{name} . " + "and so on " * 7, "qas": asked}

    data = [{"title": f"a{at}", "paragraphs": [paragraph(at, number) for number in range(paragraphs)]} for at in range(articles)]
    return {"version": "v2.0", "data": data}


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()), encoding="utf-8")
    return str(path)


def test_questions_with_an_answer_stand_among_other_paragraphs(source: str) -> None:
    records = list(qa(5, source=[source], count=words, tokens=400))
    assert [record["outputs"] for record in records] == [[f"vp0x{number}"] for number in range(5)]
    places = set()
    for record in records:
        documents = split_documents(record["context"])
        (place,) = record["evidence"]
        places.add(place)
        assert record["outputs"][0] in documents[place - 1] and len(set(documents)) == len(documents) > 5
        assert words(record["context"]) + words(record["input"]) + ANSWER_TOKENS == record["length"] <= 400 < record["length"] + 40
    assert len(places) > 1


def test_a_record_depends_on_the_seed_and_its_number_alone(source: str) -> None:
    few, more, other = (list(qa(n, source=[source], count=words, tokens=400, seed=s)) for n, s in ((2, 0), (4, 0), (2, 1)))
    assert few == more[:2] and few[0]["context"] != other[0]["context"]


def test_hotpotqas_file_is_told_by_its_form(tmp_path: Path) -> None:
    others = [HOTPOT | {"context": [[f"t{n}{m}", [f"Text {n} {m}."]] for m in range(9)], "_id": str(n)} for n in range(9)]
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([HOTPOT, *others]), encoding="utf-8")
    (record,) = qa(1, source=[str(path)], count=words, tokens=150)
    gold = [split_documents(record["context"])[number - 1] for number in record["evidence"]]
    assert record["outputs"] == ["yes"] and sorted(text.split()[0] for text in gold) == ["Ann", "Ben"]


def test_what_the_file_cannot_give_is_said(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match="number=41, but .* has 40 usable questions"):
        qa(41, source=[source], count=words)
    with pytest.raises(ConfigError, match="tokens=9999: all 40 paragraphs that question 0 can have take .*--from"):
        list(qa(1, source=[source], count=words, tokens=9999))
    (tmp_path / "none.json").write_text(
        json.dumps({"data": [{"title": "a", "paragraphs": [{"context": "x", "qas": []}]}]}), encoding="utf-8"
    )
    with pytest.raises(DataError, match="no question with an answer"):
        qa(1, source=[str(tmp_path / "none.json")], count=words)
