"""The memory plan adds up to the known figures, moves the way its flags push it, and a warning comes before a model is loaded."""

from __future__ import annotations

import logging
import shlex
import subprocess
from functools import cache
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import MissingFileError, UserError
from memfactory.trainers import memory_plan
from memfactory.trainers.held import held_by
from memfactory.trainers.memory_plan import GIB, bytes_per_parameter, plan_memory, report_memory
from memfactory.trainers.model_shapes import Shape, _config_of, shape_of
from memfactory.trainers.plan_table import USABLE
from memfactory.trainers.plan_table import plan as print_plan

LAUNCHER: dict[str, Any] = {
    "beta": 0.001, "gradient_accumulation_steps": 24, "num_generations": 16, "chunk_size": 2500, "max_prompt_length": 5500,
    "max_generate_length": 1500, "engine_slots": 48, "gradient_checkpointing": True,
}  # fmt: skip
"""examples/RunMemoryAgent4B.sh."""

FLAGS = [word for name, value in LAUNCHER.items() for word in (f"--{name}", str(value))]


@cache
def shape(model: str) -> Shape:
    return shape_of(model)


def plan(model: str = "Qwen3-1.7B", on_gpu: bool = False, **options: Any) -> memory_plan.MemoryPlan:
    flags: dict[str, Any] = {"chunk_size": 2500, "max_prompt_length": 6000, "max_generate_length": 2500, "num_generations": 16}
    config = TrainConfig(model_name_or_path=model, **({"gradient_accumulation_steps": 24} | flags | options))
    return plan_memory(config, bf16=True, on_gpu=on_gpu, shape=shape(model))


def test_the_parts_of_qwen3_1_7b_are_those_of_its_1_72_billion_parameters() -> None:
    made = plan(beta=0.001, engine_slots=10)
    parameters = 1_720_574_976
    assert made.resident["weights (fp32)"] * GIB == pytest.approx(4 * parameters)
    assert made.resident["adamw's moments (fp32)"] * GIB == pytest.approx(8 * parameters)
    assert made.resident["reference"] * GIB == pytest.approx(2 * parameters)
    assert made.rollout["key-value cache"] * GIB == pytest.approx(1.4 * 114_688 * 8500 * 10)  # 28 layers x 8 heads x 128 x (k, v) x 2 bytes
    assert made.peak == pytest.approx(sum(made.resident.values()) + max(sum(made.rollout.values()), sum(made.update.values())))


@pytest.mark.parametrize(
    ("scheme", "per_parameter", "gb_1_7b", "gb_4b"),
    [
        # trainer.md, 4.3. Gradients in bf16, as there; ours are fp32 unless told otherwise, 2 bytes more.
        ({"master_weights": "split", "moments": "fp32", "gradients": "bf16"}, 14, 24.1, 56.3),
        ({"master_weights": "split", "moments": "8bit", "gradients": "bf16"}, 8, 13.8, 32.2),
        ({"master_weights": "fp32", "moments": "fp32"}, 16, 27.5, 64.4),
    ],
)
def test_bytes_per_parameter_are_the_known_ones(scheme: dict[str, Any], per_parameter: float, gb_1_7b: float, gb_4b: float) -> None:
    held = held_by(TrainConfig(**scheme), True, 0)
    assert sum(bytes_per_parameter(held).values()) == pytest.approx(per_parameter, abs=0.04)  # the scales of 8-bit blocks
    for model, expected in (("Qwen3-1.7B", gb_1_7b), ("Qwen3-4B", gb_4b)):
        made = plan(model, on_gpu=True, **scheme)
        gradients = next(size for name, size in made.update.items() if "gradients" in name)
        assert (made.stays + gradients) * GIB / 1e9 == pytest.approx(expected, abs=0.2)


def test_gradients_are_freed_before_the_rollout_and_state_can_leave_the_gpu() -> None:
    small = plan("Qwen3-4B", on_gpu=True, master_weights="split", moments="8bit")
    assert small.stays * GIB / 1e9 == pytest.approx(24.1, abs=0.2) and not any("gradient" in name for name in small.rollout)
    away = plan("Qwen3-4B", on_gpu=True, master_weights="split", moments="8bit", offload_optimizer=True)
    assert away.resident.keys() == {"weights (bf16)"} and sum(away.host.values()) * GIB / 1e9 == pytest.approx(16.2, abs=0.2)


