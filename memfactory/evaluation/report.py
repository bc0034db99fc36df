"""Tables, curves and files of a comparison: terminal, Markdown, JSON, PNG. Knows only scores and metrics."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
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
        "avg_at_k": round(mean.value, 4), "se": round(mean.se, 4), "greedy": round(scores.greedy_mean.value, 4),
        "unscorable": sum(math.isnan(s) for row in [*scores.sampled, *scores.greedy] for s in row),
    }  # fmt: skip


def paired_rows(before: Scores, after: Scores) -> list[Row]:
    """Two lines of `paired`: after - before on the same questions, sampled and greedy, with 95 % intervals."""
    rows = []
    for metric in ("sampled", "greedy"):
        pair = paired_difference(getattr(before, metric), getattr(after, metric))
        numbers = {"diff": pair.diff, "ci_low": pair.ci_low, "ci_high": pair.ci_high}
        rows.append({"dataset": before.dataset, "metric": metric} | {k: round(v, 4) for k, v in numbers.items()})
    return rows


def table(results: Sequence[Row], paired: Sequence[Row]) -> Table:
    """Results and differences as one terminal table, a row per data set and model."""
    k = results[0]["k"]
    head = Table(title="Held-out exact match")
    for name in ("data set", "n", "model", f"avg@{k} sampled", "greedy", "gain sampled [95 %]", "gain greedy [95 %]"):
        head.add_column(name, justify="left" if name in ("data set", "model") else "right")
    for row in results:
        gains = {p["metric"]: p for p in paired if p["dataset"] == row["dataset"]} if row["model"] == "trained" else {}
        cells = [_gain(gains[m]) if m in gains else "" for m in ("sampled", "greedy")]
        head.add_row(
            row["dataset"], str(row["n"]), row["model"], f"{row['avg_at_k']:.3f} ± {row['se']:.3f}", f"{row['greedy']:.3f}", *cells
        )
    return head


def _gain(pair: Row) -> str:
    return f"{pair['diff']:+.3f} [{pair['ci_low']:+.3f}, {pair['ci_high']:+.3f}]"


def markdown(results: Sequence[Row], paired: Sequence[Row]) -> str:
    """The same table in Markdown."""
    k = results[0]["k"]
    lines = [
        f"| data set | n | model | avg@{k} sampled | greedy | gain sampled [95 %] | gain greedy [95 %] |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in results:
        gains = {p["metric"]: _gain(p) for p in paired if p["dataset"] == row["dataset"]} if row["model"] == "trained" else {}
        lines.append(
            f"| {row['dataset']} | {row['n']} | {row['model']} | {row['avg_at_k']:.3f} ± {row['se']:.3f} | {row['greedy']:.3f} | "
            f"{gains.get('sampled', '')} | {gains.get('greedy', '')} |"
        )
    return "\n".join(lines)


def as_text(shown: Table, width: int = 120) -> str:
    """A rich table as plain text, for files and logs."""
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(shown)
    return buffer.getvalue()


def write_report(folder: Path, results: list[Row], paired: list[Row], about: Row, preface: str) -> None:
    """`report.json` (`results`, `paired` and what is in `about`) and `report.md`."""
    write_json(folder / "report.json", about | {"results": results, "paired": paired})
    notes = (
        "Sampled is the mean of k attempts at temperature 1, ± its standard error over questions; greedy is one attempt at temperature 0. "
        "Gains are paired by question, with 95 % Student intervals over questions."
    )
    write_text(folder / "report.md", f"{preface}\n\n{markdown(results, paired)}\n\n{notes}\n")


def plot_curves(metrics: Path, picture: Path, title: str) -> None:
    """Learning curves of a run as a PNG: reward, held-out scores, entropy and lengths against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_jsonl(metrics)
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    figure.suptitle(title)
    panels = [
        ("Training reward (mean of a rollout batch)", ["reward"]),
        ("Held-out exact match", sorted({k for row in rows for k in row if k.startswith("eval/") and k != "eval/score"})),
        ("Entropy (nats) and informative groups (share)", ["entropy", "informative"]),
        ("Response length (tokens)", sorted({k for row in rows for k in row if k.startswith("length/")})),
    ]
    for axis, (name, keys) in zip(axes.flat, panels, strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            label = key.removeprefix("eval/").removeprefix("length/")
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.6, marker="o" if len(points) < 20 else None, markersize=3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step (rollout batch)")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=8)
        if not name.startswith("Response"):
            axis.set_ylim(bottom=0)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
