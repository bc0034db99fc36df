"""How a run holds the weights it trains: fp32 masters, split masters or LoRA adapters, and what the optimizer keeps of them.

Fills in the defaults that depend on the machine and the model's size, changes the model accordingly, and saves and restores what
is trained. On a CPU all defaults are the plain ones. Knows no algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memfactory.algorithms.lora import LoraOptions, adapter_weights, add_lora, load_adapter_weights, lora_config
from memfactory.algorithms.optim import Lean
from memfactory.algorithms.split_master import split_model
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.engines.load import model_hash
from memfactory.engines.weights import merged_weights
from memfactory.trainers.distributed import world_size

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

LARGE = 3_000_000_000
"""Parameters from which a GPU's defaults save memory at some cost in time: 8-bit moments, the reference on the CPU."""

_ADAPTER = "adapter"
"""The folder in a checkpoint that peft loads."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a run does about its weights, every default filled in."""

    master_weights: str
    """fp32, split, or lora (the weights are frozen, the adapters fp32)."""
    moments: str
    offload_optimizer: bool
    gradients: str
    """Of split weights, the type that gradients are added up in; the others' are fp32."""
    reference: str
    """Where the starting weights are, if anybody asks for them: copy, cpu or lora."""

    @property
    def lean(self) -> bool:
        """True if the plain AdamW of torch is not the optimizer."""
        return self.master_weights == "split" or self.moments == "8bit" or self.offload_optimizer


PLAIN = Held("fp32", "fp32", False, "fp32", "copy")


def held_by(config: TrainConfig, on_gpu: bool, parameters: int, processes: int | None = None) -> Held:
    """What the configuration says, and for what it leaves open what suits a model of so many parameters in so many processes."""
    lora, adamw, large = config.lora_r > 0, config.optimizer == "adamw", on_gpu and parameters >= LARGE
    if lora and config.master_weights == "split":
        raise ConfigError("--master_weights split is for training all weights; with --lora_r the adapters are fp32 already. Leave one out.")
    if config.reference == "lora" and not lora:
        raise ConfigError("--reference lora switches adapters off, and there are none: give --lora_r, or use --reference copy or cpu.")
    samples = "reference" in config.mapping("roles").values()
    if samples and config.reference in ("cpu", "lora"):
        raise ConfigError(
            f"--reference {config.reference} can compute log-probs but not answer turns while the policy answers others, and roles names "
            "the reference. Use --reference copy."
        )
    alone = (processes or world_size()) == 1  # shards of split weights have not been tried
    master = "lora" if lora else config.master_weights or ("split" if on_gpu and adamw and alone else "fp32")
    return Held(
        master,
        config.moments or ("8bit" if large and master == "split" else "fp32"),
        config.offload_optimizer,
        config.gradients if master == "split" else "fp32",
        config.reference or ("copy" if samples else "lora" if lora else "cpu" if large else "copy"),
    )


def loading_type(config: TrainConfig, on_gpu: bool, bf16: bool) -> torch.dtype | str:
    """The type that weights are loaded in: the checkpoint's where they will be split, bf16 where they stay frozen under bf16."""
    master = held_by(config, on_gpu, 0).master_weights
    return "auto" if master == "split" else torch.bfloat16 if master == "lora" and bf16 else torch.float32


class HeldModel:
    """A causal LM made to be held so: adapters added, or weights split, in place. What is written to a checkpoint and read again."""

    def __init__(self, model: PreTrainedModel, config: TrainConfig, on_gpu: bool) -> None:
        self.model, self.config = model, config
        self.held = held_by(config, on_gpu, sum(parameter.numel() for parameter in model.parameters()))
        self.lean: Lean | None = None
        residuals = None
        if self.held.master_weights == "lora":
            add_lora(model, lora_options(config))
        if self.held.master_weights == "split":
            residuals = split_model(model, torch.bfloat16 if self.held.gradients == "bf16" else torch.float32)
        if self.held.lean:
            self.lean = Lean(residuals, self.held.moments, self.held.offload_optimizer)

    def save_pretrained(self, folder: Path, /) -> None:
        """Write a folder that transformers and vLLM load; adapters are merged into a copy, and stand beside it as they are."""
        if self.held.master_weights != "lora":
            self.model.save_pretrained(folder)
            return
        # Merged into a copy: merging in place and taking out again would not give the same bf16 weights back.
        self.model.save_pretrained(folder, state_dict={name: tensor.cpu() for name, tensor in merged_weights(self.model)})
        peft = lora_config(lora_options(self.config))
        peft.base_model_name_or_path = self.config.model_name_or_path
        peft.inference_mode = True
        peft.save_pretrained(str(folder / _ADAPTER))
        named = {_peft_name(name): value.contiguous() for name, value in adapter_weights(self.model).items()}
        save_file(named, folder / _ADAPTER / "adapter_model.safetensors")

    def restore(
        self,
        folder: Path,
        held: dict[str, Any] | None,
        weights_of: Callable[[Path], dict[str, Tensor]],
        load: Callable[[dict[str, Tensor]], Any],
    ) -> None:
        """Read the weights of a checkpoint whose run held them as `held` says; the lower halves of masters are the optimizer's.

        `load` takes up whole weights, wherever the model has them.
        """
        if held is not None and held != self.state():
            changed = [f"{name}: {old!r} -> {new!r}" for name, new in self.state().items() if (old := held.get(name)) != new]
            raise ConfigError(
                f"{folder} was trained with weights held otherwise: {'; '.join(changed)}. The device decides what no flag says."
            )
        if self.held.master_weights != "lora":
            load(weights_of(folder))
            return
        # The frozen weights are those that the run started from.
        saved = load_file(folder / _ADAPTER / "adapter_model.safetensors")
        names = {_peft_name(name): name for name in adapter_weights(self.model)}
        load_adapter_weights(self.model, {names.get(name, name): value for name, value in saved.items()})

    def state(self) -> dict[str, Any]:
        """What a resumed run must hold alike; adapters are nothing without the weights they were trained on."""
        return asdict(self.held) | ({"frozen weights": self._frozen} if self.held.master_weights == "lora" else {})

    @cached_property
    def _frozen(self) -> str | None:
        path = self.config.model_name_or_path
        return model_hash(path) if path else None


def lora_options(config: TrainConfig) -> LoraOptions:
    """The adapters that the configuration asks for."""
    return LoraOptions(config.lora_r, config.lora_alpha, config.lora_dropout, tuple(config.lora_targets))


def _peft_name(name: str) -> str:
    """A parameter's name in the file that peft reads."""
    return f"base_model.model.{name.replace('.default.', '.')}"
