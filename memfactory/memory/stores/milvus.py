"""Memories in Milvus: a file of Milvus Lite in this process, or a server at MILVUS_URI. One row an item, one collection for all.

In a file every user has a partition, so that what is purged is gone from the disk; on a server the user is the partition key.
The metric is the inner product, which of rows of length 1 is the cosine, and is 0, not NaN, where there is nothing to see.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, DataError, StoreError
from memfactory.common.ranges import ranged
from memfactory.common.registry import STORE_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.memory.embedders import Embedder, Vectors, kept_as
from memfactory.memory.stores.base import MemoryStore
from memfactory.memory.stores.milvus_claims import LEASE, claim
from memfactory.memory.stores.milvus_connection import MilvusConnection
from memfactory.memory.stores.milvus_files import Acknowledged
from memfactory.memory.stores.milvus_rows import LENGTHS, best_of, cuts_a_tie, fields_of, is_user, key_of, mark_of, row_of, unpacked
from memfactory.memory.stores.rows import HitsEach, Row

logger = logging.getLogger(__name__)

DEFAULT_FILE = "output/memory/milvus.db"
EMBEDDER = "memfactory.embedder"
"""The property of the collection that names what made its vectors."""
MAX_HITS = 16_384
"""Of one request."""
SHOWN = ["payload", "position"]
"""The fields that a row is made of."""
PAGE = 4096
"""Rows per request when a user is loaded."""
FLUSH_EVERY = 256
"""Rows. Milvus Lite searches what was just written row by row, some 15 times slower than what it has written out."""


@STORE_REGISTRY.register("milvus")
class MilvusStore(MemoryStore):
    """Milvus searches; all else is said by the user's rows.

    Milvus has no transactions. A change of a user is one request to one shard; and on a server a writer first leaves a row
    that says so and looks whether it is alone (`_editing`), so that no two processes give one id or lose a change.
    """

    @dataclass(frozen=True, slots=True)
    class Options:
        """Where, and how it is searched."""

        uri: str | None = None
        """The path of a file (in truth a folder), or http(s)://host:port; else MILVUS_URI, else `output/memory/milvus.db`."""
        user: str | None = None
        """Of a server; else MILVUS_USER."""
        password: str | None = None
        """Of a server; else MILVUS_PASSWORD."""
        collection: str = "memfactory"
        """Vectors of one embedder; give another name for another embedder in the same place."""
        index: str = "FLAT"
        """Of a new collection: FLAT is exact; HNSW approximate, for a server where users have very many items."""
        timeout: float = ranged(10.0, above=0)
        """Seconds of one request with its retries, and of the wait for another writer."""

    def __init__(self, embedder: Embedder, **kwargs: Any) -> None:
        super().__init__(embedder, **kwargs)
        if self.options.index not in ("FLAT", "HNSW"):
            raise ConfigError(f"Unknown index {self.options.index!r} of the store 'milvus'. Known: FLAT, HNSW.")
        settings = load_settings()
        self._name, self._timeout = self.options.collection, self.options.timeout
        self._milvus = MilvusConnection(
            self.options.uri or settings.milvus_uri or DEFAULT_FILE,
            self.options.user or settings.milvus_user or "",
            self.options.password or settings.milvus_password or "",
            self._timeout,
            self._opened,
        )
        self.shared = not self._milvus.local
        self._acknowledged: Acknowledged | None = None
        self._stamps: dict[str, str] = {}
        """Of users of a server: a mark that every write changes, as it was when the bank was loaded."""
        self._held_until = 0.0
        with self._milvus.use():
            pass  # what is wrong with the place is said now

    # The collection.

    def _opened(self, client: Any) -> None:
        """A new connection: see what is there."""
        self._dim: int | None = None
        """Of the collection's vectors; None while there is no collection."""
        self._partitions: set[str] = set()
        self._let_go()
        self._unflushed = FLUSH_EVERY  # a killed process may have left that many
        self._find(client)

    def _find(self, client: Any) -> bool:
        """Whether there is a collection; the first time it is seen, it is checked and loaded."""
        if self._dim is None and client.has_collection(self._name, timeout=self._timeout):
            found = client.describe_collection(self._name, timeout=self._timeout)
            if missing := {*LENGTHS, "position", "vector"} - {field["name"] for field in found["fields"]}:
                raise ConfigError(
                    f"The collection {self._name!r} in {self._milvus.address} holds something else than memories: it has no field "
                    f"{', '.join(sorted(missing))}. Give another `collection` or `uri`."
                )
            name = found.get("properties", {}).get(EMBEDDER)
            made_by, _, version = str(name).partition(" version ")
            if made_by != self.embedder.name:
                raise ConfigError(
                    f"The memories in {self._milvus.address} (collection {self._name!r}) were embedded by {made_by!r}, not by "
                    f"{self.embedder.name!r}. Open them with that embedder, or give another `collection` or `uri`."
                )
            # In a file FLAT would be a second copy of the vectors, which Milvus Lite compares as fast without; a server needs one.
            if self.shared or self.options.index != "FLAT":
                self._index(client)
            client.load_collection(self._name, timeout=self._timeout)
            self._partitions = set(client.list_partitions(self._name, timeout=self._timeout))
            self._dim = next(int(field["params"]["dim"]) for field in found["fields"] if field["name"] == "vector")
            if int(version or 1) < getattr(self.embedder, "version", 1):
                logger.warning("%s has vectors of an earlier version of %s: it is embedded anew.", self._milvus.address, made_by)
                self._embed_anew(client)
        return self._dim is not None

    def _embed_anew(self, client: Any) -> None:
        """Bring vectors of an earlier version of the embedder up to date; the name comes last, so that a kill loses nothing."""
        pages = client.query_iterator(self._name, filter='state == "live"', output_fields=SHOWN, timeout=self._timeout, batch_size=256)
        while page := pages.next():
            by_user: dict[str, list[Row]] = {}
            for fields in page:
                by_user.setdefault(unpacked(fields["payload"])["user"], []).append(row_of(fields))
            for user, rows in by_user.items():
                vectors = self.embedder.embed([row.item.text for row in rows])
                self._check_dim(vectors)
                data = [fields_of(user, replace(row, vector=new), self._dim or 0) for row, new in zip(rows, vectors, strict=True)]
                named = {} if self.shared else {"partition_name": key_of(user)}
                client.upsert(self._name, data, timeout=self._timeout, **named)
        pages.close()
        client.alter_collection_properties(self._name, properties={EMBEDDER: kept_as(self.embedder)}, timeout=self._timeout)

    def _create(self, client: Any) -> None:
        """Make the collection."""
        from pymilvus import DataType, MilvusException

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, length in LENGTHS.items():
            split = self.shared and name == "user_key"
            schema.add_field(name, DataType.VARCHAR, is_primary=name == "key", is_partition_key=split, max_length=length)
        schema.add_field("position", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.embedder.embed(["dimension"]).shape[1])
        options = {"num_shards": 1, "consistency_level": "Strong", "properties": {EMBEDDER: kept_as(self.embedder)}}
        try:
            client.create_collection(self._name, schema=schema, timeout=self._timeout, **options)
        except MilvusException:  # another process may have been first
            if not client.has_collection(self._name, timeout=self._timeout):
                raise
        self._find(client)

    def _index(self, client: Any) -> None:
        """Make the index of a new collection, or of one whose maker died."""
        from pymilvus import MilvusException

        if client.list_indexes(self._name, timeout=self._timeout):
            return
        index = client.prepare_index_params()
        hnsw = {"params": {"M": 16, "efConstruction": 200}} if self.options.index == "HNSW" else {}
        index.add_index("vector", index_type=self.options.index, metric_type="IP", **hnsw)
        try:
            client.create_index(self._name, index, timeout=self._timeout, sync=False)  # nothing to wait for: it is empty
        except MilvusException:
            if not client.list_indexes(self._name, timeout=self._timeout):
                raise

    def _check_dim(self, vectors: Vectors) -> None:
        if self._dim is not None and vectors.shape[-1] != self._dim:
            raise ConfigError(
                f"{self.embedder.name!r} gives vectors of {vectors.shape[-1]} numbers, but the memories in {self._milvus.address} "
                f"(collection {self._name!r}) have {self._dim}. Use the model that made them, or give another `collection` or `uri`."
            )

    # Rows.

    def _fresh(self, user: str) -> bool:
        if not self.shared:
            return True
        with self._milvus.use() as client:
            where = f'{is_user(user)} and state == "stamp"'
            found = client.query(self._name, filter=where, output_fields=["payload"], timeout=self._timeout) if self._find(client) else []
        known, self._stamps[user] = self._stamps.get(user, ""), found[0]["payload"] if found else ""
        return known != "" and known == self._stamps[user]

    def _load(self, user: str) -> Iterable[Row]:
        rows: list[Row] = []
        with self._milvus.use() as client:
            if not self._holds(client, user):
                return rows
            while True:
                where = f"{is_user(user)} and position >= {len(rows)} and position < {len(rows) + PAGE}"
                page = client.query(self._name, filter=where, output_fields=SHOWN, timeout=self._timeout, **self._within(user))
                rows += [self._read(user, int(fields["position"]), partial(row_of, fields)) for fields in page]
                if len(page) < PAGE:
                    return rows

    def _write(self, user: str, rows: Sequence[Row]) -> None:
        with self._milvus.use() as client:
            if not self._find(client):
                self._create(client)
            for vector in [row.vector for row in rows if row.vector is not None]:
                self._check_dim(vector)
            data = [fields_of(user, row, self._dim or 0) for row in rows]
            if not self.shared and key_of(user) not in self._partitions:
                client.create_partition(self._name, key_of(user), timeout=self._timeout)
                self._partitions.add(key_of(user))
            if self.shared and time.monotonic() > self._held_until:
                raise StoreError(f"User {user!r} was held for more than {LEASE:g} s by this writer; nothing was written. Try again.")
            stamp, named = uuid.uuid4().hex, {"partition_name": key_of(user)}
            if self.shared:
                data, named = [*data, mark_of(user, f"stamp/{key_of(user)}", "stamp", stamp, self._dim or 0)], {}
            client.upsert(self._name, data, timeout=self._timeout, **named)
            if not self.shared:
                self._acknowledged = self._acknowledged or Acknowledged(Path(self._milvus.address), self._name)
                self._acknowledged.note()
        self._stamps[user] = stamp
        self._unflushed += len(rows)
        if not self.shared and self._unflushed >= FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        """Write out what Milvus Lite has in its log, so that it is searched fast."""
        try:
            with self._milvus.use() as client:
                client.flush(self._name, timeout=self._timeout)
                self._unflushed = 0
        except StoreError as error:
            logger.warning("%s What was written is kept, but is searched slowly.", error)

    def _nearest(self, user: str, queries: Vectors, k: int, owner: str | None) -> HitsEach:
        where = f'{is_user(user)} and state == "live"' + ("" if owner is None else f' and owner_key == "{key_of(owner)}"')
        k = min(k, MAX_HITS)
        limit = min(k + 6 + len(self._unreadable.get(user, ())), MAX_HITS)
        with self._milvus.use() as client:
            if not self._holds(client, user):
                return [[] for _ in queries]
            self._check_dim(queries)
            while True:
                hnsw = {"params": {"ef": max(64, 2 * limit)}} if self.options.index == "HNSW" else {}
                found = client.search(
                    self._name, data=list(queries), anns_field="vector", filter=where, limit=limit, output_fields=SHOWN,
                    search_params={"metric_type": "IP", **hnsw}, timeout=self._timeout, **self._within(user),
                )  # fmt: skip
                if limit == MAX_HITS or not any(cuts_a_tie(hits, k, limit) for hits in found):
                    return [best_of(hits, k) for hits in found]
                limit = min(8 * limit, MAX_HITS)

    def _users(self) -> Iterable[str]:
        users: list[str] = []
        with self._milvus.use() as client:
            if self._find(client):
                rows = client.query_iterator(
                    self._name, filter="position == 0", output_fields=["payload", "user_key"], timeout=self._timeout
                )
                while page := rows.next():
                    users += [name for row in page if (name := self._user_of(client, row)) is not None]
                rows.close()
        return users

    def _user_of(self, client: Any, first: Mapping[str, Any]) -> str | None:
        """Whose a user's first row is: each of the others says so too."""
        where = f'user_key == "{first["user_key"]}" and position >= 0'
        for number, row in enumerate([first, first]):
            rows = client.query(self._name, filter=where, output_fields=["payload"], timeout=self._timeout, limit=16) if number else [row]
            for found in rows:
                with suppress(DataError, KeyError):
                    return str(unpacked(found["payload"])["user"])
        logger.warning("No row of the user with the key %s in %s can be read.", first["user_key"], self._milvus.address)
        return None

    def _remove(self, user: str) -> None:
        with self._milvus.use() as client:
            if not self._holds(client, user):
                return
            if self.shared:  # gone for every reader at once, from its disks when it has compacted them
                client.delete(self._name, filter=f'{is_user(user)} and state != "lock"', timeout=self._timeout)
                client.compact(self._name, timeout=self._timeout)
            else:
                client.drop_partition(self._name, key_of(user), timeout=self._timeout)
                self._partitions.discard(key_of(user))

    def _close(self) -> None:
        self._let_go()
        self._milvus.close()

    def _let_go(self) -> None:
        if self._acknowledged is not None:
            self._acknowledged.close()
            self._acknowledged = None

    def _forked(self) -> None:
        super()._forked()
        self._stamps.clear()
        self._held_until, self._acknowledged = 0.0, None

    def _holds(self, client: Any, user: str) -> bool:
        """Whether there is a place in which rows of the user can be."""
        return self._find(client) and (self.shared or key_of(user) in self._partitions)

    def _within(self, user: str) -> dict[str, Any]:
        return {} if self.shared else {"partition_names": [key_of(user)]}

    # One writer of a user among several processes.

    @contextmanager
    def _editing(self, user: str) -> Iterator[None]:
        with super()._editing(user):
            if not self.shared:
                yield
                return
            with self._milvus.use() as client:
                if not self._find(client):
                    self._create(client)
                key, self._held_until = claim(client, self._name, user, self._dim or 0, self._timeout)
            try:
                yield
            finally:
                try:
                    with self._milvus.use() as client:
                        client.delete(self._name, ids=[key], timeout=self._timeout)
                except StoreError as error:
                    logger.warning("%s Other writers of %r wait for up to %g s.", error, user, LEASE)
