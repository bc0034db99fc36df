"""What a run optimises, from the names in its configuration: the loss with its options, the KL, the correction of the sampler.

Everything that can be wrong with them is said here, before anything is loaded. Knows no model and no batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor

from memfactory.algorithms.kl import GRADIENTS, KL
from memfactory.algorithms.losses import TokenLoss, options_of
from memfactory.algorithms.ratios import TIS
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.registry import ADVANTAGE_REGISTRY, LOSS_REGISTRY

log = logging.getLogger(__name__)

BoundLoss = Callable[[Tensor, Tensor, Tensor, Tensor], TokenLoss]

FLAGS = ("clip_low", "clip_high", "dual_clip")
"""Options of losses that are flags of their own; others go through `loss_options`."""


def loss_defaults(name: str) -> dict[str, Any]:
    """Options of TrainConfig for which the loss has another default: what its paper uses, unless a flag says otherwise."""
    loss = LOSS_REGISTRY.get(name)
    own = {flag: value or 0.0 for flag, value in options_of(loss).items() if flag in FLAGS}
    aggregation = getattr(loss, "aggregation", None)
    return own | ({"aggregation": aggregation} if aggregation else {})


def configured_loss(config: TrainConfig) -> BoundLoss:
    """The loss with the options that the configuration gives; one that it does not have, or cannot mean, is `ConfigError`."""
    loss = LOSS_REGISTRY.get(config.loss)
    _check_takes(loss, f"loss {config.loss!r}", "logprobs, old, advantages, segments")
    known, usual = options_of(loss), {f.name: f.default for f in fields(TrainConfig)}
    given: dict[str, Any] = config.mapping("loss_options")
    for name in given:
        if name in FLAGS:
            raise ConfigError(f"--loss_options {name}: it has a flag, --{name}.")
        if name not in known:
            raise unknown_name(f"option of the loss {config.loss!r}", name, set(known) - set(FLAGS))
    for flag in FLAGS:
        value = getattr(config, flag)
        if flag in known:
            given[flag] = value or None if flag == "dual_clip" else value
        elif value != usual[flag] and not (flag == "dual_clip" and not value):
            raise ConfigError(f"--{flag} {value}: the loss {config.loss!r} takes none. It has: {', '.join(sorted(known)) or 'no options'}.")
    _check_clips(config)
    other = [f"{name} {getattr(config, name)} ({own})" for name, own in loss_defaults(config.loss).items() if _differs(config, name, own)]
    if other:
        log.info("The loss %s runs with other values than its own: %s.", config.loss, ", ".join(other))
    return partial(loss, **given)


def check_objective(config: TrainConfig) -> None:
    """Everything about the objective that can be known to be wrong before a model is loaded."""
    for name, known in (("kl", tuple(KL)), ("kl_gradient", GRADIENTS), ("tis", TIS)):
        if getattr(config, name) not in known:
            raise unknown_name(name, getattr(config, name), known)
    if config.beta > 0 and (config.kl, config.kl_gradient) == ("k1", "plain"):
        raise ConfigError("--kl k1 --kl_gradient plain: its gradient is 0 on average, so it holds nothing. Give --kl_gradient ratio.")
    _check_takes(ADVANTAGE_REGISTRY.get(config.advantage), f"advantage {config.advantage!r}", "rewards, batch")
    configured_loss(config)


def _check_takes(part: Callable, what: str, arguments: str) -> None:
    try:
        inspect.signature(part).bind(*arguments.split(", "))
    except TypeError as error:
        raise ConfigError(f"The {what} must take ({arguments}), and other options by keyword with a default: {error}.") from error


def _check_clips(config: TrainConfig) -> None:
    if config.dual_clip and config.dual_clip <= 1:
        raise ConfigError(f"--dual_clip {config.dual_clip}: above 1 (3 is usual), or 0 for none; else it clips what has not moved.")


def _differs(config: TrainConfig, name: str, own: Any) -> bool:
    return (getattr(config, name) or 0.0) != own
