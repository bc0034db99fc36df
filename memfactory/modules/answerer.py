"""`Answerer`: Memory-R1's answer agent with memory distillation: names the useful memories, then answers (arXiv 2508.19828)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages, in_lines
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.common.rmm_prompts import cited_answer_messages
from memfactory.engines.chat import Session
from memfactory.memory.citations import parse_citations
from memfactory.memory.items import MemoryItem
from memfactory.modules.base import BaseModule
from memfactory.modules.memory_updater import numbered


def memory_lines(items: Sequence[MemoryItem], style: str) -> str:
    """Memories for an answer, oldest first: `- [date] text` a line, or the texts alone in lines."""
    if not items:
        return "none"
    if style == "lines":
        return in_lines(item.text for item in items)
    dates = [item.updated or item.created for item in items]
    return "\n".join(f"- [{date}] {item.text}" if date else f"- {item.text}" for item, date in zip(items, dates, strict=True))


@MODULE_REGISTRY.register("answerer")
class Answerer(BaseModule):
    """An answer from retrieved memories; the env reads what stands after `**Answer:**`."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How it is asked."""

        max_tokens: int = ranged(512, least=1)
        """Budget of the turn."""
        style: str = "json"
        """How memories are shown: json (a list with dates) or lines."""

    async def act(self, model: Session, *args: Any) -> str:
        """`act(model, items, question)` returns the whole text of the turn."""
        items, question = args
        messages = answer_messages(memory_lines(items, self.options.style), question)
        return (await model.chat(messages, stage="answer", max_tokens=self.options.max_tokens)).text


@MODULE_REGISTRY.register("cited_answerer")
class CitedAnswerer(Answerer):
    """RMM's answer: what it cites says which of the shown memories were useful (arXiv 2503.08026)."""

    async def act(self, model: Session, *args: Any) -> str:
        """`act(model, items, question)` returns the whole text of the turn; citations are read strictly, and counted."""
        items, question = args
        messages = cited_answer_messages(numbered(items, self.options.style), question)
        turn = await model.chat(messages, stage="answer", max_tokens=self.options.max_tokens)
        cited = parse_citations(turn.text, len(items))
        if not cited.readable:
            model.count("unreadable_citation")
        model.count("shown_items", len(items))
        model.count("cited_items", len(cited.ids))
        model.count("rejected_citations", sum(cited.problems.values()) if cited.readable else 0)
        return turn.text
