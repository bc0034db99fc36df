"""Tables, curves and files of a comparison: terminal, Markdown, JSON, PNG. Knows only scores and metrics."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from memfactory.common.files import read_jsonl, write_json, write_text
from memfactory.evaluation.compare import Row, adjusted, is_compared, number, paired_rows
from memfactory.evaluation.estimates import pass_means, wilson
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.statistics import COVERED, Mean, clustered_mean

NOTES = (
    "Sampled is the mean of k attempts, ± its standard error over questions; greedy is one attempt at temperature 0. Differences are "
    "paired by question, with 95 % Student intervals over questions (over conversations, where several questions share one). Each "
    "column has its own verdict: better or worse if the interval leaves 0 out and, of several data sets, the p adjusted for their number "
    "(Holm) is below .05; else tied."
)
COVERAGE_NOTE = (
    f"Some attempts have no score: without one for {COVERED:.0%} of the attempts on both sides there is no verdict, and better or worse "
    "holds with the lost ones counted as wrong and with them left out."
)
"""Said under differences where it applied."""

TASK_COLUMNS = (
    "metric", "abstention_n", "abstention_recall", "abstention_precision", "overall", "grouped", "label_errors", "without_label_errors",
)  # fmt: skip
"""What a task adds to a row: its scorer; abstentions, which are not in the score; the score without questions of wrong gold."""


def result_row(model: str, scores: Scores) -> Row:
    """One line of `results`: a model on a data set. What infrastructure lost counts as wrong; `completed_only` leaves it out."""
    mean, greedy = (clustered_mean(scores.counted(metric), clusters=scores.clusters) for metric in ("sampled", "greedy"))
    made = [a for a in scores.attempts.values() if a.status != "failed"]
    row: Row = {
        "dataset": scores.dataset, "model": model, "n": len(scores.examples), "k": scores.k, "avg_at_k": number(mean.value),
        "se": number(mean.se), "greedy": number(greedy.value), "coverage": number(scores.coverage),
    }  # fmt: skip
    row |= {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.about.items() if name in TASK_COLUMNS}
    if scores.clusters:
        row["clusters"] = greedy.clusters
    if scores.k > 1 and (passed := pass_means(scores.counted("sampled"), scores.k, scores.clusters)):
        row |= {"pass_at_k": number(passed[0].value), "pass_hat_k": number(passed[1].value)}
    if (low_high := greedy_interval(scores, greedy)) is not None:
        row |= {"greedy_low": number(low_high[0]), "greedy_high": number(low_high[1])}
    if scores.coverage < 1:
        row |= {"avg_at_k_completed_only": number(scores.avg_at_k.value), "greedy_completed_only": number(scores.greedy_mean.value)}
    if made:
        row["prompt_tokens"] = round(sum(a.prompt_tokens for a in made) / len(made), 1)
        row["completion_tokens"] = round(sum(a.completion_tokens for a in made) / len(made), 1)
    return row


def greedy_interval(scores: Scores, greedy: Mean) -> tuple[float, float] | None:
    """95 % interval of the greedy mean: Wilson's for right and wrong of single questions, Student's otherwise; None without any."""
    right = [row[0] for row in scores.counted("greedy") if not math.isnan(row[0])]
    if scores.clusters or any(score not in (0.0, 1.0) for score in right):
        return greedy.interval() if greedy.clusters > 1 else None
    return wilson(int(sum(right)), len(right)) if right else None


def summary(
    scores: Mapping[str, Mapping[str, Scores]], anchors: Mapping[str, tuple[str, str]] | None = None
) -> tuple[list[Row], list[Row]]:
    """(`results`, `paired`) of {model: {data set: scores}}, by data set; every later model is paired with the first that has the set.

    `anchors`: {name in `scores`: (model that it is an anchor of, which anchor)}. They stand behind their model, are paired with it,
    and their `results` have `anchor` and `of`.
    """
    anchors = anchors or {}
    results: list[Row] = []
    paired: list[Row] = []
    for dataset in dict.fromkeys(name for sets in scores.values() for name in sets):
        here = [name for name, sets in scores.items() if dataset in sets]
        models = [name for name in here if name not in anchors]
        order = sorted(here, key=lambda name: here.index(of) if (of := anchors.get(name, (name,))[0]) in here else len(here))
        for name in order:
            of, anchor = anchors.get(name, (models[0] if models else "", ""))
            results.append(result_row(name, scores[name][dataset]) | ({"anchor": anchor, "of": of} if anchor else {}))
            if of != name and of in here:
                paired += paired_rows(of, scores[of][dataset], name, scores[name][dataset])
    return results, adjusted(paired)


def _shown(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def coverage_note(paired: Sequence[Row]) -> str:
    """`COVERAGE_NOTE` if an attempt of a comparison has no score; else empty."""
    return COVERAGE_NOTE if any("diff_completed" in row or not is_compared(row) for row in paired) else ""


def interval(row: Row) -> str:
    """`+0.630 [+0.574, +0.686]` of a paired row; a dash where the two are not compared."""
    if not is_compared(row) or row["diff"] is None:
        return "–"
    diff, low, high = (_shown(row[key], "+.3f") for key in ("diff", "ci_low", "ci_high"))
    return f"{diff} [{low}, {high}]"


def _gain(row: Row) -> str:
    """`better +0.630 [+0.574, +0.686]`: a column's verdict with its difference, or why there is none."""
    if not is_compared(row):
        return str(row["verdict"])
    return "–" if row["diff"] is None else f"{row['verdict']} {interval(row)}"


