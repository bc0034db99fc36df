"""Promise: the trainer's loss is the formula, token by token; its gradient reaches trained tokens only and ignores batching."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from helpers_algorithms import make_samples, make_trainer, one_micro_batch, tiny_qwen3
from torch import Tensor
from transformers import Qwen3ForCausalLM

from memfactory.algorithms.kl import k3_kl
from memfactory.algorithms.logprobs import evaluating, response_logits, response_logprobs
from memfactory.algorithms.losses import clipped_surrogate
from memfactory.algorithms.packing import AGGREGATIONS, Sample, TrainBatch
from memfactory.trainers.metrics import Averages

TRAJECTORIES = [0, 0, 1, 2, 2, 2, 3, 4]
GROUPS = [0, 0, 0, 1, 1, 1, 1, 2]
"""Eight turns of five attempts in three groups, no two aggregations alike."""
MAX_LENGTH = 9
"""More than any response has: what the aggregation `constant` divides by."""


def plain_logprobs(model: Qwen3ForCausalLM, sample: Sample, temperature: float = 1.0) -> list[float]:
    """Log-probs of a sample's response from the whole model on this sample alone, in float64 after the logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.prompt_ids + sample.response_ids])).logits[0].double() / temperature
    start = len(sample.prompt_ids)
    return [float(logits[start + n - 1].log_softmax(-1)[token]) for n, token in enumerate(sample.response_ids)]


@cache
def one_model() -> Qwen3ForCausalLM:
    """A model for the tests that leave its weights as they are; its gradient is whatever the last of them left."""
    return tiny_qwen3()


@cache
def eight_turns(ref: bool) -> tuple[list[Sample], list[list[float]]]:
    """Eight turns and the log-probs of `one_model` for each of them alone, at temperature 0.7."""
    samples = make_samples(3, TRAJECTORIES, GROUPS, ref=ref)
    return samples, [plain_logprobs(one_model(), sample, temperature=0.7) for sample in samples]


def brute_force(ref: bool, aggregation: str, low: float, high: float, dual: float | None, beta: float) -> float:
    """The loss of an update by two loops, over turns and over tokens, in plain Python."""
    units: defaultdict[int, list[float]] = defaultdict(list)
    samples, logprobs = eight_turns(ref)
    for number, sample in enumerate(samples):
        unit = {"token": 0, "sequence": number, "trajectory": sample.trajectory, "prompt": sample.group, "constant": 0}[aggregation]
        for at, logprob in enumerate(logprobs[number]):
            ratio, advantage = math.exp(logprob - sample.old_logprobs[at]), sample.advantage
            gain = min(ratio * advantage, max(1 - low, min(1 + high, ratio)) * advantage)
            if dual is not None and advantage < 0:
                gain = max(gain, dual * advantage)
            penalty = 0.0
            if beta > 0 and sample.ref_logprobs is not None:
                difference = sample.ref_logprobs[at] - logprob
                penalty = math.exp(difference) - difference - 1
            units[unit].append(-gain + beta * penalty)
    if aggregation == "constant":
        return sum(units[0]) / (len(samples) * MAX_LENGTH)
    return sum(sum(tokens) / len(tokens) for tokens in units.values()) / len(units)


def gradients(model: Qwen3ForCausalLM, samples: list[Sample], budget: int, **options: object) -> dict[str, Tensor]:
    """The gradient of one update by the trainer's own backward pass."""
    model.zero_grad(set_to_none=True)
    trainer = make_trainer(model, tokens_per_micro_batch=budget, max_generate_length=MAX_LENGTH, **options)
    trainer.policy.backward(TrainBatch(samples, trainer.config.aggregation, MAX_LENGTH), Averages(), measure_mismatch=False)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.1, 0.28), (0.5, 0.05)])
@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_equals_a_double_loop(aggregation: str, clips: tuple[float, float], dual: float | None, beta: float) -> None:
    (low, high), (samples, _) = clips, eight_turns(ref=beta > 0)
    trainer = make_trainer(
        one_model(), aggregation=aggregation, clip_low=low, clip_high=high, dual_clip=dual, beta=beta, temperature=0.7,
        tokens_per_micro_batch=30, max_generate_length=MAX_LENGTH,
    )  # fmt: skip
    averages = Averages()
    trainer.policy.backward(TrainBatch(samples, aggregation, MAX_LENGTH), averages, measure_mismatch=False)
    assert averages.means()["loss"] == pytest.approx(brute_force(beta > 0, aggregation, low, high, dual, beta), rel=2e-5)


def test_options_of_the_double_loop_all_matter() -> None:
    combinations = itertools.product(AGGREGATIONS, [(0.2, 0.2), (0.1, 0.28), (0.5, 0.05)], [None, 1.5], [0.0, 0.3])
    losses = [brute_force(True, aggregation, *clips, dual, beta) for aggregation, clips, dual, beta in combinations]
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-4


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_is_the_same_for_any_number_of_micro_batches(number: int, aggregation: str) -> None:
    model, samples = tiny_qwen3(), make_samples(5, TRAJECTORIES, GROUPS, ref=True)
    batch = TrainBatch(samples)
    budget = next(b for b in range(1, 999) if len(list(batch.micro_batches(b))) == number)
    whole = gradients(model, samples, 1 << 20, aggregation=aggregation, beta=0.1)
    split = gradients(model, samples, budget, aggregation=aggregation, beta=0.1)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-2
    for name, expected in whole.items():
        torch.testing.assert_close(split[name], expected, atol=1e-6, rtol=1e-5)


