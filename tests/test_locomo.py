"""Promise: LoCoMo's file loads with all its faults mended and counted, and becomes Memory-R1's data as the paper splits them."""

from __future__ import annotations

import copy
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.errors import ConfigError, DataError
from memfactory.data.build import BuildConfig, build
from memfactory.data.dialog_records import Loaded
from memfactory.data.dialogs import load_bank_rows, load_dialogs
from memfactory.data.folder import FolderReport
from memfactory.data.memory_r1 import memory_r1

REAL = Path(__file__).parents[2] / "shared" / "benchdata" / "locomo" / "locomo10.json"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="locomo10.json is not there")


@cache
def real() -> Loaded:
    return load_dialogs(REAL)


def turn(name: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"speaker": "Ann", "dia_id": name, "text": text} | more


def conversation(name: str) -> dict[str, Any]:
    """A small conversation with one of each fault."""
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Ben",
            "session_2_date_time": "9:00 am on 2 May, 2023",
            "session_2": [turn("D2:1", "", blip_caption="a photo of a dog", query="dog park"), turn("D2:2")],
            "session_1": [turn("D1:1"), turn("D1:2", "look", blip_caption="a red kite")],
            "session_1_date_time": "1:56 pm on 1 May, 2023",
            "session_3_date_time": "1:56 pm on 3 May, 2023",
            "session_4_date_time": "1:56 pm on 4 May, 2023",
            "session_4": [],
        },
        "qa": [
            {"question": "Which year?", "answer": 2022, "evidence": ["D1:1; D2:02", "D", "D9:9"], "category": 1},
            {"question": "Which trap?", "adversarial_answer": "a cat", "evidence": ["D2:1"], "category": 5},
            {"question": "Is it?", "adversarial_answer": "Yes", "answer": "No", "evidence": ["D2:1"], "category": 5},
            {"question": "Where?", "answer": "home", "evidence": [], "category": 4},
        ],
        "observation": {"session_1_observation": {"Ann": [["Ann said hello.", "D1:1"], ["Nothing.", "D7:1"]]},
                        "session_2_observation": {"Ann": [["Ann has a dog.", ["D2:1", "D1:2"]]]}},
    }  # fmt: skip


def file_of(folder: Path, *names: str) -> Path:
    path = folder / "locomo.json"
    path.write_text(json.dumps([conversation(name) for name in names]), encoding="utf-8")
    return path


