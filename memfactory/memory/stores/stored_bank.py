"""A user's bank as an agent is given it: the store searches it, and what was asked of it is kept for people to read.

An edit gives a bank that no store knows, as always; it becomes true when the store is told to `commit` it. Knows no agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from memfactory.memory.bank import Applied, MemoryBank, WritePolicy
from memfactory.memory.items import MemoryItem, MemoryOp
from memfactory.memory.search import search
from memfactory.memory.stores.base import MemoryStore
from memfactory.memory.stores.rows import Hits

CLOSE = 4e-6
"""Cosines that differ by less may stand in another order in a backend that computes in float32."""
SPARE = 16
"""So many more than are wanted are asked for: they show whether the last one was chosen among equals."""


class StoredItems(tuple[MemoryItem, ...]):
    """The live items of a stored bank, in the order of insertion; a `Searchable`."""

    store: MemoryStore
    user: str
    bank: MemoryBank

    @property
    def embedder_name(self) -> str:
        """The store's."""
        return self.store.embedder.name

    def nearest(self, queries: Sequence[str], k: int) -> list[list[MemoryItem]]:
        """For each query the items that exact search gives (of an approximate index: nearly), and what the store's options append."""
        if k <= 0:
            return [[] for _ in queries]
        found = self.store.search_many(self.user, queries, k + SPARE)
        if self.store.bank(self.user) != self.bank:  # others wrote meanwhile: what was found is of another bank
            return [[item for item, _ in search(query, self, self.store.embedder, k)] for query in queries]
        return [self._best(query, hits, k) for query, hits in zip(queries, found, strict=True)]

    def _best(self, query: str, hits: Hits, k: int) -> list[MemoryItem]:
        """The k nearest; among those that float32 cannot tell apart, the ones that exact search prefers."""
        asked = k + SPARE
        appended = [item for item, _ in hits[asked:]]
        hits = hits[:asked]
        edge, after = (hits[k - 1][1], hits[k][1]) if len(hits) > k else (1.0, -1.0)
        if edge - after > CLOSE or edge == after == 0:  # what has nothing in common with the query is that in any arithmetic
            return [item for item, _ in hits[:k]] + appended
        while len(hits) == asked and hits[-1][1] >= edge - CLOSE:
            asked *= 4
            hits = self.store.search(self.user, query, asked)[:asked]
        sure = [item for item, cosine in hits if cosine > edge + CLOSE]
        close = {item.id for item, cosine in hits if abs(cosine - edge) <= CLOSE}
        chosen = search(query, [item for item in self if item.id in close], self.store.embedder, k - len(sure))
        return sure + [item for item, _ in chosen] + appended


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredBank(MemoryBank):
    """A bank of a store's user, made by `stored`; what `apply` gives is one too, but unknown to the store."""

    source: tuple[MemoryStore, str] | None = None
    """The store and the user of whom this is the bank; None after an edit."""
    _counts: ClassVar[bool] = True
    asked: list[Applied] = field(default_factory=list)
    """What came of every `apply` on this bank, and on those made of it."""

    def items(self, *, closed: bool = False) -> tuple[MemoryItem, ...]:
        found = MemoryBank.items(self, closed=closed)
        if closed or self.source is None:
            return found
        items = StoredItems(found)
        items.store, items.user = self.source
        items.bank = self
        return items

    def apply(
        self, ops: Iterable[MemoryOp], *, write_policy: WritePolicy = "crud", capacity: int | None = None,
        when: str = "", source: str = "", owner: str = "",
    ) -> Applied:  # fmt: skip
        # Without super(): a class with slots is made twice, and super() means the first one.
        done = MemoryBank.apply(self, ops, write_policy=write_policy, capacity=capacity, when=when, source=source, owner=owner)
        done = replace(done, bank=StoredBank(done.bank._items, done.bank._deleted, None, self.asked))
        self.asked.append(done)
        return done


def stored(store: MemoryStore, user: str) -> StoredBank:
    """The user's bank as it is now, as an agent may be given it."""
    bank = store.bank(user)
    return StoredBank(bank._items, bank._deleted, (store, user))
