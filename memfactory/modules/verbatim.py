"""Writing without a model: every turn of a conversation is a memory as it was said. RMM's raw memory, and a baseline for extraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryOp
from memfactory.modules.base import BaseModule


@MODULE_REGISTRY.register("verbatim_extractor")
class VerbatimExtractor(BaseModule):
    """Turns as they are, for the slot of an extractor."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How a turn is written down."""

        style: str = "json"
        """json: `Alice: text`; lines: the text alone, which says who is meant."""

    async def act(self, model: Session, *args: Any) -> list[str]:
        """`act(model, event)` returns the texts of the event's turns."""
        (event,) = args
        if self.options.style == "lines":
            return [str(turn["text"]).removesuffix(" .") for turn in event["turns"]]
        return [f"{turn['speaker']}: {turn['text']}" for turn in event["turns"]]


@MODULE_REGISTRY.register("append_updater")
class AppendUpdater(BaseModule):
    """Adds every fact, for the slot of an updater; near memories are not looked at."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """What its ADDs do."""

        capacity: int | None = ranged(None, least=1)
        """Most live items; an ADD over it is rejected."""

    async def act(self, model: Session, *args: Any) -> MemoryBank:
        """`act(model, bank, facts, shown, when)` returns the bank with the facts."""
        bank, facts, _, when = args
        done = bank.apply([MemoryOp("ADD", text=fact) for fact in facts], capacity=self.options.capacity, when=when)
        model.count("operation_ADD", len(done.applied))
        model.count("rejected_operations", len(done.rejected))
        return done.bank