def test_each_fault_is_mended_and_counted(tmp_path: Path) -> None:
    loaded = load_dialogs(file_of(tmp_path, "conv-1"))
    (dialogue,) = loaded.dialogues
    assert [session["date"] for session in dialogue["sessions"]] == ["1:56 pm on 1 May, 2023", "9:00 am on 2 May, 2023"]
    assert [t["text"] for session in dialogue["sessions"] for t in session["turns"]] == [
        "hello", "look [photo: a red kite]", "[photo: a photo of a dog]", "hello"
    ]  # fmt: skip
    year, trap, both, where = dialogue["questions"]
    assert year == {"question": "Which year?", "answers": ["2022"], "type": "1", "evidence": ["D1:1", "D2:2"], "abstain": False}
    assert (trap["answers"], trap["abstain"], trap["adversarial_answer"]) == (["unknown"], True, "a cat")
    assert (both["answers"], both["abstain"]) == (["No"], False) and where["evidence"] == []
    assert dialogue["observations"] == [
        {"speaker": "Ann", "text": "Ann said hello.", "evidence": ["D1:1"]},
        {"speaker": "Ann", "text": "Ann has a dog.", "evidence": ["D2:1", "D1:2"]},
    ]
    assert loaded.repairs == Counter({
        "answer that is a number made a text": 1, "malformed evidence read by its pattern": 1, "malformed evidence dropped": 1,
        "evidence with a leading zero": 1, "evidence that names no turn dropped": 1, "question without evidence": 1,
        "adversarial question without an answer: to abstain": 1, "adversarial question with an answer kept as it is": 1,
        "caption of a photo written into the text": 2, "session without turns left out": 1, "date without a session ignored": 1,
        "observation of no turn dropped": 1,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sample_id",), None, "record 0: `sample_id` must be a text"),
        (("conversation", "speaker_b"), 3, r"record 0 \(conv-1\): `speaker_b` must be a text"),
        (("conversation", "session_1_date_time"), "", "`session_1_date_time` must be a text"),
        (("conversation", "session_1", 0, "text"), None, r"session_1\[0\]: `text` must be a text"),
        (("conversation", "session_1", 0, "dia_id"), 4, r"session_1\[0\]: `dia_id`"),
        (("conversation", "session_1", 0), "hi", r"`session_1\[0\]` must be an object"),
        (("conversation", "session_1", 0, "dia_id"), "D1:2", "a second turn with the `id` 'D1:2'"),
        (("qa", 0, "category"), "1", r"qa\[0\]: `category` must be int, got '1'"),
        (("qa", 0, "answer"), None, r"qa\[0\]: `answer` must be a text, a number"),
        (("qa", 0, "evidence"), [1], r"qa\[0\]: `evidence` must be a list of texts"),
        (("qa",), {}, "`qa` must be a list"),
        (("observation",), [], None),
        (("observation",), {"session_1_observation": ["x"]}, "observation: must be"),
        (("observation", "session_1_observation", "Ann"), [["x"]], r"a list of \[fact, turn\]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str | None) -> None:
    row = copy.deepcopy(conversation("conv-1"))
    inner: Any = row
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "x.json").write_text(json.dumps([row]))
    if message is None:
        assert load_dialogs(tmp_path / "x.json").dialogues[0]["observations"] == []
        return
    with pytest.raises(DataError, match=message):
        load_dialogs(tmp_path / "x.json")


@needs_real
def test_the_official_file_has_the_published_counts() -> None:
    dialogues = real().dialogues
    sessions = [session for dialogue in dialogues for session in dialogue["sessions"]]
    assert (len(dialogues), len(sessions), sum(len(session["turns"]) for session in sessions)) == (10, 272, 5882)
    questions = [question for dialogue in dialogues for question in dialogue["questions"]]
    assert len(questions) == 1986
    assert Counter(question["type"] for question in questions) == {"1": 282, "2": 321, "3": 96, "4": 841, "5": 446}
    assert sum(question["abstain"] for question in questions) == 444
    assert sum("adversarial_answer" in question for question in questions) == 446
    assert sum("[photo: " in t["text"] for session in sessions for t in session["turns"]) == 1226
    assert sum(len(dialogue["observations"]) for dialogue in dialogues) == 2541
    by_name = {dialogue["dialog_id"]: dialogue for dialogue in dialogues}
    assert len(by_name["conv-26"]["sessions"]) == 19 and len(by_name["conv-26"]["observations"]) == 184


@needs_real
def test_the_official_files_faults_are_counted() -> None:
    assert real().repairs == Counter({
        "answer that is a number made a text": 6,
        "malformed evidence read by its pattern": 4, "malformed evidence dropped": 2,
        "evidence that names no turn dropped": 2, "evidence with a leading zero": 1, "question without evidence": 4,
        "adversarial question without an answer: to abstain": 444, "adversarial question with an answer kept as it is": 2,
        "caption of a photo written into the text": 1226, "date without a session ignored": 16,
    })  # fmt: skip


@pytest.mark.slow
@needs_real
def test_memory_r1_has_the_papers_split(tmp_path: Path) -> None:
    config = BuildConfig(name="memory-r1", source=[str(REAL)], output=str(tmp_path / "deep" / "memory_r1"))
    report = build(config)
    assert isinstance(report, FolderReport) and {path.name for path in report.path.iterdir()} == {
        "train.jsonl", "val.jsonl", "test.jsonl", "train_turns.jsonl"
    }  # fmt: skip
    parts = {part: load_dialogs(report.path / f"{part}.jsonl").dialogues for part in ("train", "val", "test")}
    types = {part: Counter(q["type"] for d in members for q in d["questions"]) for part, members in parts.items()}
    assert {part: sum(counts.values()) for part, counts in types.items()} == {"train": 152, "val": 81, "test": 1307}
    assert types["train"] == {"1": 32, "2": 37, "3": 13, "4": 70} and types["test"] == {"1": 239, "2": 258, "3": 83, "4": 727}
    assert [[d["dialog_id"] for d in parts[part]] for part in ("train", "val")] == [["conv-26"], ["conv-30"]] and len(parts["test"]) == 8
    rows = load_bank_rows(report.path / "train_turns.jsonl").rows
    assert len(rows) == 150 and len({row["extra"]["trigger_id"] for row in rows}) == 113
    assert sum(not row["extra"]["in_window"] for row in rows) == 23 and all(row["fact"] for row in rows)
    notes = report.rows()
    assert ("with usable evidence", "150 of 152 in train, at 113 turns") in notes
    assert ("unanswerable from the window", "23: evidence over more than 50 turns") in notes
    assert ("repaired", "6 x answer that is a number made a text") in notes and ("adversarial left out", "446") in notes
    again = build(config)
    assert isinstance(again, FolderReport) and not again.written and ("folder", f"{report.path} (unchanged)") in again.rows()


@needs_real
def test_a_single_turn_example_holds_only_facts_of_its_window() -> None:
    (dialogue,) = (d for d in real().dialogues if d["dialog_id"] == "conv-26")
    place = {t["id"]: n for n, t in enumerate(t for session in dialogue["sessions"] for t in session["turns"])}
    rows = memory_r1(source=[str(REAL)], window=24).files["train_turns.jsonl"]
    assert sum(not row["in_window"] for row in rows) == 28
    states: dict[str, Any] = {}
    for row in rows:
        at = place[row["trigger_id"]]
        assert at == max(place[turn] for turn in row["evidence"]) and row["f"][-1]["dia_id"] == row["trigger_id"]
        assert all(at - 24 <= place[item["key"]] < at for item in row["M"])
        assert all(item in row["M"] for item in row["context_memory"])
        # What a turn is judged by is its questions; the state that it starts from is one.
        assert states.setdefault(row["trigger_id"], (row["M"], row["f"], row["context_memory"])) == (
            row["M"],
            row["f"],
            row["context_memory"],
        )
    assert sum(len(row["M"]) > 0 for row in rows) > 140


def test_memory_r1_of_a_small_file(tmp_path: Path) -> None:
    source = file_of(tmp_path, "conv-26", "conv-30", "conv-1")
    made = memory_r1(source=[str(source)])
    (row,) = made.files["train_turns.jsonl"]
    assert (row["trigger_id"], [item["value"] for item in row["M"]]) == ("D2:2", ["Ann said hello.", "Ann has a dog."])
    assert row["M"][0]["created_at"] == "1:56 pm on 1 May, 2023" and row["a"] == ["2022"] and row["in_window"]
    assert [len(d["questions"]) for part in ("train", "val", "test") for d in made.files[f"{part}.jsonl"]] == [2, 2, 2]
    (narrow,) = memory_r1(source=[str(source)], window=1).files["train_turns.jsonl"]
    assert not narrow["in_window"] and [item["value"] for item in narrow["M"]] == ["Ann has a dog."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": '{"train": ["conv-9"]}'}, "conversation 'conv-9' is not in .*There: conv-26, conv-30, conv-1"),
        ({"options": '{"val": ["conv-26"]}'}, "conversation 'conv-26' is in train and in val"),
        ({"options": '{"val": ["conv-30", "conv-1"]}'}, "no conversation is left for test"),
        ({"options": '{"window": 0}'}, "window=0: must be at least 1"),
        ({"number": 5}, "--number 5: memory-r1 makes fixed files"),
        ({"form": "longmemeval"}, "--form longmemeval: memory-r1 makes fixed files"),
        ({"output": "x.json"}, "makes several files. Give a folder, such as"),
        ({"source": []}, "give --from FILE"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = file_of(tmp_path, "conv-26", "conv-30", "conv-1")
    given = {"name": "memory-r1", "source": [str(source)]} | options | {"output": str(tmp_path / options.get("output", "made"))}
    with pytest.raises(ConfigError, match=message):
        build(BuildConfig(**given))
    assert [path.name for path in tmp_path.iterdir()] == ["locomo.json"]


def test_a_folder_with_other_content_is_replaced_only_if_asked_for_and_never_one_with_other_files(tmp_path: Path) -> None:
    source = file_of(tmp_path, "conv-26", "conv-30", "conv-1")

    def made(**options: Any) -> Any:
        return build(BuildConfig(name="memory-r1", source=[str(source)], output=str(tmp_path / "made"), **options))

    assert made().written and not made().written
    with pytest.raises(ConfigError, match="exists with other content"):
        made(options='{"window": 1}')
    assert made(options='{"window": 1}', overwrite=True).written
    (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(mine.txt\)"):
        made(overwrite=True)
    assert (tmp_path / "made" / "mine.txt").read_text() == "mine"


def test_memory_r1_is_made_from_locomo_only(tmp_path: Path) -> None:
    build(BuildConfig(name="synth_dialog", number=3, output=str(tmp_path / "x.json")))
    with pytest.raises(DataError, match="is not LoCoMo's file"):
        memory_r1(source=[str(tmp_path / "x.json")])
