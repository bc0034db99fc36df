"""Promise: log-probs made tile by tile are the dense ones, with the dense gradient, and no tensor of tokens x vocabulary is ever made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_algorithms import VOCABULARY, make_samples, make_trainer, one_micro_batch, tiny_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from memfactory.algorithms import chunked_logprobs as module
from memfactory.algorithms import logprobs as users
from memfactory.algorithms.chunked_logprobs import chunked_logprobs
from memfactory.algorithms.logprobs import autocast, response_logprobs
from memfactory.algorithms.packing import TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import UnknownNameError
from memfactory.trainers.metrics import Averages

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def inputs(n: int, v: int, h: int, bias: bool = False, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Inputs:
    """(hidden, weight, targets, bias) whose logits have about the standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int, size: float) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype).requires_grad_()

    targets = torch.randint(v, (n,), generator=generator)
    return made(n, h, size=1.0), made(v, h, size=scale / math.sqrt(h)), targets, made(v, size=scale) if bias else None


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, in fp64."""
    logits = hidden.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    table = torch.log_softmax(logits / temperature, -1)
    return table[torch.arange(len(targets)), targets], torch.special.entr(table.detach().exp()).sum(-1)


def gradients(logprobs: Tensor, of: Inputs, seed: int = 0) -> list[Tensor]:
    """Gradients of a random combination of the log-probs."""
    mix = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaves = [leaf for leaf in (of[0], of[1], of[3]) if leaf is not None]
    return list(torch.autograd.grad((logprobs.double() * mix).sum(), leaves))


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest deviation as a part of the largest entry."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))


class Sizes(TorchDispatchMode):
    """Shapes of every tensor that an operation inside the block made anew (no view), in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.seen += [tuple(t.shape) for t in made if t.untyped_storage().data_ptr() not in before]
        return out

    @property
    def largest(self) -> int:
        return max(math.prod(shape) for shape in self.seen)


# The op

shapes = st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(1, 5))
chunks = st.tuples(st.integers(1, 10), st.integers(1, 14))


@pytest.mark.slow
@given(shapes, chunks, st.sampled_from([0.3, 1.0, 1.7]), st.booleans(), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_values_entropies_and_gradients_are_the_dense_ones(
    shape: tuple[int, int, int], chunk: tuple[int, int], temperature: float, bias: bool, seed: int
) -> None:
    of = inputs(*shape, bias=bias, seed=seed, scale=2.0)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        given_ = [t if t is None or not t.is_floating_point() else t.to(dtype) for t in of]
        found, entropy = chunked_logprobs(given_[0], given_[1], of[2], temperature, given_[3], *chunk)  # type: ignore[arg-type]
        expected, expected_entropy = dense(*of[:3], temperature, of[3])
        assert found.dtype == entropy.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=bound, rtol=bound)
        torch.testing.assert_close(entropy.double(), expected_entropy, atol=bound, rtol=bound)
        for one, other in zip(gradients(found, of), gradients(expected, of), strict=True):
            torch.testing.assert_close(one, other, atol=bound, rtol=bound)


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_is_that_of_finite_differences(bias: bool) -> None:
    hidden, weight, targets, b = inputs(4, 7, 3, bias)

    def op(*leaves: Tensor) -> Tensor:
        return chunked_logprobs(leaves[0], leaves[1], targets, 0.7, leaves[2] if bias else None, 3, 2)[0]

    assert torch.autograd.gradcheck(op, tuple(leaf for leaf in (hidden, weight, b) if leaf is not None))


def test_the_entropy_has_no_gradient() -> None:
    of = inputs(4, 7, 3)
    logprobs, entropy = chunked_logprobs(*of[:3])
    assert logprobs.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e6, 1e30, 1e36])
def test_extreme_logits_stay_finite(scale: float) -> None:
    hidden, weight, targets, _ = inputs(6, 50, 8, dtype=torch.float32)
    logprobs, entropy = chunked_logprobs(hidden, weight * scale, targets, 1.0, None, 4, 7)
    logits = hidden @ (weight * scale).t()  # in fp32 too: with such numbers the product's own rounding is what differs from fp64
    expected, expected_entropy = dense(logits, torch.eye(50), targets)
    assert logprobs.isfinite().all() and entropy.isfinite().all() and (logprobs <= 0).all()
    size = float(logits.detach().abs().max())
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=max(1e-5, 1e-6 * size))
    if scale < 1e6:
        torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-4, atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(logprobs.sum(), [hidden, weight]))


