"""Run an agent on a data set and score it: the one way, for held-out checks, the quick start and every table.

Goes through the runtime that training rolls out and applications use. With a ledger on disk, attempts that are in it are
not made again, and the scores are computed from the whole of it. Knows no training.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from memfactory.agents.base import BaseAgent, Request
from memfactory.algorithms.credit import BY_QUESTION, paid_stages
from memfactory.common.errors import ConfigError, PromptTooLong, Refused
from memfactory.common.types import RolloutGroup, Trajectory, predictions
from memfactory.engines.chat import Models
from memfactory.envs.base import BaseEnv
from memfactory.envs.rewards import rewards_of
from memfactory.evaluation.leak import view_of
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Key, Ledger
from memfactory.evaluation.memories import Memories
from memfactory.evaluation.record import cost_of, event_text, given_texts, tokens
from memfactory.evaluation.statistics import Mean, clustered_mean, scored_share

SHOWN = 8
"""Of this many first examples the ledger keeps the greedy attempt's steps, for people to read."""

_SHORTER = (
    "A prompt past the model's window does not fit the next time either: shorter chunks (--chunk_size), answers (--max_generate_length) or "
    "fewer shown memories (near, answer_from in --agent_options) make room, or a model with a longer window."
)
_ROOM = {
    name: f"A prompt over {name} does not fit the next time either: raise {name} in --engine_options, or shorten prompts (--chunk_size)."
    for name in ("max_prompt_length", "max_model_len")
}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one model on one data set; NaN marks an attempt lost to infrastructure, or not made yet."""

    dataset: str
    examples: list[str]
    """[n] names of the examples."""
    sampled: list[list[float]]
    """[n, k] sampled attempts; k may be 0."""
    greedy: list[list[float]]
    """[n, 1]."""
    attempts: dict[tuple[str, str, int], Attempt] = field(default_factory=dict, repr=False)
    asked_in: list[str] = field(default_factory=list, repr=False)
    """[n] which of the ledger's examples each is of, where scores are by question (a task's); else empty."""
    clusters: list[str] = field(default_factory=list, repr=False)
    """[n] what is not independent of each other: the conversation or context of each; empty: each by itself."""
    types: list[str] = field(default_factory=list, repr=False)
    """[n] the benchmark's types of the questions; empty: it has none."""
    abstention: Scores | None = field(default=None, repr=False)
    """The same for the questions to abstain on, which are no part of `sampled` and `greedy`."""
    about: dict[str, Any] = field(default_factory=dict, repr=False)
    """More columns of the table: the task's scorer, and how abstaining went."""

    def counted(self, metric: str) -> list[list[float]]:
        """`sampled` or `greedy` with 0 for what infrastructure lost; what was not made yet stays NaN and is left out.

        Where no attempt has a score nothing is wrong either: there is no number, and none is 0.
        """
        rows: list[list[float]] = getattr(self, metric)
        if not scored_share(rows) > 0:
            return rows
        kind = SAMPLED if metric == "sampled" else GREEDY

        def made(example: str, number: int) -> bool:
            return not self.attempts or (example, kind, number) in self.attempts

        return [
            [0.0 if math.isnan(score) and made(example, number) else score for number, score in enumerate(row)]
            for example, row in zip(self.asked_in or self.examples, rows, strict=True)
        ]

    @property
    def lost(self) -> str:
        """What is missing and why, in words; empty if every attempt has a score."""
        if self.coverage == 1:
            return ""
        reasons = Counter(attempt.error or "unknown" for attempt in self.attempts.values() if attempt.status == "failed")
        failed = sum(reasons.values())
        most = f" ({failed} failed and count as wrong, most often: {reasons.most_common(1)[0][0]})" if failed else ""
        return f"{self.coverage:.1%} of the attempts have a score{most}"

    @property
    def remedy(self) -> str:
        """What gives the missing attempts a score: another start where the failure can pass, an option where it cannot."""
        errors = [attempt.error or "unknown" for attempt in self.attempts.values() if attempt.status == "failed"]
        long = [error for error in errors if error.startswith(PromptTooLong.__name__)]
        refused = [error for error in errors if error.startswith(Refused.__name__)]
        asked = {example for part in (self, self.abstention) if part for example in part.asked_in or part.examples}
        unmade = len(self.attempts) < len(asked) * (self.k + 1)
        advice = [next((text for word, text in _ROOM.items() if word in long[0]), _SHORTER)] if long else []
        advice += ["A refused prompt is refused again: leave it out, or ask another model."] if refused else []
        again = len(errors) > len(long) + len(refused) or unmade or not errors
        return " ".join([*advice, *(["Start again to make what is missing."] if again else [])])

    @property
    def k(self) -> int:
        """Sampled attempts per example."""
        rows = self.sampled or (self.abstention.sampled if self.abstention else [])
        return len(rows[0]) if rows else 0

    @property
    def mean(self) -> Mean:
        """avg@k, or the greedy mean where nothing was sampled."""
        return self.avg_at_k if self.k else self.greedy_mean

    @property
    def avg_at_k(self) -> Mean:
        """Mean of the sampled attempts that could be scored, with the clustered standard error."""
        return clustered_mean(self.sampled, clusters=self.clusters)

    @property
    def greedy_mean(self) -> Mean:
        """Mean of the greedy attempts that could be scored."""
        return clustered_mean(self.greedy, clusters=self.clusters)

    @property
    def coverage(self) -> float:
        """The share of the attempts that have a score."""
        parts = [self] if self.abstention is None else [self, self.abstention]
        return scored_share([row for part in parts for row in [*part.sampled, *part.greedy]])


