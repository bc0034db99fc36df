"""`RerankRetriever`: a language model chooses among the nearest memories, and is trained for it like any other stage.

RMM's idea (learn what to retrieve, arXiv 2503.08026) with the policy itself as reranker; the paper's own is `RMMReranker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.common.rmm_prompts import choose_messages
from memfactory.engines.chat import Session
from memfactory.memory.choices import parse_choices
from memfactory.memory.items import MemoryItem
from memfactory.modules.memory_retriever import NaiveRetriever, note_order
from memfactory.modules.memory_updater import numbered


@MODULE_REGISTRY.register("rerank_retriever")
class RerankRetriever(NaiveRetriever):
    """Top K by cosine, of which the model keeps some."""

    stages = ("rerank",)

    @dataclass(frozen=True, slots=True)
    class Options:
        """What is near, and how the model is asked."""

        embedder: str | dict[str, Any] = "hashed"
        """A key of EMBEDDER_REGISTRY, or `{"type": key, option: value}`."""
        candidates: int = ranged(20, least=1)
        """K: how many the model chooses from."""
        max_tokens: int = ranged(256, least=1)
        """Budget of the turn."""
        style: str = "json"
        """json, or lines for models too small for it."""

    async def act(self, model: Session, *args: Any) -> list[MemoryItem]:
        """`act(model, items, queries, k)` returns at most k items a query, those that the model keeps, in the order of the items.

        What cannot be read leaves the retriever's own k nearest, and is counted; a number that was not shown, or a second
        time, is left out and counted.
        """
        items, queries, k = args
        shown: Sequence[MemoryItem] = await super().act(model, items, queries, self.options.candidates)
        if not shown:
            return []
        messages = choose_messages(numbered(shown, self.options.style), " ".join(queries), self.options.style)
        turn = await model.chat(messages, stage="rerank", max_tokens=self.options.max_tokens)
        chosen = parse_choices(turn.text, len(shown))
        model.count("rejected_choices", sum(chosen.problems.values()))
        if not chosen.readable:
            model.count("unreadable_rerank")
            model.drop("rerank", turn.text, "no choice could be read: the nearest were kept")
            kept = await super().act(model, shown, queries, k)
        else:
            ids = set(chosen.ids[: k * len(queries)])
            kept = [item for number, item in enumerate(shown) if number in ids]
            note_order(model, ())  # the model keeps or drops; it puts nothing in order
        model.count("kept_items", len(kept))
        return kept
