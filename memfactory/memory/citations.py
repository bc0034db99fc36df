"""Which of the shown memories an answer cites: the last bracket group of its text, `[0, 2]` or `[NO_CITE]` (RMM, arXiv 2503.08026).

Strict: a group is numbers and commas or NO_CITE and nothing else, and only the last one counts. An answer that cannot be read says
nothing of any memory, which is not the same as to cite none. Knows no prompt and no reward.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from memfactory.common.parsing import strip_thinking

UNCLOSED = "unclosed thought"
NO_GROUP = "no citation"
NOT_NUMBERS = "unreadable citation"
OUT_OF_RANGE = "citation out of range"
REPEATED = "repeated citation"
"""What was wrong with an answer: the keys of `Citations.problems`."""

NO_CITE = "NO_CITE"

_GROUP = re.compile(r"\[([^\[\]]*)\]")
_NUMBERS = re.compile(r"-?[0-9]+(?:\s*,\s*-?[0-9]+)*")


@dataclass(frozen=True, slots=True)
class Citations:
    """What was read. Example: `Citations((2, 0), Counter({"repeated citation": 1}))` of `... as you said. [2, 0, 2]`."""

    ids: tuple[int, ...] = ()
    """Numbers of shown memories, each once, in the order of their first mention."""
    problems: Counter[str] = field(default_factory=Counter)
    readable: bool = True
    """False if there is no group, or the last one is something else: then nothing is known of what was useful."""


def parse_citations(text: str, shown: int) -> Citations:
    """The memories 0 to `shown` - 1 that a text cites. Numbers out of range are left out and counted, repeats too; never raises."""
    visible = strip_thinking(text)
    if visible is None:
        return _unreadable(UNCLOSED)
    groups = _GROUP.findall(visible)
    if not groups:
        return _unreadable(NO_GROUP)
    last = groups[-1].strip()
    if last.upper() == NO_CITE:
        return Citations()
    if not _NUMBERS.fullmatch(last):
        return _unreadable(NOT_NUMBERS)
    ids: list[int] = []
    problems: Counter[str] = Counter()
    for number in map(str.strip, last.split(",")):
        digits = number.lstrip("0") or "0"
        # int() refuses thousands of digits, and no more of them can be in range than `shown` has.
        place = int(digits) if digits.isdigit() and len(digits) <= len(str(shown)) else -1
        if not 0 <= place < shown:
            problems[OUT_OF_RANGE] += 1
        elif place in ids:
            problems[REPEATED] += 1
        else:
            ids.append(place)
    return Citations(tuple(ids), problems)


def _unreadable(problem: str) -> Citations:
    return Citations(problems=Counter([problem]), readable=False)
