"""The nouns that every layer shares (DESIGN section 3). Plain data: nothing here samples, scores or trains.

Shape letters used throughout: B examples, G attempts per example, T turns, N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from memfactory.common.errors import ConfigError

Finish = Literal["stop", "length"]
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request is sampled. Nothing is ever inherited from a checkpoint's `generation_config`."""

    max_tokens: int
    """Most tokens to sample, the end-of-turn token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (its log-prob is then reported at temperature 1)."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with this much probability. Must be 1 in training."""
    stream: tuple[int, ...] = (0,)
    """Names the request's own random stream: (seed, step, example, attempt, turn)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature {self.temperature}: must be a number from 0 (the most likely token) on, such as 1.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p {self.top_p}: must be above 0 and at most 1 (1 keeps every token). The most likely token: temperature 0."
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returns for one prompt."""

    ids: tuple[int, ...]
    """Sampled tokens; the end-of-turn token is included if and only if it was sampled."""
    logprobs: tuple[float, ...]
    """One per token, in nats, under the distribution that was sampled from before top-p."""
    finish: Finish


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call, exactly as it was sampled.

    Example: Turn(stage="memory", prompt_ids=(5, 9, 2), response_ids=(31, 7, 1), logprobs=(-0.2, -1.3, -0.01),
    text="city alice paris .", finish="stop", trainable=True)
    """

    stage: str
    """What the turn was for: memory, extraction, update, reflection, rerank or answer."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """In nats, of the sampling policy, one per response token."""
    text: str
    """The response decoded: for parsing and reading only, never encoded again for training."""
    finish: Finish
    trainable: bool
    """True if the trained policy sampled it and its role is `policy`."""
    usage: tuple[int, int] | None = None
    """Prompt and completion tokens as a server counted them, where there are no ids; None if nobody counted."""
    question: int | None = None
    """The number of the question it worked for; None: for all of them, as what writes the memory does."""
    seconds: float = field(default=0.0, compare=False)
    """From asking to having the reply, waiting for others in the pool included; no part of what was sampled."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Where the memories come from that were retrieved for a question.

    Example: Retrieved(True, ({"turns": ["D3:11"]}, {"dates": ["8 May", "9 May"]}))
    """

    ranked: bool
    """Whether the best stands first; else they stand in the memory's order."""
    sources: tuple[dict[str, list[str]], ...]
    """Of each memory: the ids of the turns it comes from, or the dates of the sessions it was written in; {} if neither is known."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something that was said or written and not taken over. Example: Dropped("extraction", "I'm sorry, ...", "no list")"""

    stage: str
    """Who wrote it: a stage, or "told" for what an application told."""
    what: str
    why: str


@dataclass(slots=True)
class Trajectory:
    """One attempt at one example: the turns in the order they were asked, and what came of them."""

    turns: list[Turn] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    """{stage: text of the last turn of that stage}."""
    answers: list[str] = field(default_factory=list)
    """One per question."""
    memory: Any = None
    """The final memory."""
    report: Counter[str] = field(default_factory=Counter)
    """Counts of what happened on the way: truncations, unclosed thoughts, rejected operations."""
    question_reports: dict[int, Counter[str]] = field(default_factory=dict)
    """The same for what was done for one question alone, by its number; `report` counts it too."""
    steps: list[tuple[str, Any]] = field(default_factory=list)
    """(event, memory after it), for people to read."""
    given: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """By a question's number the memories before the model when it answered, where the agent says so; for people to read."""
    retrieved: dict[int, Retrieved] = field(default_factory=dict)
    """Where the memories come from that were retrieved for each question, by its number."""
    dropped: list[Dropped] = field(default_factory=list)
    """What could not be read, or was not taken over, and why; for people to read."""
    error: str | None = None
    """An infrastructure failure, or None. A trajectory with an error is left out, not scored."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """G attempts from the same starting state: what a reward is compared with."""

    trajectories: list[Trajectory]
    example_id: str
    state_id: str = "start"
    """Which state the attempts start from: attempts re-rolled from an intermediate memory are another group."""


@dataclass(frozen=True, slots=True)
class View:
    """What an agent may see of one example. Never holds a gold answer; made by `env.observe`."""

    example_id: str
    """The env's own name of it: what ledgers and random streams go by. The runtime shows agents a number in its place."""
    questions: tuple[str, ...]
    context: str = ""
    """A long text, for agents that read one."""
    events: tuple[Any, ...] = ()
    """Ready-made events (turns of a dialogue, sessions), for agents that are told things one by one."""
    memory: Any = None
    """The memory to start from; None means the agent's own beginning."""


def predictions(groups: list[RolloutGroup]) -> dict[str, list[str]]:
    """`{stage: [B*G]}`, example-major: what `env.compute_reward` reads. `answer` is that to the first question.

    A stage that a trajectory never reached holds "".
    """
    trajectories = [t for group in groups for t in group.trajectories]
    stages = dict.fromkeys(stage for t in trajectories for stage in t.outputs)
    table = {stage: [t.outputs.get(stage, "") for t in trajectories] for stage in stages}
    table["answer"] = [t.answers[0] if t.answers else "" for t in trajectories]
    return table
