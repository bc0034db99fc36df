"""Promise: the question is the unit of every error bar, unscorable attempts are left out, intervals hold what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memfactory.evaluation.compare import paired_rows
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.statistics import Mean, Paired, by_question, clustered_mean, covered_verdict, mcnemar, paired_difference, verdict

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


# McNemar's exact test and verdicts


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (186, 23, 7.0e-33),
        (203, 84, 1.6e-12),
        (143, 176, 0.0730),
        (193, 107, 7.8e-07),
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 0.0625),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_on_published_counts(only_a: int, only_b: int, p: float) -> None:
    a = [1.0] * only_a + [0.0] * only_b + [1.0, 0.0] * 7
    b = [0.0] * only_a + [1.0] * only_b + [1.0, 0.0] * 7
    found = mcnemar(a, b)
    assert found is not None and (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(p, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.sampled_from([0.0, 1.0, NAN])), max_size=60))
def test_mcnemar_is_the_two_sided_binomial_test_and_has_no_favourite(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    found, turned = mcnemar(a, b), mcnemar(b, a)
    assert found is not None and turned is not None
    more, fewer = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    expected = min(1.0, 2 * float(stats.binom.cdf(min(more, fewer), more + fewer, 0.5)))
    assert (found.only_a, found.only_b) == (more, fewer) == (turned.only_b, turned.only_a)
    assert found.p == pytest.approx(expected, rel=1e-9) == turned.p


@pytest.mark.parametrize("score", [0.5, 2.0, -1.0, math.inf])
def test_mcnemar_is_only_for_right_or_wrong(score: float) -> None:
    assert mcnemar([0.0, score], [1.0, 1.0]) is None and mcnemar([0.0, 1.0], [1.0, score]) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "tied"), (0.0, 0.1, "tied"), (-0.1, 0.0, "tied"), (NAN, NAN, "unknown")],
)
def test_a_verdict_needs_an_interval_without_zero(low: float, high: float, expected: str) -> None:
    assert verdict(Paired(0.0, low, high, 9)) == expected


UP, DOWN, ACROSS, ALONE = (
    Paired(0.0, low, high, 9, p=p) for low, high, p in ((0.1, 0.2, 0.01), (-0.2, -0.1, 0.02), (-1, 1, 0.9), (NAN, NAN, NAN))
)


@pytest.mark.parametrize(
    ("as_wrong", "left_out", "scored", "expected"),
    [
        (UP, UP, (1.0, 1.0), ("better", 0.01)),
        (UP, UP, (0.9, 0.95), ("better", 0.01)),
        (UP, UP, (0.9, 0.899), ("not compared: 10.1 % of B's attempts lost", NAN)),
        (UP, UP, (0.52, 1.0), ("not compared: 48 % of A's attempts lost", NAN)),
        (UP, UP, (0.0, 0.5), ("not compared: 100 % of A's and 50 % of B's attempts lost", NAN)),
        (ACROSS, ACROSS, (0.0, 0.0), ("not compared: nothing was scored", NAN)),
        (UP, ACROSS, (0.95, 1.0), ("tied", 0.9)),
        (ACROSS, DOWN, (1.0, 0.95), ("tied", 0.9)),
        (UP, DOWN, (0.9, 0.9), ("tied", 0.02)),
        (DOWN, DOWN, (0.9, 1.0), ("worse", 0.02)),
        (ALONE, ALONE, (1.0, 1.0), ("unknown", NAN)),
        (ALONE, ALONE, (NAN, NAN), ("unknown", NAN)),  # no attempt was planned
        (UP, ALONE, (0.9, 0.9), ("unknown", NAN)),
    ],
)
def test_a_verdict_needs_scores_on_both_sides_and_holds_both_ways(
    as_wrong: Paired, left_out: Paired, scored: tuple[float, float], expected: tuple[str, float]
) -> None:
    said, p = covered_verdict(as_wrong, left_out, list(zip("AB", scored, strict=True)))
    assert (said, p) == pytest.approx(expected, nan_ok=True)


def test_one_model_twice_with_half_of_its_attempts_lost_is_not_worse() -> None:
    rng = np.random.default_rng(3)
    whole = simulated(rng, np.full(QUESTIONS, 0.7), ATTEMPTS)
    for lost, start in ((0.5, "not compared: "), (0.05, "tied"), (1.0, "not compared: 100 % of b's")):
        half = replace(whole, sampled=[[NAN if rng.random() < lost else score for score in row] for row in whole.sampled])
        assert sampled_verdict(whole, half).startswith(start)
    nothing = replace(whole, sampled=[[NAN] * ATTEMPTS] * QUESTIONS, greedy=[[NAN]] * QUESTIONS)
    assert {row["verdict"] for row in paired_rows("a", nothing, "b", nothing)} == {"not compared: nothing was scored"}
    assert math.isnan(clustered_mean(nothing.counted("sampled")).value), "nothing is no score of 0"


def test_what_failed_is_left_out_or_counts_as_told() -> None:
    scores = [[1.0, NAN], [NAN, NAN], [1.0, 1.0]]
    assert clustered_mean(scores).value == 1.0 and clustered_mean(scores).n == 2
    assert clustered_mean(scores, failed=0.0).value == pytest.approx(0.5) and clustered_mean(scores, failed=0.0).n == 3
    zero = [[0.0], [0.0], [0.0]]
    assert paired_difference(zero, scores).diff == 1.0 and paired_difference(zero, scores).n == 2
    assert paired_difference(zero, scores, failed=0.0) == paired_difference(zero, [[0.5], [0.0], [1.0]])


# Verdicts on simulated models

QUESTIONS, ATTEMPTS = 128, 8


def simulated(rng: np.random.Generator, chances: np.ndarray, attempts: int) -> Scores:
    """A model that gets question n right with probability chances[n]."""
    sampled = (rng.random((len(chances), attempts)) < chances[:, None]).astype(float).tolist()
    greedy = (rng.random((len(chances), 1)) < chances[:, None]).astype(float).tolist()
    return Scores("facts", [f"facts/{n}" for n in range(len(chances))], sampled, greedy)


def sampled_verdict(before: Scores, after: Scores) -> str:
    (row,) = [row for row in paired_rows("a", before, "b", after) if row["metric"] == "sampled"]
    return row["verdict"]


@pytest.mark.slow
def test_two_halves_of_one_models_attempts_are_called_tied() -> None:
    rng, tied = np.random.default_rng(0), 0
    for _ in range(100):
        both = simulated(rng, rng.beta(0.5, 0.5, QUESTIONS), 2 * ATTEMPTS)
        halves = [replace(both, sampled=[row[at::2] for row in both.sampled]) for at in (0, 1)]
        tied += sampled_verdict(halves[0], halves[1]) == "tied"
    assert 90 <= tied <= 100


def test_a_real_gain_is_called_better_and_turned_round_worse() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        chances = rng.beta(0.7, 0.7, QUESTIONS)
        base, better = simulated(rng, chances, ATTEMPTS), simulated(rng, chances + 0.3 * (1 - chances), ATTEMPTS)
        assert sampled_verdict(base, better) == "better" and sampled_verdict(better, base) == "worse"


@pytest.mark.slow
def test_questions_make_a_verdict_and_attempts_at_the_same_questions_do_not() -> None:
    rng = np.random.default_rng(2)
    wrongly = 0
    for _ in range(100):
        # Each model has its own strong and weak questions, of the same mean: only more questions could tell them apart.
        base, other = (simulated(rng, rng.beta(0.3, 0.3, 24), 64) for _ in range(2))
        wrongly += sampled_verdict(base, other) != "tied"
    assert wrongly <= 12


# Judged answers of two published runs

AUDIT = Path(__file__).parents[2] / "shared" / "benchdata" / "locomo_audit"
RUNS = [AUDIT / f"fc_{name}-memos.eval_results.json" for name in ("gpt-4.1-mini", "gpt-4o-mini")]


@pytest.mark.skipif(not all(path.is_file() for path in RUNS), reason="the audited LoCoMo runs are not here")
def test_published_runs_give_their_published_figures() -> None:
    votes = []
    for path in RUNS:
        users = json.loads(path.read_text(encoding="utf-8"))["detailed_results"]
        votes.append({q["question_id"]: float(sum(q["llm_judgments"].values()) >= 2) for user in users.values() for q in user})
    assert votes[0].keys() == votes[1].keys() and len(votes[0]) == 1540
    a, b = ([run[name] for name in votes[0]] for run in votes)
    found = [clustered_mean([[x] for x in scores]) for scores in (a, b)]
    assert [round(mean.value, 4) for mean in found] == [0.8208, 0.7435]
    assert [round(mean.se, 5) for mean in found] == [0.00978, 0.01113]
    test = mcnemar(a, b)
    assert test is not None and (test.only_a, test.only_b) == (203, 84) and test.p == pytest.approx(1.6e-12, rel=0.05)
    pair = paired_difference([[x] for x in b], [[x] for x in a])
    assert pair.diff == pytest.approx(0.0773, abs=5e-5) and verdict(pair) == "better"
    assert (pair.ci_high - pair.ci_low) / 2 / float(stats.t.ppf(0.975, 1539)) == pytest.approx(0.01083, abs=5e-6)
