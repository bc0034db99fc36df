"""From rewards to advantages, within a group of attempts at the same thing. Pure functions on one group's rewards.

One of your own is a function `(rewards [G], batch [M]) -> advantages [G]` in `ADVANTAGE_REGISTRY`: a group's scorable rewards, at least
two of which differ, and those of the whole rollout batch.

Group-relative policy optimisation (GRPO): Shao et al., 2024, arXiv 2402.03300. Mean only, without the division by the
standard deviation, is Dr. GRPO's (arXiv 2503.20783) and MemAgent's choice and our default: dividing makes a group with
one lucky attempt count more than a group that is half solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memfactory.common.registry import ADVANTAGE_REGISTRY

TOLERANCE = 1e-6
"""Rewards closer together than this are equal: 0.1 + 0.2 and 0.3 are no signal."""

Normalize = Callable[[Tensor, Tensor], Tensor]


@ADVANTAGE_REGISTRY.register("mean")
def mean_advantage(rewards: Tensor, batch: Tensor) -> Tensor:
    """`r - mean(r)`; rewards [G] -> advantages [G]."""
    return rewards - rewards.mean()


@ADVANTAGE_REGISTRY.register("std")
def std_advantage(rewards: Tensor, batch: Tensor) -> Tensor:
    """`(r - mean(r)) / (std(r) + 1e-4)` with the n-1 standard deviation, as in the GRPO paper and TRL."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


@ADVANTAGE_REGISTRY.register("leave_one_out")
def leave_one_out_advantage(rewards: Tensor, batch: Tensor) -> Tensor:
    """`r_i - mean of the others` (RLOO, Ahmadian et al., 2024, arXiv 2402.14740): `mean` times G/(G-1)."""
    return (rewards - rewards.mean()) * (len(rewards) / (len(rewards) - 1))


@ADVANTAGE_REGISTRY.register("batch")
def batch_advantage(rewards: Tensor, batch: Tensor) -> Tensor:
    """`(r - mean(r)) / (std(batch) + 1e-4)`: the group's mean, the n-1 standard deviation of all rewards of the rollout batch.

    Groups weigh as under `mean`, and the step has a scale that does not depend on the reward's ("Lite PPO", arXiv 2508.08221).
    """
    return (rewards - rewards.mean()) / (batch.std() + 1e-4)


def group_advantages(rewards: Tensor, group_ids: Sequence[int], normalize: Normalize = mean_advantage) -> Tensor:
    """Advantages [M] of attempts [M] whose group is named by `group_ids` (any order, any group size).

    NaN marks an unscorable attempt: it stays NaN and is left out of its group's baseline. A group of equal rewards, or
    with fewer than two scorable attempts, gets exactly 0.
    """
    if rewards.ndim != 1 or len(rewards) != len(group_ids):
        raise ValueError(f"rewards must be [M] with M={len(group_ids)} group ids, got {tuple(rewards.shape)}.")
    advantages = torch.full(rewards.shape, math.nan, dtype=torch.float64)
    members: dict[int, list[int]] = {}
    for at, group in enumerate(group_ids):
        if not math.isnan(rewards[at]):
            members.setdefault(group, []).append(at)
    batch = rewards[~rewards.isnan()].double()
    for at_group in members.values():
        values = rewards[at_group].double()
        flat = len(at_group) < 2 or bool(values.max() - values.min() < TOLERANCE)
        advantages[at_group] = torch.zeros_like(values) if flat else normalize(values, batch)
    return advantages
