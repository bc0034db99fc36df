"""Promise: wherever the starting weights are, they give the log-probs of the starting model, bit for bit, and leave the device after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers_algorithms import make_samples, one_micro_batch, tiny_qwen3

from memfactory.algorithms.logprobs import evaluating, response_logprobs
from memfactory.algorithms.lora import LoraOptions, add_lora
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.trainers.held import PLAIN, held_by
from memfactory.trainers.reference import Reference, build_reference

CPU = torch.device("cpu")


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    micro = one_micro_batch(make_samples(0, [0, 1, 2], [0, 0, 1])).to(next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        return response_logprobs(model, micro, 0.7)[0]  # type: ignore[arg-type]


def disturbed(model: torch.nn.Module) -> torch.nn.Module:
    """The policy after updates."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    return model


def scored(reference: Reference) -> torch.Tensor:
    with reference.scoring() as model:
        return logprobs(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["copy", "cpu", "lora"])
def test_trap_13_the_reference_stays_the_base_model_bitwise(kind: str, tied: bool) -> None:
    model = tiny_qwen3(tie_word_embeddings=tied)
    base = logprobs(model)
    if kind == "lora":
        add_lora(model, LoraOptions(4, 8))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    reference = build_reference(kind, model, CPU, bf16=False)
    assert torch.equal(logprobs(model), base), "step 0: the policy is the reference"
    for _ in range(2):
        disturbed(model)
        changed = logprobs(model)
        assert torch.equal(scored(reference), base) and not torch.equal(changed, base)
        assert torch.equal(logprobs(model), changed), "the policy is as it was"
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained


def test_a_streamed_reference_holds_nothing_between_and_one_layer_while_it_computes() -> None:
    reference = build_reference("cpu", tiny_qwen3(num_hidden_layers=3), CPU, bf16=False)
    model = reference.model  # type: ignore[attr-defined]
    layers, seen = model.model.layers, []

    def there(module: torch.nn.Module) -> bool:
        return all(parameter.numel() for parameter in module.parameters())

    layers[1].mlp.register_forward_hook(lambda *_: seen.append([there(layer) for layer in layers]))
    scored(reference)
    assert seen == [[False, True, False]], "on a GPU the third would be on its way"
    assert not any(parameter.numel() for parameter in model.parameters())
    with pytest.raises(TypeError), reference.scoring() as starting:
        starting(input_ids="no ids")
    assert not any(parameter.numel() for parameter in model.parameters()), "after an error too"


def test_a_reference_of_bf16_arithmetic_is_kept_in_bf16() -> None:
    for kind in ("copy", "cpu"):
        with build_reference(kind, tiny_qwen3(), CPU, bf16=True).scoring() as model:
            assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
            assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


ROLE = {"roles": '{"answer": "reference"}'}


@pytest.mark.parametrize(
    ("options", "on_gpu", "parameters", "kind"),
    [
        ({}, False, 8 << 30, "copy"), ({}, True, 1 << 30, "copy"), ({}, True, 4 << 30, "cpu"), ({"lora_r": 8}, True, 4 << 30, "lora"),
        ({"lora_r": 8}, False, 1000, "lora"), (ROLE, True, 4 << 30, "copy"), (ROLE | {"lora_r": 8}, True, 4 << 30, "copy"),
        ({"reference": "copy", "lora_r": 8}, True, 4 << 30, "copy"),
    ],
)  # fmt: skip
def test_where_the_reference_is_unless_said(options: dict[str, object], on_gpu: bool, parameters: int, kind: str) -> None:
    assert held_by(TrainConfig(beta=0.1, **options), on_gpu, parameters).reference == kind  # type: ignore[arg-type]


def test_on_a_cpu_everything_is_plain_and_on_a_gpu_what_suits_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_by(TrainConfig(), False, 8 << 30) == PLAIN and not PLAIN.lean
    small, large = (held_by(TrainConfig(), True, size << 30) for size in (1, 4))
    assert (small.master_weights, small.moments, large.master_weights, large.moments) == ("split", "fp32", "split", "8bit")
    assert held_by(TrainConfig(optimizer="muon"), True, 4 << 30).lean is False
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert held_by(TrainConfig(), True, 4 << 30).lean is False, "several processes ask for it"
    assert held_by(TrainConfig(master_weights="split"), True, 4 << 30).moments == "8bit"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reference": "cpu"} | ROLE, "cannot|but not answer turns.*--reference copy"),
        ({"reference": "lora", "lora_r": 4} | ROLE, "but not answer turns.*--reference copy"),
        ({"reference": "lora"}, "--reference lora switches adapters off, and there are none"),
        ({"lora_r": 4, "master_weights": "split"}, "Leave one out"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        held_by(TrainConfig(**options), False, 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"master_weights": "bf16"}, "master_weights 'bf16'.*fp32, split"), ({"moments": "4bit"}, "moments '4bit'.*8bit, fp32"),
        ({"reference": "disk"}, "reference 'disk'.*copy, cpu, lora"), ({"gradients": "fp8"}, "gradients 'fp8'"),
        ({"lora_r": -1}, "--lora_r -1"), ({"lora_dropout": 1.0}, "lora_dropout"),
    ],
)  # fmt: skip
def test_unknown_values_name_the_known_ones(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig(**options)  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_layers_are_streamed_from_pinned_memory(capsys: Callable[..., object]) -> None:
    model = tiny_qwen3(num_hidden_layers=6).cuda()
    base = logprobs(model)
    reference = build_reference("cpu", model, torch.device("cuda"), bf16=False)
    assert all(kept.home.is_pinned() for layer in reference._layers for kept in layer)  # type: ignore[attr-defined]
    disturbed(model)
    for _ in range(3):
        assert torch.equal(scored(reference), base)
