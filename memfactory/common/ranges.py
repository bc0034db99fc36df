"""Which numbers an option may have: said at the field that declares it, checked wherever its dataclass is made. Knows no option."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import ConfigError

KEY = "range"
"""Where a field's metadata hold its `Range`."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two bounds; never infinity, and never what is no number."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the number is one of them."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound:.15g}" for word, bound in bounds if bound is not None)


def ranged(
    default: Any, *, least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Any:
    """A field of an options dataclass with its default and its bounds (`least`, `above`, `most`, `below`)."""
    return dataclasses.field(default=default, metadata={KEY: Range(least, above, most, below)})


def range_of(field: dataclasses.Field) -> Range:
    """The field's range; one that declares none may be any finite number."""
    declared: Range = field.metadata.get(KEY, Range())
    return declared


def check_ranges(options: type, given: Mapping[str, Any], owner: str = "--") -> None:
    """`ConfigError`, which names option, value and range, for the first field whose number is out of its range or no number at all.

    `options`: the dataclass. `owner`: what stands before an option's name: `--` for flags, `MemoryAgent: ` for a part's.
    """
    for field in dataclasses.fields(options):
        value, kinds, bounds = given.get(field.name), _words(field), range_of(field)
        whole = bool(kinds) and "float" not in kinds
        needed = f"must be a {'whole' if whole else 'finite'} number{', ' if str(bounds) else ''}{bounds}."
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, (int, float)):
                if kinds and one is not None:
                    raise ConfigError(f"{owner}{field.name} {one!r}: {needed}")
            elif not math.isfinite(one) or (whole and isinstance(one, float)):
                raise ConfigError(f"{owner}{field.name} {one!r}: {needed}")
            elif not bounds.holds(one):
                raise ConfigError(f"{owner}{field.name} {one}: must be {bounds}.")


def _words(field: dataclasses.Field) -> set[str]:
    """The types that a field's annotation allows, if it allows nothing but numbers and None: `{"int", "None"}` of `int | None`."""
    text = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    words = {word.strip() for word in text.removeprefix("list[").removesuffix("]").split("|")}
    return words if words <= {"int", "float", "None"} else set()


def check_finite(name: str, value: Any) -> None:
    """`ConfigError` if a number inside mappings and lists is infinite, or not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"--{name}: {value} is not a finite number.")
    inside: Sequence[Any] = (
        list(value.items()) if isinstance(value, Mapping) else [(None, each) for each in value] if isinstance(value, list) else []
    )
    for key, each in inside:
        check_finite(name if key is None else f"{name} {key}", each)
