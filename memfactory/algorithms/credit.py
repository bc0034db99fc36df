"""Who is paid what: from the rewards of stages to one advantage per turn (DESIGN section 5). Knows no text and no model.

Differences from the public version: a reward is normalised within its group per trajectory *before* it is copied to the
trajectory's turns, so an attempt with more turns does not weigh more in its group's baseline; an unscorable attempt is
left out and not paid 0; every trained turn is paid, not only the last; a turn that works for one of several questions can
be paid for that one alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from memfactory.algorithms.advantages import Normalize, group_advantages, mean_advantage
from memfactory.common.errors import ConfigError
from memfactory.common.types import RolloutGroup, Trajectory

K = TypeVar("K")

CREDITS = ("trajectory", "final_turn")

BY_QUESTION = "question"
"""The key of rewards [B*G, Q] for single questions: they pay the turns that work for one question, under no stage's name."""


@dataclass(frozen=True, slots=True)
class Credit:
    """One number per turn, and how much of the batch was worth training on."""

    advantages: list[list[float | None]]
    """[trajectory][turn], trajectories in the order of the groups. None: the turn is not trained, because nothing pays it,
    its role is not the policy, its attempt was lost, or its group has no variance and so nothing to teach."""
    informative: float
    """Share of groups whose scorable attempts differ in some paid reward."""
    unscorable: int
    """Trajectories left out because a reward was NaN or the attempt failed for want of a server."""


def paid_stages(rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rewards that pay attempts: keys with a slash ("default/f1") are components, logged and not paid."""
    return {key: value for key, value in rewards.items() if "/" not in key and key != BY_QUESTION}


def without_errors(rewards: Mapping[K, Tensor], trajectories: Sequence[Trajectory]) -> dict[K, Tensor]:
    """The rewards with NaN for every trajectory that failed for want of infrastructure: such an attempt is never scored."""
    lost = torch.tensor([t.error is not None for t in trajectories], dtype=torch.bool)

    def masked(values: Tensor) -> Tensor:
        return values.masked_fill(lost.to(values.device).reshape(-1, *[1] * (values.ndim - 1)), math.nan)

    return {name: masked(values) for name, values in rewards.items()}


def assign_credit(
    groups: list[RolloutGroup], rewards: Mapping[str, Tensor], normalize: Normalize = mean_advantage, credit: str = "trajectory"
) -> Credit:
    """Pay each trainable turn by `rewards[turn.stage]`, else by its question's, else by `rewards["default"]`, else not at all.

    `rewards`: {stage or "default": [B*G]}, example-major, NaN for unscorable; "question": [B*G, Q] pays a turn that works for
    one question (`turn.question`) by that column, normalised within its group like any reward; NaN where an example has fewer
    questions. `credit="final_turn"` trains only the last trainable turn of each trajectory (an ablation: what MemAgent's
    credit to all conversations is worth).
    """
    if credit not in CREDITS:
        raise ConfigError(f"Unknown credit {credit!r}. Known: {', '.join(CREDITS)}.")
    trajectories = [t for group in groups for t in group.trajectories]
    group_ids = [at for at, group in enumerate(groups) for _ in group.trajectories]
    columns = without_errors(_columns(rewards, len(trajectories)), trajectories)
    paid = {key: group_advantages(values.detach().double().cpu(), group_ids, normalize).tolist() for key, values in columns.items()}
    signals = {(key, group_ids[at]) for key, values in paid.items() for at, value in enumerate(values) if _is_signal(value)}
    table: list[list[float | None]] = []
    for at, trajectory in enumerate(trajectories):
        row: list[float | None] = []
        for turn in trajectory.turns:
            key = next((k for k in ((turn.stage, None), (BY_QUESTION, turn.question)) if k in paid), ("default", None))
            usable = turn.trainable and (key, group_ids[at]) in signals and not math.isnan(paid[key][at])
            row.append(paid[key][at] if usable else None)
        if credit == "final_turn":
            last = max((n for n, value in enumerate(row) if value is not None), default=-1)
            row = [value if n == last else None for n, value in enumerate(row)]
        table.append(row)
    of_attempts = [values for (name, _), values in paid.items() if name != BY_QUESTION]
    lost = sum(any(math.isnan(values[at]) for values in of_attempts) for at in range(len(trajectories)))
    return Credit(table, len({group for _, group in signals}) / max(len(groups), 1), lost)


def _columns(rewards: Mapping[str, Tensor], number: int) -> dict[tuple[str, int | None], Tensor]:
    """{(stage or "default", None) or ("question", number): [B*G]}: every reward that pays, a column each."""
    columns: dict[tuple[str, int | None], Tensor] = {}
    for stage, values in paid_stages(rewards).items():
        if values.shape != (number,):
            raise ValueError(f"rewards[{stage!r}] must be [{number}], one per trajectory, got {tuple(values.shape)}.")
        columns[stage, None] = values
    asked = rewards.get(BY_QUESTION)
    if asked is not None:
        if asked.ndim != 2 or len(asked) != number:
            raise ValueError(f"rewards[{BY_QUESTION!r}] must be [{number}, questions], one row per trajectory, got {tuple(asked.shape)}.")
        columns |= {(BY_QUESTION, at): asked[:, at] for at in range(asked.shape[1])}
    return columns


def _is_signal(advantage: float) -> bool:
    return advantage != 0.0 and not math.isnan(advantage)
