"""One stored fact and one edit, as values, and how a fact is read from a data file. Knows no bank and no rule of editing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from memfactory.common.errors import DataError

Kind = Literal["ADD", "UPDATE", "DEL", "NONE"]

_PUBLIC_NAMES = {"text": "value", "owner": "user_id", "created": "created_at", "updated": "updated_at"}
"""Ours -> the public version's."""


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One stored fact.

    Example: MemoryItem(id="3", text="Alice lives in Rome", owner="Alice", version=2, history=("Alice lives in Paris",))
    """

    id: str
    text: str
    owner: str = ""
    """Namespace, for instance the speaker whom the fact is about."""
    created: str = ""
    """Event time as text; never the wall clock."""
    updated: str = ""
    version: int = 1
    history: tuple[str, ...] = ()
    """Older texts, oldest first."""
    valid_until: str | None = None
    """None while the fact holds; the temporal policy closes a fact with the time of the event."""
    sources: tuple[str, ...] = ()
    """Ids of the turns that the fact comes from."""
    replaces: str | None = None
    """Id of the closed item that this one took over from (temporal policy)."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self) | {"history": list(self.history), "sources": list(self.sources)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> MemoryItem:
        """The item of a dict with our names, or with the public version's: value, user_id, created_at, updated_at.

        Its other keys (key, tags, confidence, the embedding's placeholder, ...) are dropped: nothing here would read
        them, and `value` is written to stand alone. A missing or ill-typed field raises `DataError`.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"A memory item is an object with id and text, not {row!r:.80}.")
        values = {}
        for f in fields(cls):
            given = row.get(f.name, row.get(_PUBLIC_NAMES.get(f.name, f.name)))
            if given is not None:
                values[f.name] = _checked(f.name, given, row)
        if missing := [name for name in ("id", "text") if name not in values]:
            raise DataError(f"A memory item has no {' and no '.join(missing)}: {dict(row)!r:.200}")
        return cls(**values)


def _checked(name: str, value: Any, row: Mapping[str, Any]) -> Any:
    """The value of a field in its type, or `DataError`."""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name in ("history", "sources"):
        if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            return tuple(value)
    elif name == "version":
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, str):
        return value
    raise DataError(f"A memory item's {name!r} cannot be {value!r:.80}: {dict(row)!r:.200}")


@dataclass(frozen=True, slots=True)
class MemoryOp:
    """One edit that a policy asks for. Example: MemoryOp("UPDATE", "3", "Alice lives in Rome")."""

    kind: Kind
    id: str | None = None
    """The item it is about. For ADD None: the bank names the item."""
    text: str = ""
    owner: str = ""
    """For ADD the new item's namespace; an UPDATE or DEL that names another owner than the item's is rejected."""
