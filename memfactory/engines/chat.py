"""Chat models: messages in, a `Turn` out. Roles, not code, choose who answers. Knows no memory, reward or algorithm.

Only the local chat model touches tokens. A `Session` is one trajectory's line to the models: it routes a stage to its
role, stamps `trainable`, gives each call its random stream and records every turn.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from memfactory.common.errors import ConfigError, PromptTooLong, unknown_name
from memfactory.common.text import mend
from memfactory.common.types import Dropped, Messages, Sampling, Trajectory, Turn
from memfactory.engines.base import Engine
from memfactory.engines.prompt import encode_messages
from memfactory.engines.template import OPEN, thoughts_of

MENDED = "mended_characters"
"""In a report: half characters (lone surrogates) that became U+FFFD on their way to or from a model."""

BRANCH = 1 << 32
"""Added to a branch's number in its streams: no turn has so high a number."""

ROLES = ("policy", "policy_nograd", "reference", "api:NAME")


def check_roles(roles: Mapping[str, str], stages: Collection[str] | None = None) -> None:
    """An unknown role, or a stage that is none of `stages`, is an error that names the known ones; no model is asked for."""
    for stage, role in roles.items():
        if stages is not None and stage not in stages:
            raise unknown_name("stage of --roles", stage, stages)
        if role not in ROLES[:-1] and not str(role).startswith("api:"):
            raise unknown_name(f"role of the stage {stage}", str(role), ROLES)


class ChatModel(Protocol):
    """Turns messages into a `Turn`."""

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        """One call; `trainable` is False here and stamped by the session."""


@dataclass(frozen=True, slots=True)
class LocalChat:
    """Tokenizer and engine: what is sampled is kept as token ids, and the text is for parsing only."""

    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    max_prompt_length: int | None = None
    """Most prompt tokens; a longer prompt is `PromptTooLong`, never cut silently."""

    def encode(self, messages: Messages) -> tuple[int, ...]:
        """The prompt's token ids under the model's chat template, thinking switched off where the template can."""
        if not self.tokenizer.chat_template:
            raise ConfigError("This tokenizer has no chat template. Use an instruction-tuned checkpoint, or set tokenizer.chat_template.")
        return encode_messages(self.tokenizer, messages)

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        prompt = self.encode(messages)
        if self.max_prompt_length is not None and len(prompt) > self.max_prompt_length:
            raise PromptTooLong(f"The {stage} prompt has {len(prompt)} tokens, max_prompt_length is {self.max_prompt_length}.")
        out = await self.engine.complete(prompt, sampling)
        thoughts = thoughts_of(self.tokenizer, str(self.tokenizer.chat_template))
        text = thoughts.text(self.tokenizer, out.ids)
        if thoughts.open_after(self.tokenizer, prompt):  # without its tag a cut-off thought would pass for an answer
            text = OPEN + text
        return Turn(stage, prompt, out.ids, out.logprobs, text, out.finish, trainable=False)


class Models:
    """Who answers which stage: the chat models by role, and a role for each stage (policy unless said otherwise)."""

    def __init__(self, chats: Mapping[str, ChatModel], roles: Mapping[str, str] | None = None) -> None:
        self.chats = dict(chats)
        self.roles = dict(roles or {})
        self.frozen_temperature: float | None = None
        """Of stages that the policy does not answer, in rollouts for training; None: as the policy's. 0 takes what a frozen
        reader draws by chance out of the reward (docs/arena.md)."""
        if "policy" in self.chats:
            self.chats.setdefault("policy_nograd", self.chats["policy"])
        for stage, role in self.roles.items():
            if role not in self.chats:
                known = {*self.chats, *ROLES}
                if role in ROLES:
                    raise ConfigError(
                        f"roles: {stage} is answered by {role!r}, but no {role} model was made. Here: {', '.join(self.chats)}."
                    )
                raise unknown_name(f"role of the stage {stage}", role, known)

    def role(self, stage: str) -> str:
        """The role that answers a stage."""
        return self.roles.get(stage, "policy")

    def weights_changed(self) -> None:
        """Tell every engine in this process that its weights were updated."""
        engines = {id(chat.engine): chat.engine for chat in self.chats.values() if isinstance(chat, LocalChat)}
        for engine in engines.values():  # one may serve several roles, and being told may cost it a copy of the weights
            engine.weights_changed()

    def close(self) -> None:
        """Close what holds connections, processes or memory outside this one's: servers' clients and engines with a `close`."""
        for chat in self.chats.values():
            close = getattr(chat.engine if isinstance(chat, LocalChat) else chat, "close", None)
            if close is not None:
                close()

    def uncapped(self) -> Models:
        """The same models without a limit on prompts: evaluation has none."""
        free = {n: replace(c, max_prompt_length=None) if isinstance(c, LocalChat) else c for n, c in self.chats.items()}
        models = Models(free, self.roles)
        models.frozen_temperature = self.frozen_temperature
        return models

    def temperature(self, role: str, given: float) -> float:
        """What a role samples at in training."""
        is_policy = role in ("policy", "policy_nograd")
        return given if is_policy or self.frozen_temperature is None else self.frozen_temperature

    def session(self, *, sampling: Sampling, stream: tuple[int, ...], training: bool, trajectory: Trajectory | None = None) -> Session:
        """A fresh line for one attempt. `sampling` holds the temperature and top-p; modules say the length."""
        return Session(self, sampling, stream, training, trajectory or Trajectory())