def test_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    logprobs = torch.tensor([-1.0, -1.3, -0.4, -2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.1, -1.2, -1.5, -0.5], dtype=torch.float64)
    advantages = torch.tensor([0.7, -0.4, -1.0, -0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, advantages, dual_clip=2.0).loss, logprobs)
    assert torch.autograd.gradcheck(lambda x: k3_kl(x, old), logprobs)


UNCLIPPED = {"clip_low": 0.999, "clip_high": 1e6, "dual_clip": None}
"""Options under which every trained token has a gradient."""


def test_only_positions_that_predict_a_response_token_get_gradient() -> None:
    model, samples = tiny_qwen3(), make_samples(7, TRAJECTORIES, GROUPS)
    seen: list[Tensor] = []

    def keep(_module: object, _args: object, output: Any) -> None:
        if output.last_hidden_state.requires_grad:  # the probe at the start has none
            seen.append(output.last_hidden_state)
            seen[-1].retain_grad()

    model.model.register_forward_hook(keep)
    gradients(model, samples, 1 << 20, packing="rows", **UNCLIPPED)
    touched = seen[0].grad.abs().sum(-1) > 0
    expected = torch.zeros_like(touched)
    for row, sample in enumerate(one_micro_batch(samples).samples):
        # The last prompt token predicts the first response token; the last response token predicts nothing.
        expected[row, len(sample.prompt_ids) - 1 : len(sample) - 1] = True
    assert torch.equal(touched, expected)


def test_padding_is_never_seen_by_the_gradient() -> None:
    model, samples = tiny_qwen3(), make_samples(7, TRAJECTORIES, GROUPS)
    found = gradients(model, samples, 1 << 20, **UNCLIPPED)["model.embed_tokens.weight"]
    read = {token for s in samples for token in (s.prompt_ids + s.response_ids)[:-1]}
    assert bool((one_micro_batch(samples).ids == 0).any())
    assert set(found.abs().sum(-1).nonzero()[:, 0].tolist()) == read


