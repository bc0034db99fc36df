"""Rules that play a manager and a reader over `synth_dialog`'s dialogues, from their text alone; what they score is a yardstick.

The oracle must answer everything, or the data cannot be answered from what was said; the others show what a dialogue punishes.
Knows no model, and nothing of `gold`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memfactory.data.audit import Audit, chance_score, guess_score
from memfactory.data.generators.dialog_bank import POLICIES, Bank, Policy, apply, oracle, read
from memfactory.data.generators.dialog_world import UNKNOWN, answer_text, read_line, read_question

Dialogue = dict[str, Any]


def is_dialogue(record: Mapping[str, Any]) -> bool:
    """Whether a record has the form of a dialogue."""
    return "sessions" in record and "questions" in record


def final_bank(dialogue: Dialogue, policy: Policy = oracle, last_sessions: int | None = None) -> Bank:
    """The bank that a policy has at the end, with nothing misread; `last_sessions`: it hears only so many."""
    bank: Bank = {}
    free = 0
    sessions = dialogue["sessions"] if last_sessions is None else dialogue["sessions"][-last_sessions:]
    for session in sessions:
        for turn in session["turns"]:
            if said := read_line(turn["text"], turn["speaker"]):
                edits = policy(bank, said, free)
                bank, free = apply(bank, edits), free + sum(edit.op == "ADD" for edit in edits)
    return bank


def answers_from(bank: Bank, questions: Sequence[Mapping[str, Any]], newest: bool = False) -> list[str]:
    """What the reader by rule answers: of several items of a key the oldest is believed, or the newest."""
    paths = [read_question(question["question"]) for question in questions]
    return [answer_text(read(bank, path, newest), "triples") if path else UNKNOWN for path in paths]


def score(dialogues: Iterable[Dialogue], policy: Policy, newest: bool = False, last_sessions: int | None = None) -> float:
    """Share of questions answered exactly (letter case aside) with the bank of a policy."""
    right = total = 0
    for dialogue in dialogues:
        given = answers_from(final_bank(dialogue, policy, last_sessions), dialogue["questions"], newest)
        right += sum(
            answer in [gold.lower() for gold in question["answers"]] for answer, question in zip(given, dialogue["questions"], strict=True)
        )
        total += len(given)
    return right / total


def baselines(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """The score of every rule: each policy with a reader that believes the oldest item, and what other readers and memories get."""
    scores = {name: score(dialogues, policy) for name, policy in POLICIES.items()}
    scores["always add, newest believed"] = score(dialogues, POLICIES["always add"], newest=True)
    scores["oracle on the last session"] = score(dialogues, oracle, last_sessions=1)
    return scores


def audit_dialogues(dialogues: Sequence[Dialogue]) -> Audit:
    """The checks of a generated set: chance is that of one who always says `unknown`, or picks an answer at random."""
    from scipy import stats  # not above: importing it takes half a second

    asked = [{"input": q["question"], "answers": q["answers"]} for dialogue in dialogues for q in dialogue["questions"]]
    guess = guess_score(asked)
    unknown = sum(record["answers"] == [UNKNOWN] for record in asked) / len(asked)
    chance = max(unknown, chance_score(asked))
    guess_p = float(stats.binomtest(round(guess * len(asked)), len(asked), chance, alternative="greater").pvalue)
    return Audit(guess, chance, guess_p, score(dialogues, oracle), None)
