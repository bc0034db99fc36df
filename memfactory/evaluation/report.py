"""Tables, curves and files of a comparison: terminal, Markdown, JSON, PNG. Knows only scores and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from memfactory.common.files import read_jsonl, write_json, write_text
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.statistics import paired_difference

Row = dict[str, Any]


def result_row(model: str, scores: Scores) -> Row:
    """One line of `results`: a model on a data set."""
    mean = scores.avg_at_k
    return {
        "dataset": scores.dataset, "model": model, "n": mean.n, "k": len(scores.sampled[0]),
        "avg_at_k": _number(mean.value), "se": _number(mean.se), "greedy": _number(scores.greedy_mean.value),
        "unscorable": sum(math.isnan(s) for row in [*scores.sampled, *scores.greedy] for s in row),
    }  # fmt: skip


def paired_rows(before: Scores, after: Scores) -> list[Row]:
    """Two lines of `paired`: after - before on the same questions, sampled and greedy, with 95 % intervals."""
    rows = []
    for metric in ("sampled", "greedy"):
        pair = paired_difference(getattr(before, metric), getattr(after, metric))
        numbers = {"diff": pair.diff, "ci_low": pair.ci_low, "ci_high": pair.ci_high}
        rows.append({"dataset": before.dataset, "metric": metric} | {k: _number(v) for k, v in numbers.items()})
    return rows


def _number(value: float) -> float | None:
    """Four digits, and null for what could not be computed (an interval of one question, a set without a scorable attempt)."""
    return None if math.isnan(value) else round(value, 4)


def _shown(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _cells(results: Sequence[Row], paired: Sequence[Row]) -> list[list[str]]:
    """Lines of the table: each data set's models, then the gain of the trained one over the base, with its interval."""
    lines = []
    for row in results:
        lines.append(
            [row["dataset"], str(row["n"]), row["model"], f"{_shown(row['avg_at_k'])} ± {_shown(row['se'])}", _shown(row["greedy"])]
        )
        gains = {p["metric"]: p for p in paired if p["dataset"] == row["dataset"]}
        if row["model"] == "trained" and gains:
            shown = [[_shown(gains[m][key], "+.3f") for key in ("diff", "ci_low", "ci_high")] for m in ("sampled", "greedy")]
            lines.append(["", "", "gain", *(f"{diff} [{low}, {high}]" for diff, low, high in shown)])
    return lines


def _headings(results: Sequence[Row]) -> list[str]:
    return ["data set", "n", "model", f"sampled (avg@{results[0]['k']})", "greedy"]


def table(results: Sequence[Row], paired: Sequence[Row]) -> Table:
    """Results and paired gains as a terminal table."""
    numbers = ", ".join(sorted({str(row["n"]) for row in results}))
    shown = Table(
        title=f"Held-out exact match, {numbers} questions a set; gains with 95 % intervals",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in (headings := _headings(results)):
        if name != "n":  # the terminal is 80 columns wide; the files have it
            shown.add_column(name, justify="left" if name in ("data set", "model") else "right", no_wrap=True, min_width=len(name) + 2)
    for cells in _cells(results, paired):
        shown.add_row(*(cell for name, cell in zip(headings, cells, strict=True) if name != "n"), style="bold" if "gain" in cells else None)
    return shown


def markdown(results: Sequence[Row], paired: Sequence[Row]) -> str:
    """The same table in Markdown."""
    lines = [_headings(results), ["---", "--:", "---", "--:", "--:"], *_cells(results, paired)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_report(folder: Path, results: list[Row], paired: list[Row], about: Row, preface: str) -> None:
    """`report.json` (`results`, `paired` and what is in `about`) and `report.md`."""
    write_json(folder / "report.json", about | {"results": results, "paired": paired})
    notes = (
        "Sampled is the mean of k attempts at temperature 1, ± its standard error over questions; greedy is one attempt at temperature 0. "
        "Gains are paired by question, with 95 % Student intervals over questions."
    )
    write_text(folder / "report.md", f"{preface}\n\n{markdown(results, paired)}\n\n{notes}\n")


def plot_curves(metrics: Path, picture: Path, title: str) -> None:
    """Learning curves of a run as a PNG: the first four of loss, reward, held-out scores, entropy, lengths that it logged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    rows = read_jsonl(metrics)
    keys_seen = {key for row in rows for key in row}
    held_out = sorted(key for key in keys_seen if key.startswith("eval/") and key != "eval/score")
    panels = [
        ("Loss", ["loss"] if "reward" not in keys_seen else []),
        ("Training reward (mean of a rollout batch)", ["reward"]),
        ("Held-out score", held_out),
        ("Entropy (nats) and informative groups (share)", ["entropy", "informative"]),
        ("Response length (tokens)", sorted(key for key in keys_seen if key.startswith("length/"))),
        ("Gradient norm", ["grad_norm"]),
    ]
    panels = [(name, [key for key in keys if key in keys_seen]) for name, keys in panels]
    panels = [(name, keys) for name, keys in panels if keys][:4]
    figure, axes = pyplot.subplots(
        -(-len(panels) // 2), 2, figsize=(10, 3.5 * -(-len(panels) // 2)), constrained_layout=True, squeeze=False
    )
    figure.suptitle(title)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, keys) in zip(axes.flat, panels, strict=False):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            label = key.removeprefix("eval/").removeprefix("length/")
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                label=label,
                linewidth=1.6,
                marker="o" if len(points) < 20 else None,
                markersize=3,
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step (rollout batch)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=8)
        if axis.get_ylim()[0] > 0:
            axis.set_ylim(bottom=0)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
