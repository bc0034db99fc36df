"""When something happened, as far as a text says so: for comparing, never for showing. Knows no memory."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from functools import lru_cache

MAX_LENGTH = 64
"""Of a date; what is longer is a sentence."""
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)")
_EAST_ASIAN = re.compile(r"(\d{4})\s*[年년]\s*(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日号일]?")
_TWO_READINGS = re.compile(r"(?<!\d)(\d{1,2})[/.](\d{1,2})[/.]\d{4}")
_IN_BRACKETS = re.compile(r"\([^)]*\)")


_HOUR = re.compile(r"\d\s*(?::|[ap]\.?m)", re.IGNORECASE)


@lru_cache(maxsize=4096)
def moment(date: str) -> datetime | None:
    """The moment that a date names, of a day its beginning, of one with a zone in UTC; None if it names no day of a known year.

    Day and month in figures (`5/8/2023`) are understood where they have one reading only.
    """
    # Costs 10 ms, and most banks compare no dates.
    from dateutil import parser

    text = _IN_BRACKETS.sub(" ", _EAST_ASIAN.sub(r"\1-\2-\3 ", date)) if len(date) <= MAX_LENGTH else ""
    if not _YEAR.search(text) or any(a != b and int(a) <= 12 and int(b) <= 12 for a, b in _TWO_READINGS.findall(text)):
        return None
    try:
        found = {parser.parse(text, default=datetime(2000, month, month)) for month in (1, 2)}
        first = found.pop()
        if found:  # the month or the day was not in it
            return None
        return first if first.tzinfo is None else first.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError, TypeError, ArithmeticError, AttributeError, LookupError):  # as the library fails on odd texts
        return None


def earlier(a: str, b: str) -> bool:
    """Whether `a` names an earlier moment than `b`; False where either names none, or both the same day and not both an hour."""
    if a == b:
        return False
    first, second = moment(a), moment(b)
    if first is None or second is None or (first.date() == second.date() and not (_HOUR.search(a) and _HOUR.search(b))):
        return False
    return first < second
