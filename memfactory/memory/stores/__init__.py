"""Stores of memories behind one contract, opened by name. A backend's module, and its library, are imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from memfactory.common.errors import unknown_name
from memfactory.common.registry import EMBEDDER_REGISTRY, STORE_REGISTRY
from memfactory.memory.embedders import Embedder
from memfactory.memory.stores.base import MemoryStore

BACKENDS = {"in_memory": "InMemoryStore", "milvus": "MilvusStore", "neo4j": "Neo4jStore", "hybrid": "HybridStore"}
"""The project's own: the module of this folder that registers it under that name, and the class."""


def open_store(name: str, options: Mapping[str, Any] | None = None, *, embedder: Embedder | str = "hashed") -> MemoryStore:
    """The store called `name` (one of `BACKENDS`, or a part of your own) with its options. Close it, or use it in a `with`.

    `embedder`: an embedder or a key of EMBEDDER_REGISTRY. An unknown name lists the known ones; a backend that cannot be
    reached or opened raises `StoreError` or `ConfigError`: there is no other store to fall back on.
    """
    if name in BACKENDS:
        kind: type[MemoryStore] = getattr(_module(name), BACKENDS[name])
    elif name in STORE_REGISTRY:
        kind = STORE_REGISTRY.get(name)
    else:
        raise unknown_name("store", name, {*BACKENDS, *STORE_REGISTRY})
    return kind(EMBEDDER_REGISTRY.get(embedder)() if isinstance(embedder, str) else embedder, **(options or {}))


def register_all() -> None:
    """Register every backend of the project, without its library: for listings."""
    for name in BACKENDS:
        _module(name)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