def evaluate(
    agent: BaseAgent,
    models: Models,
    env: BaseEnv,
    *,
    name: str,
    k: int = 4,
    limit: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    ledger: Ledger | None = None,
    in_flight: int = 512,
    shown: int = SHOWN,
    on_progress: Callable[[int], Any] | None = None,
    memories: Memories | None = None,
    share: tuple[int, int] = (0, 1),
) -> Scores:
    """One greedy attempt and k sampled ones (avg@k) at each of the first `limit` examples (0: all).

    Of the first `shown` examples the greedy attempt is kept step by step. `on_progress` is told how many attempts were finished,
    those found in the ledger first. k = 0 is greedy only. `memories` keeps what attempts write before they are asked, and gives it to
    those that wrote already. `share` (r, n) makes the attempts of every n-th example from the r-th on: one of n processes' part.
    """
    number = min(limit or len(env), len(env))
    examples = [env[at] for at in range(number)]
    ledger = ledger if ledger is not None else Ledger()
    done = ledger.done()
    by_name = {example["example_id"]: example for example in examples}
    asked = planned(list(by_name)[share[0] :: share[1]], k)
    missing = [(by_name[key[0]], *key[1:]) for key in asked if key not in done]
    if on_progress and len(asked) > len(missing):
        on_progress(len(asked) - len(missing))
    views = {e["example_id"]: view_of(agent, env, e) for e, _, _ in missing}
    requests = [
        Request(views[e["example_id"]], attempt) if kind == GREEDY else Request(views[e["example_id"]], attempt, temperature, top_p)
        for e, kind, attempt in missing
    ]
    told = {example["example_id"] for example in examples[:shown]}
    if memories:
        requests = [
            memories.request((e["example_id"], kind, attempt), request, shown=kind == GREEDY and e["example_id"] in told)
            for (e, kind, attempt), request in zip(missing, requests, strict=True)
        ]
    for ended in agent.attempts(requests, models, seed=seed, in_flight=in_flight):
        attempts = _scored(env, [(missing[at], trajectory) for at, trajectory in ended], told, agent.question_aware)
        attempts = memories.entered(attempts) if memories else attempts
        ledger.append(attempts)
        if on_progress:
            on_progress(len(attempts))
    return scores_of(name, [example["example_id"] for example in examples], k, ledger.attempts())


