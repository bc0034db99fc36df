"""An item as a store keeps it, and what is made of many. Asks no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memfactory.common.errors import StoreError
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import Vectors
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import DIGITS

Hits = list[tuple[MemoryItem, float]]
"""Items with their cosines in [-1, 1], best first."""
HitsEach = list[Hits]
"""One for each query."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item as a backend keeps it: every item a user ever had is one row, until the user is purged.

    Example: Row(MemoryItem("3", "Alice lives in Rome"), position=3, deleted=False, vector=<float32 [d]>)
    """

    item: MemoryItem
    position: int
    """Place in the order of insertion: a user's rows are 0, 1, 2, ... without a gap, and an item keeps its place."""
    deleted: bool = False
    """A tombstone."""
    vector: Vectors | None = None
    """[d], length 1 (or zeros: nothing to see in the text). Given with live rows that are to be written; else None."""

    @property
    def state(self) -> Literal["live", "closed", "deleted"]:
        """Search sees the live ones only."""
        if self.deleted:
            return "deleted"
        return "live" if self.item.valid_until is None else "closed"


def best(items: Sequence[MemoryItem], scores: NDArray[Any], k: int) -> Hits:
    """The k best of items in the order of insertion with their cosines [n], ties in that order."""
    rounded = np.clip(scores, -1.0, 1.0).astype(np.float64).round(DIGITS)
    return [(items[at], float(rounded[at])) for at in np.argsort(-rounded, kind="stable")[:k]]


def changed(before: MemoryBank, after: MemoryBank, vectors: dict[str, Vectors]) -> Iterator[Row]:
    """The rows of `after` that `before` does not have. An item keeps its place, and one that changed is another object."""
    flipped = before._deleted ^ after._deleted
    for position, (item, old) in enumerate(zip_longest(after._items.values(), before._items.values())):
        if item is not old or (flipped and item.id in flipped):
            row = Row(item, position, item.id in after._deleted)
            # A live row is new or has a new text, which was embedded; a closed or deleted one is not searched.
            yield replace(row, vector=vectors[item.text]) if row.state == "live" else row


def bank_of(user: str, rows: Iterable[Row]) -> MemoryBank:
    """The bank of a user's rows."""
    ordered = sorted(rows, key=lambda row: row.position)
    if [row.position for row in ordered] != list(range(len(ordered))):
        raise StoreError(f"The memories of user {user!r} are not whole: {len(ordered)} rows, numbered to {ordered[-1].position}.")
    return MemoryBank({row.item.id: row.item for row in ordered}, frozenset(row.item.id for row in ordered if row.deleted))
