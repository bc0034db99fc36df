"""Promise: a split weight is its fp32 master to the bit, the lean AdamW moves it as torch's moves fp32, and nothing else moves.

Trap 17 of trainer notes: AdamW on bf16 weights alone keeps a tenth of its own update.
"""

from __future__ import annotations

import math
import struct
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers_algorithms import tiny_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from memfactory.algorithms import lean_adamw
from memfactory.algorithms.lean_adamw import LeanAdamW
from memfactory.algorithms.optim import Lean, build_optimizers, clip_and_step
from memfactory.algorithms.split_master import join, split, split_model
from memfactory.common.errors import ConfigError

LR = 5e-7
"""At which a bf16 weight of .02 does not notice an update."""


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return float(one @ other / (one.norm() * other.norm()))


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_every_bit_pattern_comes_back(patterns: list[int]) -> None:
    bits = torch.tensor(patterns, dtype=torch.int64).to(torch.int32)
    weight, residual = split(bits.view(torch.float32))
    assert (weight.dtype, residual.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join(weight, residual).view(torch.int32), bits)


@settings(max_examples=40)
@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_the_upper_half_is_the_nearest_bf16_and_torchs_own_but_for_ties(value: float) -> None:
    master = torch.tensor([value])
    weight, _ = split(master)
    cast = master.bfloat16()
    assert float((weight.double() - master.double()).abs()) == float((cast.double() - master.double()).abs())
    tie = struct.unpack("<I", struct.pack("<f", value))[0] & 0xFFFF == 0x8000
    assert torch.equal(weight, cast) or tie


def test_what_bf16_can_say_has_no_residual() -> None:
    values = torch.randn(1000).bfloat16()
    weight, residual = split(values.float())
    assert torch.equal(weight, values) and not residual.any()


def matrices(seed: int = 0) -> nn.ParameterList:
    """Three weights of the size of a model's, one of them norm-like and small."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((48, 256), (256, 32), (64,))
    return nn.ParameterList([nn.Parameter(torch.randn(size, generator=generator) * 0.02) for size in sizes])


def gradients(model: nn.Module, updates: int) -> list[list[torch.Tensor]]:
    """Noisy gradients around a mean, over four decades of size, some rows zero as an embedding's are."""
    generator = torch.Generator().manual_seed(1)
    scales = [torch.exp(1.5 * torch.randn(p.shape, generator=generator)) * 1e-4 for p in model.parameters()]
    means = [0.5 * torch.randn(p.shape, generator=generator) for p in model.parameters()]
    made = []
    for _ in range(updates):
        rows = [(torch.rand(len(p), generator=generator) < 0.7).float().view(-1, *[1] * (p.ndim - 1)) for p in model.parameters()]
        made.append([(torch.randn(s.shape, generator=generator) + m) * s * r for s, m, r in zip(scales, means, rows, strict=True)])
    return made


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int = 20) -> nn.Module:
    for row in gradients(model, updates):
        for parameter, gradient in zip(model.parameters(), row, strict=True):
            parameter.grad = gradient.to(parameter.dtype if isinstance(optimizer, AdamW) else torch.float32)
        optimizer.step()
    return model


def split_run(updates: int = 20, **options: Any) -> tuple[nn.Module, LeanAdamW]:
    model = matrices()
    residuals = split_model(model)
    optimizer = LeanAdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), residuals=residuals, **options)
    return trained(model, optimizer, updates), optimizer


def fp32_run() -> list[torch.Tensor]:
    """The weights after torch's own AdamW on fp32."""
    model = matrices()
    return [p.detach() for p in trained(model, AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99))).parameters()]


def masters(model: nn.Module, optimizer: LeanAdamW) -> list[torch.Tensor]:
    return [join(p.detach().view(-1), optimizer.state[p]["residual"]).view(p.shape) for p in model.parameters()]


def test_trap_17_the_applied_update_is_that_of_fp32() -> None:
    for mine, fp32, before in zip(masters(*split_run()), fp32_run(), matrices(), strict=True):
        assert float((mine - fp32).abs().max()) <= 4e-9
        assert torch.equal(mine, fp32), "in fact it is the same to the bit"
        assert cosine(mine - before.detach(), fp32 - before.detach()) > 0.999


def test_trap_17_bf16_weights_alone_lose_nearly_all_of_it() -> None:
    plain = matrices().bfloat16()
    start = plain[0].detach().float()
    trained(plain, AdamW(plain.parameters(), lr=LR, betas=(0.9, 0.99)))
    moved = plain[0].detach().float() - start
    assert cosine(moved, fp32_run()[0] - matrices()[0].detach()) < 0.2
    assert float((moved != 0).float().mean()) < 0.05


def test_the_bf16_half_is_the_rounded_master() -> None:
    model, optimizer = split_run()
    for weight, master in zip(model.parameters(), masters(model, optimizer), strict=True):
        assert torch.equal(weight, split(master)[0])


