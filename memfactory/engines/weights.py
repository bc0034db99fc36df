"""A trained model's weights as another engine reads them: under a checkpoint's names, adapters merged in. Knows no engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

_OF_PEFT = "base_model.model."


@torch.no_grad()
def checkpoint_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight, one at a time, as `save_pretrained` of the merged model would write them; tied ones once.

    Nothing in the model changes and only merged matrices are new memory. Models whose checkpoint has another form than their
    parameters (fused experts) are turned back by transformers, all at once.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    whole: Any = model if isinstance(model, PreTrainedModel) else getattr(getattr(model, "base_model", None), "model", None)
    if not isinstance(whole, PreTrainedModel):
        yield from merged_weights(model)
        return
    outline = {_own_name(name): tensor.to("meta") for name, tensor in _each_once(model.state_dict()).items() if ".lora_" not in name}
    if revert_weight_conversion(whole, outline).keys() == outline.keys():
        yield from merged_weights(model)
    else:
        yield from revert_weight_conversion(whole, dict(merged_weights(model))).items()


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight under the names that it has in the model without adapters, which are merged into it."""
    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in _each_once(model.state_dict()).items():
        if ".lora_" in name:
            continue
        # One adapter stands around a layer; around a module of experts one for each of its parameters, one inside the other.
        owners = [adapted[name[: found.start()]] for found in re.finditer(r"\.base_layer(?=\.)", name)]
        for owner in owners:
            if getattr(owner, "parameter_name", "weight") == name.rpartition(".")[2] and not owner.merged:
                for adapter in owner.active_adapters:
                    tensor = (tensor.float() + owner.get_delta_weight(adapter).float()).to(tensor.dtype)
        yield _own_name(name), tensor


def _own_name(name: str) -> str:
    return name.removeprefix(_OF_PEFT).replace(".base_layer", "")


def save_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the merged weights (in `dtype`, or as they are) and the configuration as a checkpoint that vLLM loads; no tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in checkpoint_weights(model)}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(folder)


def _each_once(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the second name of tied weights, which is made of the first wherever they are loaded."""
    first: dict[int, str] = {}
    return {name: tensor for name, tensor in weights.items() if first.setdefault(tensor.data_ptr(), name) == name or not tensor.numel()}
