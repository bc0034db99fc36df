"""Markup by construction: whatever is no `Html` is escaped when it is put into some. Knows no page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_VOID = frozenset(("br", "meta", "input", "col"))
_BIDI = (0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
"""What turns the direction of the text behind it, or is not seen at all."""
_SEEN = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: "␡"}
    | dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "�")
    | {code: f"⟨U+{code:04X}⟩" for code in _BIDI}
)


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def clean(text: str) -> str:
    """The same text with control characters, halves of surrogate pairs and turns of direction made visible."""
    return text.translate(_SEEN)


def html(value: Any) -> Html:
    """A value as markup: `Html` as it is, None and False as nothing, a list's members one after the other, anything else escaped."""
    if isinstance(value, Html):
        return value
    if value is None or value is False:
        return Html()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return Html("".join(map(html, value)))
    return Html(escape(clean(str(value))))


def tag(name: str, *children: Any) -> Html:
    """`<name attributes>children</name>`; a mapping among the children is attributes, of which None and False are left out."""
    given = "".join(
        f" {key}" + ("" if value is True else f'="{escape(clean(str(value)))}"')
        for child in children
        if isinstance(child, Mapping)
        for key, value in child.items()
        if value is not None and value is not False
    )
    inside = html([child for child in children if not isinstance(child, Mapping)])
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inside}</{name}>")


def cut(text: str, limit: int) -> Html:
    """At most `limit` characters of a text, and how many more there are."""
    left = len(text) - limit
    return html(text) if left <= 0 else html([text[:limit], tag("span", {"class": "more"}, f" … {left:,} characters more")])
