"""Run an agent on a data set and score it: the one way, for held-out checks, the quick start and every later table.

Goes through `agent.inference`, the code that training rolls out and applications use. Knows no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memfactory.agents.base import BaseAgent
from memfactory.algorithms.credit import paid_stages, without_errors
from memfactory.common.errors import ConfigError
from memfactory.common.types import RolloutGroup, Trajectory, predictions
from memfactory.engines.chat import Models
from memfactory.envs.base import BaseEnv
from memfactory.evaluation.statistics import Mean, clustered_mean


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one model on one data set; NaN marks an attempt lost to infrastructure."""

    dataset: str
    sampled: list[list[float]]
    """[n][k] sampled attempts."""
    greedy: list[list[float]]
    """[n][1]."""
    trajectories: list[Trajectory] = field(repr=False)
    """The greedy attempts, [n], for people to read."""

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON holds them: NaN becomes null; trajectories are left out."""
        return {
            "dataset": self.dataset,
            "sampled": [[None if math.isnan(s) else s for s in row] for row in self.sampled],
            "greedy": [[None if math.isnan(s) else s for s in row] for row in self.greedy],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Scores:
        """Take back what `to_dict` gave."""
        sampled, greedy = ([[math.nan if s is None else s for s in row] for row in saved[key]] for key in ("sampled", "greedy"))
        return cls(saved["dataset"], sampled, greedy, [])

    @property
    def avg_at_k(self) -> Mean:
        """Mean of the sampled attempts, with the question-clustered standard error."""
        return clustered_mean(self.sampled)

    @property
    def greedy_mean(self) -> Mean:
        """Mean of the greedy attempts."""
        return clustered_mean(self.greedy)


def evaluate(
    agent: BaseAgent,
    models: Models,
    env: BaseEnv,
    *,
    name: str,
    k: int = 4,
    limit: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 64,
    on_progress: Callable[[int], Any] | None = None,
) -> Scores:
    """k sampled attempts (avg@k) and one greedy attempt per example, for the first `limit` examples (0: all).

    `batch` examples are in flight together; what is sampled does not depend on it. `on_progress` is told how many
    examples were finished.
    """
    number = min(limit or len(env), len(env))
    sampled: list[list[float]] = []
    greedy: list[list[float]] = []
    trajectories: list[Trajectory] = []
    for first in range(0, number, batch):
        examples = [env[at] for at in range(first, min(first + batch, number))]
        views = [env.observe(example) for example in examples]
        best = agent.inference(views, models)
        greedy += _score(env, examples, best, 1)
        trajectories += best
        if k:
            many = agent.inference(views, models, num_attempts=k, temperature=temperature, seed=seed)
            sampled += _score(env, examples, many, k)
        if on_progress:
            on_progress(len(examples))
    return Scores(name, sampled or greedy, greedy, trajectories)


def headline(rewards: Mapping[str, Tensor]) -> Tensor:
    """The one number of an attempt [M]: the reward "default", else that of the stage answer, else the mean of what is paid."""
    paid = paid_stages(rewards)
    if not paid:
        raise ConfigError(f"compute_reward returned nothing that pays; keys: {', '.join(rewards) or 'none'}. Return a stage or default.")
    for key in ("default", "answer"):
        if key in paid:
            return paid[key]
    return torch.stack(list(paid.values())).mean(0)


def _score(env: BaseEnv, examples: Sequence[dict], trajectories: list[Trajectory], k: int) -> list[list[float]]:
    groups = [RolloutGroup(trajectories[at : at + k], "") for at in range(0, len(trajectories), k)]
    rewards = env.compute_reward(predictions(groups), env.collate_fn(examples), k, trajectories=trajectories)
    values = headline(without_errors(rewards, trajectories)).tolist()
    return [values[at : at + k] for at in range(0, len(values), k)]
