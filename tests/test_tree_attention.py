"""Packing turns into prefix trees changes the cost of an update and nothing else, in every backend that a CPU can check."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from helpers_algorithms import VOCABULARY, make_samples, make_trainer, tiny_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from memfactory.algorithms import tree_attention
from memfactory.algorithms.logprobs import response_logprobs
from memfactory.algorithms.packing import AGGREGATIONS, MicroBatch, Sample, TrainBatch
from memfactory.algorithms.prefix_tree import grow
from memfactory.algorithms.tree_attention import attending, choose_backend
from memfactory.algorithms.tree_rows import SDPA4D_WIDTH, hidden, mask_mod, tree_rows
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.trainers.metrics import Averages
from memfactory.trainers.policy_update import PolicyUpdate

ON_CPU = ("sdpa4d", "paths")


@cache
def one_model() -> Qwen3ForCausalLM:
    """Read by every example, changed by none."""
    return tiny_qwen3()


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.1, pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@st.composite
def groups_of_turns(draw: st.DrawFn) -> list[Sample]:
    """Turns that begin alike for a while, some with equal prompts, some equal altogether."""
    samples = []
    for at in range(draw(st.integers(1, 12))):
        prompt = (1, 2, 3, *draw(st.lists(st.integers(4, 6), max_size=4)))
        response = draw(st.lists(st.integers(7, 9), min_size=1, max_size=5).map(tuple))
        old = tuple(-1.0 - n - at for n in range(len(response)))
        samples.append(Sample(prompt, response, old, at + 0.5, at // 2, at // 4, ref_logprobs=tuple(x - 100 for x in old)))
    return samples


def alone(model: PreTrainedModel, sample: Sample) -> Tensor:
    (micro,) = TrainBatch([sample]).micro_batches(1 << 20)
    return response_logprobs(model, micro)[0]


def by_sample(micro: MicroBatch, values: Tensor) -> Iterator[tuple[Sample, Tensor]]:
    yield from zip(micro.samples, values.split([len(s.response_ids) for s in micro.samples]), strict=True)


@pytest.mark.parametrize("backend", tree_attention.BACKENDS[1:])
@given(samples=groups_of_turns(), budget=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_every_token_is_trained_once_with_its_own_numbers(backend: str, samples: list[Sample], budget: int) -> None:
    batch = TrainBatch(samples, "sequence")
    weights = dict(zip(map(id, samples), batch.token_weights(), strict=True))
    seen: list[Sample] = []
    for micro in batch.micro_batches(budget, backend):
        assert micro.ref is not None
        for sample, (targets, old, ref, advantages, weight, rows, cols) in zip(
            micro.samples,
            zip(*(t.split([len(s.response_ids) for s in micro.samples]) for t in (
                micro.targets, micro.old, micro.ref, micro.advantages, micro.weights, micro.rows, micro.cols)), strict=True),
            strict=True,
        ):  # fmt: skip
            assert targets.tolist() == list(sample.response_ids)
            assert (old.tolist(), ref.tolist()) == (list(sample.old_logprobs), list(sample.ref_logprobs or ()))
            assert advantages.tolist() == [sample.advantage] * len(targets)
            assert weight.tolist() == pytest.approx([weights[id(sample)]] * len(targets))
            before = [sample.prompt_ids[-1], *sample.response_ids[:-1]]
            assert micro.ids[rows, cols].tolist() == before  # a branch point predicts several tokens
            assert micro.tree is not None
            assert micro.tree.positions[rows, cols].tolist() == list(range(len(sample.prompt_ids) - 1, len(sample) - 1))
        assert micro.ids.numel() <= budget or len(micro.samples) == 1 or backend == "flex"  # which pads to whole blocks
        seen += micro.samples
    assert sorted(map(id, seen)) == sorted(map(id, samples))


@pytest.mark.parametrize("backend", ON_CPU)
@given(samples=groups_of_turns(), budget=st.integers(8, 200))
@settings(max_examples=8, deadline=None)
def test_logprobs_are_those_of_each_turn_alone(backend: str, samples: list[Sample], budget: int) -> None:
    model = one_model()
    with torch.no_grad(), attending(model, backend):
        for micro in TrainBatch(samples).micro_batches(budget, backend):
            values = response_logprobs(model, micro)[0]
            with attending(model, None):
                model.config._attn_implementation, inside = "sdpa", model.config._attn_implementation
                expected = [alone(model, sample) for sample in micro.samples]
                model.config._attn_implementation = inside
            for (_, found), single in zip(by_sample(micro, values), expected, strict=True):
                assert torch.allclose(found, single, atol=5e-6)


def sharing_samples(seed: int = 3) -> list[Sample]:
    """Two groups of six; a group's prompts begin alike, some are equal."""
    samples = make_samples(seed, list(range(12)), [0] * 6 + [1] * 6)
    heads = {group: samples[group * 6].prompt_ids * 2 for group in (0, 1)}
    return [
        dataclasses.replace(s, prompt_ids=heads[s.group] + (s.prompt_ids if at % 3 else ()))
        for at, s in enumerate(samples)
    ]  # fmt: skip


