"""Means with standard errors and paired intervals, clustered. Pure functions on scores; know no agent.

k attempts at one question are not k independent observations: scores are averaged within a question first. Nor are the
questions of one conversation independent: where `clusters` names each question's conversation (or context), that is the unit
of every standard error and Student's t has C - 1 degrees of freedom; without it each question is its own cluster (Miller,
2024, arXiv 2411.00640). `estimates` has what is not a mean with an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEW = 10
"""Below this many clusters the clustered error is itself a guess (Cameron, Gelbach and Miller, 2008)."""

COVERED = 0.9
"""The least share of the attempts, on both sides, that must have a score before two are compared, or the best of several is chosen."""

NOT_COMPARED = "not compared"
"""How a verdict begins that is none, with why behind it."""

_DRAWN = 1 << 21
"""Numbers drawn at a time by the bootstrap: 16 MB."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions."""

    value: float
    se: float
    """Standard error, clustered; NaN with fewer than two clusters."""
    n: int
    """Questions with at least one scorable attempt."""
    clusters: int = 0
    """C: what counted as independent; n if every question is its own."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval with C - 1 degrees of freedom; NaN with fewer than two clusters. It may leave [0, 1]: see `wilson`."""
        half = _t(0.5 + confidence / 2, self.clusters - 1) * self.se
        return self.value - half, self.value + half


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference b - a over the questions scorable on both sides."""

    diff: float
    ci_low: float
    ci_high: float
    n: int
    se: float = math.nan
    """Standard error of the difference, clustered."""
    p: float = math.nan
    """Two-sided, of Student's t on C - 1 degrees of freedom: below .05 where the 95 % interval leaves 0 out."""
    clusters: int = 0


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


def standard_error(values: Sequence[float] | np.ndarray, clusters: Sequence[str] | None = None) -> tuple[float, int]:
    """(standard error of the mean of [n] values, C): sqrt(C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2) / n.

    The cluster-robust error of Liang and Zeger (1986) with its small-sample factor; without clusters (or with each question in
    its own) it is the standard deviation over sqrt(n). NaN with fewer than two clusters.
    """
    x = np.asarray(values, dtype=float)
    sums = _sums(x - x.mean(), clusters) if len(x) else x
    count = len(sums)
    return (math.sqrt(count / (count - 1) * float(sums @ sums)) / len(x) if count > 1 else math.nan), count


def clustered_mean(scores: Sequence[Sequence[float]], failed: float = math.nan, clusters: Sequence[str] | None = None) -> Mean:
    """Mean of [n][k] scores with the clustered standard error; `failed` as in `by_question`, `clusters`: [n] names, or each its own."""
    values, kept = _kept(by_question(scores, failed), clusters)
    if len(values) == 0:
        return Mean(math.nan, math.nan, 0)
    se, count = standard_error(values, kept)
    return Mean(float(np.mean(values)), se, len(values), count)


def paired_difference(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    confidence: float = 0.95,
    failed: float = math.nan,
    clusters: Sequence[str] | None = None,
) -> Paired:
    """Mean of b - a on the same questions, [n][k] each (k may differ), with Student's t interval over the clusters."""
    if len(a) != len(b):
        raise ValueError(f"paired scores must be on the same questions: {len(a)} and {len(b)}.")
    difference, kept = _kept(by_question(b, failed) - by_question(a, failed), clusters)
    n = len(difference)
    mean = float(np.mean(difference)) if n else math.nan
    se, count = standard_error(difference, kept)
    if count < 2:
        return Paired(mean, math.nan, math.nan, n, clusters=count)
    half = _t(0.5 + confidence / 2, count - 1) * se
    return Paired(mean, mean - half, mean + half, n, se, _p_value(mean, se, count - 1), count)


