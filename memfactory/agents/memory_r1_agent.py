"""`MemoryR1Agent` (`memory_r1_agent`): a memory bank kept by operations, written once and asked many times.

Memory-R1, Yan et al., 2025, arXiv 2508.19828: facts are extracted from each part of a conversation, the memories near
them are fetched, a manager decides ADD, UPDATE, DEL or NONE, and an answer agent names the useful ones of the retrieved
memories and answers. Any of the stages extraction, update and answer is trained; `roles` says who answers the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.agents.base import BaseAgent
from memfactory.agents.use import shows
from memfactory.common.ranges import ranged
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.common.types import View
from memfactory.engines.chat import Session
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryItem
from memfactory.modules.base import BaseModule


@dataclass(frozen=True, slots=True)
class MemoryR1Options:
    """Sizes of what is shown, and what is handed down to the slots."""

    style: str = "json"
    """json, or lines for models too small for it."""
    near: int = ranged(10, least=1)
    """Memories shown to the manager for each new fact."""
    answer_from: int = ranged(60, least=1)
    """Memories shown to the answer agent."""
    embedder: str | dict[str, Any] = "hashed"
    """What says which memories are near, and embeds them for the store: a key of EMBEDDER_REGISTRY, or `{"type": key, option: value}`."""
    write_policy: str = "crud"
    """crud, add_only or temporal."""
    capacity: int | None = ranged(None, least=1)
    """Most items in the bank."""
    when_full: str = "refuse"
    """What a full bank does with a new fact: refuse, or oldest (the item added longest ago makes room)."""
    chunk_size: int | None = ranged(None, least=1)
    """Not used: a conversation comes in parts. Here because launchers pass it."""
    max_chunk_number: int | None = ranged(None, least=1)
    """Most parts of a conversation in training; longer ones lose their middle (counted)."""
    max_generate_length: int | None = ranged(None, least=1)
    """Budget of every turn, in tokens; None leaves each module's own."""


@AGENT_REGISTRY.register("memory_r1_agent")
class MemoryR1Agent(BaseAgent):
    """Memory-R1: extract, manage, answer."""

    Options = MemoryR1Options
    slots = {
        "extractor": "naive_extractor", "finder": "naive_retriever", "updater": "naive_updater",
        "retriever": "naive_retriever", "answerer": "answerer",
    }  # fmt: skip
    """finder: the memories near new facts; retriever: those for an answer."""
    stages = ("extraction", "update", "answer")
    read_only = ("retriever", "answerer", "answer_from", "answer")
    extractor: BaseModule
    finder: BaseModule
    updater: BaseModule
    retriever: BaseModule
    answerer: BaseModule

    def slot_options(self, slot: str) -> dict[str, Any]:
        options = self.options
        handed = {
            "style": options.style,
            "embedder": options.embedder,
            "write_policy": options.write_policy,
            "capacity": options.capacity,
            "when_full": options.when_full,
        }
        return handed | ({} if options.max_generate_length is None else {"max_tokens": options.max_generate_length})

    def initial(self, view: View) -> MemoryBank:
        return MemoryBank()

    def events(self, view: View) -> Sequence[Any]:
        return view.events

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> MemoryBank:
        facts = await self.extractor.generate(model, event)
        if not facts:
            return memory
        items = memory.items()
        shown = await self.finder.generate(model, items, facts, model.at_most(self.options.near, len(items)))
        return await self.updater.generate(model, memory, facts, shown, str(event.get("date", "")))

    async def read(self, model: Session, memory: Any, question: str) -> str:
        held = memory.items()
        items = await self.retriever.rollout(model, held, [question], model.at_most(self.options.answer_from, len(held)))
        shows(model, items)
        return await self.read_items(model, items, question)

    async def read_items(self, model: Session, items: Sequence[MemoryItem], question: str) -> str:
        return await self.answerer.rollout(model, items, question)
