"""Who is paid what: from the rewards of stages to one advantage per turn (DESIGN section 5). Knows no text and no model.

Differences from the public version: a reward is normalised within its group per trajectory *before* it is copied to the
trajectory's turns, so an attempt with more turns does not weigh more in its group's baseline; an unscorable attempt is
left out and not paid 0; every trained turn is paid, not only the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from memfactory.algorithms.advantages import Normalize, group_advantages, mean_advantage
from memfactory.common.errors import ConfigError
from memfactory.common.types import RolloutGroup

CREDITS = ("trajectory", "final_turn")


@dataclass(frozen=True, slots=True)
class Credit:
    """One number per turn, and how much of the batch was worth training on."""

    advantages: list[list[float | None]]
    """[trajectory][turn], trajectories in the order of the groups; None: the turn is not trained."""
    informative: float
    """Share of groups whose scorable attempts differ in some paid reward."""
    unscorable: int
    """Trajectories left out because a reward was NaN or the attempt failed for want of a server."""


def paid_stages(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rewards that pay: keys with a slash ("default/f1") are components, logged and not paid."""
    return {key: value for key, value in rewards.items() if "/" not in key}


def assign_credit(
    groups: list[RolloutGroup], rewards: Mapping[str, Tensor], normalize: Normalize = mean_advantage, credit: str = "trajectory"
) -> Credit:
    """Pay each trainable turn by `rewards[turn.stage]`, else by `rewards["default"]`, else not at all.

    `rewards`: {stage or "default": [B*G]}, example-major, NaN for unscorable. `credit="final_turn"` trains only the last
    trainable turn of each trajectory (an ablation: what MemAgent's credit to all conversations is worth).
    """
    if credit not in CREDITS:
        raise ConfigError(f"Unknown credit {credit!r}. Known: {', '.join(CREDITS)}.")
    trajectories = [t for group in groups for t in group.trajectories]
    group_ids = [at for at, group in enumerate(groups) for _ in group.trajectories]
    paid: dict[str, list[float]] = {}
    for stage, values in paid_stages(rewards).items():
        if values.shape != (len(trajectories),):
            raise ValueError(f"rewards[{stage!r}] must be [{len(trajectories)}], one per trajectory, got {tuple(values.shape)}.")
        values = values.detach().double().cpu().clone()
        for at, trajectory in enumerate(trajectories):
            if trajectory.error is not None:
                values[at] = math.nan
        paid[stage] = group_advantages(values, group_ids, normalize).tolist()
    table: list[list[float | None]] = []
    for at, trajectory in enumerate(trajectories):
        row: list[float | None] = []
        for turn in trajectory.turns:
            values_of = paid.get(turn.stage, paid.get("default"))
            usable = turn.trainable and values_of is not None and not math.isnan(values_of[at])
            row.append(values_of[at] if usable and values_of is not None else None)
        if credit == "final_turn":
            last = max((n for n, value in enumerate(row) if value is not None), default=-1)
            row = [value if n == last else None for n, value in enumerate(row)]
        table.append(row)
    alive = {
        group
        for values in paid.values()
        for group, value in zip(group_ids, values, strict=True)
        if value not in (0.0,) and not math.isnan(value)
    }
    lost = sum(any(math.isnan(values[at]) for values in paid.values()) for at in range(len(trajectories)))
    return Credit(table, len(alive) / max(len(groups), 1), lost)
