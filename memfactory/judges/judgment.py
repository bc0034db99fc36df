"""What a judge said about one answer: its votes as they came, and the score that they make. Knows no model and no prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FAILURES = ("timeout", "server", "cut", "no_verdict")
"""How a vote is lost: the server did not answer in time; it failed in another way; the reply hit its length limit before a verdict;
the reply holds none."""


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to judge."""

    question: str
    golds: tuple[str, ...]
    """Accepted answers; any of them is right."""
    answer: str
    type: str = ""
    """The question's type: a prompt may have a wording of its own for it."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One reply of the judge, raw."""

    reply: str
    """What it said; what went wrong, if it said nothing."""
    score: float
    """1 correct, 0 wrong, NaN without a verdict."""
    failure: str = ""
    """One of FAILURES where the score is NaN."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """What the votes on one answer come to. An answer that is empty is wrong and gets no vote."""

    votes: tuple[Vote, ...]

    @property
    def score(self) -> float:
        """1, 0, or NaN where the votes that were lost could have turned it."""
        return majority([vote.score for vote in self.votes]) if self.votes else 0.0


def majority(votes: Sequence[float]) -> float:
    """1 or 0 if more than half of all votes say so, lost ones (NaN) among them; else NaN. No votes are NaN."""
    scores = list(votes)
    right, wrong = scores.count(1.0), scores.count(0.0)
    return 1.0 if 2 * right > len(scores) else 0.0 if 2 * wrong > len(scores) else math.nan
