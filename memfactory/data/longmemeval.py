"""LongMemEval's records as dialogues, one question each. Knows the faults of that data set.

Sessions are put in the order of their dates and never looked up by their ids, which repeat. `has_answer` becomes evidence and
is shown to nobody.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from memfactory.common.errors import DataError
from memfactory.data.dialog_records import Record, answer_texts, field, texts

ROLES = ("user", "assistant")
_DATE = re.compile(r"(\d{4})/(\d{2})/(\d{2}) (?:\(\w+\) )?(\d{2}):(\d{2})")


def is_longmemeval(row: Record) -> bool:
    return "haystack_sessions" in row


def longmemeval_dialogue(row: Record, where: str, repairs: Counter[str]) -> Record:
    """One record. Sessions keep their original `id`, the question its `date`, which answers about time need."""
    name = field(row, "question_id", str, where)
    where = f"{where} ({name})"
    dates, ids = texts(row, "haystack_dates", where), texts(row, "haystack_session_ids", where)
    haystack = field(row, "haystack_sessions", list, where)
    if not len(haystack) == len(dates) == len(ids) or not haystack:
        raise DataError(
            f"{where}: `haystack_sessions`, `haystack_dates` and `haystack_session_ids` must be of one length above 0, "
            f"got {len(haystack)}, {len(dates)} and {len(ids)}."
        )
    when = [_minutes(date, f"{where}, haystack_dates[{number}]") for number, date in enumerate(dates)]
    order = sorted(range(len(haystack)), key=lambda at: when[at])
    if order != list(range(len(haystack))):
        repairs["record whose sessions were put in the order of their dates"] += 1
    if len(set(ids)) < len(ids):
        repairs["record with the same session id twice"] += 1
    sessions: list[Record] = []
    marked: list[str] = []
    for at in order:
        turns, answering = _turns(haystack[at], f"{where}, haystack_sessions[{at}]", len(sessions) + 1, repairs)
        if not turns:
            repairs["session without turns left out"] += 1
            continue
        sessions.append({"date": dates[at], "id": ids[at], "turns": turns})
        marked += answering
    if not sessions:
        raise DataError(f"{where}: no session has a turn with text.")
    question = {
        "question": field(row, "question", str, where),
        "answers": answer_texts(row.get("answer"), where, "answer", repairs),
        "type": field(row, "question_type", str, where),
        "evidence": marked or _of_sessions(row, sessions, where, repairs),
        "abstain": name.endswith("_abs"),
        "date": field(row, "question_date", str, where),
    }
    return {"dialog_id": name, "speakers": list(ROLES), "sessions": sessions, "questions": [question]}


def _turns(session: Any, where: str, number: int, repairs: Counter[str]) -> tuple[list[Record], list[str]]:
    """(turns without their marks, ids of those marked as having the answer)."""
    if not isinstance(session, list):
        raise DataError(f"{where}: must be a list of turns, got {session!r:.60}.")
    turns: list[Record] = []
    marked = []
    for at, turn in enumerate(session):
        place = f"{where}[{at}]"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise DataError(f"{place}: must be an object with `role` user or assistant, got {turn!r:.60}.")
        if isinstance(turn.get("content"), str) and not turn["content"].strip():
            repairs["turn without text left out"] += 1
            continue
        name = f"D{number}:{len(turns) + 1}"
        turns.append({"id": name, "speaker": turn["role"], "text": field(turn, "content", str, place)})
        if turn.get("has_answer") is True:
            marked.append(name)
    return turns, marked


def _of_sessions(row: Record, sessions: list[Record], where: str, repairs: Counter[str]) -> list[str]:
    """Where no turn is marked, all turns of the sessions that are named as evidence."""
    named = set(texts(row, "answer_session_ids", where)) if "answer_session_ids" in row else set()
    found = [turn["id"] for session in sessions if session["id"] in named for turn in session["turns"]]
    repairs["record without marked turns: evidence is whole sessions" if found else "question without evidence"] += 1
    return found


def _minutes(date: str, where: str) -> tuple[int, ...]:
    match = _DATE.fullmatch(date.strip())
    if not match:
        raise DataError(f"{where}: the date must look like 2023/05/30 (Tue) 23:40, got {date!r:.60}.")
    return tuple(map(int, match.groups()))