def unpaired_error(a: Mean, b: Mean) -> float:
    """Standard error of b - a as if the two had been asked different questions: what pairing saves is seen against it."""
    return math.hypot(a.se, b.se)


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str] | None = None, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of [n] values (of differences, say) over `draws` samples of whole clusters (Efron, 1979).

    Clusters are drawn with replacement, and a sample's mean is over all the questions in them. Without clusters questions are
    drawn. NaN with fewer than two clusters.
    """
    x = np.asarray(values, dtype=float)
    sums, sizes = _sums(x, clusters), _sums(np.ones(len(x)), clusters)
    count = len(sums)
    if count < 2:
        return math.nan, math.nan
    rng, rows = np.random.default_rng(seed), max(1, _DRAWN // count)
    means = []
    for done in range(0, draws, rows):
        drawn = rng.integers(0, count, (min(rows, draws - done), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [50 - 50 * confidence, 50 + 50 * confidence])
    return float(low), float(high)


def few_clusters(count: int) -> str:
    """A warning in words where the error is of fewer than ten clusters; else empty."""
    if count >= FEW:
        return ""
    return f"only {count} clusters: the interval (Student's t, {max(count - 1, 0)} degrees of freedom) is itself uncertain"


def verdict(pair: Paired) -> str:
    """better or worse if the interval of b - a leaves 0 out, else tied; unknown without an interval."""
    if math.isnan(pair.ci_low):
        return "unknown"
    return "better" if pair.ci_low > 0 else "worse" if pair.ci_high < 0 else "tied"


def scored_share(scores: Sequence[Sequence[float]]) -> float:
    """The share of [n][k] attempts that have a score; NaN without any attempt."""
    there = [not math.isnan(score) for row in scores for score in row]
    return sum(there) / len(there) if there else math.nan


def covered_verdict(as_wrong: Paired, left_out: Paired, scored: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """(verdict, p) of one difference with what was lost counted as wrong and with it left out; `scored`: each side's `scored_share`.

    It is better or worse only if it is so both ways: p is the larger one. Where more was lost than `COVERED` allows, or nothing was
    scored, there is no verdict but the reason, and no p.
    """
    if all(share == 0 for _, share in scored):
        return f"{NOT_COMPARED}: nothing was scored", math.nan
    if few := [f"{100 * (1 - share):.3g} % of {side}'s" for side, share in scored if share < COVERED]:
        return f"{NOT_COMPARED}: {' and '.join(few)} attempts lost", math.nan
    words, p = (verdict(as_wrong), verdict(left_out)), (as_wrong.p, left_out.p)
    both = words[0] if words[0] == words[1] else "unknown" if "unknown" in words else "tied"
    return both, math.nan if any(map(math.isnan, p)) else max(p)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar | None:
    """McNemar's exact test on [n] scores of one attempt each; None if any is neither 0, 1 nor NaN (those pairs are left out)."""
    from scipy import stats

    if any(s not in (0.0, 1.0) and not math.isnan(s) for s in (*a, *b)):
        return None
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(x) and not math.isnan(y)]
    only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)


def _kept(values: np.ndarray, clusters: Sequence[str] | None) -> tuple[np.ndarray, list[str] | None]:
    """What has a value, with its clusters."""
    if clusters and len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} questions.")
    there = ~np.isnan(values)
    return values[there], [name for name, has in zip(clusters, there, strict=True) if has] if clusters else None


def _sums(values: np.ndarray, clusters: Sequence[str] | None) -> np.ndarray:
    """[n] -> [C] sums over clusters; as they are where each question is its own."""
    return np.bincount(np.unique(np.asarray(clusters), return_inverse=True)[1], weights=values) if clusters else values


def _t(quantile: float, degrees: int) -> float:
    from scipy import stats  # not above: importing it takes half a second

    return float(stats.t.ppf(quantile, degrees)) if degrees > 0 else math.nan


def _p_value(diff: float, se: float, degrees: int) -> float:
    from scipy import stats

    if se == 0:  # all differences alike: nothing is left to chance
        return float(diff == 0)
    return float(2 * stats.t.sf(abs(diff) / se, degrees))