def scores_of(dataset: str, examples: Sequence[str], k: int, attempts: Mapping[tuple[str, str, int], Attempt]) -> Scores:
    """The scores that a ledger's attempts give these examples."""

    def row(example: str, kind: str, count: int) -> list[float]:
        found = [attempts.get((example, kind, number)) for number in range(count)]
        return [math.nan if a is None or a.score is None else a.score for a in found]

    greedy = [row(example, GREEDY, 1) for example in examples]
    sampled = [row(example, SAMPLED, k) for example in examples]
    return Scores(dataset, list(examples), sampled, greedy, {key: attempts[key] for key in planned(examples, k) if key in attempts})


def planned(examples: Sequence[str], k: int) -> list[Key]:
    """The attempts of an evaluation: of each example one greedy and k sampled ones."""
    return [(example, kind, number) for example in examples for kind, count in ((GREEDY, 1), (SAMPLED, k)) for number in range(count)]


def headline(rewards: Mapping[str, Tensor]) -> Tensor:
    """The one number of an attempt [M]: the reward "default", else that of the stage answer, else the mean of what is paid."""
    paid = paid_stages(rewards)
    if not paid:
        raise ConfigError(f"compute_reward returned nothing that pays; keys: {', '.join(rewards) or 'none'}. Return a stage or default.")
    for key in ("default", "answer"):
        if key in paid:
            return paid[key]
    return torch.stack(list(paid.values())).mean(0)


def _scored(env: BaseEnv, ended: Sequence[tuple[tuple[dict, str, int], Trajectory]], shown: set[str], aware: bool) -> list[Attempt]:
    """Lines of the ledger for attempts that ended, each an example with one attempt to the env; `aware`: the question is read with."""
    trajectories = [trajectory for _, trajectory in ended]
    groups = [RolloutGroup([trajectory], example["example_id"]) for (example, _, _), trajectory in ended]
    batch = env.collate_fn([example for (example, _, _), _ in ended])
    rewards = rewards_of(env, predictions(groups), batch, 1, trajectories)
    values = headline(rewards).tolist()
    by_question = rewards.get(f"default/{BY_QUESTION}", torch.empty(len(ended), 0))
    marks = {key.removeprefix(f"{BY_QUESTION}/"): table for key, table in rewards.items() if key.startswith(f"{BY_QUESTION}/")}
    lines = []
    for at, ((example, kind, number), trajectory) in enumerate(ended):
        lost = math.isnan(values[at])
        told = kind == GREEDY and example["example_id"] in shown
        cut = any(count for what, count in trajectory.report.items() if what.startswith("truncated_"))
        lines.append(
            Attempt(
                example["example_id"], kind, number,
                status="failed" if lost else "truncated" if cut else "ok",
                score=_number(values[at]),
                scores={key: _number(float(column[at])) for key, column in rewards.items() if column.ndim == 1},
                questions=_numbers(by_question[at], len(trajectory.answers)),
                marks={name: _numbers(table[at], len(trajectory.answers)) for name, table in marks.items()},
                answers=list(trajectory.answers),
                memory=trajectory.memory if isinstance(trajectory.memory, (str, type(None))) else str(trajectory.memory),
                report=dict(trajectory.report),
                retrieved=_retrieved(trajectory),
                error=trajectory.error or ("The env could not score this attempt." if lost else None),
                steps=[[event_text(e), str(m)] for e, m in trajectory.steps] if told else [],
                given=given_texts(trajectory) if told else [],
                cost=cost_of(trajectory.turns, aware),
                turns=len(trajectory.turns),
                prompt_tokens=sum(tokens(turn)[0] for turn in trajectory.turns),
                completion_tokens=sum(tokens(turn)[1] for turn in trajectory.turns),
                finished=round(time.time(), 3),
            )
        )  # fmt: skip
    return lines


def _retrieved(trajectory: Trajectory) -> list[dict[str, Any]]:
    found = trajectory.retrieved
    return [asdict(found[at]) if at in found else {} for at in range(len(trajectory.answers))] if found else []


def _numbers(row: Tensor, number: int) -> list[float | None]:
    """The first `number` of a row that is padded to the longest of its batch."""
    return [_number(value) for value in row.tolist()[:number]]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
