"""Scores of a task by the benchmark's types of question: rows, a terminal table and its Markdown. Knows only scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from memfactory.evaluation.compare import Row, number
from memfactory.evaluation.estimates import wilson
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.report import markdown_table
from memfactory.evaluation.statistics import by_question, clustered_mean

ABSTENTION = "to abstain on"
_HEADINGS = ("task", "model", "type", "n", "score [95 %]")


def type_rows(model: str, scores: Scores) -> list[Row]:
    """A row for each type of question that has an answer, and one for those to abstain on; none for a set without types.

    The score is of the sampled attempts (of the greedy one if there are none); what infrastructure lost counts as wrong.
    """
    names = scores.about.get("type_names", {})
    kinds = [(kind, scores) for kind in dict.fromkeys(scores.types)]
    parts = [(kind, names.get(kind, ""), _of_type(part, kind)) for kind, part in sorted(kinds, key=lambda pair: pair[0])]
    if scores.abstention is not None:
        parts.append((ABSTENTION, "", (_counted(scores.abstention), scores.abstention.clusters)))
    rows = []
    for kind, name, (marks, clusters) in parts:
        mean, low, high = interval_of(marks, clusters)
        rows.append({
            "dataset": scores.dataset, "model": model, "type": kind, "name": name, "n": len(marks), "score": number(mean),
            "ci_low": number(low), "ci_high": number(high), "abstain": kind == ABSTENTION,
        })  # fmt: skip
    return rows


def interval_of(scores: Sequence[Sequence[float]], clusters: Sequence[str]) -> tuple[float, float, float]:
    """(mean, low, high) of [n][k] scores with a 95 % interval; NaN limits with fewer than two clusters, or if all have one fraction.

    Student's over clusters; Wilson's where each is one question, right or wrong, and where all came out right or all wrong:
    Student's would then have no width.
    """
    mean = clustered_mean(scores, clusters=clusters)
    values = by_question(scores)
    binary = all(value in (0.0, 1.0) for value in values[~np.isnan(values)])
    if binary and mean.clusters > 1 and (mean.value in (0.0, 1.0) or mean.clusters == mean.n):
        return mean.value, *wilson(round(mean.value * mean.clusters), mean.clusters)
    if mean.se == 0:  # a few questions at one half: no spread to estimate from, and no certainty either
        return mean.value, float("nan"), float("nan")
    low, high = mean.interval()
    return mean.value, max(low, 0.0), min(high, 1.0)


def _counted(scores: Scores) -> list[list[float]]:
    return scores.counted("sampled" if scores.k else "greedy")


def _of_type(scores: Scores, kind: str) -> tuple[list[list[float]], list[str]]:
    chosen = [at for at, other in enumerate(scores.types) if other == kind]
    counted = _counted(scores)
    return [counted[at] for at in chosen], [scores.clusters[at] for at in chosen]


def all_type_rows(scores: Mapping[str, Mapping[str, Scores]]) -> list[Row]:
    """Rows of {model: {data set: scores}}, by data set; of sets that have more than one type."""
    found = []
    for dataset in dict.fromkeys(name for sets in scores.values() for name in sets):
        for model, sets in scores.items():
            rows = type_rows(model, sets[dataset]) if dataset in sets else []
            found += rows if len(rows) > 1 else []
    return found


def _cells(rows: Iterable[Row]) -> list[list[str]]:
    lines = []
    for row in rows:
        kind = f"{row['type']} {row['name']}".strip()
        interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        score = "–" if row["score"] is None else f"{row['score']:.3f}{interval}"
        lines.append([row["dataset"], row["model"], kind, str(row["n"]), score])
    return lines


def type_table(rows: Sequence[Row]) -> Table:
    """The types as a terminal table."""
    shown = Table(title="Score by type of question", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in _HEADINGS:
        shown.add_column(name, justify="right" if name in ("n", "score [95 %]") else "left")
    for cells in _cells(rows):
        shown.add_row(*map(escape, cells))
    return shown


def type_markdown(rows: Sequence[Row]) -> str:
    """The same in Markdown."""
    return markdown_table([_HEADINGS, *_cells(rows)], right=(3, 4))


def task_notes(model: str, scores: Scores) -> list[str]:
    """What a task's table leaves out, in words: its scorer, what was repaired in its file, abstentions, label errors."""
    about = scores.about
    if "metric" not in about:
        return []
    mended = "; ".join(f"{count} x {what}" for what, count in sorted(about["repaired"].items()))
    notes = [f"{scores.dataset}: {about['metric']} of {len(scores.examples)} questions{f'. Repaired: {mended}' if mended else ''}."]
    if "overall" in about:
        precision = about["abstention_precision"]
        notes.append(
            f"{model} on {scores.dataset}: of {about['abstention_n']} questions to abstain on, {about['abstention_recall']:.1%} abstained; "
            f"{'it never abstained' if precision is None else f'{precision:.1%} of its abstentions were right'}. "
            f"With these questions in the mean it would be {about['overall']:.4f}."
        )
    if "grouped" in about:
        notes.append(
            f"{model} on {scores.dataset}: grouped {about['grouped']:.4f}: a question counts if its unanswerable twin is abstained on."
        )
    if about.get("without_label_errors") is not None:
        without, wrong = about["without_label_errors"], about["label_errors"]
        notes.append(f"{model} on {scores.dataset}: {without:.4f} without {wrong} questions whose gold is known to be wrong.")
    return notes
