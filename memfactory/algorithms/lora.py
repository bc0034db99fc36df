"""Low-rank adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685) through `peft`: added, switched off, merged into a copy.

The adapters are put into the model's own modules and the model stays what it was to everyone else: a causal LM with its
`base_model` and head, sampled from and trained through the same tensors. Knows no optimizer and no folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from memfactory.common.errors import ConfigError, MissingFileError
from memfactory.common.version import install

if TYPE_CHECKING:  # importing them takes seconds
    from peft import LoraConfig
    from transformers import PreTrainedModel

_NAME = "default"
"""peft's name of the one adapter that a model has here."""


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Which adapters."""

    r: int
    """Their rank."""
    alpha: int
    """What they add is multiplied by alpha / r."""
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    """Ends of module names, such as q_proj; all-linear is every linear layer but the head."""


def add_lora(model: PreTrainedModel, options: LoraOptions) -> None:
    """Freeze the weights and put trainable fp32 adapters beside the targets', in place. They add nothing before their first update."""
    described = lora_config(options)
    from peft import inject_adapter_in_model

    try:
        with warnings.catch_warnings():  # it warns of patterns that it made itself, for the experts of other models
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            inject_adapter_in_model(described, model, _NAME)
    except ValueError as error:  # no layer has such a name
        raise ConfigError(f"--lora_targets {' '.join(options.targets)}: {error}") from error
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # in bf16 their updates would be lost
        parameter.data = parameter.data.float()


def lora_config(options: LoraOptions) -> LoraConfig:
    """peft's description of these adapters, as it is saved beside them."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingFileError(f"--lora_r needs peft, which is not installed. {install('lora')}") from error
    targets: Any = options.targets[0] if options.targets == ("all-linear",) else list(options.targets)
    return LoraConfig(r=options.r, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets, task_type="CAUSAL_LM")


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The frozen weights alone inside the block: bit for bit the model that the adapters were added to."""
    adapted: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name in the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_adapter_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what `adapter_weights` returned; another set of names, another shape or a number that is none is an error."""
    own = adapter_weights(model)
    wrong = sorted(own.keys() ^ weights.keys()) or sorted(
        name for name, value in weights.items() if value.shape != own[name].shape or not bool(value.isfinite().all())
    )
    if wrong:
        raise ConfigError(
            "The saved adapters are of other layers, of another shape or not finite: "
            f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}."
        )
    for name, value in weights.items():
        own[name].copy_(value)
