"""The store of one process: rows in dictionaries, searched exactly. Nothing outlives it, nothing has to be installed or started."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from memfactory.common.registry import STORE_REGISTRY
from memfactory.memory.embedders import Embedder, Vectors
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores.base import MemoryStore
from memfactory.memory.stores.rows import Hits, HitsEach, Row, best

logger = logging.getLogger(__name__)


@STORE_REGISTRY.register("in_memory")
class InMemoryStore(MemoryStore):
    """Every live vector of the user is compared, as `memory.search` does it."""

    def __init__(self, embedder: Embedder, **kwargs: Any) -> None:
        super().__init__(embedder, **kwargs)
        self._rows: dict[str, dict[str, Row]] = {}
        self._shelves: dict[str, tuple[list[Row], Vectors]] = {}
        """Of users that were searched since they were written to: live rows and their vectors [n, d]."""

    def _forked(self) -> None:
        super()._forked()
        if self._rows:
            logger.warning("This process was forked with a store in memory: what it keeps from now on, no other process sees.")

    def _load(self, user: str) -> Iterable[Row]:
        return self._rows.get(user, {}).values()

    def _write(self, user: str, rows: Sequence[Row]) -> None:
        self._rows.setdefault(user, {}).update({row.item.id: row for row in rows})
        self._shelves.pop(user, None)

    def _nearest(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        rows, vectors = self._shelf(user)
        at = [n for n, row in enumerate(rows) if owner is None or row.item.owner == owner]
        if not at:
            return [[] for _ in queries]
        pool = vectors if len(at) == len(rows) else vectors[at]
        return [self._best([rows[n].item for n in at], pool, query, k) for query in queries]

    def _best(self, items: list[MemoryItem], vectors: Vectors, query: Vectors, k: int) -> Hits:
        """The k nearest by their cosines in float64, as `memory.search` has them; float32 says which of them to compare."""
        rough = vectors @ query
        near = np.arange(len(items)) if k >= len(items) else np.flatnonzero(rough >= np.partition(rough, -k)[-k] - 1e-4)
        return best([items[n] for n in near], vectors[near].astype(np.float64) @ query, k)

    def _shelf(self, user: str) -> tuple[list[Row], Vectors]:
        if user not in self._shelves:
            rows = sorted((row for row in self._rows.get(user, {}).values() if row.vector is not None), key=lambda row: row.position)
            self._shelves[user] = rows, np.stack([row.vector for row in rows if row.vector is not None] or [np.zeros(0, np.float32)])
        return self._shelves[user]

    def _users(self) -> Iterable[str]:
        return self._rows

    def _remove(self, user: str) -> None:
        self._rows.pop(user, None)
        self._shelves.pop(user, None)

    def _close(self) -> None:
        self._rows.clear()
        self._shelves.clear()
