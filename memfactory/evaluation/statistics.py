"""Means with standard errors and paired intervals, clustered by question. Pure functions on scores; know no agent.

k attempts at one question are not k independent observations: scores are averaged within a question first, and the
question is the unit of every standard error (Miller, 2024, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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


def by_question(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """[n][k] attempt scores -> [n] means over the scorable attempts; NaN where a question has none."""
    rows = [[s for s in row if not math.isnan(s)] for row in scores]
    return np.array([np.mean(row) if row else math.nan for row in rows])


def clustered_mean(scores: Sequence[Sequence[float]]) -> Mean:
    """Mean of [n][k] scores with the question-clustered standard error."""
    values = by_question(scores)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Mean(math.nan, math.nan, 0)
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(float(np.mean(values)), se, len(values))


def paired_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], confidence: float = 0.95) -> Paired:
    """Mean of b - a on the same questions, [n][k] each (k may differ), with Student's t interval over questions."""
    if len(a) != len(b):
        raise ValueError(f"paired scores must be on the same questions: {len(a)} and {len(b)}.")
    difference = by_question(b) - by_question(a)
    difference = difference[~np.isnan(difference)]
    n = len(difference)
    mean = float(np.mean(difference)) if n else math.nan
    if n < 2:
        return Paired(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(difference, ddof=1) / math.sqrt(n))
    return Paired(mean, mean - half, mean + half, n)
