"""Stores of memories behind one contract, opened by name. A backend's library is imported when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfactory.common.registry import STORE_REGISTRY
from memfactory.memory.embedders import Embedder, make_embedder
from memfactory.memory.stores.base import MemoryStore


def open_store(
    name: str, options: Mapping[str, Any] | None = None, *, embedder: Embedder | str | Mapping[str, Any] = "hashed"
) -> MemoryStore:
    """The store called `name` (a key of STORE_REGISTRY, such as in_memory or milvus) with its options. Close it, or use it in a `with`.

    `embedder`: an embedder, a key of EMBEDDER_REGISTRY or `{"type": key, option: value}`. An unknown name lists the known ones; a
    backend that cannot be reached or opened raises `StoreError` or `ConfigError`: there is no other store to fall back on.
    """
    kind = STORE_REGISTRY.get(name)
    return kind(make_embedder(embedder) if isinstance(embedder, (str, Mapping)) else embedder, **(options or {}))
