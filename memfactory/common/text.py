"""What is done to a text where it enters: broken characters are mended. Pure functions."""

from __future__ import annotations

import re
from typing import Any

BROKEN = "\ufffd"
"""What stands for a character of which only half came (a lone surrogate): it has no UTF-8, so no tokenizer, file or server takes it."""

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half a character; also each half of a whole one."""


def mend(text: str) -> tuple[str, int]:
    """(the text that any encoder takes, how many half characters became U+FFFD in it). All else stays as it is."""
    if text.isascii() or not _HALF.search(text):
        return text, 0
    whole = _PAIR.sub(lambda pair: pair.group().encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _HALF.subn(BROKEN, whole)


def mend_value(value: Any) -> tuple[Any, int]:
    """The same of every text in a value of JSON, keys included."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list):
        parts = [mend_value(part) for part in value]
        return [part for part, _ in parts], sum(number for _, number in parts)
    if isinstance(value, dict):
        pairs = [(mend_value(key), mend_value(part)) for key, part in value.items()]
        return {key: part for (key, _), (part, _) in pairs}, sum(a + b for (_, a), (_, b) in pairs)
    return value, 0
