"""The hybrid store: records and relations in the graph, their vectors in Milvus, under one key. Milvus searches.

The graph is the truth. A change is written to the graph, then to Milvus, and only then committed in the graph, all under the
graph's lock of the user. So what was acknowledged is in both; what a crash leaves in Milvus alone is found when the store is
opened, where every user's vectors are compared with the graph: missing or stale ones are made again, others removed. The
same is done for a user whose write failed, or whom another process changed whose Milvus is not this one's.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from memfactory.common.errors import DataError
from memfactory.common.registry import STORE_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.memory.embedders import Vectors
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores.bolt_client import Conflict
from memfactory.memory.stores.graph_rows import memory_key
from memfactory.memory.stores.milvus import PAGE, SHOWN, MilvusStore
from memfactory.memory.stores.milvus_rows import is_user, key_of, row_of
from memfactory.memory.stores.neo4j import DEFAULT_PATH, Neo4jOptions, Neo4jStore
from memfactory.memory.stores.rows import HitsEach, Row
from memfactory.memory.stores.shelf import Shelf

logger = logging.getLogger(__name__)

_BATCH = 256
"""Texts embedded, and vectors written, at a time by a repair."""


@dataclass(frozen=True, slots=True)
class HybridOptions(Neo4jOptions):
    """The graph's options, and Milvus's."""

    milvus_uri: str | None = None
    """Where the vectors are, a path or http(s)://host:port. None: `vectors.db` in the folder `path`, or without that option the
    server that MILVUS_URI names, or else output/memory/graph/vectors.db."""
    milvus_user: str | None = None
    milvus_password: str | None = None
    collection: str = "memfactory_graph"
    """Vectors of one embedder; give another name for another embedder in the same place."""
    index: str = "FLAT"
    """Of a new collection: FLAT is exact; HNSW approximate, for a server where users have very many items."""
    check: bool = True
    """Compare all users when the store is opened; False: each at its first search, for a store of very many."""


class VectorIndex(MilvusStore):
    """Milvus with rows that say what a vector is of, and no more: id, owner, state, and a hash of the text."""

    def _embed_anew(self, client: Any) -> None:
        """The texts are in the graph, from which missing rows are made."""
        client.drop_collection(self._name, timeout=self._timeout)
        self._dim = None
        self._partitions.clear()

    def put(self, user: str, rows: Sequence[Row]) -> None:
        self._write(user, [replace(row, item=stub(row.item)) for row in rows])

    def rows(self, user: str, size: int) -> dict[int, Row]:
        """Position -> row, without vectors. There should be `size` of them: what is missing among these ends nothing."""
        found: dict[int, Row] = {}
        with self._milvus.use() as client:
            for start in itertools.count(0, PAGE) if self._holds(client, user) else ():
                where = f"{is_user(user)} and position >= {start} and position < {start + PAGE}"
                page = client.query(self._name, filter=where, output_fields=SHOWN, timeout=self._timeout, **self._within(user))
                for fields in page:
                    with suppress(DataError):  # it is missing, and will be made again
                        found[fields["position"]] = row_of(fields)
                if not page and start >= size:
                    break
        return found

    def drop(self, user: str, positions: Sequence[int]) -> None:
        """Remove single rows."""
        named = {} if self.shared else {"partition_name": key_of(user)}
        with self._milvus.use() as client:
            client.delete(self._name, ids=[memory_key(user, at) for at in positions], timeout=self._timeout, **named)


def stub(item: MemoryItem) -> MemoryItem:
    """What Milvus is told of an item."""
    text = hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).hexdigest()
    return MemoryItem(item.id, text, item.owner, valid_until=item.valid_until)


@STORE_REGISTRY.register("hybrid")
class HybridStore(Neo4jStore):
    """A graph to look at, and Milvus's search; what a model embedded is embedded once."""

    Options = HybridOptions
    neighbours = 32  # they are embedded for it

    def _open(self, held: ExitStack) -> None:
        super()._open(held)
        options = self.options
        known = load_settings().milvus_uri if options.path is None else None
        uri = options.milvus_uri or known or str(Path(options.path or DEFAULT_PATH) / "vectors.db")
        self._vectors = VectorIndex(
            self.embedder, uri=uri, user=options.milvus_user, password=options.milvus_password,
            collection=options.collection, index=options.index, timeout=options.timeout,
        )  # fmt: skip
        held.callback(self._vectors.close)
        self.repairs = 0
        """Vectors that were made again or removed since this store was opened."""
        self._in_step: dict[str, tuple[str, int]] = {}
        """The mark and revision of the users up to which Milvus is known to agree with the graph."""
        if options.check:
            self.check()

    def check(self) -> int:
        """Compare every user's vectors with the graph and repair what differs; how many that were."""
        before = self.repairs
        with self._use():
            users = set(self._users())
            for user in sorted(users | set(self._vectors.namespaces())):
                self._in_step.pop(user, None)
                self._checked(user)
        return self.repairs - before

    @contextmanager
    def _editing(self, user: str) -> Iterator[None]:
        with super()._editing(user), self._vectors._editing(user):
            yield

    def _commit(self, user: str, shelf: Shelf, rows: Sequence[Row], revision: int, size: int) -> None:
        # Until both are written they do not agree.
        agreed = self._in_step.pop(user, None) == (shelf.born, revision - 1) or (revision == 1 and not self._vectors.rows(user, 0))
        self._vectors.put(user, rows)
        super()._commit(user, shelf, [replace(row, vector=None) for row in rows], revision, size)
        if agreed:
            self._in_step[user] = shelf.born, revision

    def _nearest(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        hits = self._retrying(lambda: self._found(user, queries, k, owner))
        return self._expanded(user, hits, queries, owner)

    def _found(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        """What Milvus finds, with the records of the graph; `Conflict` if somebody writes just now, or they disagree."""
        if not len(self._shelf(user).bank):
            return [[] for _ in queries]
        bank = self._checked(user).bank
        hits: HitsEach = []
        for found in self._vectors._nearest(user, queries, k, owner):
            items = [bank.get(of.id) for of, _ in found]
            if any(item is None or stub(item) != of for item, (of, _) in zip(items, found, strict=True)):
                self._in_step.pop(user, None)
                raise Conflict(f"Milvus and the graph disagree on the memories of user {user!r}.")
            hits.append([(item, score) for item, (_, score) in zip(items, found, strict=True) if item is not None])
        return hits

    def _cosines(self, shelf: Shelf, positions: Sequence[int], query: Vectors) -> NDArray[Any]:
        items = list(shelf.bank._items.values())
        return self.embedder.embed([items[at].text for at in positions]) @ query

    def _remove(self, user: str) -> None:
        self._in_step.pop(user, None)
        self._vectors._remove(user)  # first: if this process dies now, they are made again, and nothing was purged
        super()._remove(user)

    # How they are kept together.

    def _checked(self, user: str) -> Shelf:
        """The user's shelf, with which Milvus agrees."""
        shelf = self._shelf(user)
        agreed = self._in_step.get(user)
        # Who shares this Milvus has written to it before the graph. To a file of ours nobody else writes.
        if agreed is not None and agreed[0] == shelf.born and (agreed[1] == shelf.revision or self._vectors.shared):
            self._in_step[user] = shelf.born, shelf.revision
            return shelf

        def alone() -> Shelf:
            with self._editing(user):
                return self._repaired(user)

        return self._retrying(alone)

    def _repaired(self, user: str) -> Shelf:
        """Make Milvus agree with the graph, of which this process holds the lock."""
        shelf = self._shelf(user)
        bank = shelf.bank
        truth = [Row(item, at, item.id in bank._deleted) for at, item in enumerate(bank._items.values())]
        found = self._vectors.rows(user, len(truth))
        wrong = [row for row in truth if found.pop(row.position, None) != replace(row, item=stub(row.item))]
        if found and not truth:
            self._vectors._remove(user)
        elif found:
            self._vectors.drop(user, sorted(found))
        for start in range(0, len(wrong), _BATCH):
            rows = wrong[start : start + _BATCH]
            live = [row.position for row in rows if row.state == "live"]
            vectors = dict(zip(live, self.embedder.embed([row.item.text for row in rows if row.state == "live"]), strict=True))
            self._vectors.put(user, [replace(row, vector=vectors.get(row.position)) for row in rows])
        if wrong or found:
            self.repairs += len(wrong) + len(found)
            logger.warning("Milvus was apart from the graph for user %r: %d rows made again, %d removed.", user, len(wrong), len(found))
        self._in_step[user] = shelf.born, shelf.revision
        return shelf
