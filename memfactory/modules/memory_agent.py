"""`RecurrentMemoryModule`: MemAgent's skill, to overwrite a short memory while reading (arXiv 2507.02259).

Differences from the public version: the memory has a budget of its own; a thought that is never closed keeps the previous memory
instead of its last hundred characters, and so does an apology; a truncated memory is used as it stands and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages
from memfactory.common.errors import unknown_name
from memfactory.common.parsing import says_nothing, strip_thinking
from memfactory.common.prompts import NO_MEMORY, check_order, memory_answer_messages, memory_update_messages
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.common.types import Messages
from memfactory.engines.chat import Session
from memfactory.modules.base import BaseModule

ANSWER_PROMPTS: dict[str, Callable[[str, str], Messages]] = {
    "boxed": memory_answer_messages,
    "memories": lambda question, memory: answer_messages("none" if memory == NO_MEMORY else memory, question),
}


@MODULE_REGISTRY.register("recurrent_memory_module")
class RecurrentMemoryModule(BaseModule):
    """Update the memory from a section of text, or answer from the memory alone."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """Lengths in tokens."""

        max_memory_tokens: int = ranged(1024, least=1)
        """Budget of an update turn: all it writes, and so the memory."""
        max_answer_tokens: int = ranged(1024, least=1)
        prompt_order: str = "memory_first"
        """memory_first (the paper's), or chunk_first, whose prompts share a long prefix within a group."""

        answer_prompt: str = "boxed"
        """boxed (the paper's last turn), or memories: Memory-R1's answer prompt, for a comparison of both by one reader."""

        def __post_init__(self) -> None:
            check_order(self.prompt_order)
            if self.answer_prompt not in ANSWER_PROMPTS:
                raise unknown_name("answer_prompt", self.answer_prompt, ANSWER_PROMPTS)

    initial = NO_MEMORY

    async def act(self, model: Session, *args: Any) -> str:
        """`act(model, question, memory, section)` returns the new memory; `act(model, question, memory)` the answer text."""
        if len(args) == 3:
            return await self._update(model, *args)
        return await self._answer(model, *args)

    async def _update(self, model: Session, question: str, memory: str, section: str) -> str:
        messages = memory_update_messages(question, memory, section, self.options.prompt_order)
        turn = await model.chat(messages, stage="memory", max_tokens=self.options.max_memory_tokens)
        written = strip_thinking(turn.text)
        if written is None:
            model.count("unclosed_thought")
            model.drop("memory", turn.text, "a thought without an end")
            return memory
        if says_nothing(written):
            model.count("refused_memory")
            model.drop("memory", written, "an apology, no memory")
            return memory
        if not written:
            model.count("empty_memory")  # the policy's own choice, and MemAgent's: the memory is empty now
        return written

    async def _answer(self, model: Session, question: str, memory: str) -> str:
        messages = ANSWER_PROMPTS[self.options.answer_prompt](question, memory)
        turn = await model.chat(messages, stage="answer", max_tokens=self.options.max_answer_tokens)
        return turn.text
