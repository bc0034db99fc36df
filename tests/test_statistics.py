"""Promise: the question is the unit of every error bar, unscorable attempts are left out, intervals hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from memfactory.evaluation.statistics import Mean, Paired, by_question, clustered_mean, paired_difference

NAN = math.nan


def test_attempts_are_averaged_within_their_question() -> None:
    found = by_question([[1, 0, NAN], [NAN], [], [0.5]])
    assert found.tolist() == pytest.approx([0.5, NAN, NAN, 0.5], nan_ok=True)


def test_clustered_mean_by_hand() -> None:
    # Questions 1, 0.5, 0: mean 0.5, deviations 0.5, 0, -0.5, variance 0.25, error 0.5 / sqrt(3).
    found = clustered_mean([[1, 1], [0, 1], [0, 0]])
    assert (found.value, found.n) == (0.5, 3)
    assert found.se == pytest.approx(0.5 / math.sqrt(3), rel=1e-12)


def test_more_attempts_at_the_same_questions_are_not_more_questions() -> None:
    assert clustered_mean([[1.0] * 50, [0.0] * 50]) == clustered_mean([[1.0], [0.0]])


def test_questions_weigh_alike_however_many_attempts_were_scorable() -> None:
    assert clustered_mean([[1, NAN, NAN, NAN], [0, 0, 0, 0]]).value == 0.5


def test_clustered_error_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).random((40, 3))
    found = clustered_mean(scores.tolist())
    assert found.value == pytest.approx(scores.mean(), rel=1e-12)
    assert found.se == pytest.approx(stats.sem(scores.mean(axis=1)), rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], Mean(NAN, NAN, 0)), ([[NAN], []], Mean(NAN, NAN, 0)), ([[0.25], [NAN]], Mean(0.25, NAN, 1))],
)
def test_too_few_questions_give_no_error_bar_and_no_warning(scores: list[list[float]], expected: Mean) -> None:
    found = clustered_mean(scores)
    assert (found.value, found.se, found.n) == pytest.approx((expected.value, expected.se, expected.n), nan_ok=True)


def test_paired_difference_by_hand() -> None:
    # Differences 1, 0, 0.5: mean 0.5, deviation 0.5; t for 2 degrees of freedom is 4.302653.
    found = paired_difference([[0, 0], [1], [0.5]], [[1], [1, 1], [1]])
    half = 4.302652729 * 0.5 / math.sqrt(3)
    assert (found.diff, found.n) == (0.5, 3)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-8)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_paired_interval_agrees_with_scipy(confidence: float) -> None:
    a, b = np.random.default_rng(1).random((2, 25, 2))
    found = paired_difference(a.tolist(), b.tolist(), confidence)
    expected = stats.ttest_rel(b.mean(axis=1), a.mean(axis=1))
    interval = expected.confidence_interval(confidence)
    assert found.diff == pytest.approx((b - a).mean(), rel=1e-10)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_question_unscorable_on_one_side_is_left_out_of_both() -> None:
    found = paired_difference([[0], [NAN], [0], [0, NAN]], [[1], [1], [NAN], [0]])
    assert found == paired_difference([[0], [0]], [[1], [0]])
    assert found.n == 2


@pytest.mark.parametrize(("a", "b", "expected"), [([], [], (NAN, 0)), ([[0.0]], [[1.0]], (1.0, 1)), ([[NAN]], [[1.0]], (NAN, 0))])
def test_too_few_pairs_give_no_interval(a: list[list[float]], b: list[list[float]], expected: tuple[float, int]) -> None:
    found: Paired = paired_difference(a, b)
    assert (found.diff, found.n) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found.ci_low) and math.isnan(found.ci_high)


def test_different_numbers_of_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([[1], [0]], [[1]])


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng, covered, trials, questions, attempts = np.random.default_rng(2), 0, 600, 12, 4
    for _ in range(trials):
        # Attempts at one question share its difficulty, so twelve questions are not forty-eight observations.
        gain = 0.3 + rng.normal(0, 0.5, (questions, 1)) + rng.normal(0, 0.2, (questions, attempts))
        found = paired_difference(np.zeros((questions, 1)).tolist(), gain.tolist())
        covered += found.ci_low <= 0.3 <= found.ci_high
    assert 0.925 <= covered / trials <= 0.975
