"""Promise: the estimators of the KL have the values and the expected gradients that the page says, by enumeration of seven tokens."""

from __future__ import annotations

import pytest
import torch
from helpers_algorithms import make_samples, make_trainer, tiny_qwen3
from torch import Tensor

from memfactory.algorithms.kl import GRADIENTS, KL, kl_term
from memfactory.algorithms.packing import TrainBatch
from memfactory.trainers.metrics import Averages

EXACT = {
    ("k2", "plain"), ("k1", "straight_through"), ("k2", "straight_through"), ("k3", "straight_through"), ("k1", "ratio"), ("k3", "ratio"),
}  # fmt: skip
"""(estimator, gradient) whose expected gradient is the KL's."""


def seven_tokens(seed: int = 4) -> tuple[Tensor, Tensor]:
    """Logits of a policy and log-probs of a reference over a vocabulary of seven, far apart."""
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    return policy, torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)


def expected(kind: str, gradient: str, behind: float = 0.0) -> tuple[float, Tensor, float, Tensor]:
    """(E[value], E[gradient], KL, its gradient) where every token weighs what the sampling policy gives it.

    `behind`: how far the policy has moved from the one that sampled.
    """
    policy, ref = seven_tokens()
    moved = policy.detach() - behind * torch.linspace(-1, 1, 7, dtype=torch.float64)
    sampler = moved.log_softmax(-1)
    table = policy.log_softmax(-1)
    mean = (sampler.exp() * kl_term(table, ref, sampler, kind, gradient)).sum()
    (found,) = torch.autograd.grad(mean, policy, retain_graph=True)
    exact = (table.exp() * (table - ref)).sum()
    (true,) = torch.autograd.grad(exact, policy)
    return float(mean.detach()), found, float(exact.detach()), true


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KL)
def test_expected_gradient_is_the_kls_exactly_where_the_page_says(kind: str, gradient: str) -> None:
    _, found, _, true = expected(kind, gradient)
    close = torch.allclose(found, true, rtol=1e-10, atol=1e-12)
    assert close == ((kind, gradient) in EXACT) and float(true.abs().max()) > 0.05


def test_the_plain_gradient_of_k1_is_nothing_and_that_of_k3_the_kls_the_other_way_round() -> None:
    assert float(expected("k1", "plain")[1].abs().max()) < 1e-12
    policy, ref = seven_tokens()
    (reverse,) = torch.autograd.grad((ref.exp() * (ref - policy.log_softmax(-1))).sum(), policy)
    torch.testing.assert_close(expected("k3", "plain")[1], reverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_ratio_keeps_value_and_gradient_exact_after_the_policy_has_moved(kind: str) -> None:
    value, found, exact, true = expected(kind, "ratio", behind=0.5)
    assert value == pytest.approx(exact, rel=1e-10)
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(expected(kind, "straight_through", behind=0.5)[1], true, rtol=1e-2)


@pytest.mark.parametrize("kind", KL)
def test_values(kind: str) -> None:
    value, _, exact, _ = expected(kind, "plain")
    assert (value == pytest.approx(exact, rel=1e-10)) == (kind != "k2")
    assert expected(kind, "straight_through")[0] == pytest.approx(value, rel=1e-12), "only the gradient is another's"


def test_golden_numbers() -> None:
    at = (torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64))
    assert {kind: round(float(KL[kind](*at)), 9) for kind in KL} == {"k1": 0.5, "k2": 0.125, "k3": 0.106530660}
    assert float(kl_term(*at, torch.tensor([-1.2], dtype=torch.float64), "k3", "ratio")) == pytest.approx(
        0.10653066 * 1.221402758, rel=1e-7
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KL)
def test_absurd_distances_stay_finite(kind: str, gradient: str) -> None:
    logprobs = torch.tensor([999.0, -1001.0, -1.0], requires_grad=True)
    term = kl_term(logprobs, torch.full((3,), -1.0), torch.full((3,), -1.0), kind, gradient)
    (found,) = torch.autograd.grad(term.sum(), logprobs)
    assert bool(term.isfinite().all() & found.isfinite().all())


@pytest.mark.parametrize(("kind", "gradient"), [("k2", "plain"), ("k1", "ratio"), ("k3", "straight_through")])
def test_the_trainer_adds_what_is_asked_for(kind: str, gradient: str) -> None:
    model, samples = tiny_qwen3(), make_samples(3, [0, 1, 1], [0, 0, 0], ref=True)

    def losses(**options: object) -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        trainer, averages = make_trainer(model, tokens_per_micro_batch=12, **options), Averages()
        fresh = trainer.policy.with_logprobs(samples, model, "old_logprobs")
        trainer.policy.backward(TrainBatch(fresh), averages, measure_mismatch=False)
        return averages.means() | {"norm": float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())}

    without, found = losses(), losses(beta=0.5, kl=kind, kl_gradient=gradient)
    other = losses(beta=0.5)
    fresh = make_trainer(model).policy.with_logprobs(samples, model, "old_logprobs")
    pairs = [(p, q) for s in fresh for p, q in zip(s.old_logprobs, s.ref_logprobs, strict=True)]
    value = float(KL[kind](*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))).mean())
    assert found["kl"] == pytest.approx(value, rel=1e-4)
    assert found["loss"] - without["loss"] == pytest.approx(0.5 * value, rel=1e-3)
    assert abs(found["norm"] - other["norm"]) > 1e-3 < abs(found["norm"] - without["norm"])


# d = reference - policy, and what MemAgent and verl make of it: the value, at most 10, and its derivative by the policy's log-prob.
# Below the bound they are exp(d) - d - 1 and 1 - exp(d).
@pytest.mark.parametrize(
    ("d", "value", "slope"),
    [
        (0.0, 0.0, 0.0), (1.0, 0.718281828, -1.718281828), (2.6, 9.863738035, -12.463738035), (2.7, 10.0, 0.0), (25.0, 10.0, 0.0),
        (-5.0, 4.006737947, 0.993262053), (-10.9, 9.900018460, 0.999981540), (-11.1, 10.0, 0.0), (100.0, 10.0, 0.0), (-100.0, 10.0, 0.0),
    ],
)  # fmt: skip
def test_k3_is_bounded_in_its_value_and_beyond_it_has_no_gradient(d: float, value: float, slope: float) -> None:
    policy = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = KL["k3"](policy, torch.tensor([d], dtype=torch.float64))
    found.sum().backward()
    assert found.item() == pytest.approx(value, abs=5e-9) and policy.grad.item() == pytest.approx(slope, abs=5e-9)


@pytest.mark.parametrize(("kind", "value", "slope"), [("k1", -15.0, 1.0), ("k2", 112.5, -15.0)])
def test_k1_and_k2_have_no_bound_as_verls_have_none(kind: str, value: float, slope: float) -> None:
    policy = torch.zeros(1, requires_grad=True)
    found = KL[kind](policy, torch.tensor([15.0]))
    found.sum().backward()
    assert (found.item(), policy.grad.item()) == (value, slope)
