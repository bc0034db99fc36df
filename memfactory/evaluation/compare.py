"""Two evaluated models side by side: the same questions, paired, with a verdict. Knows folders of ledgers, no agent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, MissingFileError
from memfactory.common.files import read_object
from memfactory.evaluation.estimates import holm, minimum_detectable_effect
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import load_scores
from memfactory.evaluation.ledger import differences, read_job
from memfactory.evaluation.replay import hash_in
from memfactory.evaluation.statistics import NOT_COMPARED, covered_verdict, few_clusters, mcnemar, paired_difference, scored_share

Row = dict[str, Any]

ALPHA = 0.05
"""A difference whose p, adjusted over the data sets, is not below this is called tied."""

_MUST_AGREE = ("data.", "env.")
"""Fields of a fingerprint without which two scores are not of the same thing."""


def number(value: float) -> float | None:
    """Four digits, and null for what could not be computed (an interval of one question, a set without a scorable attempt)."""
    return None if math.isnan(value) else round(value, 4)


def paired_rows(base: str, before: Scores, model: str, after: Scores) -> list[Row]:
    """`model` - `base` on their common questions, sampled and greedy, each with a 95 % interval, its p and a verdict.

    What infrastructure lost counts as wrong; `diff_completed` leaves it out on both sides, where there is any, and `verdict` and `p`
    are of both ways (see `covered_verdict`). `mde` is the least true difference that such a comparison would find in 80 of 100 runs.
    `clusters` is there where questions share conversations.
    """
    places = {example: at for at, example in enumerate(after.examples)}
    shared = [(at, places[example]) for at, example in enumerate(before.examples) if example in places]
    clusters = [before.clusters[at] for at, _ in shared] if before.clusters else None
    rows = []
    for metric in ("sampled", "greedy"):
        whole = [(before.counted(metric), after.counted(metric)), (getattr(before, metric), getattr(after, metric))]
        (a, b), (c, d) = (([first[at] for at, _ in shared], [second[at] for _, at in shared]) for first, second in whole)
        pair = paired_difference(a, b, clusters=clusters)
        left_out = pair if min(before.coverage, after.coverage) == 1 else paired_difference(c, d, clusters=clusters)
        said, p = covered_verdict(pair, left_out, [(base, scored_share(c)), (model, scored_share(d))])
        row: Row = {
            "dataset": before.dataset, "base": base, "model": model, "metric": metric, "n": pair.n, "diff": number(pair.diff),
            "ci_low": number(pair.ci_low), "ci_high": number(pair.ci_high), "verdict": said,
            "p": _p(p), "mde": number(minimum_detectable_effect(pair.se, pair.clusters)),
        }  # fmt: skip
        if clusters:
            row["clusters"] = pair.clusters
        if min(before.coverage, after.coverage) < 1:
            row["diff_completed"] = number(left_out.diff)
        if metric == "greedy" and (test := mcnemar([before.greedy[at][0] for at, _ in shared], [after.greedy[at][0] for _, at in shared])):
            row |= {"only_base_right": test.only_a, "only_model_right": test.only_b, "mcnemar_p": _p(test.p)}
        rows.append(row)
    return rows


def _p(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.3g}")


def adjusted(rows: list[Row]) -> list[Row]:
    """The same rows with `p_holm`: p adjusted over the data sets on which two models are compared (Holm, 1979), each metric by itself.

    The verdict follows it: of several data sets the one that by chance leaves 0 out of its interval is tied.
    """
    families: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        families.setdefault((row["base"], row["model"], row["metric"]), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([math.nan if row["p"] is None else row["p"] for row in family]), strict=True):
            row["p_holm"] = _p(p)
            if len(family) > 1 and p >= ALPHA:
                row["verdict"] = "tied"
    return rows


def is_compared(row: Mapping[str, Any]) -> bool:
    """Whether the verdict is one; where too much was lost the row's numbers tell nothing of the two."""
    return not row["verdict"].startswith(NOT_COMPARED)


def datasets_of(folder: Path) -> dict[str, Path]:
    """{data set: its folder} of an evaluated model's folder, or of the folder of one of its data sets."""
    if (folder / "job.json").is_file():
        return {read_job(folder)["dataset"]: folder}
    found = {read_job(job.parent)["dataset"]: job.parent for job in sorted(folder.glob("*/job.json"))}
    if not found:
        inner = sorted({str(job.parent.parent) for job in folder.glob("*/*/job.json")})
        advice = f" It holds several models: {', '.join(inner)}. Name two of them." if inner else " `memfactory eval` makes one."
        raise MissingFileError(f"{folder} is not the folder of an evaluated model.{advice}")
    return found


def compare(base: Path, model: Path) -> tuple[list[Row], list[str]]:
    """(paired rows on the data sets that both have, notes on what differs besides the model or is missing on a side)."""
    a, b = datasets_of(base), datasets_of(model)
    names = {folder: read_job(next(iter(sets.values())))["model_name"] for folder, sets in ((base, a), (model, b))}
    labels = (names[base], names[model]) if names[base] != names[model] else (str(base), str(model))
    shared = [name for name in a if name in b]
    if not shared:
        raise ConfigError(f"No data set in common: {base} has {', '.join(a)}; {model} has {', '.join(b)}.")
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for name in shared:
        notes |= dict.fromkeys(f"differs besides the model: {text}" for text in other_differences(a[name], b[name]))
        before, after = load_scores(a[name]), load_scores(b[name])
        # The same data (its hash says so) under another file's name has other names for the same examples: pair by place.
        after = replace(after, examples=[*before.examples, *after.examples[len(before.examples) :]][: len(after.examples)])
        rows += paired_rows(labels[0], before, labels[1], after)
        sides = zip(labels, (before, after), strict=True)
        notes |= dict.fromkeys(f"{label} on {name}: {scores.lost}. Start its evaluation again." for label, scores in sides if scores.lost)
    few = {row["dataset"]: few_clusters(row["clusters"]) for row in rows if "clusters" in row}
    notes |= dict.fromkeys(f"{name}: {warning}." for name, warning in few.items() if warning)
    notes |= {f"only one of them was evaluated on {name}, which is left out": None for name in {**a, **b} if name not in shared}
    return adjusted(rows), list(notes)


def other_differences(base: Path, model: Path) -> list[str]:
    """What differs between two evaluated data-set folders besides the model; other data or another env raises `ConfigError`."""
    changed = differences(read_object(base / "fingerprint.json"), read_object(model / "fingerprint.json"))
    if wrong := [text for text in changed if text.startswith(_MUST_AGREE)]:
        raise ConfigError(f"{base} and {model} were not scored on the same: {'; '.join(wrong)}. Evaluate both on one data set and env.")
    if any(text.startswith("memories") for text in changed) and hash_in(base) == hash_in(model):
        changed = [text for text in changed if not text.startswith("memories")]  # one wrote what the other answered from
    return [text for text in changed if not text.startswith("model:")]
