"""The stores that the contract is held to: add a backend here and tests/test_stores.py asks the same of it."""

from __future__ import annotations

import atexit
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from memfactory.memory.bank import WRITE_POLICIES
from memfactory.memory.embedders import Embedder, HashedEmbedder, Vectors
from memfactory.memory.items import MemoryOp
from memfactory.memory.stores import MemoryStore, open_store
from memfactory.memory.stores.base import Hits

DIM = 128


@dataclass(frozen=True)
class Backend:
    """A store, and how much a test may ask of it."""

    name: str
    options: Callable[[Path], dict[str, Any]]
    """The options of a store that keeps its memories in this folder, and nowhere else."""
    library: str | None = None
    """What must be installed, or else its tests are skipped."""
    persistent: bool = True
    examples: int = 8
    """Of a property test."""
    slow: bool = False
    """Takes seconds to open: its tests are marked slow."""
    label: str = ""
    """Its name in the tests' names, if not `name`."""

    def open(self, folder: Path, embedder: Embedder | None = None) -> MemoryStore:
        """The store of this folder."""
        return open_store(self.name, self.options(folder), embedder=embedder or HashedEmbedder(dim=DIM))


_servers: dict[Path, str] = {}


def milvus_server(folder: Path) -> str:
    """The address of a server over this folder, which stays up until the tests end: Milvus Lite's, one request at a time."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    if folder not in _servers:
        server, database, port = start_server_in_thread(str(folder / "server"), max_workers=1)
        atexit.register(lambda: (server.stop(grace=None).wait(), database.close()))
        _servers[folder] = f"http://127.0.0.1:{port}"
    return _servers[folder]


BACKENDS = [
    Backend("in_memory", lambda folder: {}, persistent=False, examples=25),
    Backend("milvus", lambda folder: {"uri": str(folder / "milvus.db")}, library="milvus_lite"),
    Backend("neo4j", lambda folder: {"path": str(folder / "graph")}, library="arcadedb_embedded", slow=True),
    Backend("hybrid", lambda folder: {"path": str(folder / "both")}, library="arcadedb_embedded", slow=True),
    Backend("milvus", lambda folder: {"uri": milvus_server(folder)}, library="milvus_lite", slow=True, label="milvus server"),
]

_numbers = itertools.count()


def new_user(name: str = "user") -> str:
    """A user that no other test writes to: a store is opened once for many tests."""
    return f"{name} {next(_numbers)}"


def check_hits(found: Hits, expected: Hits) -> None:
    """The same items with the same cosines in the same order, but that float32 may swap those whose cosines it cannot tell apart."""
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)
    scores = [score for _, score in expected]
    for at, ((item, _), (other, score)) in enumerate(zip(found, expected, strict=True)):
        alike = {other.id, *(expected[n][0].id for n in range(len(scores)) if abs(scores[n] - score) < 4e-6)}
        assert item == other or (item.id in alike or at == len(scores) - 1) and len(alike) > 1, (item, other)


class Scripted:
    """An embedder of given vectors, of length 1 or zeros; a text that is not given is an axis of its own."""

    def __init__(self, table: dict[str, Sequence[float]] | None = None, *, dim: int = 4, name: str = "scripted") -> None:
        self.name, self.dim, self.table = name, dim, table or {}
        self.calls: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        axes = np.eye(self.dim, dtype=np.float32)
        return np.array([self.table.get(text, axes[len(text) % self.dim]) for text in texts], np.float32).reshape(len(texts), self.dim)


_ids = st.sampled_from(["0", "1", "2", "3", "5", "x", None])
_texts = st.sampled_from(["", " ", "tea", "Bob has a dog", "ünï 記憶 🐈", "\ud800 half", 'quo"te\\ and \n line'])
_ops = st.builds(MemoryOp, st.sampled_from(["ADD", "ADD", "UPDATE", "DEL", "NONE"]), _ids, _texts, st.sampled_from(["", "", "bob"]))
_settings = st.fixed_dictionaries(
    {
        "write_policy": st.sampled_from(WRITE_POLICIES),
        "capacity": st.sampled_from([None, None, 3]),
        "when": st.sampled_from(["", "May 8"]),
        "source": st.sampled_from(["", "D1:3"]),
        "owner": st.sampled_from(["", "eve"]),
    }
)
EDITS = st.lists(st.tuples(st.lists(_ops, max_size=5), _settings), min_size=1, max_size=4)
"""Lists of operations with the settings of `apply`; ADDs that name an id, as `diff` makes them, are among them."""