def test_eight_bit_moments_point_the_same_way() -> None:
    model, optimizer = split_run(moments="8bit")
    found, reference = masters(model, optimizer), fp32_run()
    moved = [(mine - p.detach(), fp32 - p.detach()) for mine, fp32, p in zip(found, reference, matrices(), strict=True)]
    assert cosine(*moved[0]) > 0.998 and cosine(*moved[1]) > 0.998
    assert 0.98 < float(moved[0][0].norm() / moved[0][1].norm()) < 1.02
    assert torch.equal(found[2], reference[2]), "a small one keeps fp32 moments"
    assert optimizer.state[model[0]]["mean"].dtype == torch.uint8 and optimizer.state[model[2]]["mean"].dtype == torch.float32


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
@pytest.mark.parametrize(("offload", "size"), [(True, 1 << 24), (True, 2048)])
def test_offload_and_slices_change_no_bit(offload: bool, size: int, moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = split_run(4, moments=moments)
    monkeypatch.setattr(lean_adamw, "SLICE", size)
    other, lean = split_run(4, moments=moments, offload=offload)
    assert all(map(torch.equal, masters(model, optimizer), masters(other, lean)))


def test_lean_adamw_on_fp32_weights_is_adamw() -> None:
    mine = matrices()
    trained(mine, LeanAdamW(mine.parameters(), lr=LR, betas=(0.9, 0.99), offload=True))
    assert all(map(torch.equal, mine, fp32_run()))


@pytest.mark.parametrize("options", [{}, {"moments": "8bit"}, {"offload": True}])
def test_a_saved_optimizer_goes_on_bitwise_and_its_tensors_stay_where_they_are(options: dict[str, Any]) -> None:
    whole, first = split_run(3, **options)
    model = matrices()
    optimizer = LeanAdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), residuals=split_model(model), **options)
    places = [{k: v.data_ptr() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)} for p in model.parameters()]
    for parameter, other in zip(model, whole, strict=True):
        parameter.data.copy_(other.data)
    optimizer.load_state_dict(deepcopy(first.state_dict()))
    assert [{k: v.data_ptr() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)} for p in model.parameters()] == places
    trained(whole, first, 2)
    trained(model, optimizer, 2)
    assert all(map(torch.equal, masters(whole, first), masters(model, optimizer)))


def test_another_optimizers_state_is_refused() -> None:
    model, optimizer = split_run(1)
    with pytest.raises(ConfigError, match="8bit moments; this one has fp32"):
        optimizer.load_state_dict(split_run(1, moments="8bit")[1].state_dict())
    with pytest.raises(ConfigError, match="no LeanAdamW"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_a_bf16_weight_without_a_residual_is_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16 needs a residual"):
        LeanAdamW(matrices().bfloat16().parameters(), lr=LR)
    with pytest.raises(ConfigError, match="Unknown moments '4bit'. Known: fp32, 8bit"):
        LeanAdamW(matrices().parameters(), lr=LR, moments="4bit")


def test_muon_is_left_to_fp32() -> None:
    with pytest.raises(ConfigError, match="--optimizer muon.*--master_weights"):
        build_optimizers(tiny_qwen3(), "muon", 0.1, lean=Lean(moments="8bit"))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_of_many_micro_batches_add_up_in_fp32_unless_told_otherwise(kind: torch.dtype) -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(64))])
    split_model(model, grad_dtype=kind)
    share = torch.rand(64, dtype=torch.bfloat16) + 0.5
    for _ in range(600):  # about as many micro-batches as an update of the 4B launcher has
        (model[0] * share).sum().backward()
    assert model[0].grad is not None and model[0].grad.dtype == kind
    error = float((model[0].grad.double() / (600 * share.double()) - 1).abs().max())
    assert error < 1e-6 if kind == torch.float32 else error > 0.1, "bf16 stops growing at 256 times the share"


@pytest.mark.parametrize("tied", [True, False])
def test_trap_28_a_tied_embedding_is_split_once_and_learns_from_both_its_uses(tied: bool) -> None:
    model = tiny_qwen3(tie_word_embeddings=tied)
    residuals = split_model(model)
    assert len(residuals) == len(list(model.parameters())) and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    optimizers = build_optimizers(model, "adamw", 0.1, 0.1, lean=Lean(residuals))
    assert sum(len(group["params"]) for group in optimizers[0].param_groups) == len(residuals)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    model(input_ids=torch.arange(1, 30)[None]).logits.float().square().mean().backward()
    assert clip_and_step(model, optimizers, 1.0)[1]
    for name, parameter in model.named_parameters():
        assert parameter.grad is None and parameter.data_ptr() == before[name][0] and not torch.equal(parameter, before[name][1])


def test_only_matrices_decay_with_split_weights_too() -> None:
    model = tiny_qwen3(tie_word_embeddings=True)
    (optimizer,) = build_optimizers(model, "adamw", 0.1, 0.5, lean=Lean(split_model(model)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name in names.values() if name.endswith("_proj.weight")}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_on_a_gpu_state_stays_pinned_on_the_cpu_and_the_update_is_the_same(moments: str) -> None:
    found = []
    for offload in (False, True):
        model = matrices().cuda()
        optimizer = LeanAdamW(model.parameters(), lr=LR, residuals=split_model(model), moments=moments, offload=offload)
        for row in gradients(matrices(), 5):
            for parameter, gradient in zip(model.parameters(), row, strict=True):
                parameter.grad = gradient.cuda()
            optimizer.step()
        state = optimizer.state[model[0]]
        assert all(t.is_cuda != offload and t.is_pinned() == offload for t in state.values() if isinstance(t, torch.Tensor))
        found.append([join(p.detach().view(-1).cpu(), optimizer.state[p]["residual"].cpu()) for p in model.parameters()])
    assert all(map(torch.equal, *found)) and math.isfinite(float(found[0][0].sum()))
