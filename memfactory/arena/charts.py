"""The arena's pictures: scores before and after training on each set, by type of question, and learning. Knows only the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GREY, BLUE, LIGHT = "#8a8f98", "#1f6fb4", "#b7d0e8"
COLOURS = ["#1f6fb4", "#d1622b", "#3a8f4d", "#8b5bb0", "#a3741a", "#c2457e", "#5f6b76"]


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write scores.png, types.png and learning.png; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    paths = [folder / "scores.png", folder / "types.png", folder / "learning.png"]
    for path, picture in zip(paths, (_scores, _types, _learning), strict=True):
        figure = picture(report)
        figure.savefig(path, dpi=120)
        figure.clear()
    return paths


def _panels(count: int, width: float, height: float, names: float) -> tuple[Any, list[Any]]:
    """(figure, a panel for each of `count` sets): at most three in a row, four as two by two; `names`: inches for the lines' names."""
    from matplotlib import pyplot

    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns + names, height * rows), sharey=True, squeeze=False)
    panels = list(axes.flat)
    for panel in panels:
        panel.tick_params(axis="y", labelsize=8.5)
    for empty in panels[count:]:
        empty.set_axis_off()
    return figure, panels[:count]


def _scores(report: Mapping[str, Any]) -> Any:
    """Bars of greedy exact match, a panel a set: anchors grey, untrained light, trained blue, with intervals."""
    from matplotlib.patches import Patch

    sets, lines = report["sets"], report["lines"]
    figure, panels = _panels(len(sets), 4.2, 0.3 * len(lines) + 1.3, 2.0)
    for axis, name in zip(panels, sets, strict=True):
        for at, line in enumerate(lines):
            part = line["sets"].get(name)
            if part is None or part["greedy"]["mean"] is None:
                continue
            colour = {"anchor": GREY, "untrained": LIGHT}.get(line["state"], BLUE)
            found = part["greedy"]
            axis.barh(at, found["mean"], color=colour, height=0.72)
            if found["low"] is not None:
                axis.plot([found["low"], found["high"]], [at, at], color="#222222", linewidth=1.1)
            axis.text(max(found["high"] or 0, found["mean"]) + 0.015, at, f"{found['mean']:.2f}", va="center", fontsize=7.5)
        axis.set_title(name, fontsize=11)
        axis.set_xlim(0, 1.1)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(lines)), [line["title"] for line in lines])
    panels[0].set_ylim(len(lines) - 0.4, -0.6)
    keys = [Patch(color=GREY, label="no method, same reader"), Patch(color=LIGHT, label="untrained"), Patch(color=BLUE, label="trained")]
    figure.legend(handles=keys, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle("Exact match, greedy, with 95 % intervals over dialogues", fontsize=12)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99))
    return figure


def _types(report: Mapping[str, Any]) -> Any:
    """Trained lines by type of question on each set, as a grid of shares."""
    lines = [line for line in report["lines"] if line["state"] != "untrained"]
    sets = report["sets"]
    figure, panels = _panels(len(sets), 4.4, 0.34 * len(lines) + 1.6, 2.0)
    for axis, name in zip(panels, sets, strict=True):
        held = [line for line in lines if name in line["sets"]]
        types = list(held[0]["sets"][name]["types"]) if held else []
        found = [line["sets"].get(name, {}).get("types", {}) for line in lines]
        cells = [[of_line.get(kind, {}).get("mean") for kind in types] for of_line in found]
        shares = [[float("nan") if value is None else value for value in row] for row in cells]
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                if value is not None:
                    axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black")
        axis.set_xticks(range(len(types)), [kind.replace("_", "-") for kind in types], rotation=40, ha="right", fontsize=8)
        axis.set_title(name, fontsize=11)
    panels[0].set_yticks(range(len(lines)), [line["title"] for line in lines])
    figure.suptitle("Exact match by type of question, greedy", fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return figure


def _learning(report: Mapping[str, Any]) -> Any:
    """The training reward of each row over sampled tokens, the mean of the seeds; names stand at the lines' ends."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.4, 4.6))
    thousands = report["plan"]["budget"] / 1000
    curves = {name: trained["curve"] for name, trained in report["training"].items() if name in report["plan"]["rows"]}
    at = -1.0
    for number, name in enumerate(sorted(curves, key=lambda name: curves[name][-1])):
        curve = curves[name]
        (line,) = axis.plot([thousands * n / (len(curve) - 1) for n in range(len(curve))], curve, color=COLOURS[number % len(COLOURS)])
        at = max(curve[-1], at + 0.028)  # names must not lie on each other
        axis.annotate(
            report["plan"]["rows"][name]["title"],
            (thousands * 1.012, at),
            color=line.get_color(),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axis.set_xlim(0, thousands)
    axis.set_xlabel("sampled tokens of training, thousands")
    axis.set_ylabel("mean reward")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Reward in training, mean of the seeds", fontsize=12)
    figure.tight_layout()
    return figure
