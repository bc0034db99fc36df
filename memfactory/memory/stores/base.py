"""What a store of memories is: banks that outlive the process, one for each user, with search.

The verbs are written here once and say what happens by `MemoryBank` itself, so every backend gives ids, versions, history,
tombstones and rejections alike; a backend only loads, writes, searches and removes rows. Knows no database and no policy.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from memfactory.common.errors import ConfigError, DataError, UnknownNameError
from memfactory.common.processes import tell_of_forks
from memfactory.common.registry import build_options
from memfactory.memory.bank import Applied, MemoryBank, WritePolicy, _number
from memfactory.memory.embedders import Embedder, Vectors
from memfactory.memory.items import MemoryItem, MemoryOp, as_text
from memfactory.memory.merge import Merged, merged
from memfactory.memory.stores.rows import Hits, HitsEach, Row, bank_of, changed

logger = logging.getLogger(__name__)

S = TypeVar("S", bound="MemoryStore")
T = TypeVar("T")

MAX_USER = 256
"""Characters of a user's name."""
_CACHED_USERS = 256
"""Banks that a store keeps at hand."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A store without options."""


class MemoryStore(ABC):
    """A store, constructed as `(embedder, **kwargs)`; `kwargs` fill the class's `Options`.

    A *user* is a namespace of this store, an item's `owner` one inside it. All verbs may be called from several threads. A
    mistake of the caller raises a `UserError`; a backend that fails raises `StoreError`, and then nothing was written, or
    all of it. What a verb has returned survives the death of the process (except in memory).

    A backend implements `_load _write _nearest _users _remove _close`, and extends `_editing` if other processes write too.
    """

    Options: type = NoOptions
    shared: bool = False
    """Whether other processes may write at the same time."""

    def __init__(self, embedder: Embedder, **kwargs: Any) -> None:
        self.embedder = embedder
        self.options: Any = build_options(type(self).__name__, self.Options, kwargs)
        self._lock = threading.RLock()
        self._closed = False
        self._banks: dict[str, MemoryBank] = {}
        self._unreadable: dict[str, dict[int, str]] = {}
        tell_of_forks(self)

    # What a backend does. All are called under the lock; `user` is a valid name.

    @abstractmethod
    def _load(self, user: str) -> Iterable[Row]:
        """Every row of the user in any order, without vectors; none if there is no such user."""

    @abstractmethod
    def _write(self, user: str, rows: Sequence[Row]) -> None:
        """Keep these rows, each in the place of the row with its item's id if there is one. All or none; on return, for good.

        Called inside `_editing`; positions that are new go on from the user's last.
        """

    @abstractmethod
    def _nearest(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        """For each of the queries [q, d] (length 1, never zeros) the k >= 1 live items nearest to it; see `best`."""

    @abstractmethod
    def _users(self) -> Iterable[str]:
        """Users that have a row, in any order."""

    @abstractmethod
    def _remove(self, user: str) -> None:
        """Leave nothing of the user, on disk neither."""

    def _fresh(self, user: str) -> bool:
        """Whether the user is still as this process loaded or wrote it last. False is always right, and costs loading it again."""
        return not self.shared

    def _close(self) -> None:
        """Let go of files, connections and processes."""
        return

    @contextmanager
    def _editing(self, user: str) -> Iterator[None]:
        """Held by one writer of a user at a time, from before the bank is loaded until its rows are written.

        A backend that other processes write to extends this to them (a transaction, a lock row), so that no two give one id.
        """
        with self._lock:
            yield

    # What a user does.

    def add(
        self, user: str, entries: Iterable[str | MemoryItem], *, when: str = "", source: str = "", owner: str = ""
    ) -> tuple[MemoryItem, ...]:
        """Keep new memories and return them as they were kept.

        Texts get the next free number of the user as id, and `when`, `source`, `owner`; items are kept as they are. An id that
        the user has or ever had, a blank text or something else than a text or an item raises `DataError`; nothing is kept then.
        """
        given = (entries,) if isinstance(entries, (str, MemoryItem)) else tuple(entries)
        for entry in given:
            if not isinstance(entry, (str, MemoryItem)):
                raise DataError(f"A memory is a text or a MemoryItem, not {entry!r:.80}.")
        vectors = self._embedded(entry if isinstance(entry, str) else entry.text for entry in given)
        stamped = MemoryItem("", "", owner, when, when, sources=(source,) if source else ())

        def grow(bank: MemoryBank) -> tuple[MemoryBank, tuple[MemoryItem, ...]]:
            if used := [e.id for e in given if isinstance(e, MemoryItem) and e.id in bank._items]:
                raise DataError(f"User {user!r} has, or had, a memory with the id {used[0]!r}: ids are not given again. Use update.")
            # Numbered and checked as those of a bank are, from the number that comes next.
            last = [bank._items[max(bank._items, key=_number)]] if bank._items else []
            new = tuple(MemoryBank.of([*last, *given])._items.values())[len(last) :]
            items = tuple(
                replace(stamped, id=item.id, text=item.text) if isinstance(e, str) else item for item, e in zip(new, given, strict=True)
            )
            return MemoryBank(dict(bank._items) | {item.id: item for item in items}, bank._deleted), items

        return self._edit(user, grow, vectors)

    def update(self, user: str, id: str, text: str, *, when: str = "") -> MemoryItem:
        """Give a live item a new text; the old one goes to its history. An unknown id or a blank text raises a `UserError`."""
        if not as_text(text, "text").strip():
            raise DataError(f"The new text of memory {id!r} of user {user!r} is blank. To remove it, use delete.")
        return self._edit_one(user, MemoryOp("UPDATE", id, text), when)

    def delete(self, user: str, id: str, *, when: str = "") -> MemoryItem:
        """Make a live item a tombstone: it is found no more, its history can be read. An unknown id raises a `UserError`."""
        return self._edit_one(user, MemoryOp("DEL", id), when)

    def apply(
        self, user: str, ops: Iterable[MemoryOp], *, write_policy: WritePolicy = "crud", capacity: int | None = None,
        when: str = "", source: str = "", owner: str = "",
    ) -> Applied:  # fmt: skip
        """A policy's operations, executed and rejected as `MemoryBank.apply` does on the user's bank; see there."""
        asked = tuple(ops)
        vectors = self._embedded(op.text for op in asked if op.kind in ("ADD", "UPDATE") and op.text.strip())
        options: dict[str, Any] = {"write_policy": write_policy, "capacity": capacity, "when": when, "source": source, "owner": owner}

        def execute(bank: MemoryBank) -> tuple[MemoryBank, Applied]:
            applied = bank.apply(asked, **options)
            return applied.bank, applied

        return self._edit(user, execute, vectors)

    def commit(self, user: str, before: MemoryBank, after: MemoryBank) -> Merged:
        """Keep what was made of the user's bank: exactly `after` if the bank is still `before`, else what `merged` says of both."""
        new = [item for item in after if before._items.get(item.id) is not item]
        vectors = self._embedded(item.text for item in new)

        def merge(bank: MemoryBank) -> tuple[MemoryBank, Merged]:
            done = merged(bank, before, after)
            return done.bank, done

        return self._edit(user, merge, vectors)

    def bank(self, user: str) -> MemoryBank:
        """Everything of the user, tombstones and closed items included; empty for a user that nobody wrote to."""
        with self._use(user):
            bank = self._banks.get(user) if self._fresh(user) else None
            if bank is None:
                bank = bank_of(user, self._load(user))
                self._keep(user, bank)
            return bank

    def get(self, user: str, id: str, *, closed: bool = False) -> MemoryItem | None:
        """The live item of this id (with `closed` also a closed one), or None."""
        return self.bank(user).get(id, closed=closed)

    def list(self, user: str, *, owner: str | None = None, closed: bool = False) -> tuple[MemoryItem, ...]:
        """Live items in the order of insertion (with `closed` also closed ones), of one owner or (None) of all."""
        return tuple(item for item in self.bank(user).items(closed=closed) if owner is None or item.owner == owner)

    def count(self, user: str) -> int:
        """How many live items the user has."""
        return len(self.bank(user))

    def unreadable(self, user: str) -> dict[int, str]:
        """Rows of the user that cannot be read, by their place in the order of insertion, and why: the others can, and these stay."""
        self.bank(user)
        return dict(self._unreadable.get(user, ()))

    def history(self, user: str, id: str) -> tuple[str, ...]:
        """Every text the item ever had, oldest first, the last included; of deleted and closed ones too. () if unknown."""
        return self.bank(user).history(id)

    def search(self, user: str, query: str, k: int, *, owner: str | None = None) -> Hits:
        """The k live items nearest to the query, of one owner or (None) of all, with their cosines, best first.

        Equal ones stand in the order of insertion where the backend is exact.
        """
        return self.search_many(user, [query], k, owner=owner)[0]

    def search_many(self, user: str, queries: Sequence[str], k: int, *, owner: str | None = None) -> HitsEach:
        """`search` for several queries, which are embedded in one call."""
        with self._use(user):
            pass  # a closed store or a bad name must not cost a call of the embedder
        if k <= 0 or not queries:
            return [[] for _ in queries]
        vectors = self.embedder.embed(list(queries))
        seen = np.flatnonzero(vectors.any(axis=1))
        with self._use(user):
            found = dict(zip(seen.tolist(), self._nearest(user, vectors[seen], k, owner), strict=True)) if len(seen) else {}
            # In which there is nothing to see is equally far from all.
            blank = [] if len(found) == len(queries) else [(item, 0.0) for item in self.list(user, owner=owner)[:k]]
        return [found.get(at, list(blank)) for at in range(len(queries))]

    def namespaces(self) -> tuple[str, ...]:
        """The users that were ever written to and not purged, sorted."""
        with self._use():
            return tuple(sorted(self._users()))

    def purge(self, user: str) -> None:
        """Really remove everything of a user: items, tombstones, history. Their numbering starts anew."""
        with self._use(user), self._editing(user):
            self._banks.pop(user, None)
            self._remove(user)
            self._unreadable.pop(user, None)

    def close(self) -> None:
        """Let go of the backend; every other verb raises `ConfigError` from now on. Closing twice is allowed."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._banks.clear()
                self._close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # How it is done.

    def _forked(self) -> None:
        """In a forked child: locks that a thread of the parent holds are never released here, and others write meanwhile."""
        self._lock = threading.RLock()
        self._banks.clear()

    def _read(self, user: str, position: int, make: Callable[[], Row]) -> Row:
        """The row that a backend makes of what it keeps; for one that is damaged a tombstone, in its place, that is never written."""
        try:
            return make()
        except DataError as error:
            bad = self._unreadable.setdefault(user, {})
            if position not in bad:
                bad[position] = str(error)
                logger.warning("Memory number %d of user %r cannot be read, %d in all; the others can. %s", position, user, len(bad), error)
            return Row(MemoryItem(f"unreadable {position}", "unreadable"), position, deleted=True)

    @contextmanager
    def _use(self, *users: str) -> Iterator[None]:
        """The lock, of an open store, for users whose names are names."""
        with self._lock:
            if self._closed:
                raise ConfigError(f"This {type(self).__name__} is closed. Open it again with open_store.")
            for user in users:
                if not (isinstance(user, str) and user.strip() and len(user) <= MAX_USER):
                    raise DataError(f"A user is named by a text of 1 to {MAX_USER} characters, not {user!r:.80}.")
            yield

    def _edit(self, user: str, change: Callable[[MemoryBank], tuple[MemoryBank, T]], vectors: dict[str, Vectors]) -> T:
        """Change the user's bank and write the rows that are new or other than before."""
        with self._use(user), self._editing(user):
            before = self.bank(user)
            after, result = change(before)
            rows = list(changed(before, after, vectors))
            if rows:
                self._banks.pop(user, None)  # after a write that failed, what is true stands in the backend
                self._write(user, rows)
                self._keep(user, after)
            return result

    def _edit_one(self, user: str, op: MemoryOp, when: str) -> MemoryItem:
        assert op.id is not None
        applied = self.apply(user, [op], when=when)
        if applied.rejected:
            raise UnknownNameError(
                f"User {user!r} has no live memory with the id {op.id!r}; it has {len(applied.bank)}. `list` shows them with their ids."
            )
        return applied.bank._items[op.id]

    def _keep(self, user: str, bank: MemoryBank) -> None:
        self._banks[user] = bank
        if len(self._banks) > _CACHED_USERS:
            del self._banks[next(iter(self._banks))]

    def _embedded(self, texts: Iterable[str]) -> dict[str, Vectors]:
        """Texts -> vectors [d], in one call of the embedder, before the lock: a slow server holds up nobody else."""
        with self._use():
            distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.embedder.embed(distinct), strict=True)) if distinct else {}