def test_logits_far_from_zero_keep_their_differences() -> None:
    """A model's logits may drift together: the sum of their top and the log of their mass would lose the digits that matter."""
    hidden, weight, targets, bias = inputs(6, 50, 8, bias=True, dtype=torch.float32)
    assert bias is not None
    weight = torch.zeros_like(weight, requires_grad=True)  # the product is exactly 0: what is left is the op's own rounding
    far = (bias + 4096.0).detach().requires_grad_()
    near = (far - 4096.0).detach().requires_grad_()  # the same to the last bit
    found, expected = (chunked_logprobs(hidden, weight, targets, 1.0, b, 4, 7) for b in (far, near))
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    one, other = (torch.autograd.grad(pair[0].sum(), weight)[0] for pair in (found, expected))
    assert relative(one, other) < 1e-6


def test_a_tile_of_equal_logits_far_below_the_rest_leaves_no_nan() -> None:
    weight = torch.tensor([-1e38] * 8 + [1e38] * 4)[:, None]
    logprobs, entropy = chunked_logprobs(torch.ones(1, 1), weight, torch.tensor([9]), 1.0, None, 1, 8)
    assert logprobs.item() == pytest.approx(-math.log(4)) and entropy.item() == pytest.approx(math.log(4))


def test_what_needs_no_gradient_gets_none() -> None:
    hidden, weight, targets, _ = inputs(6, 50, 3)
    with Sizes() as sizes:
        chunked_logprobs(hidden, weight.detach(), targets, 1.0, None, 4, 7)[0].sum().backward()
    assert hidden.grad is not None and sizes.largest < weight.numel()  # a frozen head costs no tensor of its size
    assert torch.autograd.grad(chunked_logprobs(hidden.detach(), weight, targets)[0].sum(), weight)[0].shape == weight.shape


