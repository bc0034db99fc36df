"""The arena's numbers, from the ledgers alone: each row's score on each set, over its seeds and attempts, and what they cost.

Scores are exact match over all questions, those to abstain on included: a memory that invents loses what one that says `unknown` wins.
Intervals are Student's over dialogues, whose questions stand or fall together. Runs nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memfactory.arena.plan import Plan
from memfactory.arena.work import BEFORE, Place, jobs_of
from memfactory.common.files import read_jsonl
from memfactory.evaluation.by_type import interval_of
from memfactory.evaluation.compare import ALPHA, number
from memfactory.evaluation.costs import cost_rows
from memfactory.evaluation.estimates import holm
from memfactory.evaluation.jobs import Job, load_scores
from memfactory.evaluation.ledger import GREEDY, SAMPLED
from memfactory.evaluation.questions import Asked, rows_of
from memfactory.evaluation.statistics import covered_verdict, paired_difference, scored_share

KINDS = (SAMPLED, GREEDY)


@dataclass
class Cell:
    """One row of the table on one set: every answer's score, by question."""

    asked: list[Asked] = field(default_factory=list)
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    """{sampled or greedy: [question][seed x attempt]}; NaN where infrastructure lost it."""
    seeds: dict[str, float] = field(default_factory=dict)
    """{model: its greedy mean}."""
    cost: dict[str, float] = field(default_factory=dict)
    """Means for one question: tokens written, tokens read; and the words of the memory at the end, which an anchor does not keep."""
    folders: list[Path] = field(default_factory=list)

    @property
    def clusters(self) -> list[str]:
        """Of each question its dialogue."""
        return [asked.cluster for asked in self.asked]

    def of(self, kind: str, chosen: Callable[[Asked], bool] = lambda _: True) -> tuple[list[list[float]], list[str]]:
        """(scores, clusters) of some questions."""
        places = [at for at, asked in enumerate(self.asked) if chosen(asked)]
        return [self.scores[kind][at] for at in places], [self.clusters[at] for at in places]


Table = dict[str, dict[str, Cell]]
"""{line: {set: cell}}: a line is an anchor's kind, `ROW untrained` or `ROW trained`."""


