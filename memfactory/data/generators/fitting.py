"""The longest text that fits a token budget, in few tokenisations. Knows no task and no tokenizer: it is handed a counter.

RULER's fork grows its haystack step by step and tokenizes all of it at each step, which is quadratic in the length. Tokens
are nearly proportional to units, so the size of one text says almost exactly how many units the next should have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from memfactory.common.errors import ConfigError

T = TypeVar("T")
Count = Callable[[str], int]
"""Tokens of a text, without special tokens."""

SLACK = 0.004
"""The part of a budget that may stay unused; RULER's fork leaves up to 3 %."""
_ROUNDS = 24
"""Tries after which the longest text found so far has to do; three or four are usual."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A text of `units` units and `tokens` tokens."""

    text: str
    units: int
    tokens: int


def fit(render: Callable[[int], str], count: Count, budget: int, least: int = 1, owner: str = "this task") -> Fitted:
    """The text of most units, at least `least`, within `budget` tokens, up to `SLACK` of it or one unit.

    `render(n)` is the same text at each call, and longer for a larger n on the whole. A budget below `least` units is a
    `ConfigError` that says how many tokens they take.
    """

    def measured(units: int) -> Fitted:
        text = render(units)
        return Fitted(text, units, count(text))

    shortest = below = measured(least)
    if shortest.tokens > budget:
        raise ConfigError(
            f"{owner}: its shortest text takes {shortest.tokens} tokens, but {budget} are left for it. "
            f"Ask for at least {shortest.tokens - budget} tokens more."
        )
    above: int | None = None  # the fewest units known not to fit
    guess = max(4 * least, 32)
    for round_number in range(_ROUNDS):
        guess = max(guess, below.units + 1)
        guess = guess if above is None else min(guess, above - 1)
        if guess <= below.units:
            break
        tried = measured(guess)
        if tried.tokens > budget:
            above = tried.units
        else:
            below = tried
            if budget - tried.tokens <= SLACK * budget:
                break
        if above is not None and round_number >= 8:  # tokens that are not proportional to units: halve what is left
            guess = (below.units + above) // 2
        else:
            rate = max((tried.tokens - shortest.tokens) / (tried.units - least), 1e-3)
            guess = below.units + int((budget * (1 - SLACK / 2) - below.tokens) / rate)
    return below


def scattered(lines: Sequence[str], hay: Sequence[str], rng: random.Random) -> list[str]:
    """The lines, in their order, at random places among the hay: each set of places is as likely as any other."""
    total = len(lines) + len(hay)
    places = dict(zip(sorted(rng.sample(range(total), len(lines))), lines, strict=True))
    rest = iter(hay)
    return [places[place] if place in places else next(rest) for place in range(total)]


class Grown(Generic[T]):
    """A list that takes from an endless iterator what it has not yet shown."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._items: list[T] = []

    def first(self, number: int) -> list[T]:
        """The first `number` items, the same at every call."""
        while len(self._items) < number:
            self._items.append(next(self._source))
        return self._items[:number]
