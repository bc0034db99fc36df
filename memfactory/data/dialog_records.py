"""The common form of a dialogue, what loaders return, and the checks that all of them share. Knows no published format.

    {"dialog_id": str, "speakers": [str, ...],
     "sessions": [{"date": str, "turns": [{"id": "D1:3", "speaker": str, "text": str}]}],
     "questions": [{"question": str, "answers": [str, ...], "type": str, "evidence": [turn ids], "abstain": bool}]}

`answers` are all accepted ones. `abstain`: right is to say that it cannot be known. Beside these, records may have more keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Dialogues of a file, and how often each kind of repair was made."""

    dialogues: list[Record]
    repairs: Counter[str]


def field(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """`row[key]`, or a `DataError` that names the record and the field if it is missing, of another kind, or a blank text."""
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or (isinstance(value, str) and not value.strip()):
        wanted = {str: "a text that is not empty", list: "a list", dict: "an object", bool: "true or false"}.get(kind, kind.__name__)
        raise DataError(f"{where}: `{key}` must be {wanted}, got {value!r:.60}. Keys here: {', '.join(map(str, row))}.")
    return value


def objects(row: Mapping[str, Any], key: str, where: str, empty: bool = False) -> list[Record]:
    """`row[key]`, a list of objects that is not empty unless `empty`."""
    values = field(row, key, list, where)
    if not values and not empty:
        raise DataError(f"{where}: `{key}` is empty.")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{where}: `{key}[{number}]` must be an object, got {value!r:.60}.")
    return values


def texts(row: Mapping[str, Any], key: str, where: str) -> list[str]:
    """`row[key]`, a list of texts."""
    values = field(row, key, list, where)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: `{key}` must be a list of texts, got {values!r:.60}.")
    return values


def answer_texts(value: Any, where: str, key: str, repairs: Counter[str]) -> list[str]:
    """All gold answers as texts; a number becomes a text, which is counted."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) and str(v).strip() for v in values):
        raise DataError(f"{where}: `{key}` must be a text, a number or a list of them that is not empty, got {value!r:.60}.")
    numbers = sum(not isinstance(v, str) for v in values)
    if numbers:
        repairs["answer that is a number made a text"] += numbers
    return [str(v) for v in values]


def completed(dialogue: Record, name: str) -> Record:
    """One's own dialogue with what it left out: its id (`name`), its speakers, turn ids, a question's type, evidence and `abstain`.

    Example: {"sessions": [{"date": "8 May", "turns": [{"speaker": "Ann", "text": "I moved."}]}], "questions": [...]}
    What is there stays as it is, right or wrong: `check_dialogue` looks at it.
    """
    whole = {"dialog_id": name} | dialogue
    sessions, questions = whole["sessions"], whole["questions"]
    if isinstance(sessions, list):
        whole["sessions"] = [_with_turn_ids(session, number) for number, session in enumerate(sessions, 1)]
        turns = [turn for session in whole["sessions"] if isinstance(session, dict) for turn in session.get("turns") or ()]
        whole.setdefault("speakers", list(dict.fromkeys(turn["speaker"] for turn in turns if isinstance(turn, dict) and "speaker" in turn)))
    if isinstance(questions, list):
        defaults: Record = {"type": "question", "evidence": [], "abstain": False}
        whole["questions"] = [defaults | each if isinstance(each, dict) else each for each in questions]
    return whole


def _with_turn_ids(session: Any, number: int) -> Any:
    if not isinstance(session, dict) or not isinstance(session.get("turns"), list):
        return session
    turns = [{"id": f"{number}:{at}"} | turn if isinstance(turn, dict) else turn for at, turn in enumerate(session["turns"], 1)]
    return session | {"turns": turns}


def check_dialogue(dialogue: Record, where: str) -> Record:
    """The same dialogue if it has the common form, else a `DataError`. Turn ids are unique and evidence names turns."""
    field(dialogue, "dialog_id", str, where)
    if not texts(dialogue, "speakers", where):
        raise DataError(f"{where}: `speakers` is empty.")
    ids: set[str] = set()
    for number, session in enumerate(objects(dialogue, "sessions", where)):
        place = f"{where}, sessions[{number}]"
        field(session, "date", str, place)
        for at, turn in enumerate(objects(session, "turns", place)):
            for key in ("id", "speaker", "text"):
                field(turn, key, str, f"{place}.turns[{at}]")
            if turn["id"] in ids:
                raise DataError(f"{place}.turns[{at}]: a second turn with the `id` {turn['id']!r}.")
            ids.add(turn["id"])
    for number, question in enumerate(objects(dialogue, "questions", where, empty=True)):
        place = f"{where}, questions[{number}]"
        field(question, "question", str, place)
        field(question, "type", str, place)
        field(question, "abstain", bool, place)
        if not [answer for answer in texts(question, "answers", place) if answer.strip()]:
            raise DataError(f"{place}: `answers` has no text.")
        if unknown := [turn for turn in texts(question, "evidence", place) if turn not in ids]:
            raise DataError(f"{place}: `evidence` names {unknown[0]!r}, which is no turn of this dialogue.")
    return dialogue