def gradients(model: PreTrainedModel, aggregation: str = "token", **options: Any) -> tuple[list[Tensor], dict[str, float]]:
    model.zero_grad()
    trainer = make_trainer(model, tokens_per_micro_batch=60, **options)  # type: ignore[arg-type]
    averages = Averages()
    trainer.policy.backward(TrainBatch(sharing_samples(), aggregation, max_length=8), averages, measure_mismatch=True)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], averages.means()


def relative(one: list[Tensor], other: list[Tensor]) -> float:
    """Norm of the difference over the norm."""
    both = [torch.cat([g.flatten() for g in side]) for side in (one, other)]
    return float((both[0] - both[1]).norm() / both[1].norm())


@pytest.mark.parametrize(("make", "attention", "backend"), [
    (tiny_qwen3, "sdpa", "sdpa4d"), (tiny_qwen3, "eager", "sdpa4d"), (tiny_qwen3, "sdpa", "paths"), (tiny_qwen3, "eager", "paths"),
    (tiny_llama, "sdpa", "paths"), (tiny_llama, "sdpa", "sdpa4d"),
])  # fmt: skip
def test_the_gradient_is_that_of_separate_rows(make: Any, attention: str, backend: str) -> None:
    model = make()
    model.set_attn_implementation(attention)
    expected, measured = gradients(model, packing="rows")
    found, again = gradients(model, attention_backend=backend)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    assert relative(found, expected) < 1e-5
    assert model.config._attn_implementation == attention
    assert again.pop("update_flops") < measured.pop("update_flops")
    assert again == pytest.approx(measured, rel=1e-4, abs=1e-6)  # the metrics too: loss, ratio, entropy, mismatch


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_are_not_touched_by_packing(aggregation: str) -> None:
    model = tiny_qwen3()
    assert relative(gradients(model, aggregation)[0], gradients(model, aggregation, share_prompts=False)[0]) < 1e-5


@pytest.mark.parametrize("backend", ON_CPU)
def test_gradient_checkpointing_gives_the_same_gradient(backend: str) -> None:
    found, forwards = [], []
    for checkpointing in (False, True):
        gradients(tiny_qwen3(), attention_backend=backend, gradient_checkpointing=checkpointing)  # compared with the plain forward once
        model, calls = tiny_qwen3(), []
        model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found.append(gradients(model, attention_backend=backend, gradient_checkpointing=checkpointing)[0])
        forwards.append(len(calls))
    assert forwards[1] == 2 * forwards[0]  # each ran again in the backward pass
    assert relative(found[1], found[0]) < 1e-6


@pytest.mark.parametrize("backend", ON_CPU)
def test_what_stands_beside_a_turn_does_not_reach_it(backend: str) -> None:
    model, samples = one_model(), sharing_samples()
    kept, other = samples[4], samples[5]
    changed = dataclasses.replace(other, response_ids=tuple(VOCABULARY - 1 - t for t in other.response_ids))
    found = []
    for neighbour in (other, changed):
        (micro,) = TrainBatch([kept, neighbour]).micro_batches(1 << 20, backend)
        with torch.no_grad(), attending(model, backend):
            found.append(next(v for s, v in by_sample(micro, response_logprobs(model, micro)[0]) if s is kept))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("backend", ON_CPU)
def test_fresh_logprobs_return_in_the_order_of_the_samples(backend: str) -> None:
    model, samples = one_model(), sharing_samples()
    trainer = make_trainer(model, attention_backend=backend, tokens_per_micro_batch=40)
    fresh = trainer.policy.with_logprobs(samples, model, "old_logprobs")
    for sample, new in zip(samples, fresh, strict=True):
        assert dataclasses.replace(new, old_logprobs=sample.old_logprobs) == sample
        assert new.old_logprobs == pytest.approx(alone(model, sample).tolist(), abs=1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
def test_in_half_precision_the_logprobs_agree_as_far_as_it_goes(backend: str) -> None:
    model, samples = one_model(), sharing_samples()
    found = []
    for own in (None, backend):
        with torch.no_grad(), attending(model, own), torch.autocast("cpu", torch.bfloat16):
            (micro,) = TrainBatch(samples).micro_batches(1 << 20, own)
            found.append({id(s): v for s, v in by_sample(micro, response_logprobs(model, micro)[0])})
    off = torch.cat([(found[0][key] - found[1][key]).abs() for key in found[0]])
    assert float(off.mean()) < 0.02


# What a GPU runs, by its logic


def fake_flash(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int, **options: Any) -> Tensor:
    """flash-attn's variable-length attention, causal at the bottom right, one sequence at a time."""
    assert options["causal"]
    assert max_q == int(starts_q.diff().max()) and max_k == int(starts_k.diff().max()) and starts_q.dtype == torch.int32
    found = []
    for (a, b), (c, d) in zip(zip(starts_q, starts_q[1:], strict=False), zip(starts_k, starts_k[1:], strict=False), strict=True):
        keys, values = (t[c:d].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * options["softmax_scale"]
        late = torch.ones(b - a, d - c, dtype=torch.bool).triu(1 + int(d - c) - int(b - a))
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(late, -torch.inf).softmax(-1), values))
    return torch.cat(found)


