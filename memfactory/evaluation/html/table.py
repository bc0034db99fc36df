"""Tables of the page: aligned numbers, a chart's scale in the head, columns that narrow screens leave out. Knows no report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.evaluation.html.markup import Html, html, tag

Page = Mapping[str, Any]
VERDICTS = {"better": "▲", "worse": "▼", "tied": "=", "unknown": "?"}


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and how its cells stand."""

    name: Any
    kind: str = ""
    """Classes: `num` (right-aligned figures), `plot` (a chart), `wide` (left out on narrow screens); "" is text."""
    hint: str | None = None


def table(columns: Sequence[Column], groups: Iterable[tuple[Any, Iterable[Sequence[Any]]]], class_: str = "") -> Html:
    """A table of (heading or None, rows) groups; a row is a cell a column, markup or text."""
    head = tag("tr", [tag("th", {"class": column.kind or None, "title": column.hint, "scope": "col"}, column.name) for column in columns])
    bodies = [
        tag(
            "tbody",
            heading is not None and tag("tr", {"class": "group"}, tag("th", {"colspan": len(columns), "scope": "rowgroup"}, heading)),
            [tag("tr", [tag("td", {"class": c.kind or None}, cell) for c, cell in zip(columns, row, strict=True)]) for row in rows],
        )
        for heading, rows in groups
    ]
    return tag("div", {"class": "scroll"}, tag("table", {"class": class_ or None}, tag("thead", head), bodies))


def section(title: str, *parts: Any, id: str, lead: Any = None) -> Html:
    """A part of the page under its heading; `lead` says how it is read."""
    return tag("section", {"id": id}, tag("h2", title), lead is not None and tag("p", {"class": "lead"}, lead), parts)


def figure(value: float | None, form: str = ".3f") -> str:
    """A number as tables print it; what is not there is a dash."""
    return "–" if value is None else format(value, form).replace("-", "−")


def interval(low: float | None, high: float | None, form: str = ".3f") -> Html:
    """`[low, high]`, or nothing."""
    return Html() if low is None or high is None else tag("span", {"class": "range"}, f"[{figure(low, form)}, {figure(high, form)}]")


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """A list of names and values; what has no value is left out."""
    return tag(
        "dl", {"class": "facts"}, [html([tag("dt", name), tag("dd", value)]) for name, value in pairs if value not in (None, "", {}, [])]
    )


def colour(page: Page, model: str) -> str:
    """The class of a model's colour: the first one's is grey, for the others are compared with it; an anchor has its model's."""
    of, _ = page["anchors"].get(model, (model, ""))
    models = [name for name in page["models"] if name not in page["anchors"]]
    return f"m{models.index(of) % 6}" if of in models else "m0"


def model_name(page: Page, model: str) -> Html:
    """A model with the dot of its colour; an anchor with a ring, named by its kind, for it stands under its model."""
    of, kind = page["anchors"].get(model, (model, ""))
    named = html(["+ ", kind]) if kind and of in page["models"] else model
    dot = f"dot {'ring ' if kind else ''}{colour(page, model)}"
    return tag("span", {"class": "model anchor" if kind else "model", "title": model if kind else None}, tag("i", {"class": dot}), named)


def verdict(word: str) -> Html:
    """A verdict by sign, word and colour."""
    sign, known = VERDICTS.get(word, "?"), word if word in VERDICTS else "unknown"
    return tag("span", {"class": f"verdict {known}", "title": word}, sign, tag("span", {"class": "word"}, f" {word}"))


def count(number: int, what: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
