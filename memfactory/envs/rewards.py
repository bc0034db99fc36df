"""What an env paid, as the trainer and the evaluation take it: numbers of any kind become float32 on the CPU, or are refused in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memfactory.algorithms.credit import BY_QUESTION, without_errors
from memfactory.common.errors import ConfigError
from memfactory.common.types import Trajectory
from memfactory.envs.base import BaseEnv

_MEANT = "A reward is a finite number for each attempt; NaN (or None) marks what could not be scored for want of infrastructure."


def rewards_of(
    env: BaseEnv, predictions: dict[str, list[str]], batch: dict[str, Any], num_generations: int, trajectories: Sequence[Trajectory]
) -> dict[str, Tensor]:
    """`env.compute_reward` of these attempts, checked; NaN for every attempt that failed for want of infrastructure."""
    paid = env.compute_reward(predictions, batch, num_generations, trajectories=trajectories)
    return without_errors(as_rewards(paid, len(trajectories), type(env).__name__), trajectories)


def as_rewards(paid: Any, number: int, env: str) -> dict[str, Tensor]:
    """{stage, "default" or component: float32 [number] or, by question, [number, questions]} of lists, arrays or tensors of any kind."""
    if not isinstance(paid, Mapping):
        raise ConfigError(f"{env}.compute_reward returned a {type(paid).__name__}, not {{stage or 'default': {number} numbers}}. {_MEANT}")
    return {str(key): _column(values, str(key), number, env) for key, values in paid.items()}


def _column(values: Any, key: str, number: int, env: str) -> Tensor:
    where = f"{env}.compute_reward: rewards[{key!r}]"
    try:
        tensor = values if isinstance(values, Tensor) else torch.tensor(_plain(values), dtype=torch.float64)
        if tensor.is_complex():
            raise TypeError(f"{tensor.dtype} is no real number")
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where} is not {number} numbers: {error}. {_MEANT}") from error
    tensor = tensor.detach().to("cpu", torch.float32)
    shapes = (2,) if key == BY_QUESTION else (1, 2) if "/" in key else (1,)
    if tensor.ndim not in shapes or len(tensor) != number:
        wanted = (
            f"[{number}, questions]" if key == BY_QUESTION else f"[{number}], one for each attempt, the attempts of an example together"
        )
        raise ConfigError(f"{where} has the shape {list(tensor.shape)}, expected {wanted}. {_MEANT}")
    if (endless := tensor.isinf()).any():
        at = endless.nonzero()[0].tolist()
        raise ConfigError(f"{where} is infinite for attempt {', question '.join(map(str, at))}. {_MEANT}")
    return tensor


def _plain(value: Any) -> Any:
    """Lists of floats of whatever holds numbers; None is NaN."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return float(value)
    raise TypeError(f"{value!r:.60} is no number")