def _cells(results: Sequence[Row], paired: Sequence[Row]) -> list[list[str]]:
    """Lines of the table: a model on a data set, and under it what it gains over the first model."""
    lines = []
    gains = {(row["dataset"], row["model"], row["metric"]): row for row in paired}
    for row in results:
        holes = "" if row["coverage"] == 1 else f" ({row['coverage']:.0%} scored)"
        name = f"  + {row['anchor']}" if row.get("anchor") else row["model"]
        shown = [row["dataset"], str(row["n"]), name + holes, _with_error(row)]
        lines.append([*shown, _shown(row["greedy"])])
        found = [gains.get((row["dataset"], row["model"], metric)) for metric in ("sampled", "greedy")]
        if found[0] is not None and found[1] is not None:
            lines.append(["", "", f"against {found[0]['base']}", *(_gain(gain) for gain in found if gain)])
    return lines


def _headings(results: Sequence[Row]) -> list[str]:
    return ["data set", "n", "model", f"sampled (avg@{results[0]['k'] if results else 'k'})", "greedy"]


def table(results: Sequence[Row], paired: Sequence[Row]) -> Table:
    """Results and paired gains as a terminal table."""
    numbers = ", ".join(sorted({str(row["n"]) for row in results}))
    shown = Table(
        title=f"Held-out score, {numbers} questions a set; differences with 95 % intervals",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=coverage_note(paired) or None,
    )
    for name in (headings := _headings(results)):
        if name != "n":  # the terminal is 80 columns wide; the files have it
            shown.add_column(name, justify="left" if name in ("data set", "model") else "right", min_width=min(len(name) + 2, 10))
    for cells in _cells(results, paired):
        style = "bold" if not cells[0] else None
        cells = [cell.replace(" [", "\n[") for cell in cells]  # an interval has a line of its own
        shown.add_row(*(escape(cell) for name, cell in zip(headings, cells, strict=True) if name != "n"), style=style)
    return shown


def markdown(results: Sequence[Row], paired: Sequence[Row]) -> str:
    """The same table in Markdown."""
    return markdown_table([_headings(results), *_cells(results, paired)], right=(1, 3, 4))


