"""The graph store: memories, and what relates them (`graph_rows`), in Neo4j 5, or in the embedded server of the same Cypher.

A user's `revision` counts the writes: who writes locks the user's node first, so no two processes give one id, and who has
read a revision reads only what came later. Vectors are not kept in the graph: a process embeds a user's texts at its first
search, which costs nothing with hashes and much with a model. The store `hybrid` keeps them.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from memfactory.common.errors import ConfigError
from memfactory.common.ranges import ranged
from memfactory.common.registry import STORE_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import Embedder, Vectors
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import DIGITS
from memfactory.memory.stores import graph_rows as graph
from memfactory.memory.stores.base import MemoryStore
from memfactory.memory.stores.bolt_client import BoltClient, Conflict, Rows, Transaction
from memfactory.memory.stores.bolt_server import BoltServer
from memfactory.memory.stores.entities import names, sessions
from memfactory.memory.stores.milvus_rows import key_of
from memfactory.memory.stores.rows import Hits, HitsEach, Row, best
from memfactory.memory.stores.shelf import Shelf

T = TypeVar("T")

DEFAULT_PATH = "output/memory/graph"
_BATCH = 500
"""Rows of one statement: a server takes messages of some megabytes."""
_SECONDS_EACH = 0.005
"""By which the time limit grows with the memories that a statement is about."""
_SHELF_BYTES = 2**29
"""What is kept in memory of all users together; the users that were used last stay."""


@dataclass(frozen=True, slots=True)
class Neo4jOptions:
    """Where the graph is and how it is searched."""

    path: str | None = None
    """Folder of the embedded server. None: the server that NEO4J_URI names, or else the folder output/memory/graph."""
    uri: str | None = None
    """bolt://HOST:PORT of a server; None: NEO4J_URI. Likewise `user` and `password`."""
    user: str | None = None
    password: str | None = None
    database: str | None = None
    """Of a server; None: its default."""
    timeout: float = ranged(15.0, above=0)
    """Seconds that a statement may take (more where it is about thousands), and that a write waits for other writers."""
    expand: int = ranged(0, least=0)
    """Memories that a search appends to the k best: live ones that share an entity with one of them, those with the rarest
    first, with their own cosines."""
    heap: str = "512m"
    """Memory of the embedded server."""


