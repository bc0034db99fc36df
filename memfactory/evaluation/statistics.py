"""Means with standard errors and paired intervals, clustered by question. Pure functions on scores; know no agent.

k attempts at one question are not k independent observations: scores are averaged within a question first, and the
question is the unit of every standard error (Miller, 2024, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions."""

    value: float
    se: float
    """Standard error, clustered by question; NaN with fewer than two questions."""
    n: int
    """Questions with at least one scorable attempt."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference b - a over the questions scorable on both sides."""

    diff: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact test of two models on the same right-or-wrong answers (McNemar, 1947): only the questions they disagree on speak."""

    only_a: int
    """Questions that only a got right."""
    only_b: int
    p: float
    """Two-sided, from the binomial distribution; 1 when they never disagree."""


def by_question(scores: Sequence[Sequence[float]], failed: float = math.nan) -> np.ndarray:
    """[n][k] attempt scores -> [n] means. An attempt without a score (NaN) is left out, or counts as `failed`; NaN where none is left."""
    rows = [[failed if math.isnan(s) else s for s in row] for row in scores]
    kept = [[s for s in row if not math.isnan(s)] for row in rows]
    return np.array([np.mean(row) if row else math.nan for row in kept])


def clustered_mean(scores: Sequence[Sequence[float]], failed: float = math.nan) -> Mean:
    """Mean of [n][k] scores with the question-clustered standard error; `failed` as in `by_question`."""
    values = by_question(scores, failed)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Mean(math.nan, math.nan, 0)
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(float(np.mean(values)), se, len(values))


def paired_difference(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], confidence: float = 0.95, failed: float = math.nan
) -> Paired:
    """Mean of b - a on the same questions, [n][k] each (k may differ), with Student's t interval over questions."""
    from scipy import stats  # not above: importing it takes half a second

    if len(a) != len(b):
        raise ValueError(f"paired scores must be on the same questions: {len(a)} and {len(b)}.")
    difference = by_question(b, failed) - by_question(a, failed)
    difference = difference[~np.isnan(difference)]
    n = len(difference)
    mean = float(np.mean(difference)) if n else math.nan
    if n < 2:
        return Paired(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(difference, ddof=1) / math.sqrt(n))
    return Paired(mean, mean - half, mean + half, n)


def verdict(pair: Paired) -> str:
    """better or worse if the interval of b - a leaves 0 out, else tied; unknown without an interval."""
    if math.isnan(pair.ci_low):
        return "unknown"
    return "better" if pair.ci_low > 0 else "worse" if pair.ci_high < 0 else "tied"


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar | None:
    """McNemar's exact test on [n] scores of one attempt each; None if any is neither 0, 1 nor NaN (those pairs are left out)."""
    from scipy import stats

    if any(s not in (0.0, 1.0) and not math.isnan(s) for s in (*a, *b)):
        return None
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x) and not math.isnan(y)]
    only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)
