"""Dots with whiskers and bars as inline SVG. Places are in percent of the width, so a cell may have any. Knows no report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memfactory.evaluation.html.markup import Html, tag

_HEIGHT = 30
_MIDDLE = _HEIGHT / 2


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that a column of charts spans, and where its lines are."""

    low: float
    high: float
    ticks: tuple[float, ...]
    zero: float | None = None
    """A line that matters: an interval that crosses it tells nothing apart."""

    def at(self, value: float) -> str:
        """The place of a value, in percent of the width; what is outside is on the border."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


SHARES = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
"""Of scores."""


def around_zero(values: list[float]) -> Scale:
    """The smallest round scale with 0 in its middle that holds the values."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    edge = next((edge for edge in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0) if largest <= edge), math.ceil(largest))
    return Scale(-edge, edge, (-edge, -edge / 2, 0.0, edge / 2, edge), zero=0.0)


def axis(scale: Scale, form: str = "g") -> Html:
    """The numbers over a column of charts."""
    ends = {scale.ticks[0]: "start", scale.ticks[-1]: "end"}
    shown = [tick for at, tick in enumerate(scale.ticks) if at % 2 == 0]
    marks = [
        tag(
            "text",
            {"x": scale.at(tick), "y": 11, "text-anchor": ends.get(tick, "middle")},
            format(tick, form if tick else "g").replace("-", "−"),
        )
        for tick in shown
    ]
    return tag("svg", {"class": "axis", "height": 14, "aria-hidden": "true"}, marks)


def whisker(scale: Scale, value: float | None, low: float | None, high: float | None, colour: str, words: str) -> Html:
    """A dot at the value and a line over its interval; without a value only the scale's lines. `colour`: a class of the style sheet."""
    shapes = [_grid(scale)]
    if value is not None:
        shapes += [_interval(scale, low, high), tag("circle", {"cx": scale.at(value), "cy": _MIDDLE, "r": 4.5})]
    return _svg(shapes, f"chart {colour}", words)


def bar(scale: Scale, value: float | None, low: float | None, high: float | None, colour: str, words: str) -> Html:
    """A bar from the scale's beginning to the value, and a line over its interval."""
    shapes = [_grid(scale)]
    if value is not None:
        shapes += [tag("rect", {"x": 0, "y": _MIDDLE - 6, "height": 12, "width": scale.at(value), "rx": 1.5}), _interval(scale, low, high)]
    return _svg(shapes, f"chart bar {colour}", words)


def _svg(shapes: list[Html], kind: str, words: str) -> Html:
    return tag("svg", {"class": kind, "height": _HEIGHT, "role": "img"}, tag("title", words), shapes)


def _grid(scale: Scale) -> Html:
    lines = [
        tag("line", {"x1": scale.at(tick), "x2": scale.at(tick), "y1": 0, "y2": _HEIGHT, "class": "zero" if tick == scale.zero else "tick"})
        for tick in scale.ticks
    ]
    return tag("g", lines)


def _interval(scale: Scale, low: float | None, high: float | None) -> Html:
    if low is None or high is None:
        return Html()
    ends = [
        tag("line", {"x1": scale.at(end), "x2": scale.at(end), "y1": _MIDDLE - 4, "y2": _MIDDLE + 4})
        for end in (low, high)
        if scale.low <= end <= scale.high
    ]
    return tag("g", {"class": "interval"}, tag("line", {"x1": scale.at(low), "x2": scale.at(high), "y1": _MIDDLE, "y2": _MIDDLE}), ends)