@STORE_REGISTRY.register("neo4j")
class Neo4jStore(MemoryStore):
    """Exact search, a graph to look at, several processes at once on a server; the embedded one serves one process."""

    Options = Neo4jOptions
    shared = True
    neighbours = 256
    """Of an expansion, those whose cosines are looked at: the most related, newer ones first."""

    def __init__(self, embedder: Embedder, **kwargs: Any) -> None:
        super().__init__(embedder, **kwargs)
        if self.options.timeout <= 0 or self.options.expand < 0:
            raise ConfigError(f"A graph store needs timeout > 0 and expand >= 0, got {self.options.timeout} and {self.options.expand}.")
        self._shelves: dict[str, Shelf] = {}
        self._random = random.Random()
        self._transaction: Transaction | None = None
        self._locked: Rows = []
        """What the open transaction found at the user's node."""
        self.server: BoltServer | None = None
        with ExitStack() as held:  # what was opened is closed again if a later step fails
            self._open(held)
            self._held = held.pop_all()

    def _open(self, held: ExitStack) -> None:
        self._graph = self._connect(held)
        for statement in graph.SCHEMA:
            self._retrying(partial(self._graph.run, statement))

    def _connect(self, held: ExitStack) -> BoltClient:
        """A client of the named server, or of an embedded one that is started for it."""
        options, settings = self.options, load_settings()
        uri = options.uri or (settings.neo4j_uri if options.path is None else None)
        if uri is None:
            self.server = server = held.enter_context(BoltServer(options.path or DEFAULT_PATH, heap=options.heap))
            uri, user, password, database = server.uri, server.user, server.password, server.database
            advice = f"It is the embedded one: close the store and open it again. Its log is {server.log}."
        else:
            user, database = options.user or settings.neo4j_user or "neo4j", options.database
            password = options.password or settings.neo4j_password or ""
            if not password:
                raise ConfigError(f"The graph server at {uri} needs a password. Set NEO4J_PASSWORD (and NEO4J_USER, now {user!r}) in .env.")
            advice = "Is it running? Check NEO4J_URI, or unset it to use the embedded server."
        client = BoltClient(uri, user, password, database=database, timeout=options.timeout, advice=advice)
        held.callback(client.close)
        return client

    # The contract.

    def bank(self, user: str) -> MemoryBank:
        with self._use(user):
            return self._shelf(user).bank

    def purge(self, user: str) -> None:
        self._retrying(lambda: super(Neo4jStore, self).purge(user))

    def _edit(self, user: str, change: Callable[[MemoryBank], tuple[MemoryBank, T]], vectors: dict[str, Vectors]) -> T:
        return self._retrying(lambda: super(Neo4jStore, self)._edit(user, change, vectors))

    @contextmanager
    def _editing(self, user: str) -> Iterator[None]:
        with super()._editing(user), self._graph.transaction() as transaction:
            self._locked = transaction.run(graph.LOCK, {"user": key_of(user), "name": user, "stamp": secrets.token_hex(8)})
            self._transaction = transaction
            try:
                yield
            finally:
                self._transaction = None

    def _load(self, user: str) -> Iterable[Row]:
        return [row for _, row in self._changed(user, -1)]

    def _write(self, user: str, rows: Sequence[Row]) -> None:
        shelf = self._shelf(user)
        known, revision = shelf.bank._items, shelf.revision + 1
        new, old = [row for row in rows if row.position >= len(known)], [row for row in rows if row.position < len(known)]
        self._run(graph.ADD, user, [graph.properties(user, row, revision) for row in new])
        changed = [graph.properties(user, row, revision) for row in old]
        self._run(graph.CHANGE, user, changed)
        self._run(graph.UNRELATE, user, [{"key": row["key"]} for row in changed])
        kept = [row for row in rows if not row.deleted]
        self._run(graph.MENTION, user, graph.named_edges(user, ((row, self.entities(row.item)) for row in kept)))
        self._run(graph.PLACE, user, graph.named_edges(user, ((row, sessions(row.item)) for row in kept)))
        if any(row.item.replaces is not None for row in new):
            positions = {id: at for at, id in enumerate(known)} | {row.item.id: row.position for row in new}
            self._run(graph.SUPERSEDE, user, graph.succession(user, new, positions))
        self._commit(user, shelf, rows, revision, len(known) + len(new))

    def _commit(self, user: str, shelf: Shelf, rows: Sequence[Row], revision: int, size: int) -> None:
        """Make what was written true; `rows` go to the shelf."""
        assert self._transaction is not None
        self._transaction.run(graph.UNLOCK, {"user": key_of(user), "revision": revision, "memories": size})
        self._transaction.commit(more=len(rows) * _SECONDS_EACH)
        shelf.put(rows, revision, size)

    def _nearest(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        shelf = self._shelf(user)
        items, at = shelf.live(owner)
        if not items:
            return [[] for _ in queries]
        hits = [best(items, row, k) for row in shelf.scores(self.embedder, queries)[at].T]
        return self._expanded(user, hits, queries, owner)

    def _users(self) -> Iterable[str]:
        return [name for (name,) in self._graph.run(graph.USERS)]

    def _remove(self, user: str) -> None:
        assert self._transaction is not None
        if self.server is not None:
            self.server.check_mine("purge")
        more = self._locked[0][2] * _SECONDS_EACH
        for statement in graph.PURGE:
            self._transaction.run(statement, {"user": key_of(user), "name": user}, more=more)
        self._transaction.commit(more=more)
        self._shelves.pop(user, None)
        if self.server is not None:
            self.server.drop_log()

    def _forked(self) -> None:
        super()._forked()
        self._shelves.clear()
        self._transaction, self._locked = None, []

    def _close(self) -> None:
        self._shelves.clear()
        self._held.close()

    # What relates memories.

    def entities(self, item: MemoryItem) -> Iterable[str]:
        """The names that an item mentions, each once; a subclass may ask a model."""
        return names(item.text)

    def _expanded(self, user: str, hits: HitsEach, queries: Vectors, owner: str | None) -> HitsEach:
        """Hits with the option's neighbours after them: the most related first, equal ones by their cosines."""
        return [found + self._related(user, found, query, owner) for found, query in zip(hits, queries, strict=True)]

    def _related(self, user: str, found: Hits, query: Vectors, owner: str | None) -> Hits:
        if not self.options.expand or not found:
            return []
        shelf = self._shelf(user)
        items = list(shelf.bank._items.values())
        at = {item.id: position for position, item in enumerate(items)}
        keys = [graph.memory_key(user, at[item.id]) for item, _ in found]
        near = [
            (position, weight)
            for position, weight in self._graph.run(graph.RELATED, {"keys": keys, "owner": owner})
            if position < len(items)
        ]
        near = sorted(near, key=lambda pair: (-round(pair[1], DIGITS), -pair[0]))[: self.neighbours]
        weights = {items[position].id: round(weight, DIGITS) for position, weight in near}
        places = sorted(position for position, _ in near)
        ranked = best([items[n] for n in places], self._cosines(shelf, places, query), len(places))
        return sorted(ranked, key=lambda hit: -weights[hit[0].id])[: self.options.expand]

    def _cosines(self, shelf: Shelf, positions: Sequence[int], query: Vectors) -> NDArray[Any]:
        """Of the items at these positions [n] with a query [d]."""
        return shelf.scores(self.embedder, query[None])[positions, 0]

    # How it is done.

    def _retrying(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, asked again while other writers are first."""
        deadline = time.monotonic() + self.options.timeout
        pause = 0.002
        while True:
            try:
                return attempt()
            except Conflict:
                if time.monotonic() > deadline:
                    raise
            time.sleep(self._random.uniform(0, pause))
            pause = min(2 * pause, 0.1)

    def _shelf(self, user: str) -> Shelf:
        """The user's shelf as the graph is now: in a transaction, as it found it."""
        if self._transaction is not None:
            return self._refreshed(user, self._locked)
        return self._retrying(lambda: self._refreshed(user, self._graph.run(graph.SEEN, {"user": key_of(user)})))

    def _refreshed(self, user: str, seen: Rows) -> Shelf:
        shelf = self._shelves.pop(user, None)
        if not seen:
            return Shelf("")
        born, revision, size = seen[0]
        if shelf is None or shelf.born != born or shelf.revision > revision:
            shelf = Shelf(born)
        self._shelves[user] = shelf
        if shelf.revision < revision:
            changed = self._changed(user, shelf.revision, size * _SECONDS_EACH)
            # Rows of a later revision, or too few: somebody wrote between our two questions.
            if any(at > revision for at, _ in changed) or not shelf.put([row for _, row in changed], revision, size):
                raise Conflict(f"{self._graph.uri}: the memories of user {user!r} are not whole as of revision {revision}, {size} rows.")
        while len(self._shelves) > 1 and sum(held.nbytes for held in self._shelves.values()) > _SHELF_BYTES:
            del self._shelves[next(iter(self._shelves))]
        return shelf

    def _changed(self, user: str, after: int, more: float = 0.0) -> list[tuple[int, Row]]:
        """Rows written after a revision, each with the revision of its last write."""
        found = (self._transaction or self._graph).run(graph.CHANGED, {"user": key_of(user), "after": after}, more=more)
        return [
            (revision, self._read(user, position, partial(graph.row_of, position, state, values)))
            for revision, position, state, *values in found
        ]

    def _run(self, statement: str, user: str, rows: Sequence[dict[str, Any]]) -> None:
        assert self._transaction is not None
        for start in range(0, len(rows), _BATCH):
            self._transaction.run(statement, {"user": key_of(user), "name": user, "rows": rows[start : start + _BATCH]})
