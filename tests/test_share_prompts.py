"""Sharing a row between turns with equal prompts changes the cost of an update and nothing else."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from helpers_algorithms import VOCABULARY, make_samples, make_trainer, tiny_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from memfactory.algorithms.logprobs import can_share_prompts, response_logprobs
from memfactory.algorithms.packing import AGGREGATIONS, SHARED_WIDTH, Sample, TrainBatch
from memfactory.trainers.metrics import Averages


@cache
def one_model() -> Qwen3ForCausalLM:
    """Read by every example, changed by none."""
    return tiny_qwen3()


@st.composite
def groups_of_turns(draw: st.DrawFn) -> list[Sample]:
    """Turns of which many have one of three prompts; ids name the sample."""
    samples = []
    for at in range(draw(st.integers(1, 14))):
        prompt = tuple(range(1, 2 + draw(st.integers(0, 2)) * 3))
        response = tuple(5 + (7 * at + n) % (VOCABULARY - 5) for n in range(draw(st.integers(1, 6))))
        samples.append(Sample(prompt, response, tuple(-1.0 - n for n in range(len(response))), at + 0.5, at // 2, at // 4))
    return samples


@given(samples=groups_of_turns(), budget=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_every_token_is_trained_once_with_its_own_numbers(samples: list[Sample], budget: int) -> None:
    batch = TrainBatch(samples)
    weights = dict(zip(map(id, samples), batch.token_weights(), strict=True))
    seen = []
    for micro in batch.micro_batches(budget, share_prompts=True):
        at = 0
        for sample in micro.samples:
            here = slice(at, at + len(sample.response_ids))
            assert micro.targets[here].tolist() == list(sample.response_ids)
            assert micro.old[here].tolist() == list(sample.old_logprobs)
            assert micro.advantages[here].tolist() == [sample.advantage] * len(sample.response_ids)
            assert micro.weights[here].tolist() == pytest.approx([weights[id(sample)]] * len(sample.response_ids))
            at += len(sample.response_ids)
        assert at == len(micro.targets)
        assert micro.ids.numel() <= budget or len(micro.ids) == 1
        seen += micro.samples
    assert sorted(map(id, seen)) == sorted(map(id, samples))


def test_equal_prompts_do_share_and_the_width_is_bounded() -> None:
    samples = [Sample((1,) * 100, (at + 5,) * 50, (0.0,) * 50, 1.0, at, 0) for at in range(20)]
    (micro,) = TrainBatch(samples).micro_batches(1 << 20, share_prompts=True)
    assert micro.ids.shape == (3, 500) and SHARED_WIDTH == 512  # eight responses of 50 after a prompt of 100
    alone = sum(m.ids.numel() for m in TrainBatch(samples).micro_batches(1 << 20))
    assert alone == 3000 and micro.ids.numel() == 1500


@given(samples=groups_of_turns(), budget=st.integers(20, 400))
@settings(max_examples=25, deadline=None)
def test_logprobs_are_those_of_each_turn_alone(samples: list[Sample], budget: int) -> None:
    model = one_model()
    with torch.no_grad():
        expected = {}
        for sample in samples:
            (micro,) = TrainBatch([sample]).micro_batches(1 << 20)
            expected[id(sample)] = response_logprobs(model, micro)[0]
        for micro in TrainBatch(samples).micro_batches(budget, share_prompts=True):
            parts = response_logprobs(model, micro)[0].split([len(s.response_ids) for s in micro.samples])
            for sample, part in zip(micro.samples, parts, strict=True):
                assert torch.allclose(part, expected[id(sample)], atol=2e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_gradient_is_the_same_with_and_without(aggregation: str, attention: str) -> None:
    model = tiny_qwen3(attn_implementation=attention)
    samples = make_samples(3, [0, 0, 1, 2, 3, 3, 4, 5], [0, 0, 0, 0, 1, 1, 1, 1])
    samples = [dataclasses.replace(sample, prompt_ids=samples[sample.group].prompt_ids) for sample in samples]
    gradients = []
    for share in (False, True):
        model.zero_grad()
        trainer = make_trainer(model, share_prompts=share, tokens_per_micro_batch=40)
        trainer.policy.backward(TrainBatch(samples, aggregation, max_length=8), Averages(), measure_mismatch=False)
        gradients.append([p.grad.clone() for p in model.parameters()])
    scale = max(float(g.abs().max()) for g in gradients[0])
    assert scale > 1e-3
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).abs().max()) < 2e-6 * max(scale, 1)


def test_a_kernel_without_masks_does_not_share() -> None:
    model = tiny_qwen3()
    assert can_share_prompts(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not can_share_prompts(model)
