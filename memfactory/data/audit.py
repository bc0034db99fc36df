"""Checks of a data set: can it be guessed without the text, can it be answered from it, and is the evidence anywhere in it.

`audit(family, records)` returns numbers; `problems()` puts into words those that are wrong. Knows no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.data.solvers import SOLVERS

Record = dict[str, Any]

SIGNIFICANT = 0.001
"""A p-value below which a check counts as failed: one sound data set in a thousand fails each by chance."""
BINS = 10
_NAME = re.compile(r"(?:[A-Z][\w'-]*|\d+)(?: (?:[A-Z][\w'-]*|\d+))*")
_CHOICE = re.compile(rf"({_NAME.pattern}),? or ({_NAME.pattern})\?$")


@dataclass(frozen=True, slots=True)
class Audit:
    """What was measured; None where a check does not apply."""

    guess: float
    """Share of answers found without the text (`guess_score`)."""
    chance: float | None
    """What that share is for a guesser who knows only the form of the question and the possible answers."""
    guess_p: float | None
    """One-sided p-value of a guess so good by chance."""
    oracle: float | None
    """Share of questions that the family's rule answers from the text. HotpotQA: share whose gold documents are there."""
    gold_p: float | None
    """Chi-square p-value of the evidence's places over tenths of the text; None below 5 places a tenth."""

    def problems(self) -> list[str]:
        """What is wrong, one sentence each; none for a sound data set."""
        found = []
        if self.guess_p is not None and self.guess_p < SIGNIFICANT:
            found.append(
                f"Without the text {self.guess:.1%} of the answers are guessed, where chance is {self.chance:.1%} (p={self.guess_p:.1g})."
            )
        if self.oracle is not None and self.oracle < 1:
            found.append(f"Only {self.oracle:.1%} of the questions can be answered from the text.")
        if self.gold_p is not None and self.gold_p < SIGNIFICANT:
            found.append(f"The evidence is not spread evenly over the text (p={self.gold_p:.1g}): an agent can learn where to look.")
        return found


def audit(family: str, records: Sequence[Record]) -> Audit:
    """Check a data set that the generator `family` made. A family without a rule (one's own) gets the guess only.

    For real questions (`hotpotqa`) chance is unknown: what people asked has patterns, and a model knows the world.
    """
    from scipy import stats  # not above: importing it takes half a second

    guess = guess_score(records)
    chance = None if family == "hotpotqa" else chance_score(records)
    total = sum(len(golds(record)) for record in records)
    guess_p = None if chance is None else float(stats.binomtest(round(guess * total), total, chance, alternative="greater").pvalue)
    if family not in SOLVERS:
        return Audit(guess, chance, guess_p, None, None)
    solved = [SOLVERS[family](record) for record in records]
    right = sum(sorted(found.answers) == sorted(golds(record)) for found, record in zip(solved, records, strict=True))
    return Audit(guess, chance, guess_p, right / len(records), uniform_p([place for found in solved for place in found.places]))


def golds(record: Record) -> list[str]:
    """The accepted answer of the evaluation schema, or all that RULER's schema asks for."""
    return list(record["outputs"]) if "outputs" in record else list(record["answers"])[:1]


def guess_score(records: Sequence[Record]) -> float:
    """Share of answers found by one who sees the other half's questions and answers, and of this half the questions only.

    The guess for `A or B?` is the side that was right more often for questions of this shape; any other, the most frequent
    answers to this shape. Each half is guessed from the other, so that no guess has seen its own answer.
    """
    halves = [list(records[0::2]), list(records[1::2])]
    found = total = 0
    for seen, asked in (halves, halves[::-1]):
        common: dict[str, Counter[str]] = {}
        for record in seen:
            for kind in ("", _shape(record["input"])):
                common.setdefault(kind, Counter()).update(_as_sides(record, golds(record)))
        for record in asked:
            ranked = common.get(_shape(record["input"])) or common.get("") or Counter()
            wanted = _as_sides(record, golds(record))
            guessed = {answer for answer, _ in ranked.most_common(len(wanted))}
            found += sum(answer in guessed for answer in wanted)
            total += len(wanted)
    return found / total


def chance_score(records: Sequence[Record]) -> float:
    """Share found by guessing among the possible: one of two for yes/no and `A or B?`, else among all answers of the data set."""
    possible = {answer for record in records for answer in golds(record) if _choices(record, answer) == 0}
    shares = [1 / 2 if _choices(record, answer) else len(golds(record)) / len(possible) for record in records for answer in golds(record)]
    return min(1.0, sum(shares) / len(shares))


def uniform_p(places: Sequence[tuple[int, int]]) -> float | None:
    """Chi-square p-value that (place, number of places) are uniform, in ten bins; None for fewer than five places a bin."""
    from scipy import stats

    if len(places) < 5 * BINS:
        return None
    observed = Counter(place * BINS // size for place, size in places)
    expected = [0.0] * BINS
    for size, number in Counter(size for _, size in places).items():
        for part in range(BINS):
            expected[part] += number * (-(-(part + 1) * size // BINS) - -(-part * size // BINS)) / size
    bins = [part for part in range(BINS) if expected[part] > 0]
    if len(bins) < 2:
        return None
    return float(stats.chisquare([observed[part] for part in bins], [expected[part] for part in bins]).pvalue)


def _shape(question: str) -> str:
    """A question with its names and numbers taken out, so that questions of one form look alike."""
    return question[:1] + _NAME.sub("#", question[1:])


def _choices(record: Record, answer: str) -> int:
    """2 for yes/no and for an answer that is one of the two that the question names, 0 for any other."""
    return 2 if answer in ("yes", "no") or _sides(record["input"], answer) else 0


def _sides(question: str, answer: str) -> str:
    match = _CHOICE.search(question)
    named = [match[1], match[2]] if match else []
    return ("<first>", "<second>")[named.index(answer)] if answer in named else ""


def _as_sides(record: Record, answers: list[str]) -> list[str]:
    return [_sides(record["input"], answer) or answer for answer in answers]
