"""What a process holds of one user's memories, so that only what changed is read from the database again. Asks no database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import Embedder, Vectors
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores.rows import Row


class Shelf:
    """The bank of a user as of `revision`, and the vectors of what was searched, each item's in the row of its position."""

    def __init__(self, born: str) -> None:
        """`born`: a mark of the user's first write; another mark says that the user was purged and began anew."""
        self.born, self.revision, self.bank = born, 0, MemoryBank()
        self._vectors: Vectors = np.zeros((0, 0), np.float32)
        self._known: NDArray[np.bool_] = np.zeros(0, np.bool_)
        """Of which positions the vector is that of the item's text."""
        self._live: list[tuple[int, MemoryItem]] | None = None

    def put(self, rows: Sequence[Row], revision: int, size: int) -> bool:
        """Take over the rows that changed since; False, and nothing taken, if with them the bank is not whole (`size` rows)."""
        items, deleted = dict(self.bank._items), set(self.bank._deleted)
        for row in sorted(rows, key=lambda row: row.position):
            if row.item.id not in items and row.position != len(items):
                return False
            items[row.item.id] = row.item
            (deleted.add if row.deleted else deleted.discard)(row.item.id)
        if len(items) != size:
            return False
        self.bank, self.revision, self._live = MemoryBank(items, frozenset(deleted)), revision, None
        self._reserve(size, next((len(row.vector) for row in rows if row.vector is not None), self._vectors.shape[1]))
        for row in rows:
            self._known[row.position] = row.vector is not None
            if row.vector is not None:
                self._vectors[row.position] = row.vector
        return True

    def live(self, owner: str | None) -> tuple[list[MemoryItem], NDArray[np.intp]]:
        """The live items of an owner (None: of all) in the order of insertion, and their positions."""
        if self._live is None:
            bank = self.bank
            self._live = [(at, item) for at, item in enumerate(bank._items.values()) if bank.get(item.id) is item]
        pairs = self._live if owner is None else [(at, item) for at, item in self._live if item.owner == owner]
        return [item for _, item in pairs], np.array([at for at, _ in pairs], np.intp)

    def scores(self, embedder: Embedder, queries: Vectors) -> NDArray[Any]:
        """Cosines [n, q] of every position, of the live ones in truth, with the queries [q, d]. Embeds what was never embedded."""
        items, at = self.live(None)
        missing = np.flatnonzero(~self._known[at])
        if len(missing):
            fresh = embedder.embed([items[n].text for n in missing])
            self._reserve(len(self._known), fresh.shape[1])
            self._vectors[at[missing]], self._known[at[missing]] = fresh, True
        size = len(self.bank._items)
        return self._vectors[:size] @ queries.T if self._vectors.shape[1] else np.zeros((size, len(queries)), np.float32)

    @property
    def nbytes(self) -> int:
        """Memory, about: of the vectors, and half a kilobyte for an item."""
        return self._vectors.nbytes + 512 * len(self.bank._items)

    def _reserve(self, size: int, dim: int) -> None:
        """Room for so many vectors; twice as much as before when it grows, so that adding one is cheap."""
        room = len(self._known)
        if size <= room and dim == self._vectors.shape[1]:
            return
        grown = max(size, 2 * room) if size > room else room
        vectors = np.zeros((grown, dim), np.float32)
        if dim == self._vectors.shape[1]:
            vectors[:room] = self._vectors
        self._vectors = vectors
        self._known = np.concatenate([self._known, np.zeros(grown - room, np.bool_)])
