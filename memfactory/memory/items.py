"""One stored fact and one edit, as values, and how a fact is read from a data file. Knows no bank and no rule of editing."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from memfactory.common.errors import DataError
from memfactory.memory.dates import earlier

Kind = Literal["ADD", "UPDATE", "DEL", "NONE"]

NO_TEXT = "empty text"
UNKNOWN_ID = "unknown id"
DUPLICATE_ID = "duplicate id"
DUPLICATE_TEXT = "duplicate text"
FULL = "bank full"
ID_IN_USE = "id in use"
OTHER_OWNER = "another owner's item"
OLD_NEWS = "older than the fact"
"""Why an operation was rejected: the keys of the counts in a trajectory's report."""

_PUBLIC_NAMES = {"text": "value", "owner": "user_id", "created": "created_at", "updated": "updated_at"}
"""Ours -> the public version's."""


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """One stored fact.

    Example: MemoryItem(id="3", text="Alice lives in Rome", owner="Alice", version=2, history=("Alice lives in Paris",))

    Every field is of its type from the start, so what is written can be read: dates and numbers are taken where they mean one
    text only (`as_date`, `as_name`), and what is anything else raises `DataError`.
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
    told: int = 1
    """How often it was told in the same words."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if type(value) is not str or name not in _TEXTS:  # most are
                object.__setattr__(self, name, check(value, name))

    @property
    def begun(self) -> str:
        """Since when the text holds."""
        return self.created if not self.updated or earlier(self.updated, self.created) else self.updated

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; `told` where it says something."""
        row = asdict(self) | {"history": list(self.history), "sources": list(self.sources)}
        return row if self.told != 1 else {name: value for name, value in row.items() if name != "told"}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> MemoryItem:
        """The item of a dict with our names, or with the public version's: value, user_id, created_at, updated_at.

        Its other keys (key, tags, confidence, the embedding's placeholder, ...) are dropped: nothing here would read
        them, and `value` is written to stand alone. A missing or ill-typed field raises `DataError`.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"A memory item is an object with id and text, not {row!r:.80}.")
        given = {f.name: row.get(f.name, row.get(_PUBLIC_NAMES.get(f.name, f.name))) for f in fields(cls)}
        values = {name: value for name, value in given.items() if value is not None}
        if missing := [name for name in ("id", "text") if name not in values]:
            raise DataError(f"A memory item has no {' and no '.join(missing)}: {dict(row)!r:.200}")
        try:
            return cls(**values)
        except DataError as error:
            raise DataError(f"{error} It is in {dict(row)!r:.200}") from error


def as_date(value: Any, name: str = "date") -> str:
    """A time of event as text: a text as it is, a date or datetime in ISO's form, a number as seconds since 1970, None as "".

    Anything else, and a number that is no time, raises `DataError`.
    """
    if isinstance(value, str):
        return str(value)
    if value is None:
        return ""
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:  # of numpy: its own value
        value = value.item()
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat() if value == value else ""  # pandas: no time equals nothing
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        try:
            return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc).isoformat(timespec="seconds")
        except (OverflowError, OSError, ValueError):
            pass
    raise _wrong(name, value, "a text, a date, a datetime or seconds since 1970")


def as_name(value: Any, name: str) -> str:
    """An id or a name as text: a whole number is one too, None is ""; anything else raises `DataError`."""
    if value is None or isinstance(value, str) or (isinstance(value, Integral) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    raise _wrong(name, value, "a text")


def as_text(value: Any, name: str) -> str:
    """A text; anything else raises `DataError`."""
    if isinstance(value, str):
        return str(value)
    raise _wrong(name, value, "a text")


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(as_text(part, name) for part in value)
    raise _wrong(name, value, "a list of texts")


def _whole(value: Any, name: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise _wrong(name, value, "a whole number")


def _wrong(name: str, value: Any, wanted: str) -> DataError:
    return DataError(f"A memory's {name!r} cannot be {value!r:.80}: give {wanted}.")


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "id": as_name, "text": as_text, "owner": as_name, "created": as_date, "updated": as_date, "version": _whole, "history": _texts,
    "valid_until": lambda value, name: None if value is None else as_date(value, name), "sources": _texts,
    "replaces": lambda value, name: None if value is None else as_name(value, name), "told": _whole,
}  # fmt: skip
_TEXTS = {"id", "text", "owner", "created", "updated", "valid_until", "replaces"}


@dataclass(frozen=True, slots=True)
class MemoryOp:
    """One edit that a policy asks for. Example: MemoryOp("UPDATE", "3", "Alice lives in Rome")."""

    kind: Kind
    id: str | None = None
    """The item it is about. For ADD None: the bank names the item."""
    text: str = ""
    owner: str = ""
    """For ADD the new item's namespace; an UPDATE or DEL that names another owner than the item's is rejected."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DataError(f"Unknown kind of operation {self.kind!r:.80}. Known: {', '.join(get_args(Kind))}.")
        if type(self.text) is not str:
            object.__setattr__(self, "text", as_text(self.text, "text"))
        if self.id is not None and type(self.id) is not str:
            object.__setattr__(self, "id", as_name(self.id, "id"))
        if type(self.owner) is not str:
            object.__setattr__(self, "owner", as_name(self.owner, "owner"))


@dataclass(frozen=True, slots=True)
class Rejection:
    """An operation that was not executed, and why."""

    op: MemoryOp
    reason: str
