"""Dialogues written in public formats: the memory-bank rows of MemFactory's `train.jsonl`, and LongMemEval's records.

Knows the forms of records, not how a dialogue was made; memory-bank rows need its `gold`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from memfactory.common.errors import DataError, unknown_name

Record = dict[str, Any]

BUFFER = 4
"""Turns that a row shows as `f`: the one to be stored and those before it."""
RECENT, DRAWN, SIMILAR, CONTEXT = 12, 6, 3, 16
"""`context_memory`: so many drawn of the newest, so many like each turn, and at most so many."""
LONGMEMEVAL_TYPES = {"updated": "knowledge-update", "refined": "knowledge-update", "retracted": "knowledge-update",
                     "additive": "multi-session", "multi_hop": "multi-session", "cascading": "multi-session"}  # fmt: skip
"""LongMemEval's name for our types of question; the others are `single-session-user`."""


def memory_item(number: int | str, key: str, value: str, owner: str, date: str, session: str) -> Record:
    """One item of a bank with the fields of the public files."""
    return {
        "id": str(number), "key": key, "value": value, "memory_type": "fact", "tags": [], "confidence": 0.9, "created_at": date,
        "updated_at": date, "user_id": owner, "session_id": session, "status": "activated", "source_type": "conversation",
        "source_credibility": 1.0, "access_count": 0, "decay_score": 1.0, "version": 1, "embedding": "<vector dim=0>",
    }  # fmt: skip


def context_of(memory: Sequence[Record], turns: Sequence[Record], rng: random.Random) -> list[Record]:
    """The items that a reader is given beside the new ones: some of the newest, and those that share most words with the turns."""
    chosen = rng.sample(list(memory[-RECENT:]), min(DRAWN, len(memory[-RECENT:])))
    for turn in turns:
        words = set(turn["content"].lower().split())
        ranked = sorted(memory, key=lambda item: -len(words & set(item["value"].lower().split())))
        chosen += ranked[:SIMILAR]
    ids = list(dict.fromkeys(item["id"] for item in chosen))[:CONTEXT]
    return [item for item in memory if item["id"] in ids]


def buffer_of(turns: Sequence[Record], at: int) -> list[Record]:
    """The turns up to number `at` as `f` holds them; each turn has its session's date beside."""
    return [
        {"role": turn["speaker"], "content": turn["text"], "dia_id": turn["id"], "timestamp": turn["date"]}
        for turn in turns[max(0, at + 1 - BUFFER) : at + 1]
    ]


def turns_of(dialogue: Record) -> list[Record]:
    """All turns in order, with the date and the number of their session."""
    return [
        turn | {"date": session["date"], "session": number}
        for number, session in enumerate(dialogue["sessions"], 1)
        for turn in session["turns"]
    ]


def memory_bank_rows(dialogue: Record) -> list[Record]:
    """One row a question, `{M, f, q, a, context_memory, sample_id, trigger_id, evidence}`: the gold bank just before the turn that
    the answer lacks, the last turns up to it, the question and its answers. To abstain, the turn is the last of the dialogue.
    """
    if "gold" not in dialogue:
        raise DataError(f"dialogue {dialogue.get('dialog_id')!r} has no `gold`: memory-bank rows are made from generated dialogues only.")
    turns = turns_of(dialogue)
    places = {turn["id"]: at for at, turn in enumerate(turns)}
    banks = _banks_before(dialogue, turns)
    rows = []
    for number, question in enumerate(dialogue["questions"]):
        at = max((places[turn] for turn in question["evidence"]), default=len(turns) - 1)
        shown = buffer_of(turns, at)
        rng = random.Random(f"{dialogue['dialog_id']}/{number}/context")
        rows.append({
            "M": banks[at], "f": shown, "q": question["question"], "a": question["answers"],
            "context_memory": context_of(banks[at], shown, rng), "sample_id": f"{dialogue['dialog_id']}/{number}",
            "trigger_id": turns[at]["id"], "evidence": question["evidence"],
        })  # fmt: skip
    return rows


