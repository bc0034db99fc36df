"""Promise: dialogues become the public memory-bank rows and LongMemEval's records without losing what answers the questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.errors import ConfigError, DataError, UnknownNameError
from memfactory.data.build import BuildConfig, build
from memfactory.data.dialog_forms import in_form, longmemeval_records, memory_bank_rows, turns_of
from memfactory.data.dialog_rules import answers_from
from memfactory.data.dialogs import load_bank_rows, load_dialogs
from memfactory.data.generators.dialog_bank import apply, oracle
from memfactory.data.generators.dialog_world import RENDERINGS, read_line
from memfactory.data.generators.synth_dialog import synth_dialog

KEYS = {"M", "f", "q", "a", "context_memory", "sample_id", "trigger_id", "evidence"}
ITEM = {
    "id", "key", "value", "memory_type", "tags", "confidence", "created_at", "updated_at", "user_id", "session_id", "status",
    "source_type", "source_credibility", "access_count", "decay_score", "version", "embedding",
}  # fmt: skip


def dialogues(rendering: str, number: int = 24) -> list[dict[str, Any]]:
    return list(synth_dialog(number, seed=7, sessions=(2, 6), rendering=rendering))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_bank_row_lacks_only_what_its_last_turn_tells(rendering: str) -> None:
    for dialogue in dialogues(rendering):
        rows = memory_bank_rows(dialogue)
        assert [row["q"] for row in rows] == [q["question"] for q in dialogue["questions"]]
        for row, question in zip(rows, dialogue["questions"], strict=True):
            assert set(row) == KEYS and row["a"] == question["answers"] and json.loads(json.dumps(row)) == row
            assert all(set(item) == ITEM for item in row["M"] + row["context_memory"])
            assert 1 <= len(row["f"]) <= 4 and row["f"][-1]["dia_id"] == row["trigger_id"]
            assert len(row["context_memory"]) <= 16 and all(item in row["M"] for item in row["context_memory"])
            bank = {int(item["id"]): said for item in row["M"] if (said := read_line(item["value"]))}
            assert len(bank) == len(row["M"])
            told = read_line(row["f"][-1]["content"], row["f"][-1]["role"])
            after = apply(bank, oracle(bank, told, 999)) if told else bank
            assert answers_from(after, [question])[0] in [gold.lower() for gold in question["answers"]]


def test_a_bank_rows_items_tell_when_they_were_made_and_changed() -> None:
    rows = [row for dialogue in dialogues("prose") for row in memory_bank_rows(dialogue)]
    items = [item for row in rows for item in row["M"]]
    changed = [item for item in items if item["version"] > 1]
    assert changed and all(item["updated_at"] > item["created_at"] for item in changed)
    assert all(item["updated_at"] == item["created_at"] for item in items if item["version"] == 1)


def test_bank_rows_need_the_gold() -> None:
    (dialogue,) = dialogues("prose", 1)
    with pytest.raises(DataError, match="'synth_dialog/7/0' has no `gold`"):
        memory_bank_rows({key: value for key, value in dialogue.items() if key != "gold"})


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_longmemeval_records_load_as_the_same_dialogues(tmp_path: Path, rendering: str) -> None:
    made = dialogues(rendering)
    records = in_form("longmemeval", made)
    (tmp_path / "lme.json").write_text(json.dumps(records))
    loaded = load_dialogs(tmp_path / "lme.json")
    assert not {repair for repair in loaded.repairs if repair != "question without evidence"}
    asked = [(dialogue, question) for dialogue in made for question in dialogue["questions"]]
    assert len(loaded.dialogues) == len(asked)
    for got, (dialogue, question) in zip(loaded.dialogues, asked, strict=True):
        assert [turn["text"] for turn in turns_of(got)] == [f"{turn['speaker']} : {turn['text']}" for turn in turns_of(dialogue)]
        (found,) = got["questions"]
        assert (found["question"], found["answers"], found["evidence"], found["abstain"]) == (
            question["question"], question["answers"][:1], question["evidence"], question["abstain"]
        )  # fmt: skip
    assert {record["question_type"] for record in records} == {"knowledge-update", "multi-session", "single-session-user"}
    assert all(record["question_id"].endswith("_abs") == (record["answer"] == "unknown") for record in records)
    record = longmemeval_records(made[0])[0]
    assert record["question_date"] > record["haystack_dates"][-1] and len(record["haystack_sessions"]) == len(made[0]["sessions"])
    assert {turn["role"] for session in record["haystack_sessions"] for turn in session} == {"user", "assistant"}


def test_every_form_is_built_from_the_command_line_and_loads(tmp_path: Path) -> None:
    def made(form: str) -> Path:
        config = BuildConfig(name="synth_dialog", output=str(tmp_path / f"{form}.jsonl"), number=6, form=form, options='{"sessions": [3]}')
        report = build(config)
        rows = dict(report.rows())
        assert rows["records"] == ("6" if form == "dialogue" else "24") and rows["answer follows from the text"] == "100.0%"
        assert "problem" not in rows and {"dialogue": "turns", "memory_bank": "memories", "longmemeval": "sessions"}[form] in str(rows)
        return report.path  # type: ignore[union-attr]

    assert load_dialogs(made("dialogue")).dialogues == list(synth_dialog(6, sessions=(3,)))
    assert len(load_bank_rows(made("memory_bank")).rows) == len(load_dialogs(made("longmemeval")).dialogues) == 24


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "memory_banks"}, UnknownNameError, "form of a dialogue 'memory_banks'. Did you mean 'memory_bank'"),
        ({"name": "synth_facts", "form": "longmemeval"}, ConfigError, "synth_facts makes no dialogues"),
        ({"output": "x.parquet"}, ConfigError, "parquet has MemAgent's schema"),
        ({"options": '{"sessions": 3}'}, ConfigError, r"sessions=3 must be of the type of its default, \(2, 3, 4\)"),
        ({"docs": 20}, UnknownNameError, "option of synth_dialog 'docs'"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, options: dict[str, Any], error: type, message: str) -> None:
    if "parquet" in options.get("output", ""):
        pytest.importorskip("pyarrow")
    given = {"name": "synth_dialog", "number": 2} | options | {"output": str(tmp_path / options.get("output", "x.json"))}
    with pytest.raises(error, match=message):
        build(BuildConfig(**given))
    assert list(tmp_path.iterdir()) == []
