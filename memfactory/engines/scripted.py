"""Engines and chat models that say what they are told: for tests of logic, and for policies written as rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Messages, Sampling, Turn


@ENGINE_REGISTRY.register("scripted")
class ScriptedEngine:
    """Answers a prompt with the token ids that a function returns; each token has log-prob 0."""

    def __init__(self, answer: Callable[[tuple[int, ...], Sampling], Iterable[int]], stop_ids: frozenset[int] = frozenset()) -> None:
        self.answer, self.stop_ids = answer, stop_ids
        self.requests: list[tuple[tuple[int, ...], Sampling]] = []

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        self.requests.append((prompt_ids, sampling))
        ids = tuple(self.answer(prompt_ids, sampling))
        for at, token in enumerate(ids[: sampling.max_tokens]):
            if token in self.stop_ids:
                return Completion(ids[: at + 1], (0.0,) * (at + 1), "stop")
        cut = ids[: sampling.max_tokens]
        return Completion(cut, (0.0,) * len(cut), "length")

    def weights_changed(self) -> None:
        """There are none."""


class ScriptedChat:
    """A chat model that answers messages by a function of (messages, stage); no tokens."""

    def __init__(self, answer: Callable[[Messages, str], str]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Messages]] = []

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        self.asked.append((stage, messages))
        return Turn(stage, (), (), (), self.answer(messages, stage), "stop", trainable=False)
