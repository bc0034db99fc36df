"""Promise: every published form of dialogues and of memory-bank rows loads, faults are mended and counted, and a wrong file is named."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.errors import DataError, MissingFileError
from memfactory.data.dialogs import load_bank_rows, load_dialogs
from memfactory.data.generators.synth_dialog import synth_dialog

REAL = Path(__file__).parents[2] / "shared" / "benchdata" / "longmemeval"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark files are not there")

RECORD: dict[str, Any] = {
    "question_id": "q1",
    "question_type": "multi-session",
    "question": "How many plants did I buy?",
    "answer": 3,
    "question_date": "2023/05/30 (Tue) 23:40",
    "haystack_dates": ["2023/05/20 (Sat) 02:57", "2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 01:00"],
    "haystack_session_ids": ["s2", "s1", "s1"],
    "haystack_sessions": [
        [{"role": "user", "content": "I bought two."}, {"role": "assistant", "content": "Nice.", "has_answer": False}],
        [{"role": "user", "content": "I bought one.", "has_answer": True}, {"role": "assistant", "content": ""}],
        [],
    ],
    "answer_session_ids": ["s1", "s2"],
}
OWN: dict[str, Any] = {
    "dialog_id": "d",
    "speakers": ["A", "B"],
    "sessions": [{"date": "day 1", "turns": [{"id": "D1:1", "speaker": "A", "text": "hello"}]}],
    "questions": [{"question": "q", "answers": ["a"], "type": "plain", "evidence": ["D1:1"], "abstain": False}],
}
ITEM = {"id": "m1", "key": "k", "value": "A likes tea", "memory_type": "fact"}
ROW: dict[str, Any] = {
    "M": [ITEM],
    "f": [{"role": "A", "content": "Now I like coffee.", "dia_id": "D1:3", "timestamp": "day 1"}],
    "q": "What does A like?",
    "a": "coffee",
    "context_memory": [dict(ITEM)],
    "sample_id": "s",
    "trigger_id": "D1:3",
    "evidence": ["D1:3"],
}


def written(folder: Path, value: Any, name: str = "data.json") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in value) if name.endswith(".jsonl") else json.dumps(value)
    path.write_text(lines, encoding="utf-8")
    return path


def changed(record: dict[str, Any], *path: Any, value: Any = None, drop: bool = False) -> dict[str, Any]:
    """A copy in which one field is another value, or gone."""
    record = copy.deepcopy(record)
    inner: Any = record
    for step in path[:-1]:
        inner = inner[step]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return record


def test_longmemeval_is_put_in_order_and_shows_no_marks(tmp_path: Path) -> None:
    loaded = load_dialogs(written(tmp_path, RECORD))
    (dialogue,) = loaded.dialogues
    assert dialogue["speakers"] == ["user", "assistant"] and [s["id"] for s in dialogue["sessions"]] == ["s1", "s2"]
    assert dialogue["sessions"][0]["turns"] == [{"id": "D1:1", "speaker": "user", "text": "I bought one."}]
    assert dialogue["questions"] == [
        {"question": "How many plants did I buy?", "answers": ["3"], "type": "multi-session", "evidence": ["D1:1"], "abstain": False,
         "date": "2023/05/30 (Tue) 23:40"}
    ]  # fmt: skip
    assert loaded.repairs == Counter({
        "record whose sessions were put in the order of their dates": 1, "record with the same session id twice": 1,
        "session without turns left out": 1, "turn without text left out": 1, "answer that is a number made a text": 1,
    })  # fmt: skip
    assert "has_answer" not in json.dumps(dialogue)


def test_longmemeval_abstention_and_evidence_without_marks(tmp_path: Path) -> None:
    unmarked = changed(RECORD, "haystack_sessions", 1, 0, value={"role": "user", "content": "I bought one."}) | {"question_id": "q_abs"}
    loaded = load_dialogs(written(tmp_path, [RECORD, unmarked]))
    assert [d["questions"][0]["abstain"] for d in loaded.dialogues] == [False, True]
    assert loaded.dialogues[1]["questions"][0]["evidence"] == ["D1:1", "D2:1", "D2:2"]
    assert loaded.repairs["record without marked turns: evidence is whole sessions"] == 1


@needs_real
@pytest.mark.parametrize(
    ("name", "records", "sessions", "turns", "repairs"),
    [
        ("memmachine_longmemeval_snippet.json", 1, 3, 13, {"record whose sessions were put in the order of their dates": 1}),
        ("lightmem_longmemeval_single.json", 1, 53, 550, {}),
        ("longmemeval_oracle16_reconstructed.json", 16, 26, 306, {
            "record whose sessions were put in the order of their dates": 2, "answer that is a number made a text": 1,
            "record without marked turns: evidence is whole sessions": 16,
        }),
    ],
)  # fmt: skip
def test_real_longmemeval_files_load_with_their_counts(name: str, records: int, sessions: int, turns: int, repairs: dict[str, int]) -> None:
    loaded = load_dialogs(REAL / name)
    found = [session for dialogue in loaded.dialogues for session in dialogue["sessions"]]
    assert (len(loaded.dialogues), len(found), sum(len(session["turns"]) for session in found)) == (records, sessions, turns)
    assert loaded.repairs == Counter(repairs)
    assert all([s["date"] for s in d["sessions"]] == sorted(s["date"] for s in d["sessions"]) for d in loaded.dialogues)
    assert "has_answer" not in json.dumps(loaded.dialogues)
    types = Counter(d["questions"][0]["type"] for d in loaded.dialogues)
    if records == 16:
        assert types == {"temporal-reasoning": 3, "multi-session": 3, "knowledge-update": 3, "single-session-user": 2,
                         "single-session-assistant": 2, "single-session-preference": 3}  # fmt: skip
    else:
        assert all(len(dialogue["questions"][0]["evidence"]) == 2 for dialogue in loaded.dialogues)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_generated_dialogues_load_as_they_are(tmp_path: Path, name: str) -> None:
    made = list(synth_dialog(3))
    loaded = load_dialogs(written(tmp_path, made, name))
    assert loaded.dialogues == made and loaded.repairs == Counter()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            changed(OWN, "dialog_id", value=7),
            r"record 0: `dialog_id` must be a text that is not empty, got 7. Keys here: dialog_id, speakers",
        ),
        (changed(OWN, "speakers", value=[]), "`speakers` is empty"),
        (changed(OWN, "sessions", value=[]), "record 0: `sessions` is empty"),
        (changed(OWN, "sessions", 0, "date", drop=True), r"sessions\[0\]: `date` must be a text"),
        (changed(OWN, "sessions", 0, "turns", 0, "text", value=" "), r"sessions\[0\].turns\[0\]: `text`"),
        (changed(OWN, "sessions", 0, "turns", value=["hello"]), r"`turns\[0\]` must be an object, got 'hello'"),
        (changed(OWN, "sessions", 0, "turns", value=OWN["sessions"][0]["turns"] * 2), r"turns\[1\]: a second turn with the `id` 'D1:1'"),
        (changed(OWN, "questions", 0, "answers", value=[]), r"questions\[0\]: `answers` has no text"),
        (changed(OWN, "questions", 0, "answers", value="a"), "`answers` must be a list, got 'a'"),
        (changed(OWN, "questions", 0, "abstain", value="no"), "`abstain` must be true or false"),
        (changed(OWN, "questions", 0, "evidence", value=["D9:1"]), "`evidence` names 'D9:1', which is no turn"),
        (changed(OWN, "questions", value=[]), "none of its 1 dialogues has a question"),
        (changed(RECORD, "haystack_dates", value=["2023/05/20 (Sat) 02:57"]), "must be of one length above 0, got 3, 1 and 3"),
        (
            changed(RECORD, "haystack_dates", 1, value="yesterday"),
            r"\(q1\), haystack_dates\[1\]: the date must look like .* got 'yesterday'",
        ),
        (
            changed(RECORD, "haystack_sessions", 0, 0, value={"role": "tool", "content": "x"}),
            r"haystack_sessions\[0\]\[0\]: .*`role` user or",
        ),
        (changed(RECORD, "haystack_sessions", 0, 0, "content", value=None), r"haystack_sessions\[0\]\[0\]: `content` must be a text"),
        (changed(RECORD, "answer", value=None), r"record 0 \(q1\): `answer` must be a text, a number or a list"),
        (changed(RECORD, "answer", value=True), "got True"),
        (changed(RECORD, "question_type", drop=True), "`question_type` must be a text"),
        ({"context": "x", "input": "y"}, r"expected `\{dialog_id, sessions, questions\}`.*with the keys context, input"),
        ("text", "got 'text'"),
    ],
)
def test_what_is_wrong_in_a_record_is_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dialogs(written(tmp_path, [record]))
    assert str(tmp_path / "data.json") in str(caught.value)


def test_an_empty_a_doubled_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it holds none"):
        load_dialogs(written(tmp_path, []))
    with pytest.raises(DataError, match="record 1: its id 'd' is that of record 0 too"):
        load_dialogs(written(tmp_path, [OWN, OWN]))
    with pytest.raises(MissingFileError, match="data build synth_dialog"):
        load_dialogs(tmp_path / "none.json")
    with pytest.raises(DataError, match="it holds none"):
        load_bank_rows(written(tmp_path, [], "rows.jsonl"))


def spelled_out(row: dict[str, Any]) -> dict[str, Any]:
    names = {"M": "memory", "f": "fact", "q": "query", "a": "answer"}
    return {names.get(key, key): value for key, value in row.items()}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_bank_rows_load_in_both_spellings(tmp_path: Path, name: str) -> None:
    short, long = (load_bank_rows(written(tmp_path, [row], name)) for row in (ROW, spelled_out(ROW)))
    assert short == long and short.repairs == Counter()
    assert short.rows == [
        {"example_id": "data/0", "memory": [ITEM], "fact": ROW["f"], "context_memory": [ITEM], "query": ROW["q"], "answers": ["coffee"],
         "sessions": None, "extra": {"sample_id": "s", "trigger_id": "D1:3", "evidence": ["D1:3"]}}
    ]  # fmt: skip


def test_bank_rows_keep_all_golds_and_count_repairs(tmp_path: Path) -> None:
    rows = [changed(ROW, "a", value=["coffee", 3]), changed(ROW, "context_memory", drop=True), changed(ROW, "M", value=[])]
    loaded = load_bank_rows(written(tmp_path, rows))
    assert [row["answers"] for row in loaded.rows] == [["coffee", "3"], ["coffee"], ["coffee"]]
    assert loaded.rows[1]["context_memory"] == [] == loaded.rows[2]["memory"]
    assert loaded.repairs == Counter({"answer that is a number made a text": 1, "row without context_memory: taken as empty": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(ROW, "q", drop=True), r"record 0: `q` \(or `query`\) is missing. Keys here: M, f"),
        (ROW | {"query": "another"}, "`q` and `query` are both there and differ"),
        (changed(ROW, "a", value=[]), "`a` must be a text, a number or a list of them that is not empty"),
        (changed(ROW, "f", value=[]), "`f` is empty"),
        (changed(ROW, "f", 0, "content", drop=True), r"f\[0\]: `content` must be a text"),
        (changed(ROW, "M", 0, "value", value=""), r"M\[0\]: `value` must be a text"),
        (changed(ROW, "M", 0, "id", value=None), r"M\[0\]: `id` must be a text or a whole number"),
        (changed(ROW, "context_memory", value=["A likes tea"]), r"`context_memory\[0\]` must be an object"),
    ],
)
def test_what_is_wrong_in_a_bank_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_bank_rows(written(tmp_path, [row]))