def markdown_table(lines: Sequence[Sequence[str]], right: Container[int]) -> str:
    """A Markdown table of a heading and lines; the columns in `right` are aligned so."""
    rule = ["--:" if at in right else "---" for at in range(len(lines[0]))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])


def paired_table(rows: Sequence[Row]) -> Table:
    """What `memfactory compare` prints."""
    sets = len({row["dataset"] for row in rows})
    shown = Table(title=escape(f"B = {rows[0]['model']} against A = {rows[0]['base']}"), box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    shown.caption = (
        "p: of the difference"
        + (f", adjusted for {sets} data sets (Holm); the verdict follows it" if sets > 1 else "")
        + ". Detects: the least true difference that 80 of 100 such comparisons would find. "
        "A / B: questions that only one of the two got right, and McNemar's exact p on them"
        + (f". {note}" if (note := coverage_note(rows).removesuffix(".")) else "")
    )
    for name in ("data set", "difference [95 %]", "p", "detects", "A / B", "verdict"):
        shown.add_column(
            name,
            justify="left" if name in ("data set", "verdict") else "right",
            no_wrap=name not in ("data set", "verdict"),
            overflow="fold",
        )
    for row in rows:
        if row["metric"] == "sampled":  # the terminal is 80 columns wide: the data set's name has a line of its own
            shown.add_row(escape(row["dataset"]), f"n = {row['n']}", style="bold")
        test = (
            f"{row['only_base_right']} / {row['only_model_right']}  {_p(row['mcnemar_p'])}"
            if "mcnemar_p" in row and is_compared(row)
            else ""
        )
        colour = {"better": "[green]", "worse": "[red]"}.get(row["verdict"], "")
        cells = [escape(interval(row)), _p(row["p_holm"]), _shown(row["mde"] if is_compared(row) else None), test]
        shown.add_row(f"  {row['metric']}", *cells, f"{colour}{escape(row['verdict'])}")
    return shown


def _p(value: float | None) -> str:
    return "<.001" if value is not None and value < 0.001 else _shown(value).replace("0.", ".", 1)


def _with_error(row: Row, form: str = ".3f") -> str:
    return "–" if row["avg_at_k"] is None else f"{_shown(row['avg_at_k'], form)} ± {_shown(row['se'])}"


def _published(row: Row) -> str:
    return _with_error(row, ".4f") if row["k"] else f"{_shown(row['greedy'], '.4f')} (greedy)"


def published_table(results: Sequence[Row]) -> list[list[str]]:
    """A line for each model, a column for each data set and their mean, as the papers print it; `–` where one is missing."""
    datasets = list(dict.fromkeys(row["dataset"] for row in results))
    cells = {(row["model"], row["dataset"]): row for row in results}
    lines = [["model", *datasets, "average"]]
    for model in dict.fromkeys(row["model"] for row in results):
        rows = [cells.get((model, dataset)) for dataset in datasets]
        values = [value for row in rows if row is not None and (value := row["avg_at_k"] if row["k"] else row["greedy"]) is not None]
        mean = sum(values) / len(values) if len(values) == len(datasets) else None
        lines.append([model, *("–" if row is None else _published(row) for row in rows), _shown(mean, ".4f")])
    return lines


def write_results(folder: Path, results: list[Row], paired: list[Row], about: Row, preface: str, sections: Sequence[str] = ()) -> None:
    """`report.json` (`results`, `paired` and what is in `about`), `report.md`, which ends with `sections`, and `results.csv`."""
    write_json(folder / "report.json", about | {"results": results, "paired": paired})
    published = markdown_table(published_table(results), right=range(1, 99))
    notes = [NOTES, *filter(None, [coverage_note(paired)])]
    text = "\n\n".join([preface, markdown(results, paired), *notes, published, *sections])
    write_text(folder / "report.md", f"{text}\n")
    write_text(folder / "results.csv", csv_text(results))


def csv_text(results: Sequence[Row]) -> str:
    """`results` as CSV, a column for each key that any row has."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in results for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue()


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
