"""Estimates that are not a mean with an error: shares, pass@k, many tests at once, what could be seen, votes. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memfactory.evaluation.statistics import Mean, clustered_mean
from memfactory.judges.judgment import majority


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, right of n independent ones (Wilson, 1927); it stays in [0, 1]. NaN without any.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is no share.")
    if n == 0:
        return math.nan, math.nan
    from scipy import stats  # not above: importing it takes half a second

    z, p = float(stats.norm.ppf(0.5 + confidence / 2)), right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if right == 0 else low), (1.0 if right == n else high)  # exactly, whatever rounding does


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that one of k attempts is right, unbiased from n attempts of which `right` were: 1 - C(n - right, k) / C(n, k).

    Chen et al., 2021, arXiv 2107.03374.
    """
    return 1 - _drawn(n, n - _counted(n, right, k), k)


def pass_hat_k(n: int, right: int, k: int) -> float:
    """pass^k: the chance that all of k attempts are right, C(right, k) / C(n, k) (tau-bench, Yao et al., 2024, arXiv 2406.12045)."""
    return _drawn(n, _counted(n, right, k), k)


def pass_means(
    scores: Sequence[Sequence[float]], k: int, clusters: Sequence[str] | None = None, failed: float = math.nan
) -> tuple[Mean, Mean] | None:
    """(pass@k, pass^k) over [n][attempts] scores; a question with fewer than k scorable attempts is left out.

    An attempt without a score (NaN) is left out or counts as `failed`. None if a score is neither 0 nor 1.
    """
    rows = [[failed if math.isnan(s) else s for s in row] for row in scores]
    rows = [[s for s in row if not math.isnan(s)] for row in rows]
    if any(s not in (0.0, 1.0) for row in rows for s in row):
        return None
    both = []
    for estimate in (pass_at_k, pass_hat_k):
        values = [[estimate(len(row), round(sum(row)), k)] if len(row) >= k else [math.nan] for row in rows]
        both.append(clustered_mean(values, clusters=clusters))
    return both[0], both[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, that hold for all tests together (Holm, 1979): max over smaller ones of (m - rank) p.

    NaN, a test that could not be made, stays NaN and is not counted among the m.
    """
    asked = sorted((at for at, p in enumerate(p_values) if not math.isnan(p)), key=lambda at: p_values[at])
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, at in enumerate(asked):
        highest = max(highest, min(1.0, (len(asked) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def minimum_detectable_effect(se: float, clusters: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The least true difference that such a comparison would call one in `power` of its runs: (t_{1 - alpha/2} + t_power) se.

    Student's t on clusters - 1 degrees of freedom (Bloom, 1995). NaN without a standard error.
    """
    if clusters < 2 or math.isnan(se):
        return math.nan
    from scipy import stats

    return float(stats.t.ppf(1 - alpha / 2, clusters - 1) + stats.t.ppf(power, clusters - 1)) * se


@dataclass(frozen=True, slots=True)
class Votes:
    """What k votes on each of n answers say, together and one by one."""

    majority: list[float]
    """[n] 1 or 0; NaN where the votes that are missing could have turned it."""
    per_run: list[float]
    """[k] accuracy of each vote by itself, over the answers on which it was given."""
    non_unanimous: int
    """Answers on which two votes differ."""
    missing: int
    """Votes without a verdict."""


def count_votes(votes: Sequence[Sequence[float]]) -> Votes:
    """The votes [n][k], each 1, 0 or NaN, counted."""
    table = np.asarray(votes, dtype=float).reshape(len(votes), len(votes[0]) if votes else 0)
    given = ~np.isnan(table)
    runs = [float(np.mean(column[there])) if there.any() else math.nan for column, there in zip(table.T, given.T, strict=True)]
    split = sum({0.0, 1.0} <= set(row) for row in table.tolist())
    return Votes([majority(row) for row in table.tolist()], runs, split, int((~given).sum()))


def fleiss_kappa(votes: Sequence[Sequence[float]]) -> float:
    """Agreement of k votes beyond chance over [n][k] verdicts of 1 or 0 (Fleiss, 1971): (P - P_e) / (1 - P_e).

    P: mean share of pairs of votes that agree; P_e: that of votes at random with the same share of 1. Answers with a missing
    vote are left out. NaN for one vote, for none that is whole, and where all votes are alike: chance then explains everything.
    """
    table = np.array([row for row in votes if not any(map(math.isnan, row))], dtype=float)
    if table.size == 0 or table.shape[1] < 2:
        return math.nan
    k, right = table.shape[1], table.sum(axis=1)
    agreed = float(np.mean((right * (right - 1) + (k - right) * (k - right - 1)) / (k * (k - 1))))
    share = float(np.mean(table))
    chance = share**2 + (1 - share) ** 2
    return (agreed - chance) / (1 - chance) if share not in (0.0, 1.0) else math.nan


def _counted(n: int, right: int, k: int) -> int:
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right among {n}: it takes 1 <= k <= n and 0 <= right <= n.")
    return right


def _drawn(n: int, marked: int, k: int) -> float:
    """The chance that k drawn of n without replacement are all among `marked`."""
    return math.comb(marked, k) / math.comb(n, k)
