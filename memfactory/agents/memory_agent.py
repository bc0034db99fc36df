"""`MemoryAgent` (`memagent`): read a long text in chunks with the question in hand, overwriting a short memory.

MemAgent, Yu et al., 2025, arXiv 2507.02259: for each chunk the memory is replaced by what the model writes; the answer
is written from the last memory alone. Text of any length at linear cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.agents.base import AgentOptions, BaseAgent
from memfactory.agents.word_for_word import as_text
from memfactory.common.bank_prompts import STYLES
from memfactory.common.errors import unknown_name
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.common.types import View
from memfactory.engines.chat import Session
from memfactory.memory.items import MemoryItem
from memfactory.modules.memory_agent import RecurrentMemoryModule
from memfactory.modules.memory_extractor import conversation_text


@dataclass(frozen=True, slots=True)
class MemoryAgentOptions(AgentOptions):
    """MemAgent's lengths, and in what pieces it reads."""

    by_session: str = ""
    """json or lines: read a conversation's sessions one by one, each as a bank's extractor is shown it, instead of chunks of its text."""

    def __post_init__(self) -> None:
        if self.by_session not in ("", *STYLES):
            raise unknown_name("by_session", self.by_session, STYLES, "Leave it out to read chunks of a text.")


@AGENT_REGISTRY.register("memagent")
class MemoryAgent(BaseAgent):
    """MemAgent's reader: chunks in order, one short memory, the answer from it alone."""

    Options = MemoryAgentOptions
    slots = {"module": "recurrent_memory_module"}
    stages = ("memory", "answer")
    question_aware = True
    module: RecurrentMemoryModule

    def slot_options(self, slot: str) -> dict[str, Any]:
        limit = self.options.max_generate_length
        return {} if limit is None else {"max_memory_tokens": limit, "max_answer_tokens": limit}

    def initial(self, view: View) -> str:
        return self.module.initial

    def events(self, view: View) -> Sequence[str]:
        style = self.options.by_session
        return [conversation_text(event, style) for event in view.events] if style else self.chunks(view.context)

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> str:
        return await self.module.generate(model, question, memory, event)

    async def read(self, model: Session, memory: Any, question: str) -> str:
        return await self.module.rollout(model, question, memory)

    async def read_items(self, model: Session, items: Sequence[MemoryItem], question: str) -> str:
        """The items' text stands in the memory's place."""
        return await self.module.rollout(model, question, as_text(items) or self.module.initial)