def test_lora_costs_two_bytes_a_frozen_parameter_and_little_more_and_needs_no_reference() -> None:
    adapters = shape("Qwen3-4B").adapters(32, ("all-linear",))
    # r x (inputs + outputs): q 2560+4096, k and v 2560+1024, o 4096+2560, gate, up and down 2560+9728; 36 layers
    assert adapters == 36 * 32 * (6656 + 2 * 3584 + 6656 + 3 * 12288)
    assert shape("Qwen3-4B").adapters(32, ("q_proj", "o_proj")) == 36 * 32 * 2 * 6656
    made = plan("Qwen3-4B", on_gpu=True, lora_r=32, beta=0.001)
    total = (made.stays + made.update["gradients (fp32)"]) * GIB
    assert 2.1 < total / shape("Qwen3-4B").parameters < 2.3 and made.resident["reference"] == 0


def test_the_4b_launcher_fits_80_gb_and_its_update_stays_below_60() -> None:
    made = plan("Qwen3-4B", on_gpu=True, **LAUNCHER)
    assert made.stays + sum(made.update.values()) < 60 and made.host.keys() == {"reference"}
    assert made.slots_in(USABLE * 80) >= 36


def test_activations_are_about_what_autograd_keeps_of_a_layer() -> None:
    """Counted: the distinct tensors saved by a model of three layers less those of two."""
    kept = [saved_bytes(layers) for layers in (2, 3)]
    assert 1.0 <= Shape(small_config(2), 0, ()).activation_bytes(2) / (kept[1] - kept[0]) < 1.12


