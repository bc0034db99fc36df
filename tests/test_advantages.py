"""Promise: an attempt is compared with its own group only, whatever the order; no signal is exactly 0; NaN is left out."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfactory.algorithms.advantages import batch_advantage, group_advantages, leave_one_out_advantage, mean_advantage, std_advantage
from memfactory.common.registry import ADVANTAGE_REGISTRY

REWARDS = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))
ATTEMPTS = st.lists(st.tuples(REWARDS | st.just(math.nan), st.integers(0, 3)), min_size=1, max_size=16)
NORMALIZERS = [mean_advantage, std_advantage, leave_one_out_advantage, batch_advantage]


def advantages_of(attempts: list[tuple[float, int]], normalize: object = mean_advantage) -> Tensor:
    rewards, groups = zip(*attempts, strict=True)
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), groups, normalize)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        # The n-1 standard deviation of [1, 0, 0, 0] is exactly 0.5.
        ("std", [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_golden_numbers_of_one_success_in_four(name: str, expected: list[float]) -> None:
    found = advantages_of([(1.0, 7), (0.0, 7), (0.0, 7), (0.0, 7)], ADVANTAGE_REGISTRY.get(name))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_std_agrees_with_torch_on_uneven_rewards() -> None:
    rewards = torch.tensor([0.3, 1.7, -0.4, 0.9, 0.0], dtype=torch.float64)
    mean = sum(rewards.tolist()) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards.tolist()) / 4)
    found = group_advantages(rewards, [0] * 5, std_advantage)
    assert found.tolist() == pytest.approx([(r - mean) / (deviation + 1e-4) for r in rewards.tolist()], abs=1e-12)


def test_batch_divides_by_the_deviation_of_all_rewards_those_without_signal_included() -> None:
    attempts = [(1.0, 0), (0.0, 0), (2.0, 1), (2.0, 1), (math.nan, 1), (0.5, 2), (0.0, 2)]
    rewards = [r for r, _ in attempts if not math.isnan(r)]
    mean = sum(rewards) / 6
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 5) + 1e-4
    found = advantages_of(attempts, batch_advantage).tolist()
    assert found[:4] + found[5:] == pytest.approx([0.5 / deviation, -0.5 / deviation, 0.0, 0.0, 0.25 / deviation, -0.25 / deviation])
    assert found[2:4] == [0.0, 0.0] and math.isnan(found[4])


def test_leave_one_out_is_reward_minus_mean_of_the_others() -> None:
    rewards = [0.2, 0.9, 0.4, 1.0, 0.0]
    found = advantages_of([(r, 0) for r in rewards], leave_one_out_advantage)
    others = [(sum(rewards) - r) / 4 for r in rewards]
    assert found.tolist() == pytest.approx([r - o for r, o in zip(rewards, others, strict=True)], abs=1e-12)


@given(attempts=ATTEMPTS)
@settings(max_examples=60, deadline=None)
def test_mean_advantages_of_each_group_sum_to_zero(attempts: list[tuple[float, int]]) -> None:
    found = advantages_of(attempts)
    for group in {g for _, g in attempts}:
        inside = [float(a) for a, (r, g) in zip(found, attempts, strict=True) if g == group and not math.isnan(r)]
        assert sum(inside) == pytest.approx(0.0, abs=1e-9)


@given(attempts=ATTEMPTS, seed=st.integers(0, 999), normalize=st.sampled_from(NORMALIZERS))
@settings(max_examples=60, deadline=None)
def test_order_of_attempts_and_names_of_groups_change_nothing(attempts: list[tuple[float, int]], seed: int, normalize: object) -> None:
    order = random.Random(seed).sample(range(len(attempts)), len(attempts))
    shuffled = [(attempts[at][0], 100 - 7 * attempts[at][1]) for at in order]
    expected = advantages_of(attempts, normalize)[order]
    torch.testing.assert_close(advantages_of(shuffled, normalize), expected, equal_nan=True, atol=1e-9, rtol=1e-9)


@given(attempts=ATTEMPTS, normalize=st.sampled_from(NORMALIZERS))
@settings(max_examples=60, deadline=None)
def test_unscorable_attempts_stay_nan_and_leave_the_baseline(attempts: list[tuple[float, int]], normalize: object) -> None:
    scorable = [at for at, (reward, _) in enumerate(attempts) if not math.isnan(reward)]
    found = advantages_of(attempts, normalize)
    assert found.isnan().tolist() == [math.isnan(reward) for reward, _ in attempts]
    if scorable:
        alone = advantages_of([attempts[at] for at in scorable], normalize)
        torch.testing.assert_close(found[scorable], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_rewards_that_differ_by_rounding_are_no_signal(normalize: object) -> None:
    assert advantages_of([(0.1 + 0.2, 0), (0.3, 0), (0.3, 0)], normalize).tolist() == [0.0, 0.0, 0.0]


def test_small_but_real_difference_is_signal() -> None:
    assert advantages_of([(0.5, 0), (0.501, 0)]).tolist() == pytest.approx([-0.0005, 0.0005], abs=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_lone_scorable_attempt_gets_exactly_zero(normalize: object) -> None:
    found = advantages_of([(1.0, 0), (1.0, 1), (math.nan, 1)], normalize)
    assert found[:2].tolist() == [0.0, 0.0] and math.isnan(found[2])


def test_wrong_number_of_group_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="3 group ids"):
        group_advantages(torch.zeros(2), [0, 0, 1])
