"""A trained model's weights as another engine reads them: under a checkpoint's names, adapters merged in. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

    held = _each_once(model.state_dict())
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    if not adapted and isinstance(model, PreTrainedModel):
        yield from revert_weight_conversion(model, held).items()
        return
    for name, tensor in held.items():
        if ".base_layer." not in name:
            if ".lora_" not in name:
                yield name.removeprefix(_OF_PEFT), tensor
            continue
        owner, _, rest = name.partition(".base_layer.")
        if rest == "weight" and not adapted[owner].merged:
            for adapter in adapted[owner].active_adapters:
                tensor = (tensor.float() + adapted[owner].get_delta_weight(adapter).float()).to(tensor.dtype)
        yield f"{owner}.{rest}".removeprefix(_OF_PEFT), tensor


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
