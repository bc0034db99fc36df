"""The engine that samples in training, from its name: one with weights of its own, which follow the trained model's.

Any class of ENGINE_REGISTRY with a `follow(model)` will do: it is made as `Class(model_path, stop_ids, **options)`, and from `follow` on
each `weights_changed` makes it sample with the weights that the model then has. Knows no agent and no loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.engines.base import Engine
from memfactory.engines.hf import stop_ids_of

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

SHARE = 0.3
"""Of a GPU's memory that vLLM takes beside a trainer, its weights included, unless said otherwise."""


def check_rollout_engine(name: str, options: Mapping[str, Any]) -> None:
    """`ConfigError` for an engine that cannot sample in training, `UnknownNameError` for an option that it does not have."""
    if name == "hf":
        if options:
            raise ConfigError("--engine_options are for engines with weights of their own; hf has --engine_slots.")
        return
    kind = ENGINE_REGISTRY.get(name)
    if not callable(getattr(kind, "follow", None)):
        able = [key for key, part in ENGINE_REGISTRY.items() if key == "hf" or callable(getattr(part, "follow", None))]
        raise ConfigError(f"--engine {name} cannot train: it takes no new weights. Use {', '.join(able)}.")
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of the engine {name!r}", option, known)


def rollout_engine(name: str, model_path: str, model: PreTrainedModel, eos_token_id: int | None, options: Mapping[str, Any]) -> Engine:
    """The engine called `name` on the checkpoint at `model_path`, already at the weights of `model`."""
    check_rollout_engine(name, options)
    kind = ENGINE_REGISTRY.get(name)
    usual: dict[str, Any] = {"device": str(model.device)}
    if model.device.type == "cuda" and "kv_cache_memory_bytes" not in options:
        usual["gpu_memory_utilization"] = SHARE
    taken = inspect.signature(kind).parameters
    engine = kind(model_path, stop_ids_of(model, eos_token_id), **{k: v for k, v in usual.items() if k in taken} | dict(options))
    engine.follow(model)
    return engine
