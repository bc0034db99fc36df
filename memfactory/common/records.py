"""Rows of files as dataclasses, every field checked: what is damaged or foreign is an error in words, never a bug later."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from memfactory.common.errors import DataError

T = TypeVar("T")

_NUMBERS = {int: (int,), float: (int, float)}


def record(kind: type[T], row: object, where: str, advice: str = "") -> T:
    """The row as a `kind`, a dataclass; `where` names file and line, `advice` the next step. Its lists stay lists."""
    whole: Any = kind
    hints = _hints(whole)
    problem = ""
    if not isinstance(row, dict):
        problem = f"expected an object, got {row!r:.60}"
    elif unknown := [name for name in row if name not in hints]:
        problem = f"it has a field {unknown[0]!r:.60}, which {kind.__name__} has not"
    elif missing := [name for name in _required(whole) if name not in row]:
        problem = f"it has no field {missing[0]!r}"
    elif wrong := [name for name, value in row.items() if not fits(value, hints[name])]:
        problem = f"its field {wrong[0]!r} is {row[wrong[0]]!r:.60}"
    if problem or not isinstance(row, dict):
        raise DataError(f"{where} is not as it was written: {problem}.{' ' + advice if advice else ''}")
    return kind(**row)


def fits(value: object, hint: Any) -> bool:
    """True if a value of a JSON file is what the annotation says; a tuple may be a list."""
    hint = type(None) if hint is None else hint
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin in (list, tuple):
        of = inside if origin is tuple and inside[-1] is not ... else inside[:1] * len(value) if isinstance(value, (list, tuple)) else ()
        return isinstance(value, (list, tuple)) and len(of) == len(value) and all(map(fits, value, of))
    if origin is dict:
        return isinstance(value, dict) and all(fits(name, inside[0]) and fits(one, inside[1]) for name, one in value.items())
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _required(kind: type) -> tuple[str, ...]:
    none = dataclasses.MISSING
    return tuple(f.name for f in dataclasses.fields(kind) if f.default is none and f.default_factory is none)
