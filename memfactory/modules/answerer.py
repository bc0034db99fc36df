"""`Answerer`: Memory-R1's answer agent with memory distillation: names the useful memories, then answers (arXiv 2508.19828)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages, in_lines
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.items import MemoryItem
from memfactory.modules.base import BaseModule


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

        max_tokens: int = 512
        """Budget of the turn."""
        style: str = "json"
        """How memories are shown: json (a list with dates) or lines."""

    async def act(self, model: Session, *args: Any) -> str:
        """`act(model, items, question)` returns the whole text of the turn."""
        items, question = args
        messages = answer_messages(memory_lines(items, self.options.style), question)
        return (await model.chat(messages, stage="answer", max_tokens=self.options.max_tokens)).text