def test_flash_is_handed_the_segments_and_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "flash_varlen", lambda: fake_flash)
    model = tiny_qwen3()
    expected = gradients(model, packing="rows")[0]
    policy = PolicyUpdate(model, TrainConfig(tokens_per_micro_batch=60), torch.device("cpu"), False)
    policy.backend = "flash"
    model.zero_grad()
    policy.backward(TrainBatch(sharing_samples()), Averages(), measure_mismatch=False)
    assert relative([p.grad for p in model.parameters() if p.grad is not None], expected) < 1e-5


@given(samples=groups_of_turns())
@settings(max_examples=20, deadline=None)
def test_flex_masks_what_the_dense_mask_masks(samples: list[Sample]) -> None:
    ids, rows = tree_rows([grow([(*s.prompt_ids, *s.response_ids) for s in samples])], "flex")
    assert rows is not None and ids.shape[1] % 128 == 0
    at = torch.arange(ids.shape[1])
    zero = torch.zeros(1, dtype=torch.int64)
    dense = mask_mod(rows.ends)(zero, zero, at[:, None], at[None, :])
    assert torch.equal(dense, ~hidden(rows.ends)[0, 0])
    assert dense.any(1).all()  # no query without a key: padding too


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["sdpa4d", "paths", "flash", "flex"])
def test_on_a_gpu_every_backend_gives_the_gradient_of_separate_rows(backend: str) -> None:
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    model = tiny_qwen3(head_dim=32).cuda()
    half = backend == "flash"
    found = []
    for options in ({"packing": "rows"}, {"attention_backend": backend}):
        policy = PolicyUpdate(model, TrainConfig(tokens_per_micro_batch=400, **options), torch.device("cuda"), half)  # type: ignore[arg-type]
        model.zero_grad()
        policy.backward(TrainBatch(sharing_samples()), Averages(), measure_mismatch=False)
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert relative(found[1], found[0]) < (0.05 if half else 1e-3)  # the kernels may use TF32


# Which backend, and what is refused


def test_the_dense_mask_is_bounded_and_one_row_is_filled_by_the_others() -> None:
    samples = [Sample((1,) * 100, (at + 5,) * 50, (0.0,) * 50, 1.0, at, 0) for at in range(20)]
    (micro,) = TrainBatch(samples).micro_batches(1 << 20, "sdpa4d")
    assert micro.ids.shape == (3, 500) and SDPA4D_WIDTH == 512  # eight responses of 50 after a prompt of 100
    (micro,) = TrainBatch(samples).micro_batches(1 << 20, "paths")
    assert micro.ids.shape == (1, 1100)
    assert sum(m.ids.numel() for m in TrainBatch(samples).micro_batches(1 << 20)) == 3000


def test_auto_takes_what_the_model_and_the_device_can() -> None:
    model = tiny_qwen3()
    assert choose_backend(model) == "paths"
    model.set_attn_implementation("eager")
    assert choose_backend(model) == "sdpa4d"
    model.config._attn_implementation = "flex_attention"
    assert choose_backend(model) is None


def test_a_model_with_windows_or_without_positions_has_no_trees() -> None:
    model = tiny_qwen3()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert choose_backend(model) is None
    with pytest.raises(ConfigError, match="attention_backend paths: .*sliding_attention.*packing rows"):
        choose_backend(model, "paths")
    model.config.layer_types = None
    assert choose_backend(model) == "paths"
    model.config.sliding_window = model.config.max_position_embeddings - 1
    model.config.use_sliding_window = True
    with pytest.raises(ConfigError, match="a window of 127"):
        choose_backend(model, "sdpa4d")


@pytest.mark.parametrize(
    ("choice", "message"), [("flash", "runs on a GPU"), ("flex", "no backward pass on a CPU"), ("tree", "Known: auto")]
)
def test_a_backend_that_cannot_be_had_is_refused_in_words(choice: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_backend(one_model(), choice)


def test_a_tree_outside_attending_is_refused() -> None:
    model = one_model()
    (micro,) = TrainBatch(sharing_samples()).micro_batches(1 << 20, "paths")
    with pytest.raises(ConfigError, match="attending"):
        response_logprobs(model, micro)


def test_attention_that_does_more_than_softmax_is_refused() -> None:
    with pytest.raises(ConfigError, match="softcap.*packing rows"):
        tree_attention._refuse({"softcap": 30.0})


def test_the_older_spelling_still_says_rows() -> None:
    assert make_trainer(tiny_qwen3(), share_prompts=False).policy.backend is None
    assert make_trainer(tiny_qwen3(), packing="rows").policy.backend is None
    assert make_trainer(tiny_qwen3()).policy.backend == "paths"
