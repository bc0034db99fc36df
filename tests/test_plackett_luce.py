"""Promise: a choice is drawn with exactly the probability that the loss differentiates, and a baseline moves no mean gradient."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from memfactory.algorithms.plackett_luce import (
    MODES,
    Choice,
    baseline,
    choice_logprobs,
    gumbel_top_m,
    moved,
    plackett_luce_logprobs,
    reinforce_loss,
    selection_entropy,
    top_m,
)
from memfactory.common.errors import UnknownNameError

LOGITS = [0.4, -1.3, 0.0, 2.1, 0.7]
ROW = st.lists(st.floats(-8, 8).map(lambda x: round(x, 2)), min_size=2, max_size=7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(values: list[float], **options: bool) -> Tensor:
    return torch.tensor([values], dtype=torch.float64, **options)


def orders(k: int, m: int) -> Tensor:
    """Every ordered choice, [n, m]."""
    return torch.tensor(list(itertools.permutations(range(k), m)))


def by_hand(values: list[float], order: list[int]) -> float:
    left, total = set(range(len(values))), 0.0
    for place in order:
        total += math.log(math.exp(values[place]) / sum(math.exp(values[at]) for at in left))
        left.remove(place)
    return total


# Probabilities


def test_golden_probability_of_weights_3_2_1() -> None:
    found = plackett_luce_logprobs(row([math.log(3), math.log(2), 0.0]), torch.tensor([[0, 1]])).exp()
    assert found[0].tolist() == pytest.approx([3 / 6, 2 / 3], abs=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_probabilities_of_all_ordered_choices_sum_to_one_and_are_those_by_hand(m: int) -> None:
    every = orders(5, m)
    found = plackett_luce_logprobs(row(LOGITS).expand(len(every), 5), every).sum(1)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert found.tolist() == pytest.approx([by_hand(LOGITS, order) for order in every.tolist()], abs=1e-12)


def test_probabilities_sum_to_one_among_the_candidates_that_are_there() -> None:
    mask = torch.tensor([[True, False, True, True, False]])
    every = torch.tensor(list(itertools.permutations([0, 2, 3], 2)))
    found = plackett_luce_logprobs(row(LOGITS).expand(6, 5), every, mask.expand(6, 5)).sum(1)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(ROW, st.randoms(use_true_random=False))
def test_names_of_candidates_a_common_shift_and_absent_ones_do_not_matter(values: list[float], rng: object) -> None:
    k = len(values)
    order = rng.sample(range(k), rng.randint(1, k))  # type: ignore[attr-defined]
    places = rng.sample(range(k), k)  # type: ignore[attr-defined]
    before, entropy = (f(row(values), torch.tensor([order])) for f in (plackett_luce_logprobs, selection_entropy))
    renamed, new_order = row([values[at] for at in places]), torch.tensor([[places.index(at) for at in order]])
    with_others = torch.cat([row(values) + 3.7, row([99.0, -99.0])], dim=1)
    mask = torch.tensor([[True] * k + [False] * 2])
    for logits, chosen, there in ((renamed, new_order, None), (with_others, torch.tensor([order]), mask)):
        torch.testing.assert_close(plackett_luce_logprobs(logits, chosen, there), before)
        torch.testing.assert_close(selection_entropy(logits, chosen, there), entropy)


def test_a_raised_logit_makes_its_item_likelier_in_every_place() -> None:
    every = orders(4, 2)
    low, high = (plackett_luce_logprobs(row([0.3, value, -0.2, 0.9]).expand(len(every), 4), every).sum(1).exp() for value in (0.0, 0.5))
    holds = (every == 1).any(1)
    assert float(high[holds].sum()) > float(low[holds].sum()) and bool((high[every[:, 0] == 1] > low[every[:, 0] == 1]).all())


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_extreme_logits_give_finite_numbers_and_gradients(size: float) -> None:
    logits = torch.tensor([[size, -size, 0.0, size / 2]], requires_grad=True)
    order = torch.tensor([[1, 0, 2]])
    found = plackett_luce_logprobs(logits, order)
    found.sum().backward()
    assert bool(found.isfinite().all()) and bool(logits.grad.isfinite().all()) and float(found.detach()[0, 0]) <= -size
    assert bool(selection_entropy(logits.detach(), order).isfinite().all())


# Drawing


@pytest.mark.parametrize(("logits", "m"), [([0.0, 0.0, 0.0], 3), ([1.2, -0.4, 0.1, 0.6], 2), ([3.0, 0.0, -1.0, 0.5], 1)])
def test_choices_are_drawn_as_often_as_their_probability_says(logits: list[float], m: int) -> None:
    number, every = 6_000, orders(len(logits), m)
    drawn = gumbel_top_m(row(logits).float().expand(number, len(logits)), m, generator(3)).order
    seen = Counter(map(tuple, drawn.tolist()))
    expected = plackett_luce_logprobs(row(logits).expand(len(every), len(logits)), every).sum(1).exp() * number
    assert stats.chisquare([seen[tuple(order)] for order in every.tolist()], expected.numpy()).pvalue > 1e-3


def test_noise_of_one_over_tau_makes_the_papers_choice_which_tau_does_not_change() -> None:
    scores = row([0.9, 0.1, 0.5]).expand(500, 3)
    sharp, flat = (gumbel_top_m(scores / tau, 2, generator(1), scale=1 / tau).order for tau in (0.05, 5.0))
    assert torch.equal(sharp, flat)
    assert not torch.equal(*(gumbel_top_m(scores / tau, 2, generator(1)).order for tau in (0.05, 5.0)))


def test_a_seed_is_a_choice_and_one_row_does_not_repeat_another() -> None:
    logits = torch.zeros(50, 8)
    first, again, other = (gumbel_top_m(logits, 3, generator(seed)).order for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(order) for order in first.tolist()}) > 30
    assert all(len(set(order)) == 3 for order in first.tolist())


def test_top_m_is_in_order_and_takes_the_earlier_of_equals() -> None:
    assert top_m(torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0]]), 4).order.tolist() == [[1, 3, 4, 0]]


def test_a_row_with_too_few_candidates_shows_all_of_them_and_learns_from_no_other() -> None:
    logits = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False, True, False, True], [False] * 4])
    choice = gumbel_top_m(logits, 3, generator(), mask)
    assert choice.shown.tolist() == [[True] * 3, [True, True, False], [False] * 3]
    assert sorted(choice.order[1, :2].tolist()) == [1, 3]
    for mode in MODES:
        found = choice_logprobs(mode, logits, choice, mask)
        assert found[~choice.shown].tolist() == [0.0] * 4
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert bool(gradient.isfinite().all()) and gradient[~mask].abs().max() == 0
    entropy = selection_entropy(logits, choice.order, mask)
    assert entropy[~choice.shown].tolist() == [0.0] * 4
    assert bool(torch.autograd.grad(entropy.sum(), logits)[0].isfinite().all())


@pytest.mark.parametrize("m", [0, 4])
def test_more_than_there_is_cannot_be_asked_for(m: int) -> None:
    with pytest.raises(ValueError, match="K >= m >= 1"):
        top_m(torch.zeros(1, 3), m)


# Entropy


def test_entropy_of_equals_is_that_of_counting() -> None:
    assert selection_entropy(torch.zeros(1, 5), torch.tensor([[2, 0, 4]]))[0].tolist() == pytest.approx([math.log(n) for n in (5, 4, 3)])


def test_the_mean_of_the_steps_entropies_is_the_entropy_of_the_ordered_choice() -> None:
    every = orders(5, 3)
    logits = row(LOGITS).expand(len(every), 5)
    logprobs = plackett_luce_logprobs(logits, every).sum(1)
    steps = selection_entropy(logits, every).sum(1)
    assert float((logprobs.exp() * steps).sum()) == pytest.approx(-float((logprobs.exp() * logprobs).sum()), abs=1e-12)


# Loss


def loss_of(mode: str, logits: Tensor, order: Tensor, mask: Tensor | None = None) -> Tensor:
    noise = torch.linspace(-1, 2, logits.shape[1], dtype=torch.float64).expand(logits.shape)
    shown = torch.ones_like(order, dtype=torch.bool) if mask is None else mask.gather(1, order)
    rewards = torch.where(order % 2 == 0, 1.0, -1.0).double().masked_fill(~shown, math.nan)
    return reinforce_loss(choice_logprobs(mode, logits, Choice(order, shown, noise), mask), rewards, baseline("fixed", rewards, 0.5))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_the_loss_is_that_of_finite_differences(mode: str) -> None:
    logits = torch.tensor([LOGITS, LOGITS[::-1]], dtype=torch.float64, requires_grad=True)
    order, mask = torch.tensor([[3, 0, 1], [4, 2, 1]]), torch.tensor([[True] * 5, [False, False, True, True, True]])
    assert torch.autograd.gradcheck(lambda x: loss_of(mode, x, order), logits)
    assert torch.autograd.gradcheck(lambda x: loss_of(mode, x, order, mask), logits)


def test_golden_loss_of_one_cited_and_one_not() -> None:
    logprobs = torch.tensor([[-0.5, -1.0], [-2.0, -3.0]])
    rewards = torch.tensor([[1.0, -1.0], [math.nan, math.nan]])
    # -(0.5 x -0.5 + -1.5 x -1.0), of the one row with a reward
    assert float(reinforce_loss(logprobs, rewards, baseline("fixed", rewards, 0.5))) == pytest.approx(-1.25)
    with pytest.raises(ValueError, match=r"three \[B, M\]"):
        reinforce_loss(logprobs, rewards[0], rewards)


def mean_gradient(mode: str, b: float, useful: tuple[int, ...] = (1, 3), kind: str = "fixed") -> Tensor:
    """The gradient of the loss, averaged over all choices of 3 of 5 with their probabilities."""
    every = orders(5, 3)
    logits = row(LOGITS, requires_grad=True).expand(len(every), 5)
    chance = plackett_luce_logprobs(logits, every).sum(1).exp().detach()
    rewards = torch.isin(every, torch.tensor(useful)).double() * 2 - 1
    choice = Choice(every, torch.ones_like(every, dtype=torch.bool), torch.zeros_like(logits))
    terms = -(rewards - baseline(kind, rewards, b)) * choice_logprobs(mode, logits, choice)
    return torch.autograd.grad((chance * terms.sum(1)).sum(), logits)[0].sum(0)


def test_a_baseline_moves_the_mean_gradient_of_the_papers_kind_of_loss_and_not_that_of_plackett_luce() -> None:
    torch.testing.assert_close(mean_gradient("plackett_luce", 0.5), mean_gradient("plackett_luce", -0.6))
    assert float((mean_gradient("independent_softmax", 0.5) - mean_gradient("independent_softmax", -0.6)).abs().max()) > 0.1


def test_without_anything_to_learn_b_makes_the_likely_likelier_under_a_softmax_over_all() -> None:
    nothing = mean_gradient("independent_softmax", 0.5, useful=())  # every reward is -1, so every weight -1.5
    assert int(nothing.argmin()) == LOGITS.index(max(LOGITS)) and float(nothing.min()) < -0.5
    assert float(mean_gradient("plackett_luce", 0.5, useful=()).abs().max()) < 1e-12


def test_the_papers_loss_has_a_mean_score_that_is_not_zero() -> None:
    logits = row(LOGITS).expand(5_000, 5).clone().requires_grad_()
    choice = gumbel_top_m(logits, 3, generator(2))
    means = {}
    for mode in ("plackett_luce", "paper_literal"):
        (gradient,) = torch.autograd.grad(choice_logprobs(mode, logits, choice).sum(), logits)
        means[mode] = gradient.mean(0)
        noise = gradient.std(0) / len(logits) ** 0.5
        assert bool((means[mode].abs() < 5 * noise).all()) == (mode == "plackett_luce")
    assert int(means["paper_literal"].argmin()) == LOGITS.index(max(LOGITS))


@pytest.mark.parametrize("kind", ["fixed", "leave_one_out"])
def test_descent_raises_the_useful_and_lowers_the_useless(kind: str) -> None:
    gradient = mean_gradient("plackett_luce", 0.5, kind=kind)
    assert [float(g) < 0 for g in gradient] == [at in (1, 3) for at in range(5)]


# Baselines


def test_golden_baselines() -> None:
    rewards = torch.tensor([[1.0, -1.0, -1.0], [1.0, math.nan, 1.0], [math.nan, -1.0, math.nan]])
    assert baseline("fixed", rewards, 0.5).tolist() == baseline("ema", rewards, 0.5).tolist() == [[0.5] * 3] * 3
    others = baseline("leave_one_out", rewards, 0.5)
    assert others[0].tolist() == [-1.0, 0.0, 0.0] and others[1, [0, 2]].tolist() == [1.0, 1.0]
    assert float(others[2, 1]) == -1.0, "alone, it is compared with itself"
    with pytest.raises(UnknownNameError, match=r"baseline 'mean'.*ema, fixed, leave_one_out"):
        baseline("mean", rewards, 0.0)
    with pytest.raises(UnknownNameError, match=r"mode 'softmax'.*plackett_luce"):
        choice_logprobs("softmax", rewards, top_m(rewards, 1))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1.0, -1.0, math.nan]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_leave_one_out_advantages_of_a_row_sum_to_zero_and_ignore_the_unknown(rows: list[list[float]]) -> None:
    rewards = torch.tensor(rows, dtype=torch.float64)
    advantages = (rewards - baseline("leave_one_out", rewards, 0.5)).nan_to_num(0.0)
    assert advantages.sum(1).abs().max() < 1e-12
    assert not baseline("leave_one_out", rewards, 0.5)[~rewards.isnan()].isnan().any()


def test_the_running_mean_begins_with_what_it_sees_first() -> None:
    rewards = torch.tensor([[1.0, -1.0], [-1.0, math.nan]])
    assert moved(math.nan, rewards, 0.9) == pytest.approx(-1 / 3)
    assert moved(0.5, rewards, 0.9) == pytest.approx(0.9 * 0.5 - 0.1 / 3)
    assert moved(0.5, rewards * math.nan, 0.9) == 0.5
