"""`memory-r1`: LoCoMo made into Memory-R1's data (arXiv 2508.19828, App. B): one conversation to train, one to validate, eight to test.

Questions of category 5 are left out, as in the paper: 152, 81 and 1,307 stay. For training there are also single-turn examples,
each at the turn that completes the answer's evidence. Knows no agent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, DataError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.dialog_forms import buffer_of, context_of, memory_item, turns_of
from memfactory.data.dialogs import load_dialogs
from memfactory.data.folder import DataFolder
from memfactory.data.locomo import ADVERSARIAL

Record = dict[str, Any]


@GENERATOR_REGISTRY.register("memory-r1")
def memory_r1(
    *, source: Sequence[str], train: Sequence[str] = ("conv-26",), val: Sequence[str] = ("conv-30",), window: int = 50
) -> DataFolder:
    """LoCoMo as Memory-R1 splits it: train.jsonl, val.jsonl, test.jsonl hold dialogues, train_turns.jsonl single-turn examples.

    A single-turn example is a memory-bank row at the last turn of a question's evidence: `M` are the facts that LoCoMo's makers
    extracted from the `window` turns before, `f` the last turns, `in_window` whether all evidence is in that window. `train`
    and `val` name conversations; the others are the test set.
    """
    if window < 1:
        raise ConfigError(f"window={window}: must be at least 1 turn.")
    dialogues, repairs = _read([Path(name).expanduser() for name in source])
    names = [dialogue["dialog_id"] for dialogue in dialogues]
    for name in [*train, *val]:
        if name not in names:
            raise ConfigError(f"conversation {name!r} is not in {', '.join(source)}. There: {', '.join(names)}.")
    if both := set(train) & set(val):
        raise ConfigError(f"conversation {sorted(both)[0]!r} is in train and in val.")
    left_out = sum(question["type"] == ADVERSARIAL for dialogue in dialogues for question in dialogue["questions"])
    kept = [
        dialogue | {"questions": [question for question in dialogue["questions"] if question["type"] != ADVERSARIAL]}
        for dialogue in dialogues
    ]
    parts = {
        "train": [dialogue for dialogue in kept if dialogue["dialog_id"] in train],
        "val": [dialogue for dialogue in kept if dialogue["dialog_id"] in val],
        "test": [dialogue for dialogue in kept if dialogue["dialog_id"] not in (*train, *val)],
    }
    if empty := [part for part, members in parts.items() if not members]:
        raise ConfigError(f"no conversation is left for {empty[0]}. There: {', '.join(names)}.")
    turns = [row for dialogue in parts["train"] for row in single_turns(dialogue, window)]
    files = {f"{part}.jsonl": members for part, members in parts.items()} | {"train_turns.jsonl": turns}
    notes = [(f"questions in {part}", _counted(members)) for part, members in parts.items()]
    notes += [("adversarial left out", str(left_out)), *_turn_notes(parts["train"], turns, window)]
    notes += [("repaired", f"{number} x {repair}") for repair, number in sorted(repairs.items())]
    return DataFolder(files, notes)


def single_turns(dialogue: Record, window: int) -> list[Record]:
    """One row for each question with usable evidence, at the last turn of it; rows of one `trigger_id` share all but the question."""
    turns = turns_of(dialogue)
    places = {turn["id"]: at for at, turn in enumerate(turns)}
    facts = [(max(places[turn] for turn in fact["evidence"]), number, fact) for number, fact in enumerate(dialogue.get("observations", []))]
    facts.sort(key=lambda entry: entry[:2])
    rows = []
    for number, question in enumerate(dialogue["questions"]):
        if not question["evidence"]:
            continue
        evidence = [places[turn] for turn in question["evidence"]]
        at = max(evidence)
        memory = [_item(dialogue, turns[place], index, fact) for place, index, fact in facts if at - window <= place < at]
        shown = buffer_of(turns, at)
        # Drawn by the turn and not by the question: the rows of one turn start from one state.
        rng = random.Random(f"{dialogue['dialog_id']}/{turns[at]['id']}/context")
        rows.append({
            "M": memory, "f": shown, "q": question["question"], "a": question["answers"], "context_memory": context_of(memory, shown, rng),
            "sample_id": f"{dialogue['dialog_id']}/{number}", "trigger_id": turns[at]["id"], "evidence": question["evidence"],
            "type": question["type"], "in_window": at - min(evidence) <= window,
        })  # fmt: skip
    return rows


def _item(dialogue: Record, turn: Record, number: int, fact: Record) -> Record:
    session = f"{dialogue['dialog_id']}/{turn['session']}"
    return memory_item(number, turn["id"], fact["text"], fact["speaker"], turn["date"], session)


def _read(paths: Sequence[Path]) -> tuple[list[Record], Counter[str]]:
    dialogues: list[Record] = []
    repairs: Counter[str] = Counter()
    for path in paths:
        loaded = load_dialogs(path)
        if not all("observations" in dialogue for dialogue in loaded.dialogues):
            raise DataError(f"{path} is not LoCoMo's file: memory-r1 is built from locomo10.json (github.com/snap-research/locomo).")
        dialogues += loaded.dialogues
        repairs += loaded.repairs
    return dialogues, repairs


def _counted(dialogues: Sequence[Record]) -> str:
    """`152 (32 of category 1, 37 of 2, ...)`"""
    types = Counter(question["type"] for dialogue in dialogues for question in dialogue["questions"])
    listed = ", ".join(f"{number} of category {kind}" for kind, number in sorted(types.items()))
    return f"{sum(types.values())} ({listed}) in {len(dialogues)} conversations"


def _turn_notes(train: Sequence[Record], rows: Sequence[Record], window: int) -> list[tuple[str, str]]:
    questions = sum(len(dialogue["questions"]) for dialogue in train)
    triggers = len({(row["sample_id"].rpartition("/")[0], row["trigger_id"]) for row in rows})
    outside = sum(not row["in_window"] for row in rows)
    return [
        ("with usable evidence", f"{len(rows)} of {questions} in train, at {triggers} turns"),
        ("unanswerable from the window", f"{outside}: evidence over more than {window} turns"),
    ]
