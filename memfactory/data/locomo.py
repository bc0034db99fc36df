"""LoCoMo (`locomo10.json`) as dialogues. Knows that file's faults and mends them one by one, counting each.

Categories stay numbers, as texts: "1" is multi-hop, "2" temporal, "3" open-domain, "4" single-hop, "5" adversarial. Other
projects have swapped the names. The data are under CC BY-NC 4.0 and no part of this project.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from memfactory.common.errors import DataError
from memfactory.data.dialog_records import Record, answer_texts, field, objects

ADVERSARIAL = "5"
NOT_KNOWN = "unknown"
_REFERENCE = re.compile(r"D(\d+):(\d+)")
_SESSION = re.compile(r"session_(\d+)")


def is_locomo(row: Record) -> bool:
    return "conversation" in row and "qa" in row


def locomo_dialogue(row: Record, where: str, repairs: Counter[str]) -> Record:
    """One conversation. `observations` are the facts that the file's makers extracted: `{speaker, text, evidence}`."""
    name = field(row, "sample_id", str, where)
    where = f"{where} ({name})"
    conversation = field(row, "conversation", dict, where)
    sessions = _sessions(conversation, where, repairs)
    ids = {turn["id"] for session in sessions for turn in session["turns"]}
    questions = [_question(qa, f"{where}, qa[{number}]", ids, repairs) for number, qa in enumerate(objects(row, "qa", where, empty=True))]
    return {
        "dialog_id": name,
        "speakers": [field(conversation, f"speaker_{letter}", str, where) for letter in "ab"],
        "sessions": sessions,
        "questions": questions,
        "observations": _observations(row.get("observation") or {}, f"{where}, observation", ids, repairs),
    }


def _sessions(conversation: Record, where: str, repairs: Counter[str]) -> list[Record]:
    """The sessions by their number. Dates are looked up, not gone through: there are more dates than sessions."""
    numbers = sorted(int(match[1]) for key in conversation if (match := _SESSION.fullmatch(key)))
    sessions = []
    for number in numbers:
        turns = objects(conversation, f"session_{number}", where, empty=True)
        if not turns:
            repairs["session without turns left out"] += 1
            continue
        date = field(conversation, f"session_{number}_date_time", str, where)
        place = f"{where}, session_{number}"
        sessions.append({"date": date, "turns": [_turn(turn, f"{place}[{at}]", repairs) for at, turn in enumerate(turns)]})
    if not sessions:
        raise DataError(
            f"{where}: no session with turns. Expected keys session_1, session_1_date_time, ...; got {', '.join(conversation)}."
        )
    dates = sum(key.endswith("_date_time") for key in conversation)
    if dates > len(numbers):
        repairs["date without a session ignored"] += dates - len(numbers)
    return sessions


def _turn(turn: Record, where: str, repairs: Counter[str]) -> Record:
    """A turn; what a photo shows is written behind its text, as questions ask for it. How the photo was searched for is not."""
    text, caption = turn.get("text"), turn.get("blip_caption")
    if caption is not None and caption != "":
        field(turn, "blip_caption", str, where)
        repairs["caption of a photo written into the text"] += 1
        text = f"{text or ''} [photo: {caption}]".strip()
    field(turn | {"text": text}, "text", str, where)
    return {"id": field(turn, "dia_id", str, where), "speaker": field(turn, "speaker", str, where), "text": text}


def _question(qa: Record, where: str, ids: set[str], repairs: Counter[str]) -> Record:
    category = str(field(qa, "category", int, where))
    abstain = category == ADVERSARIAL and qa.get("answer") is None
    if abstain:
        repairs["adversarial question without an answer: to abstain"] += 1
    elif category == ADVERSARIAL:
        repairs["adversarial question with an answer kept as it is"] += 1
    question = {
        "question": field(qa, "question", str, where),
        "answers": [NOT_KNOWN] if abstain else answer_texts(qa.get("answer"), where, "answer", repairs),
        "type": category,
        "evidence": _evidence(qa.get("evidence"), where, ids, repairs),
        "abstain": abstain,
    }
    # Kept aside: it is what a model that is taken in says, and wrong.
    return question | ({"adversarial_answer": str(qa["adversarial_answer"])} if "adversarial_answer" in qa else {})


def _evidence(value: Any, where: str, ids: set[str], repairs: Counter[str]) -> list[str]:
    """Turn ids from what is there: several in one text, broken ones, and ones that name no turn."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise DataError(f"{where}: `evidence` must be a list of texts such as D1:3, got {value!r:.60}.")
    if not listed:
        repairs["question without evidence"] += 1
    found: list[str] = []
    for text in listed:
        references = _REFERENCE.findall(text)
        if not _REFERENCE.fullmatch(text):
            repairs[f"malformed evidence {'read by its pattern' if references else 'dropped'}"] += 1
        for session, turn in references:
            reference = f"D{int(session)}:{int(turn)}"
            if f"D{session}:{turn}" != reference:
                repairs["evidence with a leading zero"] += 1
            if reference in ids:
                found.append(reference)
            else:
                repairs["evidence that names no turn dropped"] += 1
    return list(dict.fromkeys(found))


def _observations(value: Any, where: str, ids: set[str], repairs: Counter[str]) -> list[Record]:
    if not isinstance(value, dict) or not all(isinstance(facts, dict) for facts in value.values()):
        raise DataError(f"{where}: must be {{session_1_observation: {{speaker: [[fact, turn], ...]}}}}, got {value!r:.60}.")
    found = []
    for key, speakers in value.items():
        for speaker, facts in speakers.items():
            if not isinstance(facts, list) or not all(isinstance(fact, list) and len(fact) == 2 for fact in facts):
                raise DataError(f"{where}.{key}.{speaker}: must be a list of [fact, turn], got {facts!r:.60}.")
            for text, turns in facts:
                references = _REFERENCE.findall(turns if isinstance(turns, str) else " ".join(map(str, turns)))
                known = [turn for a, b in references if (turn := f"D{int(a)}:{int(b)}") in ids]
                if not known:
                    repairs["observation of no turn dropped"] += 1
                elif isinstance(text, str) and text.strip():
                    found.append({"speaker": speaker, "text": text, "evidence": known})
    return found