def test_text_after_the_last_trained_token_cannot_matter() -> None:
    model, samples = tiny_qwen3(), make_samples(9, [0, 1], [0, 0])
    short, long = sorted(samples, key=len)
    micro = one_micro_batch([short, long])
    other = micro.ids.clone()
    row = next(r for r, s in enumerate(micro.samples) if s is short)
    other[row, len(short) :] = 17
    assert len(short) < len(long)
    before = response_logprobs(model, micro)[0]
    micro.ids.copy_(other)
    assert torch.equal(response_logprobs(model, micro)[0], before)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_each_sample_alone_however_it_is_padded(temperature: float) -> None:
    model, samples = tiny_qwen3(), make_samples(11, TRAJECTORIES, GROUPS)
    micro = one_micro_batch(samples)
    found = response_logprobs(model, micro, temperature)[0].detach()
    expected = [logprob for sample in micro.samples for logprob in plain_logprobs(model, sample, temperature)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_changing_the_neighbour_changes_nothing() -> None:
    model, samples = tiny_qwen3(), make_samples(11, [0, 1, 2], [0, 0, 0])
    longest = max(samples, key=len)
    changed = Sample(tuple(1 + t % 39 for t in longest.prompt_ids), longest.response_ids, longest.old_logprobs, 1.0, 2, 0)
    others = [s for s in samples if s is not longest]
    number = sum(len(s.response_ids) for s in others)
    with torch.no_grad():
        first, second = (response_logprobs(model, one_micro_batch([neighbour, *others]))[0] for neighbour in (longest, changed))
    assert torch.equal(first[-number:], second[-number:])
    assert not torch.equal(first[:-number], second[:-number])


def test_entropy_is_that_of_the_tempered_distribution_and_has_no_gradient() -> None:
    model, micro = tiny_qwen3(), one_micro_batch(make_samples(13, [0], [0]))
    _, entropy = response_logprobs(model, micro, temperature=0.5)
    table = torch.distributions.Categorical(logits=response_logits(model, micro).detach() / 0.5)
    torch.testing.assert_close(entropy, table.entropy())
    assert not entropy.requires_grad


def test_temperature_zero_is_read_as_one() -> None:
    model, micro = tiny_qwen3(), one_micro_batch(make_samples(13, [0], [0]))
    assert torch.equal(response_logprobs(model, micro, 0.0)[0], response_logprobs(model, micro, 1.0)[0])


def test_models_that_change_their_logits_take_the_whole_forward_pass() -> None:
    micro = one_micro_batch(make_samples(15, TRAJECTORIES, GROUPS))

    def asked(model: torch.nn.Module) -> tuple[Tensor, int]:
        response_logits(model, micro)  # its head is tried once
        calls: list[int] = []
        model.register_forward_hook(lambda *_: calls.append(1))
        return response_logits(model, micro), len(calls)

    plain, whole = asked(tiny_qwen3())
    assert whole == 0
    capped = tiny_qwen3()
    forward = capped.forward

    def softcapped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 0.5 * torch.tanh(output.logits / 0.5)
        return output

    capped.forward = softcapped
    found, whole = asked(capped)
    assert whole == 1
    torch.testing.assert_close(found, 0.5 * torch.tanh(plain / 0.5), atol=1e-5, rtol=1e-5)


def test_evaluating_puts_each_parts_mode_back_even_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise RuntimeError
    assert [part.training for part in model.modules()] == [True, True, False]


# Advantage 1 or -1, ratio, expected loss, whether the clip decided; clip 0.2 down and 0.28 up, dual clip 3.
GOLDEN = [
    (1.0, 1.0, -1.0, False),
    (1.0, 1.1, -1.1, False),
    (1.0, 1.5, -1.28, True),
    (1.0, 0.5, -0.5, False),
    (-1.0, 1.0, 1.0, False),
    (-1.0, 0.9, 0.9, False),
    (-1.0, 0.5, 0.8, True),
    (-1.0, 1.5, 1.5, False),
    (-1.0, 2.9, 2.9, False),
    (-1.0, 5.0, 3.0, True),
    (-2.0, 5.0, 6.0, True),
]


@pytest.mark.parametrize(("advantage", "ratio", "expected", "clipped"), GOLDEN)
def test_golden_numbers_of_the_clipped_surrogate(advantage: float, ratio: float, expected: float, clipped: bool) -> None:
    logprobs = torch.tensor([math.log(ratio) - 0.7], requires_grad=True)
    token = clipped_surrogate(logprobs, torch.tensor([-0.7]), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    token.loss.sum().backward()
    assert token.loss.tolist() == pytest.approx([expected], rel=1e-5) and token.clipped.tolist() == [clipped]
    assert float(token.ratio) == pytest.approx(ratio, rel=1e-5) and not token.ratio.requires_grad
    assert float(logprobs.grad) == pytest.approx(0.0 if clipped else -advantage * ratio, rel=1e-5)


def test_without_dual_clip_a_negative_advantage_has_no_ceiling() -> None:
    token = clipped_surrogate(torch.tensor([math.log(50.0)]), torch.zeros(1), -torch.ones(1), dual_clip=None)
    assert float(token.loss) == pytest.approx(50.0, rel=1e-5) and not bool(token.clipped)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), \(3,\), \(1,\)"):
        clipped_surrogate(torch.zeros(3), torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match="three"):
        clipped_surrogate(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("gap", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dual", [None, 3.0])
def test_absurd_log_ratios_stay_finite(gap: float, advantage: float, dual: float | None) -> None:
    logprobs = torch.tensor([gap - 1.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0, -1.0])
    token = clipped_surrogate(logprobs, old, torch.full((2,), advantage), dual_clip=dual)
    kl = k3_kl(logprobs, old)
    (token.loss + 0.1 * kl).sum().backward()
    assert bool(token.loss.isfinite().all() & kl.isfinite().all() & token.ratio.isfinite().all())
    assert bool(logprobs.grad.isfinite().all()) and float(logprobs.grad[1]) == pytest.approx(-advantage)


def test_k3_is_never_negative_and_zero_only_at_equality() -> None:
    ref = torch.linspace(-9, 0, 61, dtype=torch.float64)
    found = k3_kl(torch.full_like(ref, -3.0), ref)
    assert bool((found >= 0).all())
    assert [float(r) for r, value in zip(ref, found, strict=True) if value < 1e-12] == pytest.approx([-3.0])
    assert float(k3_kl(torch.tensor(-1.0), torch.tensor(-1.0 + math.log(2)))) == pytest.approx(2 - math.log(2) - 1, rel=1e-6)


def seven_tokens() -> tuple[Tensor, Tensor]:
    """Logits of a policy and log-probs of a reference over a vocabulary of seven, far apart."""
    generator = torch.Generator().manual_seed(4)
    policy = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    return policy, torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_mean_of_k3_under_the_policy_is_the_exact_kl() -> None:
    policy, ref = seven_tokens()
    table = policy.log_softmax(-1).detach()
    exact = float((table.exp() * (table - ref)).sum())
    assert float((table.exp() * k3_kl(table, ref)).sum()) == pytest.approx(exact, rel=1e-12)
    assert exact > 0.1


def test_gradient_of_k3_as_a_loss_is_that_of_the_kl_the_other_way_round() -> None:
    policy, ref = seven_tokens()
    table = policy.log_softmax(-1)
    sampled = (table.detach().exp() * k3_kl(table, ref)).sum()
    (found,) = torch.autograd.grad(sampled, policy, retain_graph=True)
    (reverse,) = torch.autograd.grad((ref.exp() * (ref - table)).sum(), policy, retain_graph=True)
    (forward,) = torch.autograd.grad((table.exp() * (table - ref)).sum(), policy)
    torch.testing.assert_close(found, reverse)
    assert not torch.allclose(found, forward, atol=1e-2)
