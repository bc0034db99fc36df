"""From a checkpoint to an agent in use: which agent it is, with which options, who answers, and where the memory is kept."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from memfactory.agents.build import answered_by_others, device_of, open_models, options_over, trained_as
from memfactory.common.errors import ConfigError
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.engines.api import PREFIX
from memfactory.engines.load import load_tokenizer

log = logging.getLogger(__name__)

DEFAULT_AGENT = "memory_r1_agent"
"""Of a model that is no checkpoint of ours: it keeps a bank."""


def load_agent(
    cls: type, path: str, opened: Mapping[str, Any], models: Mapping[str, Any], options: Mapping[str, Any], *,
    device: str = "auto", tokenizer: str | None = None, agent: str = "",
) -> Any:  # fmt: skip
    """An agent of the class `cls`: see `BaseAgent.load`.

    `opened` goes to `use`, `models` to `open_models`, `options` over the checkpoint's. `agent`: a key of AGENT_REGISTRY, where
    the class does not say it.
    """
    kind, key = _agent_class(cls, path, agent)
    engine = "api" if path.startswith(PREFIX) else models.get("engine", "hf")
    source = tokenizer or (path if engine in ("hf", "vllm") or (Path(path).expanduser() / "tokenizer.json").is_file() else None)
    device = device_of(device)
    made = kind(load_tokenizer(source) if source else None, device, **options_over(path, key, options))
    with ExitStack() as held:  # the store first: what is wrong with it is said before weights are read
        held.callback(made.use(**opened).close)
        opened_models = open_models(path, made, **{**models, "engine": engine, "device": device})
        held.callback(opened_models.close)
        made.attach(opened_models)
        held.pop_all()
    if (others := answered_by_others(path)) and not models.get("roles"):
        log.warning("%s was trained with the roles %s; here it answers every stage itself (roles=, reference=).", path, others)
    return made


def _agent_class(cls: type, path: str, agent: str) -> tuple[type, str]:
    """(class, key): the checkpoint's agent, of which `cls` must be the class or an own one derived from it; abstract ones are any."""
    trained = trained_as(path).get("agent", "")
    if inspect.isabstract(cls):
        key = agent or trained or DEFAULT_AGENT
        kind = AGENT_REGISTRY.get(key)
        if not issubclass(kind, cls):
            raise ConfigError(f"{path} is {key!r} ({kind.__name__}), which is no {cls.__name__}. Load it with {kind.__name__}.load.")
        return kind, key
    registered = {kind: key for key, kind in AGENT_REGISTRY.items()}
    key = next((registered[base] for base in cls.__mro__ if base in registered), "")
    if trained and key != trained:
        known = AGENT_REGISTRY.get(trained).__name__
        raise ConfigError(f"{path} was trained as {trained!r} ({known}), not as {cls.__name__}. Use {known}.load, or BaseAgent.load.")
    return cls, key
