"""Numbers of a training step, from what was rolled out and what the loss saw. Knows no stage or component by name."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from memfactory.algorithms.credit import Credit, paid_stages
from memfactory.common.types import RolloutGroup, Trajectory, Turn

UNSCORED = "The env gave an attempt that ended no score (NaN)."


class Averages:
    """Token-weighted means, sums and maxima, gathered over micro-batches."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._maxima: dict[str, float] = {}

    def add(self, name: str, total: float, count: int) -> None:
        """Add a sum over `count` items; a count of 0 keeps a plain sum."""
        self._sums[name] += total
        self._counts[name] += count

    def maximum(self, name: str, value: float) -> None:
        """Keep the largest value."""
        self._maxima[name] = max(value, self._maxima.get(name, value))

    @classmethod
    def of_all(cls, parts: Iterable[Averages]) -> Averages:
        """What several processes gathered, as one."""
        whole = cls()
        for part in parts:
            for name, total in part._sums.items():
                whole.add(name, total, part._counts[name])
            for name, value in part._maxima.items():
                whole.maximum(name, value)
        return whole

    def means(self) -> dict[str, float]:
        """All of it as metrics."""
        return {name: total / (self._counts[name] or 1) for name, total in self._sums.items()} | self._maxima


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the metrics of a rollout are made from."""

    groups: list[RolloutGroup]
    rewards: dict[str, torch.Tensor]
    seconds: float

    def outline(self) -> Sampled:
        """What credit and metrics need of it, small to send: ids become ranges as long as they are, texts are left out."""

        def turn(turn: Turn) -> Turn:
            prompt, response = range(len(turn.prompt_ids)), range(len(turn.response_ids))
            return Turn(turn.stage, prompt, response, (), "", turn.finish, turn.trainable, question=turn.question)  # type: ignore[arg-type]

        def attempt(t: Trajectory) -> Trajectory:
            return Trajectory([turn(each) for each in t.turns], report=t.report, error=t.error)

        groups = [RolloutGroup([attempt(t) for t in group.trajectories], group.example_id, group.state_id) for group in self.groups]
        return Sampled(groups, {name: values.detach().cpu() for name, values in self.rewards.items()}, self.seconds)


def together(parts: list[Sampled]) -> Sampled:
    """What several processes sampled, as one; it took as long as the slowest."""
    groups = [group for part in parts for group in part.groups]
    rewards = {name: _rows([part.rewards.get(name) for part in parts], parts) for part in parts for name in part.rewards}
    return Sampled(groups, rewards, max(part.seconds for part in parts))


def _rows(found: list[torch.Tensor | None], parts: list[Sampled]) -> torch.Tensor:
    """One reward of all processes: NaN where one has no such reward, or fewer questions."""
    some = next(values for values in found if values is not None)
    width = max(values.shape[1] if values is not None and values.ndim == 2 else 0 for values in found)
    rows = []
    for values, part in zip(found, parts, strict=True):
        number = sum(len(group.trajectories) for group in part.groups)
        row = some.new_full((number, width) if some.ndim == 2 else (number,), math.nan)
        if values is not None and values.ndim == 2:
            row[:, : values.shape[1]] = values
        elif values is not None:
            row = values
        rows.append(row)
    return torch.cat(rows)


def lost_to(trajectories: list[Trajectory], rewards: dict[str, torch.Tensor]) -> list[str]:
    """What each attempt without a score was lost to."""
    paid = list(paid_stages(rewards).values())
    unscored = torch.stack([values.isnan() for values in paid]).any(0).tolist() if paid else [False] * len(trajectories)
    return [t.error or UNSCORED for t, lost in zip(trajectories, unscored, strict=True) if lost or t.error is not None]


def rollout_metrics(groups: list[RolloutGroup], rewards: dict[str, torch.Tensor], credit: Credit, seconds: float) -> dict[str, Any]:
    """Rewards (mean, std, all values), informative groups, lengths per stage, truncations and reports, tokens per second."""
    trajectories = [t for group in groups for t in group.trajectories]
    metrics: dict[str, Any] = {}
    paid = paid_stages(rewards)
    for name, values in rewards.items():
        scored = values[~values.isnan()]
        key = "reward" if name == "default" or (len(paid) == 1 and name in paid) else f"reward/{name}"
        if len(scored) == 0:
            continue  # nothing was scorable: no number is better than a false one
        metrics[key] = float(scored.mean())
        if name in paid:
            metrics[f"{key}_std"] = float(scored.std()) if len(scored) > 1 else 0.0
            metrics[f"{key}_values"] = [round(v, 4) for v in scored.tolist()]
    lengths: defaultdict[str, list[int]] = defaultdict(list)
    report: Counter[str] = Counter()
    for trajectory in trajectories:
        report.update(trajectory.report)
        for turn in trajectory.turns:
            lengths[turn.stage].append(len(turn.response_ids))
    metrics |= {f"length/{stage}": sum(values) / len(values) for stage, values in lengths.items()}
    metrics |= {f"count/{name}": number for name, number in report.items()}
    sampled = sum(sum(values) for values in lengths.values())
    prompts = sum(len(turn.prompt_ids) for t in trajectories for turn in t.turns)
    return metrics | {
        "informative": credit.informative,
        "zero_variance_groups": round((1 - credit.informative) * len(groups)),
        "scored": len(trajectories) - credit.unscorable,
        "unscorable": credit.unscorable,
        "errors": sum(t.error is not None for t in trajectories),
        "turns_per_trajectory": sum(len(t.turns) for t in trajectories) / max(len(trajectories), 1),
        "rollout_seconds": seconds,
        "rollout_tokens": sampled,
        "rollout_tokens_per_second": sampled / max(seconds, 1e-9),
        "rollout_prompt_tokens": prompts,
    }