def test_without_gradient_nothing_is_kept() -> None:
    of = inputs(6, 50, 3)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        with torch.no_grad():
            assert chunked_logprobs(*of[:3])[0].grad_fn is None
        assert not kept
        chunked_logprobs(*of[:3])
    assert {tuple(t.shape) for t in kept} == {(6, 3), (50, 3), (6,)}  # inputs and numbers per token


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": torch.zeros(5, dtype=torch.int64)}, "targets [5]"), ({"weight": torch.zeros(7, 4)}, "weight [7, 4]"),
        ({"temperature": 0.0}, "temperature 0.0"), ({"vocab_chunk": 0}, "vocab_chunk 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    hidden, weight, targets, _ = inputs(4, 7, 3)
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        chunked_logprobs(**({"hidden": hidden, "weight": weight, "targets": targets} | change))


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_a_tile_or_an_input(dtype: torch.dtype) -> None:
    n, v, h, rows, words = 96, 2048, 4, 32, 256
    hidden, weight, targets, bias = inputs(n, v, h, bias=True, dtype=dtype)
    with Sizes() as sizes:
        chunked_logprobs(hidden, weight, targets, 0.7, bias, rows, words)[0].sum().backward()
    allowed = {(v, h), (n, h), (v,)}
    assert max(math.prod(shape) for shape in sizes.seen if shape not in allowed) == rows * words
    assert sizes.largest == v * h < n * v // 16


def test_a_model_makes_no_logits_of_its_tokens_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_TILE", (8, 500))
    model = tiny_qwen3(vocab_size=3000)
    micro = one_micro_batch(make_samples(1, list(range(9)), [0] * 9))
    logits = len(micro.targets) * 3000
    for chunks_, expected in (("chunked", False), ("dense", True)):
        with Sizes() as sizes:
            response_logprobs(model, micro, 0.7, chunks_)[0].sum().backward()
        assert (sizes.largest >= logits) == expected  # and the test does see what dense makes


# bf16


def test_bf16_in_means_fp32_inside() -> None:
    """Trap 19: what bf16 inputs lose is lost before they come in."""
    of = inputs(64, 1500, 32, scale=3.0, dtype=torch.bfloat16)
    expected, expected_entropy = dense(*of[:3])
    wanted = gradients(expected, of)
    for rows, words in ((4, 32), (64, 4096)):  # 16 x 47 tiles or one: partial sums are never rounded
        found, entropy = chunked_logprobs(*of[:3], 1.0, None, rows, words)
        assert found.dtype == torch.float32 and float((found - expected).detach().abs().max()) < 1e-5
        assert float((entropy - expected_entropy).abs().max()) < 1e-5
        for one, other in zip(gradients(found, of), wanted, strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)  # a step of bf16, where a border was near
            assert (one == other).float().mean() > 0.99


def test_a_bf16_weight_whose_gradient_is_fp32_gets_it_unrounded() -> None:
    """Split master weights: rounding each micro-batch's gradient would lose what they add up in fp32 for."""
    of = inputs(64, 1500, 32, scale=3.0, dtype=torch.bfloat16)
    weight = of[1].detach().double().requires_grad_()
    expected = torch.autograd.grad(dense(of[0], weight, of[2])[0].sum(), weight)[0]
    of[1].grad_dtype = torch.float32
    chunked_logprobs(*of[:3], 1.0, None, 4, 32)[0].sum().backward()
    assert of[1].grad is not None and of[1].grad.dtype == torch.float32 and relative(of[1].grad, expected) < 1e-5


def test_autocast_does_not_reach_inside() -> None:
    of = inputs(16, 200, 8, dtype=torch.float32)
    expected = chunked_logprobs(*of[:3])[0]
    with autocast(torch.device("cpu"), True):
        found = chunked_logprobs(*of[:3])[0]
        assert torch.equal(found, expected)
        inside = gradients(found, of)
    assert all(torch.equal(one, other) for one, other in zip(inside, gradients(expected, of), strict=True))


def test_a_gpus_products_have_bf16_factors_and_fp32_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's branch on a CPU, whose torch lacks the product itself."""
    real = torch.mm

    def mm(one: Tensor, other: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        assert out_dtype == torch.float32 and one.dtype == other.dtype == torch.bfloat16
        return real(one.float(), other.float())

    of = inputs(64, 300, 32, scale=3.0, dtype=torch.bfloat16)
    plain = chunked_logprobs(*of[:3], 1.0, None, 48, 64)[0]
    wanted = gradients(plain, of)
    monkeypatch.setattr(module, "_in_bf16", lambda one, other: one.dtype == other.dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "mm", mm)
    found = chunked_logprobs(*of[:3], 1.0, None, 48, 64)[0]
    assert torch.equal(found, plain)  # a product of two bf16 numbers is exact in fp32
    assert all(relative(one, other) < 2**-7 for one, other in zip(gradients(found, of), wanted, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    of = inputs(300, 5000, 64, scale=3.0, dtype=dtype)
    there = tuple(None if t is None else t.detach().cuda().requires_grad_(t.is_floating_point()) for t in of)
    expected, found = dense(*of[:3])[0], chunked_logprobs(*there[:3], 1.0, None, 128, 1024)[0]  # type: ignore[arg-type]
    assert float((found.cpu() - expected).detach().abs().max()) < 1e-3
    mix = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = torch.autograd.grad((found.double() * mix.cuda()).sum(), [there[0], there[1]])  # type: ignore[list-item]
    assert all(relative(one.cpu(), other) < 2**-7 for one, other in zip(got, gradients(expected, of), strict=True))


# Its users


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_models_gradient_is_the_same_chunked_and_dense(tied: bool, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps 5 and 28: also where the head is the embedding, which both ends of the model then pull at."""
    monkeypatch.setattr(module, "CPU_TILE", (5, 7))
    model = tiny_qwen3(tie_word_embeddings=tied)
    micro = one_micro_batch(make_samples(3, [0, 0, 1, 2, 3], [0, 0, 0, 1, 1]))
    found: dict[str, list[Tensor]] = {}
    for chunks_ in ("dense", "chunked"):
        model.zero_grad()
        logprobs, entropy = response_logprobs(model, micro, temperature, chunks_)
        (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
        found[chunks_] = [logprobs.detach(), entropy, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    assert len(found["dense"]) == 2 + len(list(model.parameters()))
    for one, other in zip(found["chunked"], found["dense"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of the op had."""
    seen: list[int] = []

    def noted(hidden: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        seen.append(len(hidden))
        return chunked_logprobs(hidden, *args)

    monkeypatch.setattr(users, "chunked_logprobs", noted)
    return seen


def test_auto_goes_by_the_number_of_logits(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, micro = tiny_qwen3(), one_micro_batch(make_samples(3, [0, 1], [0, 0]))
    tokens = len(micro.targets)
    for bound, expected in ((tokens * VOCABULARY + 1, []), (tokens * VOCABULARY, [tokens])):
        monkeypatch.setattr(users, "DENSE_LOGITS", bound)
        response_logprobs(model, micro)
        assert calls == expected
    with pytest.raises(UnknownNameError, match="logprob_chunks 'chunk'.*'chunked'"):
        response_logprobs(model, micro, 1.0, "chunk")


@pytest.mark.parametrize(
    ("kind", "change"),
    [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25}), ("gemma2", {"final_logit_softcapping": 9.0})],
)
def test_a_model_that_changes_its_logits_stays_dense(kind: str, change: dict[str, float], calls: list[int]) -> None:
    """Found out by trying the head, whatever an option is called; and the same class without the change is not."""
    micro = one_micro_batch(make_samples(3, [0, 1], [0, 0]))
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    none = {"logits_scaling": 1.0, "logit_scale": 1.0, "final_logit_softcapping": None}
    for changes, chunked in ((change, 0), ({name: none[name] for name in change}, 1)):
        config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=1, head_dim=8, pad_token_id=0, **changes)
        response_logprobs(AutoModelForCausalLM.from_config(config).eval(), micro, 1.0, "chunked")
        assert len(calls) == chunked


def test_the_trainers_pass_the_option_on(calls: list[int]) -> None:
    samples = make_samples(3, [0, 1, 2, 3], [0, 0, 1, 1])
    losses: dict[str, list[Tensor]] = {}
    for chunks_ in ("dense", "chunked"):
        trainer = make_trainer(tiny_qwen3(tie_word_embeddings=True), logprob_chunks=chunks_)
        calls.clear()  # of the comparison at the start
        trainer.policy.backward(TrainBatch(samples), Averages(), measure_mismatch=False)
        losses[chunks_] = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        again = trainer.policy.with_logprobs(samples, trainer.model, "old_logprobs")
        assert len(again) == len(samples) and len(calls) == 2 * (chunks_ == "chunked")
    for one, other in zip(losses["chunked"], losses["dense"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_an_unknown_word_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="logprob_chunks 'all'"):
        make_trainer(tiny_qwen3(), logprob_chunks="all")


def test_a_resumed_run_may_not_change_it() -> None:
    """Chunked and dense differ in the last bits, and a resumed run is bitwise the same."""
    assert TrainConfig(logprob_chunks="dense").changes(TrainConfig().to_dict()) == ["logprob_chunks: 'auto' -> 'dense'"]


# Old log-probs without a pass of their own


@pytest.mark.parametrize(("old", "options"), [("frozen", {}), ("recompute", {"num_iterations": 2, "num_minibatches": 2})])
def test_old_logprobs_of_the_updates_own_weights_are_its_own(old: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of a pass made for them beforehand, and the pass is not made."""
    samples = make_samples(5, [0, 0, 1, 2, 3], [0, 0, 0, 1, 1])
    plain, skipping = (make_trainer(tiny_qwen3(), beta=0.0, old_logprobs=name, **options) for name in ("sampler", old))
    passed = plain.policy.with_logprobs(samples, plain.model, "old_logprobs")
    plain.policy.backward(TrainBatch(passed), Averages(), measure_mismatch=False)
    counted = count_forwards(skipping.model, monkeypatch)
    averages = Averages()
    skipping.policy.backward(TrainBatch(samples), averages, measure_mismatch=True)
    assert len(counted) == 1
    for one, other in zip(plain.model.parameters(), skipping.model.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-7, rtol=1e-5)
    means = averages.means()
    off = [abs(a - b) for s, f in zip(samples, passed, strict=True) for a, b in zip(s.old_logprobs, f.old_logprobs, strict=True)]
    assert means["ratio"] == means["ratio_max"] == 1 and means["clip_fraction"] == 0
    assert means["logprob_mismatch"] == pytest.approx(sum(off) / len(off), rel=1e-5)  # still of the sampler's


def count_forwards(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one at each forward pass of the model."""
    seen: list[int] = []
    real: Callable[..., Any] = model.base_model.forward  # type: ignore[assignment,union-attr]
    monkeypatch.setattr(model.base_model, "forward", lambda *args, **kwargs: (seen.append(1), real(*args, **kwargs))[1])
    return seen
