"""Where a wrong answer was lost: never written, overwritten, not retrieved, or not used. Reads greedy attempts' steps; runs nothing.

A fact of the synthetic world is its key and its value (`city alice paris`): it is in a text if both stand there in one statement, or in one
sentence of prose that names person and value. Of a question of two hops every fact on the way must be there. Questions to abstain on have
no fact to lose; a wrong answer to one is `invented`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memfactory.common.files import read_json
from memfactory.data.generators.dialog_bank import Bank, apply, oracle
from memfactory.data.generators.dialog_world import Path as Hops
from memfactory.data.generators.dialog_world import Statement, read_line, read_question
from memfactory.data.generators.world import RELATIONS
from memfactory.evaluation.ledger import GREEDY, Attempt, read_attempts
from memfactory.evaluation.questions import Asked, read_questions

LOST = ("never written", "overwritten", "not retrieved", "not used", "invented")
MEANING = {
    "never written": "a fact that the answer needs never stood in the memory",
    "overwritten": "it stood there once and no longer did at the end",
    "not retrieved": "it stood in the memory at the end and was not shown to the reader",
    "not used": "it was before the reader, who answered something else",
    "invented": "the answer cannot be known, and one was given",
}


@dataclass(frozen=True, slots=True)
class Needed:
    """The facts that an answer rests on."""

    facts: tuple[tuple[str, str, str], ...]
    """(relation, person, value)."""

    def within(self, text: str) -> bool:
        """Whether each fact stands in one statement of the text."""
        statements = [re.findall(r"[a-z]+", part) for part in re.split(r"\n|\.\s", text.lower())]
        return all(any(_tells(words, *fact) for words in statements) for fact in self.facts)


def _tells(words: list[str], relation: str, person: str, value: str) -> bool:
    needs = {relation, person, value} if words[:1] and words[0] in RELATIONS else {person, value}
    return needs <= set(words)


def truth(sessions: Sequence[dict]) -> Bank:
    """What is true at the end of a dialogue, by the gold operations on what its lines say."""
    bank: Bank = {}
    free = 0
    for session in sessions:
        for turn in session["turns"]:
            said = read_line(turn["text"], turn["speaker"])
            if said is not None:
                bank = apply(bank, oracle(bank, said, free))
                free = max([free, *(number + 1 for number in bank)])
    return bank


def needed(bank: Bank, path: Hops) -> Needed:
    """The facts on the way to an answer."""
    *relations, person = path
    facts: list[tuple[str, str, str]] = []
    for relation in reversed(relations):
        found: list[Statement] = [item for item in bank.values() if item.key == (relation, person) and item.values]
        facts += [(relation, person, value) for item in found for value in item.values[:1]]
        person = found[0].values[0] if found else ""
    return Needed(tuple(facts))


def reason(fact: Needed, memories: Sequence[str], shown: str) -> str:
    """Where an answer was lost, given the memory after each event and what the reader was shown."""
    if fact.within(shown):
        return "not used"
    if memories and fact.within(memories[-1]):
        return "not retrieved"
    return "overwritten" if any(fact.within(memory) for memory in memories) else "never written"


def diagnose(folder: Path, data: Path) -> Counter[str]:
    """How often each way of losing an answer occurred among a job's greedy attempts, `right` and `asked` beside them."""
    asked = read_questions(folder)
    dialogues = {row["dialog_id"]: row for row in read_json(data)}
    counts: Counter[str] = Counter()
    for attempt in read_attempts(folder):
        if asked is None or attempt.kind != GREEDY or attempt.status == "failed":
            continue
        bank = truth(dialogues[attempt.example]["sessions"])
        for question in asked.examples[attempt.example]:
            counts["asked"] += 1
            counts[_verdict(attempt, question, bank)] += 1
    return counts


def _verdict(attempt: Attempt, question: Asked, bank: Bank) -> str:
    if attempt.questions[question.place]:
        return "right"
    if question.abstain or question.answers == ["unknown"]:
        return "invented"
    path = read_question(question.question)
    assert path is not None, question.question
    # An agent that reads with the question in hand has a memory for each: its steps stand one question behind the other.
    events = len(attempt.steps) // len(attempt.answers) if _is_apart(attempt) else len(attempt.steps)
    first = question.place * events if _is_apart(attempt) else 0
    memories = [memory for _, memory in attempt.steps[first : first + events]]
    shown = " . ".join(attempt.given[question.place]) if len(attempt.given) > question.place else ""
    return reason(needed(bank, path), memories, shown or (memories[-1] if memories and not attempt.given else ""))


def _is_apart(attempt: Attempt) -> bool:
    events = [event for event, _ in attempt.steps]
    return (
        len(attempt.answers) > 1
        and len(events) % len(attempt.answers) == 0
        and events[: len(events) // len(attempt.answers)] * len(attempt.answers) == events
    )
