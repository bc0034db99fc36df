"""The arena's report: `report.json` with every number, and from it `report.md`, a terminal table and the charts. Runs nothing."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table as Printed

from memfactory.arena.charts import draw
from memfactory.arena.diagnosis import LOST, MEANING, diagnose
from memfactory.arena.page import page, title_of
from memfactory.arena.plan import Plan
from memfactory.arena.scores import KINDS, Cell, between, gains, line_of, mean_of, read_table, trainings
from memfactory.arena.work import BEFORE, Place, jobs_of
from memfactory.common.files import write_json, write_text
from memfactory.evaluation.compare import is_compared
from memfactory.evaluation.report import COVERAGE_NOTE, markdown_table

Report = dict[str, Any]
ANCHORS = {
    "empty": "no memory", "full": "everything", "last_k": "the last lines", "bm25": "BM25's lines", "dense": "nearest lines",
    "oracle": "the evidence",
}  # fmt: skip


def make_report(plan: Plan, place: Place) -> Report:
    """Every number of the arena, as it is written to report.json."""
    table = read_table(plan, place)
    return {
        "plan": json.loads(json.dumps(asdict(plan))),
        "sets": list(plan.held_out),
        "lines": [_line(plan, place, line, sets) for line, sets in sorted(table.items(), key=lambda item: _order(plan, item[0]))],
        "gains": gains(plan, table),
        "between": between(plan, table),
        "training": trainings(plan, place),
    }


def _order(plan: Plan, line: str) -> tuple[int, int, int]:
    name, _, state = line.rpartition(" ")
    if name not in plan.rows:
        return 0, list(ANCHORS).index(line) if line in ANCHORS else len(ANCHORS), 0
    return 1, list(plan.rows).index(name), int(state != BEFORE)


def _line(plan: Plan, place: Place, line: str, sets: Mapping[str, Cell]) -> Report:
    name, _, state = line.rpartition(" ")
    row = plan.rows.get(name)
    types = sorted({asked.type for cell in sets.values() for asked in cell.asked})
    return {
        "line": line, "row": name if row else "", "state": state if row else "anchor",
        "title": f"{row.title}, {state}" if row else ANCHORS.get(line, line), "about": row.about if row else "",
        "commands": commands(plan, place, line),
        "sets": {
            dataset: {kind: mean_of(cell, kind) for kind in KINDS} | cell.cost | {
                "seeds": cell.seeds,
                "types": {kind: mean_of(cell, "greedy", lambda asked, kind=kind: asked.type == kind) for kind in types},  # type: ignore[misc]
                "lost": dict(sum((diagnose(folder, place.data(dataset)) for folder in cell.folders), start=Counter())) if row else {},
            }
            for dataset, cell in sets.items()
        },
    }  # fmt: skip


def commands(plan: Plan, place: Place, line: str) -> list[str]:
    """What makes the cells of a line again, for its first seed."""
    job = next(job for job in jobs_of(plan, place) if line_of(plan, job) == line)
    row = next((row for row in plan.rows.values() if line == f"{row.name} trained"), None)
    tasks = [f"synth_dialog={place.data(name)}" for name in plan.held_out]
    again = place.root / "again"
    model = str(again / job.model_name / "last") if row else job.model
    words = [
        "memfactory", "eval", "--models", f"{job.anchor_of or job.model_name}={model}", "--tasks", *tasks, "--agent", job.agent,
        "--agent_options", json.dumps(dict(job.agent_options)), "--roles", json.dumps(dict(job.roles)), "--reference", plan.model,
        "--k", str(plan.k), "--output_dir", str(again / "evaluation"), *(["--anchors", job.anchor] if job.anchor else []),
    ]  # fmt: skip
    train = [f"memfactory train {place.run(job.model_name)}.yaml --output_dir {again / job.model_name}"] if row else []
    return [*train, shlex.join(words)]


# What people read


def shown(part: Mapping[str, Any], kind: str, places: int = 3) -> str:
    """`0.512 ± 0.031`: a mean and half of its interval."""
    found = part[kind]
    if found["mean"] is None:
        return "–"
    half = "" if found["low"] is None else f" ± {(found['high'] - found['low']) / 2:.{places}f}"
    return f"{found['mean']:.{places}f}{half}"


def printed(report: Report) -> Printed:
    """The table in a terminal of 80 columns: greedy exact match on each set, and what a question costs on the longest."""
    table = Printed(
        title="Exact match, greedy, 95 % intervals over dialogues; cost of a question on the longest",
        box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in (*report["sets"], "words kept", "written", "read"):
        table.add_column(name.replace(" ", "\n"), justify="right")
    before = ""
    for line in report["lines"]:
        if line["row"] != before:
            table.add_section()
        before = line["row"]
        name = "  trained" if line["state"] == "trained" else line["title"].removesuffix(f", {BEFORE}")
        scores = [
            shown(part, "greedy", 2).replace("0.", ".").replace(" ± ", "±") if (part := line["sets"].get(of)) else "–"
            for of in report["sets"]
        ]
        table.add_row(escape(name), *scores, *_costs(report, line))
    return table


def _costs(report: Report, line: Report) -> list[str]:
    """Words of the memory, tokens written and read, on the longest dialogues."""
    longest = line["sets"].get(report["sets"][-1], {})
    return [f"{longest[name]:.0f}" if name in longest else "–" for name in ("memory", "written", "read")]


def _cells(report: Report) -> list[list[str]]:
    lines = []
    for line in report["lines"]:
        sets: Mapping[str, Any] = line["sets"]
        scores = [shown(sets[name], kind) if name in sets else "–" for name in report["sets"] for kind in KINDS]
        lines.append([line["title"], *scores, *_costs(report, line)])
    return lines


def markdown(report: Report) -> str:
    """The whole report in Markdown."""
    heads = [f"{name}, {kind}" for name in report["sets"] for kind in KINDS]
    parts = [
        "# The arena",
        "Exact match over all questions (those whose answer is `unknown` included) with 95 % intervals over dialogues; greedy, and sampled "
        "at temperature 1. Trained rows are means over the seeds. Words of the memory at the end and tokens written and read for a "
        f"question are those of the longest dialogues ({report['sets'][-1]}).",
        markdown_table([["", *heads, "memory, words", "written", "read"], *_cells(report)], right=range(1, 99)),
        "## What training gave", _gains(report), "## The paradigms against each other", _between(report),
        "## By type of question (greedy)", *_types(report),
        "## Where wrong answers were lost (greedy, share of all questions)", _losses(report),
        "\n".join(f"- *{name}*: {meaning}." for name, meaning in MEANING.items()),
        "## What training cost", _training(report),
        "## How to make a line again", *(_again(line) for line in report["lines"]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _again(line: Report) -> str:
    return "\n".join([f"**{line['title']}**", "", "```bash", *line["commands"], "```"])


def _signed(row: Mapping[str, Any]) -> str:
    return "–" if row["diff"] is None or not is_compared(row) else f"{row['diff']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _gains(report: Report) -> str:
    rows = [[title_of(report, row["row"]), row["set"], row["kind"], _signed(row), row["verdict"]] for row in report["gains"]]
    return _noted(markdown_table([["", "set", "", "trained - untrained", ""], *rows], right=[3]), report["gains"])


def _between(report: Report) -> str:
    rows = [
        [
            row["set"],
            f"{title_of(report, row['row'])} - {title_of(report, row['base'])}",
            _signed(row),
            "–" if row["p_holm"] is None else f"{row['p_holm']:.4f}",
            row["verdict"],
        ]
        for row in report["between"]
    ]
    return _noted(markdown_table([["set", "greedy", "difference", "p (Holm)", ""], *rows], right=[2, 3]), report["between"])


def _noted(table: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join([table, *([COVERAGE_NOTE] if any(row["scored"] != 1 for row in rows) else [])])


def _types(report: Report) -> list[str]:
    parts = []
    for name in report["sets"]:
        lines = [line for line in report["lines"] if name in line["sets"]]
        types = list(lines[0]["sets"][name]["types"]) if lines else []
        counts = [f"{kind} ({lines[0]['sets'][name]['types'][kind]['n']})" for kind in types]
        rows = [[line["title"], *(_short(line["sets"][name]["types"][kind]["mean"]) for kind in types)] for line in lines]
        parts += [f"### {name}", markdown_table([["", *counts], *rows], right=range(1, 99))]
    return parts


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _losses(report: Report) -> str:
    rows = []
    for line in report["lines"]:
        for name, part in line["sets"].items():
            if asked := part["lost"].get("asked"):
                rows.append([line["title"], name, *(f"{part['lost'].get(what, 0) / asked:.3f}" for what in ("right", *LOST))])
    return markdown_table([["", "set", "right", *LOST], *rows], right=range(2, 99))


def _training(report: Report) -> str:
    rows = [
        [title_of(report, row), f"{cost['tokens']:,.0f}", f"{cost['steps']:.0f}", f"{cost['cpu_seconds']:.0f}"]
        for row, cost in report["training"].items()
    ]
    return markdown_table([["", "sampled tokens", "steps", "CPU seconds"], *rows], right=range(1, 9))


def write_report(plan: Plan, place: Place) -> Report:
    """Write report.json, report.md, report.html and the charts; returns the report."""
    report = make_report(plan, place)
    write_json(place.root / "report.json", report)
    write_text(place.root / "report.md", markdown(report))
    write_text(place.root / "report.html", page(report))
    draw(report, place.root)
    return report