def _banks_before(dialogue: Record, turns: Sequence[Record]) -> list[list[Record]]:
    """The gold bank before each turn, as items, by replaying the gold operations."""
    bank: dict[int, Record] = {}
    banks = []
    for turn, gold in zip(turns, dialogue["gold"]["turns"], strict=True):
        banks.append(list(bank.values()))
        for edit in gold["ops"]:
            number = edit["id"]
            if edit["op"] == "DEL":
                del bank[number]
            elif edit["op"] == "ADD":
                session = f"{dialogue['dialog_id']}/{turn['session']}"
                bank[number] = memory_item(number, turn["id"], edit["text"], turn["speaker"], turn["date"], session)
            elif edit["op"] == "UPDATE":
                old = bank[number]
                bank[number] = old | {"value": edit["text"], "updated_at": turn["date"], "version": old["version"] + 1}
    return banks


def longmemeval_records(dialogue: Record) -> list[Record]:
    """One record a question in LongMemEval's schema. The first speaker is `user`, the second `assistant`; who speaks stands in
    the text, since a dialogue's questions name people. A question without an answer has `_abs` at its id's end.
    """
    dates = [_stamp(dialogue, number) for number in range(len(dialogue["sessions"]) + 1)]
    sessions = dialogue["sessions"]
    names = [f"{dialogue['dialog_id']}_s{number}" for number in range(len(sessions))]
    records = []
    for number, question in enumerate(dialogue["questions"]):
        evidence = set(question["evidence"])
        records.append({
            "question_id": f"{dialogue['dialog_id']}/{number}{'_abs' if question['abstain'] else ''}",
            "question_type": LONGMEMEVAL_TYPES.get(question["type"], "single-session-user"),
            "question": question["question"],
            "answer": question["answers"][0],
            "question_date": dates[-1],
            "haystack_dates": dates[:-1],
            "haystack_session_ids": names,
            "haystack_sessions": [[_message(dialogue, turn, evidence) for turn in session["turns"]] for session in sessions],
            "answer_session_ids": [
                name for name, session in zip(names, sessions, strict=True) if evidence & {turn["id"] for turn in session["turns"]}
            ],
        })  # fmt: skip
    return records


def _message(dialogue: Record, turn: Record, evidence: set[str]) -> Record:
    role = "user" if turn["speaker"] == dialogue["speakers"][0] else "assistant"
    return {"role": role, "content": f"{turn['speaker']} : {turn['text']}", "has_answer": turn["id"] in evidence}


def _stamp(dialogue: Record, number: int) -> str:
    """The date of a session in LongMemEval's form; the tiny world's days are counted from a Monday. Past the end, a day later."""
    last = len(dialogue["sessions"]) - 1
    date = dialogue["sessions"][min(number, last)]["date"]
    if date.startswith("day "):
        day = datetime(2023, 1, 2, 9) + timedelta(days=number)
    else:
        day = datetime.strptime(date[:10] + date[-6:], "%Y/%m/%d %H:%M") + timedelta(days=int(number > last))
    weekday = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[day.weekday()]
    return f"{day:%Y/%m/%d} ({weekday}) {day:%H:%M}"


MAKERS: dict[str, Callable[[Record], list[Record]]] = {
    "dialogue": lambda dialogue: [dialogue],
    "memory_bank": memory_bank_rows,
    "longmemeval": longmemeval_records,
}
"""The forms that a dialogue can be written in."""


def in_form(form: str, dialogues: Sequence[Record]) -> list[Record]:
    """Dialogues in a form of `MAKERS`."""
    if form not in MAKERS:
        raise unknown_name("form of a dialogue", form, MAKERS)
    return [row for dialogue in dialogues for row in MAKERS[form](dialogue)]
