"""What a module is: one memory skill. Knows no agent, env, reward or token.

A module implements `act`; the papers' three interfaces are names over it: `generate` (the policy writes an intermediate
state), `rollout` (the policy writes an output that the env scores) and `inference` (nothing is trained). Whether a turn
is trained is the model's business (roles), so all three are the same computation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from memfactory.common.porting import refuse_old_style, samples
from memfactory.common.registry import build_options
from memfactory.engines.chat import Session


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A component without options."""


class BaseModule(ABC):
    """Base of all modules, constructed as `(tokenizer, device="cuda", **kwargs)`; `kwargs` fill the class's `Options`."""

    Options: type = NoOptions
    stages: tuple[str, ...] = ()
    """The stages of its turns, as far as the agent does not name them already."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method in ("rollout", "inference"):
            refuse_old_style(cls, method, ("batch_data", "reward_fn"), "A module is one coroutine, `async act(self, model, ...)`.")

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.options: Any = build_options(type(self).__name__, self.Options, kwargs)

    @abstractmethod
    async def act(self, model: Session, *args: Any) -> Any:
        """Ask the model and parse. What cannot be parsed returns the unchanged state and is counted in the report."""

    async def generate(self, model: Session, *args: Any) -> Any:
        """The policy writes an intermediate state."""
        return await self.act(model, *args)

    async def rollout(self, model: Session, *args: Any) -> Any:
        """The policy writes an output that the env scores."""
        return await self.act(model, *args)

    async def inference(self, model: Session, *args: Any) -> Any:
        """The same without training."""
        return await self.act(model, *args)


def __getattr__(name: str) -> Any:
    return samples(__name__, name)