def small_config(layers: int) -> Qwen3Config:
    sizes = {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    return Qwen3Config(vocab_size=64, num_hidden_layers=layers, **sizes)


def saved_bytes(layers: int, tokens: int = 64) -> float:
    model = Qwen3ForCausalLM(small_config(layers)).bfloat16()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            seen[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.base_model(input_ids=torch.arange(tokens)[None] % 64)
    assert out is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) / tokens


def test_what_the_warning_advises_does_help() -> None:
    base = plan(beta=0.001)
    assert plan(beta=0.001, engine_slots=16).rollout["key-value cache"] < base.rollout["key-value cache"]
    assert plan(beta=0.001, gradient_checkpointing=True).update["activations"] < base.update["activations"]
    assert plan(beta=0.001, tokens_per_micro_batch=9000).update["logits"] < base.update["logits"]
    for smaller in ({"moments": "8bit"}, {"master_weights": "split", "moments": "8bit"}, {"offload_optimizer": True}, {"lora_r": 32}):
        assert plan(**smaller).stays < plan().stays
    assert "reference" not in plan(beta=0.0).resident


def test_a_cache_is_not_planned_for_more_attempts_than_there_are() -> None:
    few = plan(num_generations=2)
    assert few.rollout["key-value cache"] < plan().rollout["key-value cache"]


@pytest.mark.parametrize("name", ["Qwen3-8B", "qwen3-8b", "Qwen/Qwen3-8B", "models/Qwen3-8B", "Qwen/Qwen3-8B-FP8"])
def test_the_family_is_known_by_name(name: str) -> None:
    assert _config_of(name).hidden_size == 4096 and not _config_of(name).tie_word_embeddings


@pytest.mark.parametrize(("name", "parameters"), [("Qwen3-0.6B", 596_049_920), ("Qwen3-4B", 4_022_468_096), ("Qwen3-8B", 8_190_735_360)])
def test_known_shapes_have_the_published_numbers_of_parameters(name: str, parameters: int) -> None:
    assert shape(name).parameters == parameters


def test_a_folder_or_a_config_file_says_more_than_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-8B"
    small_config(2).save_pretrained(folder)
    assert _config_of(str(folder)).hidden_size == _config_of(str(folder / "config.json")).hidden_size == 128
    with pytest.raises(MissingFileError, match=r"Known by name, without a download: Qwen3-0\.6B"):
        shape_of("models/absent")


def printed(*words: str) -> tuple[int, str]:
    console = Console(record=True, width=200, file=StringIO())
    return print_plan(["--model", "Qwen3-4B", *words], console), console.export_text()


def test_the_plan_says_what_fits_why_and_what_to_pass() -> None:
    code, text = printed("--gpu", "80", *FLAGS)
    assert code == 0 and "It fits as given, with --engine_slots 39." in text and "48 slots of 7000 tokens wanted, 39 fit" in text
    assert "read by sampler and update" in text and "--lora_r 32 --gradient_checkpointing True" in text and "--moments 8bit" in text
    code, text = printed("--gpu", "24", *FLAGS, "--max_generate_length", "1024", "--max_prompt_length", "4096")
    assert code == 0 and "It does not fit as given. Recommended: LoRA." in text
    assert "--lora_r 32 --gradient_checkpointing True" in " ".join(command_of(text))
    code, text = printed("--gpu", "8", *FLAGS)
    assert code == 1 and "Nothing fits 8 GiB" in text


def command_of(text: str) -> list[str]:
    """The words of the printed command, as a shell takes them."""
    lines = text[text.rindex("memfactory train" if "accelerate launch" not in text else "accelerate launch") :].splitlines()
    assert all(len(line) <= 80 for line in lines) and all(line.endswith(" \\") for line in lines[:-1])
    checked = subprocess.run(["bash", "-n", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    return shlex.split(" ".join(line.removesuffix("\\") for line in lines))


@pytest.mark.parametrize(
    ("words", "has", "has_not"),
    [
        # The user's scheme is kept: no way of training all weights is offered for LoRA, though one would fit.
        (["80", *FLAGS, "--lora_r", "16"], {"lora_r": "16"}, {"moments", "offload_optimizer"}),
        (["20", *FLAGS, "--lora_r", "16"], {"lora_r": "16", "gradient_checkpointing": "True"}, {"moments", "offload_optimizer"}),
        (["44", *FLAGS, "--moments", "8bit"], {"moments": "8bit", "master_weights": "split"}, {"lora_r"}),
        # Servers sample: nothing of the GPU goes to a cache.
        (["80", *FLAGS, "--rollout_servers", "http://a:1", "http://b:1"], {"rollout_servers": "http://a:1", "engine_slots": "48"}, set()),
        (["60", "--gpus", "8", *FLAGS], {"num_processes": "8", "parallel": "fsdp2", "config_file": "examples/scale/fsdp2.yaml"}, {"gpus"}),
        (["80", *FLAGS, "--agent_options", '{"a": "b c"}', "--data_path", "my data/it's.json"],
         {"agent_options": '{"a": "b c"}', "data_path": "my data/it's.json"}, set()),
    ],
)  # fmt: skip
def test_the_plan_ends_with_the_command_to_copy(words: list[str], has: dict[str, str], has_not: set[str]) -> None:
    code, text = printed("--gpu", *words)
    made = command_of(text)
    given = {word.removeprefix("--"): made[at + 1] for at, word in enumerate(made[:-1]) if word.startswith("--")}
    assert code == 0 and len(given) == sum(word.startswith("--") for word in made), "each flag once"
    assert given["model_name_or_path"] == "Qwen3-4B" and has.items() <= given.items() and not has_not & given.keys(), made
    if "accelerate" not in made:
        assert read_config(made[2:]).model_name_or_path == "Qwen3-4B"


@pytest.mark.parametrize(
    ("words", "says"), [(["--gpu", "much"], "not a number of GiB"), ([], "needs the GPU's memory"), (["--gpu", "0"], "above 0")]
)
def test_a_plan_without_a_gpu_is_an_error(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        printed(*words)


@pytest.mark.parametrize(("pages", "says"), [(1, "NOT enough"), (1 << 30, "enough.")])
def test_a_run_that_cannot_fit_is_told_so(pages: int, says: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    sizes = SimpleNamespace(sysconf={"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    monkeypatch.setattr(memory_plan, "os", sizes)
    root = Path(__file__).resolve().parent.parent
    report_memory(TrainConfig(model_name_or_path=str(root / "models/tiny")), torch.device("cpu"))
    assert "Memory expected" in caplog.text and says in caplog.text
    assert ("--engine_slots" in caplog.text) == (pages == 1)