def read_table(plan: Plan, place: Place) -> Table:
    """Every cell that was evaluated, seeds of a row together."""
    parts: dict[str, dict[str, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs_of(plan, place):
        if (Path(job.folder) / "job.json").is_file():
            parts[line_of(plan, job)][job.dataset].append(job)
    return {line: {dataset: _cell(jobs) for dataset, jobs in sets.items()} for line, sets in parts.items()}


def line_of(plan: Plan, job: Job) -> str:
    """Which line of the table a job belongs to."""
    if job.anchor:
        return job.anchor
    row = job.model_name.rpartition("-")[0]
    return f"{row} {BEFORE}" if job.model_name.endswith(BEFORE) else f"{row} trained"


def _cell(jobs: Sequence[Job]) -> Cell:
    cell = Cell(folders=[Path(job.folder) for job in jobs])
    table: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in KINDS}
    asked: dict[str, Asked] = {}
    for job in jobs:
        own: list[float] = []
        for row in rows_of(Path(job.folder)):
            asked.setdefault(row.asked.id, row.asked)
            score = math.nan if row.score is None else row.score
            table[row.kind][row.asked.id].append(score)
            own += [score] if row.kind == "greedy" else []
        cell.seeds[job.model_name] = sum(own) / max(len(own), 1)
    cell.asked = list(asked.values())
    cell.scores = {kind: [table[kind][name] for name in asked] for kind in KINDS}
    cell.cost = _cost(jobs)
    return cell


def _cost(jobs: Sequence[Job]) -> dict[str, float]:
    found = {job.model_name: {job.dataset: load_scores(Path(job.folder))} for job in jobs}
    rows = [row for row in cost_rows(found) if not row["stage"]]
    written = sum(row["completion_tokens"] for row in rows if row["part"] == "writing") / len(jobs)
    read = sum(row["prompt_tokens"] for row in rows) / len(jobs)
    attempts = [attempt for sets in found.values() for scores in sets.values() for attempt in scores.attempts.values()]
    words = sum(len(str(attempt.memory or "").split()) for attempt in attempts) / max(len(attempts), 1)
    return {"written": written, "read": read} | ({} if jobs[0].anchor else {"memory": words})


def mean_of(cell: Cell, kind: str, chosen: Callable[[Asked], bool] = lambda _: True) -> dict[str, float | None]:
    """{"mean", "low", "high", "n"} of some questions of a cell."""
    scores, clusters = cell.of(kind, chosen)
    mean, low, high = interval_of(scores, clusters)
    scored = sum(any(not math.isnan(score) for score in row) for row in scores)
    return {"mean": number(mean), "low": number(low), "high": number(high), "n": scored}


def difference(before: Cell, after: Cell, kind: str, sides: tuple[str, str]) -> dict[str, Any]:
    """after - before on the same questions, with its interval and verdict; `sides`: what the two are called.

    What was lost is left out of the numbers. The verdict and p are as those of any comparison: see `covered_verdict`.
    """
    kept = {asked.id for asked in after.asked}
    both = [asked.id for asked in before.asked if asked.id in kept]
    places = [{asked.id: at for at, asked in enumerate(cell.asked)} for cell in (before, after)]
    a, b = ([cell.scores[kind][place[name]] for name in both] for cell, place in zip((before, after), places, strict=True))
    clusters = [before.asked[places[0][name]].cluster for name in both]
    pair, as_wrong = paired_difference(a, b, clusters=clusters), paired_difference(a, b, failed=0.0, clusters=clusters)
    scored = list(zip(sides, map(scored_share, (a, b)), strict=True))
    said, p = covered_verdict(as_wrong, pair, scored)
    return {
        "diff": number(pair.diff),
        "low": number(pair.ci_low),
        "high": number(pair.ci_high),
        "p": number(p),
        "verdict": said,
        "scored": number(min(share for _, share in scored)),
    }


def gains(plan: Plan, table: Table) -> list[dict[str, Any]]:
    """What training gave each row on each set, sampled and greedy."""
    return [
        {"row": row, "set": dataset, "kind": kind}
        | difference(table[f"{row} {BEFORE}"][dataset], after[dataset], kind, (BEFORE, "trained"))
        for row in plan.rows
        if (after := table.get(f"{row} trained"))
        for dataset in after
        for kind in KINDS
        if dataset in table.get(f"{row} {BEFORE}", {})
    ]


def between(plan: Plan, table: Table, kind: str = "greedy") -> list[dict[str, Any]]:
    """The trained paradigms against each other on each set; p adjusted over all these comparisons (Holm), and the verdict follows it."""
    lines = [name for name in plan.compared if f"{name} trained" in table]
    rows = [
        {"base": one, "row": other, "set": dataset, "kind": kind}
        | difference(table[f"{one} trained"][dataset], table[f"{other} trained"][dataset], kind, (one, other))
        for at, one in enumerate(lines)
        for other in lines[at + 1 :]
        for dataset in plan.held_out
        if dataset in table[f"{one} trained"] and dataset in table[f"{other} trained"]
    ]
    adjusted = holm([math.nan if row["p"] is None else row["p"] for row in rows]) if rows else []
    return [row | {"p_holm": number(p)} | ({"verdict": "tied"} if p >= ALPHA else {}) for row, p in zip(rows, adjusted, strict=True)]


POINTS = 48
"""Of a learning curve."""


def trainings(plan: Plan, place: Place) -> dict[str, dict[str, Any]]:
    """{row: CPU seconds, steps and sampled tokens of training, and the reward at POINTS numbers of tokens; means over the seeds}."""
    found: dict[str, dict[str, Any]] = {}
    for row in plan.rows:
        logs = [place.run(plan.run_name(row, seed)) / "metrics.jsonl" for seed in plan.seeds]
        runs: list[list[Mapping[str, Any]]] = [list(read_jsonl(path)) for path in logs if path.is_file()]
        if runs:
            found[row] = {
                "cpu_seconds": sum(run[-1]["cpu_seconds_total"] for run in runs) / len(runs),
                "steps": sum(len(run) for run in runs) / len(runs),
                "tokens": sum(step["rollout_tokens"] for run in runs for step in run) / len(runs),
                "curve": [sum(points) / len(runs) for points in zip(*(_curve(run, plan.budget) for run in runs), strict=True)],
            }
    return found


def _curve(run: Sequence[Mapping[str, Any]], budget: int) -> list[float]:
    """The mean reward of the steps around each of POINTS numbers of sampled tokens, up to the budget."""
    sampled = np.array([step["rollout_tokens"] for step in run])
    before = sampled.cumsum() - sampled  # a step's reward is of the weights that it began with
    rewards = np.array([step["reward"] for step in run])
    far = ((np.linspace(0, budget, POINTS)[:, None] - before[None, :]) / (0.04 * budget)) ** 2
    near = np.exp(-0.5 * (far - far.min(1, keepdims=True)))
    return [float(value) for value in (near * rewards).sum(1) / near.sum(1)]
