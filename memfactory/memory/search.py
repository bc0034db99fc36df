"""Exact search among items: every item is compared; and what items are that search themselves. Knows no store and no prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from memfactory.memory.embedders import Embedder
from memfactory.memory.items import MemoryItem

DIGITS = 6
"""Cosines that agree in so many digits are equal: float32 does not promise more, and the order must not hang on it."""


@runtime_checkable
class Searchable(Protocol):
    """A sequence of items that knows the nearest of them faster than by comparing all; `nearest` may wait for a server."""

    embedder_name: str
    """What is near is as this embedder has it."""

    def nearest(self, queries: Sequence[str], k: int) -> list[list[MemoryItem]]:
        """For each query the items that `search` gives, in any order."""
        ...


def search(query: str, items: Iterable[MemoryItem], embedder: Embedder, k: int, owner: str | None = None) -> list[tuple[MemoryItem, float]]:
    """The `k` items nearest to the query with their cosines in [-1, 1], best first; equal ones in the order given.

    `owner` leaves only that namespace's items ("" is a namespace too); None leaves all. All items if `k` exceeds them, none if
    `k` is 0 or less. The embedder's errors pass through.
    """
    pool = [item for item in items if owner is None or item.owner == owner]
    if k <= 0 or not pool:
        return []
    vectors = embedder.embed([query, *(item.text for item in pool)]).astype(np.float64)
    scores = np.clip(vectors[1:] @ vectors[0], -1.0, 1.0).round(DIGITS)
    return [(pool[at], float(scores[at])) for at in np.argsort(-scores, kind="stable")[:k]]
