"""JSON inside what a model wrote: fenced or in prose, with single quotes, trailing commas, or cut off. Knows no operation.

The library `json-repair` turns almost any prose into some value. So only a span that begins like a container of JSON is
given to it, what was cut off is cut back to the last whole element first, and the caller accepts a value by its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import json_repair

from memfactory.common.guarded_json import loads
from memfactory.common.text import mend

MAX_DEPTH = 64
"""Deeper nesting is no answer to any prompt, and would overrun the stack of a recursive reader."""
MAX_STARTS = 32
"""How many places of one text are tried."""
MAX_LENGTH = 1 << 16
"""Characters. A longer answer is none: it is not searched for JSON, and its readers count it as `TOO_LONG`."""
TOO_LONG = "too long"
_MOST_SCANNED = 4
"""How often a text is gone through at the most, whatever its braces: the work stays linear in its length."""
_MOST_REPAIRED = 1 << 14
"""Characters of one text that are repaired: that takes the square of their number."""
_BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the library raises over texts that nobody thought of."""

_START = re.compile(r"(\{\s*[\"'“}]|\[\s*[\[{\"'“\]])|\{\s*\w")
"""A container, or (no group) what may be one with bare keys, or a brace of prose."""
_FENCE = re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """A value found in a text."""

    value: Any
    """A dict or a list; None if nothing whole could be read."""
    cut: bool
    """It ended before its last bracket: the unfinished last element was left out."""
    alone: bool
    """Nothing else stands beside it."""


def parts(text: str) -> list[str]:
    """Where an answer may be, best first: what stands in ``` fences, then the whole text."""
    fenced = [match.group(1).strip() for match in _FENCE.finditer(text)] if "```" in text else []
    return ["\n".join(fenced), text] if any(fenced) else [text]


def json_values(text: str) -> Iterator[Found]:
    """The containers of JSON in a text, from left to right; what stands inside a well-formed one is not given again."""
    at, scanned, room = 0, 0, _MOST_REPAIRED
    for _ in range(MAX_STARTS):
        match = _START.search(text, at)
        if match is None or len(text) > MAX_LENGTH or scanned > _MOST_SCANNED * len(text):
            return
        start = match.start()
        end, whole = _end(text, start)
        scanned += (end if whole else len(text)) - start
        value, repaired = _load(text[start:end], room)
        room -= repaired
        yield Found(value, not whole, whole and not text[:start].strip() and not text[end:].strip())
        # After a container that was cut off there is nothing; a brace of prose may hold one.
        at = start + 1 if match.group(1) is None else end if whole else len(text)


def looks_like_json(text: str) -> bool:
    """True if a container of JSON begins somewhere, whatever it holds; a brace in prose is none."""
    return any(match.group(1) for match in _START.finditer(text))


def clean(text: str) -> str:
    """One line that any encoder takes: white space is single spaces; half a surrogate pair (`"\\ud800"` in JSON) becomes U+FFFD."""
    return " ".join(mend(text)[0].split())


def _load(span: str, room: int) -> tuple[Any, int]:
    """(the span as the dict or list that it begins like, repaired if need be and it fits in `room`; None if it is neither, characters
    that went into repair)."""
    if not span or _depth(span) > MAX_DEPTH:
        return None, 0
    try:
        return loads(span), 0
    except ValueError:
        if len(span) > room:
            return None, 0
    try:
        value = json_repair.repair_json(span, return_objects=True, skip_json_loads=True)
    except _BROKEN:
        value = None
    return (value if isinstance(value, dict if span[0] == "{" else list) else None), len(span)


def _depth(span: str) -> int:
    """How deep brackets nest, those in strings counted too."""
    now = most = 0
    for character in span:
        now += (character in "[{") - (character in "]}")
        most = max(most, now)
    return most


def _end(text: str, start: int) -> tuple[int, bool]:
    """Where the container that begins at `start` ends, and whether it is whole.

    If it is cut off, the end is that of the last whole element of its outermost list, or `start` if there is none.
    """
    stack: list[str] = []
    quote = before = ""
    last = start
    for at in range(start, len(text)):
        character = text[at]
        if quote:
            # A quote closes a string only where JSON goes on after it, so that "he said "hi" to me" is one string.
            if character == quote and not _escaped(text, at) and _goes_on(text, at + 1):
                quote, before = "", character
                last = at + 1 if stack.count("[") == 1 and stack[-1] == "[" else last
            continue
        if character in "\"'" and before in ("{", "[", ",", ":"):
            quote = character
        elif character in "{[":
            stack.append(character)
            if len(stack) > MAX_DEPTH:
                return len(text), False
        elif character in "}]":
            opener = "{" if character == "}" else "["
            while stack and stack[-1] != opener:  # a bracket was forgotten
                stack.pop()
            if stack:
                stack.pop()
            if not stack:
                return at + 1, True
            last = at + 1 if stack.count("[") == 1 and stack[-1] == "[" else last
        if not character.isspace():
            before = character
    return last, False


def _escaped(text: str, at: int) -> bool:
    slashes = 0
    while at - slashes > 0 and text[at - slashes - 1] == "\\":
        slashes += 1
    return slashes % 2 == 1


def _goes_on(text: str, at: int) -> bool:
    """True if the next character that is not a space is one that follows a string."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at < len(text) and text[at] in ",:}]"
