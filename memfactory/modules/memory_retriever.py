"""`NaiveRetriever`: the memories nearest to a text, exactly over real embeddings or as the items' own store says. Asks no model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.embedders import CachedEmbedder, make_embedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import Searchable, search
from memfactory.modules.base import BaseModule


def note_order(model: Session | None, found: Sequence[Sequence[str]]) -> set[str]:
    """All ids that were found for the queries; the session, if there is one, notes the order of a single query's, for scores of it."""
    if model is not None:
        model.ranking = tuple(found[0]) if len(found) == 1 else ()
    return {id for ids in found for id in ids}


@MODULE_REGISTRY.register("naive_retriever")
class NaiveRetriever(BaseModule):
    """Top k by cosine."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """What is near."""

        embedder: str | dict[str, Any] = "hashed"
        """A key of EMBEDDER_REGISTRY, or `{"type": key, option: value}`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        super().__init__(tokenizer, device, **kwargs)
        self.embedder = CachedEmbedder(make_embedder(self.options.embedder))

    async def act(self, model: Session, *args: Any) -> list[MemoryItem]:
        """`act(model, items, queries, k)` returns the k nearest items of each query, together, in the order of the items."""
        items: Sequence[MemoryItem]
        items, queries, k = args
        note_order(model, ())
        if len(items) <= k:
            return list(items)
        if isinstance(items, Searchable) and items.embedder_name == self.embedder.name:
            found = await asyncio.to_thread(items.nearest, queries, k)
            near = {item.id for nearest in found for item in nearest}
        elif self.embedder.waits:  # for a server: the other attempts go on meanwhile
            near = note_order(model, await asyncio.to_thread(self._near, items, queries, k))
        else:
            near = note_order(model, self._near(items, queries, k))
        return [item for item in items if item.id in near]

    def _near(self, items: Sequence[MemoryItem], queries: Sequence[str], k: int) -> list[list[str]]:
        """Ids for each query, the nearest first."""
        return [[item.id for item, _ in search(query, items, self.embedder, k)] for query in queries]
