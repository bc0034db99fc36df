"""Which names a memory mentions, and which session it comes from: two rules without a model. Knows no database.

A name is a run of capitalised words, "New York" or "Anna-Maria O'Neill": what begins a sentence counts too, since that is
where most facts have their subject, unless it is a function word. Names of days and months are left out: they would relate
everything that was said in May. A text without capitals (or in a script that has none) mentions nobody.
"""

from __future__ import annotations

import re

from memfactory.memory.items import MemoryItem

MAX_NAME = 100
"""Characters; what is longer is a headline, not a name."""

_WORD = re.compile(r"[\w'’-]+|[^\w\s]")
_POSSESSIVE = re.compile(r"['’]s?$")
_NOT_NAMES = frozenset(
    "a about after all also although an and another any are as at be because been before both but by can could did do does during "
    "each either even every few for from had has have he her here hers him his how however i i'd i'll i'm i've if in is it it's its "
    "just last like many may me might more most much must my never next no nobody none nor not nothing now of often on once one "
    "only or other our over she should since so some somebody someone sometimes still such than that the their them then there "
    "these they this those though through to today tomorrow under until up us very was we were what when where which while who "
    "whose why will with would yes yesterday yet you your "
    "monday tuesday wednesday thursday friday saturday sunday "
    "january february march april may june july august september october november december".split()
)


def names(text: str) -> tuple[str, ...]:
    """The names in a text, each once, in the order of their first mention. Example: "Ann met Bo's boss in New York": Ann, Bo, New York."""
    found: dict[str, None] = {}
    run: list[str] = []
    for word in [*_WORD.findall(text), ""]:
        capital = word[:1].isupper() and word.lower() not in _NOT_NAMES
        if capital:
            run.append(_POSSESSIVE.sub("", word))
        if run and (not capital or run[-1] != word):  # what is owned is not part of the owner's name
            if 1 < len(name := " ".join(run)) <= MAX_NAME:
                found[name] = None
            run = []
    return tuple(found)


def sessions(item: MemoryItem) -> tuple[str, ...]:
    """The sessions of an item: its sources up to their last colon ("D3:11", turn 11 of D3), else the day it was made, if known."""
    named = dict.fromkeys(source.rpartition(":")[0] or source for source in item.sources)
    return tuple(named) or ((item.created,) if item.created else ())
