"""What changed in a memory, as plain data: a bank item by item, a text word by word. Knows no markup."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

Part = tuple[str, str]
"""(same, added or removed; a piece of text). `same` and `added` make the new text, `same` and `removed` the old one."""

_ITEM = re.compile(r"^(\d+): (.*)$")
_WORDS = re.compile(r"\S+\s*|\s+")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_LARGEST = 1 << 20
"""Pairs of words that are compared; of longer texts lines are."""
_MOST_STEPS = 1 << 23
"""A text of 700 words of prose takes half of it."""


def items_of(memory: str) -> dict[str, str] | None:
    """{id: text} of a bank as it prints itself (`str(MemoryBank)`), or None if that is no bank; an empty text is an empty one."""
    items: dict[str, list[str]] = {}
    last = None
    for line in memory.split("\n") if memory else ():
        found = _ITEM.match(line)
        if found and found[1] not in items:
            last = found[1]
            items[last] = [found[2]]
        elif last is None or found:
            return None
        else:
            items[last].append(line)  # a fact of several lines
    return {id: "\n".join(lines) for id, lines in items.items()}


def bank_parts(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str, list[Part]]]:
    """[(kind, id, parts)] for every item that either bank holds: removed ones first, then the new bank in its order."""
    gone = [("removed", id, [("removed", text)]) for id, text in old.items() if id not in new]
    kept: list[tuple[str, str, list[Part]]] = []
    for id, text in new.items():
        if id not in old:
            kept.append(("added", id, [("added", text)]))
        elif old[id] == text:
            kept.append(("same", id, [("same", text)]))
        else:
            kept.append(("changed", id, text_parts(old[id], text)))
    return [*gone, *kept]


def text_parts(old: str, new: str) -> list[Part]:
    """The words of two texts: what is in both, what only the old one and what only the new one has."""
    a, b = _WORDS.findall(old), _WORDS.findall(new)
    if not _comparable(a, b):
        a, b = _LINES.findall(old), _LINES.findall(new)
    if not _comparable(a, b):
        return _joined([("removed", old), ("added", new)])
    parts: list[Part] = []
    for what, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append(("same", "".join(b[k:m])))
        else:
            parts += [("removed", "".join(a[i:j])), ("added", "".join(b[k:m]))]
    return _joined(parts)


def _comparable(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether the comparison is soon over: few pairs, and few equal ones, which are gone through for every piece that is found."""
    if len(a) * len(b) > _LARGEST:
        return False
    ours, theirs = Counter(a), Counter(b)
    return sum(number * theirs[word] for word, number in ours.items()) * min(len(a), len(b)) <= _MOST_STEPS


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one kind put together, empty ones left out."""
    joined: list[Part] = []
    for kind, text in parts:
        if text and joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        elif text:
            joined.append((kind, text))
    return joined
