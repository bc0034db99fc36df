"""Promise: the schedule counts updates, each parameter has one optimizer, and a broken gradient never reaches the weights."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_algorithms import tiny_qwen3
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from memfactory.algorithms.optim import OPTIMIZERS, SCHEDULES, build_optimizers, clip_and_step, lr_scale, set_lr
from memfactory.common.errors import ConfigError


def trace(schedule: str, warmup: int, total: int | None, number: int) -> list[float]:
    return [lr_scale(update, warmup, total, schedule) for update in range(number)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ("trapezoid", [1 / 3, 2 / 3, 1, 1, 1, 0.525, 0.05]),
    ],
)
def test_schedule_warms_up_for_two_updates_and_ends_at_six(schedule: str, expected: list[float]) -> None:
    assert trace(schedule, 2, 6, 7) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_never_leaves_zero_to_one_and_never_rises_after_warmup(schedule: str) -> None:
    found = trace(schedule, 5, 40, 80)
    assert all(0 <= value <= 1 for value in found)
    assert found[:6] == sorted(found[:6]) and found[5:] == sorted(found[5:], reverse=True)


def test_constant_needs_no_end_and_the_others_ask_for_it() -> None:
    assert trace("constant", 0, None, 3) == [1.0, 1.0, 1.0]
    for schedule in SCHEDULES[1:]:
        with pytest.raises(ConfigError, match="max_steps or epoch"):
            lr_scale(0, 0, None, schedule)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'step'.*constant, linear, cosine, trapezoid"):
        lr_scale(0, 0, 10, "step")
    with pytest.raises(ConfigError, match="'sgd'.*adamw, muon"):
        build_optimizers(nn.Linear(1, 1), "sgd", 0.1)


def groups_of(model: nn.Module, name: str) -> dict[str, list[tuple[type[Optimizer], float]]]:
    """{parameter: each (optimizer, weight decay) that trains it}."""
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found: dict[str, list[tuple[type[Optimizer], float]]] = {key: [] for key in names.values()}
    for optimizer in build_optimizers(model, name, 0.1, weight_decay=0.5):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found[names[id(parameter)]].append((type(optimizer), group["weight_decay"]))
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_trained_parameter_is_in_exactly_one_optimizer_once(name: str, tied: bool) -> None:
    model = tiny_qwen3(tie_word_embeddings=tied, attention_bias=True)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    found = groups_of(model, name)
    assert [key for key, owners in found.items() if len(owners) != 1] == ["model.layers.0.mlp.up_proj.weight"]
    assert not frozen.requires_grad and not found["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_hidden_matrices_decay(name: str) -> None:
    found = groups_of(tiny_qwen3(tie_word_embeddings=True, attention_bias=True), name)
    decayed = {key for key, owners in found.items() if owners[0][1] > 0}
    assert decayed == {key for key in found if key.endswith("_proj.weight")}
    assert {"model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"} <= found.keys() - decayed


def test_muon_trains_the_hidden_matrices_and_adamw_the_rest() -> None:
    found = groups_of(tiny_qwen3(tie_word_embeddings=True), "muon")
    assert {key for key, owners in found.items() if owners[0][0] is Muon} == {key for key in found if key.endswith("_proj.weight")}
    assert {owners[0][0] for key, owners in found.items() if not key.endswith("_proj.weight")} == {AdamW}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_output_embedding_of_its_own_is_no_hidden_matrix(name: str) -> None:
    found = groups_of(tiny_qwen3(tie_word_embeddings=False), name)
    assert found["lm_head.weight"] == [(AdamW, 0.0)]


def test_set_lr_reaches_every_group() -> None:
    optimizers = build_optimizers(tiny_qwen3(), "muon", 0.1)
    set_lr(optimizers, 0.025)
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.025}


def two_weights(*gradients: list[float]) -> tuple[nn.Module, Optimizer]:
    """A module of one parameter per gradient, all weights 1, under plain gradient descent with step 1."""
    model = nn.ParameterList([nn.Parameter(torch.ones(len(gradient))) for gradient in gradients])
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return model, SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize(("max_norm", "factor"), [(1.3, 0.1), (100.0, 1.0), (0.0, 1.0)])
def test_norm_is_of_all_gradients_before_the_clip_and_zero_clips_nothing(max_norm: float, factor: float) -> None:
    model, optimizer = two_weights([3.0, 4.0], [12.0])
    assert clip_and_step(model, [optimizer], max_norm) == (pytest.approx(13.0), True)
    moved = [1 - value for parameter in model for value in parameter.tolist()]
    assert moved == pytest.approx([3 * factor, 4 * factor, 12 * factor], rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [1.0, 0.0])
def test_non_finite_gradient_skips_the_update_and_is_cleared(bad: float, max_norm: float) -> None:
    model, optimizer = two_weights([3.0, bad], [12.0])
    norm, stepped = clip_and_step(model, [optimizer], max_norm)
    assert not stepped and not math.isfinite(norm)
    assert all(parameter.grad is None and bool((parameter == 1).all()) for parameter in model)


def test_gradients_are_cleared_after_an_update_of_every_optimizer() -> None:
    model = tiny_qwen3()
    optimizers = build_optimizers(model, "muon", 1e-2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(input_ids=torch.arange(1, 30)[None]).logits.square().mean().backward()
    assert clip_and_step(model, optimizers, 1.0)[1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