@dataclass(slots=True)
class Session:
    """One attempt's line to the models, and the record of what was said on it."""

    models: Models
    sampling: Sampling
    stream: tuple[int, ...]
    """(seed, step, example, attempt); the number of the turn is appended to it."""
    training: bool
    """True in `rollout`: limits that only training has (centre truncation) apply."""
    trajectory: Trajectory
    question: int | None = None
    """The number of the question that is being worked for; None: for all."""
    ranking: tuple[str, ...] = ()
    """Ids of the memories that were retrieved last, best first; () if what retrieved them gives no order."""

    async def chat(self, messages: Messages, *, stage: str, max_tokens: int) -> Turn:
        """Ask the stage's model; the turn is recorded in the order of asking, also when several are asked at once."""
        turns = self.trajectory.turns
        at = len(turns)
        role = self.models.role(stage)
        if role not in self.models.chats:
            here = ", ".join(self.models.chats) or "none"
            raise ConfigError(f"The stage {stage} is answered by {role!r}, but no such model was made. Here: {here}.")
        warm = self.models.temperature(role, self.sampling.temperature) if self.training else self.sampling.temperature
        sampling = replace(self.sampling, max_tokens=max_tokens, stream=(*self.stream, at), temperature=warm)
        turns.append(Turn(stage, (), (), (), "", "stop", trainable=False))  # holds the place while others are asked
        asked = time.perf_counter()
        turn = await self.models.chats[role].chat(self._mended(messages), stage, sampling)
        seconds = time.perf_counter() - asked
        text, broken = mend(turn.text)
        if broken:
            self.count(MENDED, broken)
        turn = replace(turn, text=text, trainable=role == "policy" and self.training, question=self.question, seconds=seconds)
        turns[at] = turn
        if all(later.stage != stage for later in turns[at + 1 :]):  # the last one asked, not the last one answered
            self.trajectory.outputs[stage] = turn.text
        if turn.finish == "length":
            self.count(f"truncated_{stage}")
        return turn

    def _mended(self, messages: Messages) -> Messages:
        """The messages as any tokenizer and server takes them; how many half characters they held is counted."""
        mended = [{name: mend(text) for name, text in message.items()} for message in messages]
        if broken := sum(number for message in mended for _, number in message.values()):
            self.count(MENDED, broken)
        return [{name: text for name, (text, _) in message.items()} for message in mended]

    def at_most(self, k: int, held: int) -> int:
        """How many of `held` memories to retrieve where an agent wants `k`; an application's session says fewer if those do not fit."""
        return k

    def branch(self, number: int) -> Session:
        """A line for one question among several: its own record and random streams."""
        return replace(self, stream=(*self.stream, BRANCH + number), trajectory=Trajectory(), question=number)

    def join(self, branch: Session) -> None:
        """Take a finished branch's record into this one's: turns come in the order of joining."""
        mine, other = self.trajectory, branch.trajectory
        mine.turns += other.turns
        mine.outputs |= other.outputs
        mine.report.update(other.report)
        if branch.question is not None:
            mine.question_reports[branch.question] = other.report
        mine.steps += other.steps
        mine.dropped += other.dropped
        mine.given |= other.given
        mine.retrieved |= other.retrieved

    def count(self, what: str, number: int = 1) -> None:
        """Add to the trajectory's report."""
        self.trajectory.report[what] += number

    def drop(self, stage: str, what: str, why: str) -> None:
        """Keep what was written and not taken over, and why, for people to read."""
        self.trajectory.dropped.append(Dropped(stage, what, why))

    def note(self, event: Any, memory: Any) -> None:
        """Keep an event and the memory after it, for people to read."""
        self.trajectory.steps.append((event, memory))
