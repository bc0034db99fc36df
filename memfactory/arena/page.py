"""report.html of the arena, in the evaluation's own style: scores, gains, comparisons, types, losses, cost, commands. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfactory.arena.diagnosis import LOST, MEANING
from memfactory.evaluation.compare import is_compared
from memfactory.evaluation.html.charts import SHARES, around_zero, axis, whisker
from memfactory.evaluation.html.markup import Html, html, tag
from memfactory.evaluation.html.page import document
from memfactory.evaluation.html.table import Column, figure, interval, section, table, verdict
from memfactory.evaluation.report import COVERAGE_NOTE

Report = Mapping[str, Any]


def page(report: Report) -> str:
    """The document."""
    plan = report["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    told = f"{len(plan['rows'])} rows · seeds {seeds} · {plan['budget']:,} sampled tokens of training each · {plan['model']}"
    head = tag(
        "header",
        tag("h1", tag("span", {"class": "kicker"}, "Arena"), "The same dialogues, the same reader"),
        tag("p", {"class": "told"}, told),
    )
    parts = [part(report) for part in (_scores, _gains, _between, _types, _losses, _cost, _commands)]
    return document("The arena", tag("main", {"id": "front"}, head, parts))


def title_of(report: Report, row: str) -> str:
    """What people call a row."""
    return str(report["plan"]["rows"][row]["title"])


def _name(line: Report) -> Html:
    anchor = line["state"] == "anchor"
    colour = "m0" if anchor else "m1" if line["state"] == "trained" else "m5"
    dot = tag("i", {"class": f"dot {'ring ' if line['state'] == 'untrained' else ''}{colour}"})
    return tag("span", {"class": "model", "title": line["about"] or None}, dot, line["title"])


def _scores(report: Report) -> Html:
    columns = [
        Column("row"), Column(axis(SHARES), "plot"), Column("greedy", "num"), Column("95 % interval", "num wide"), Column("sampled", "num"),
        Column("seeds", "num wide", "greedy, each seed"),
    ]  # fmt: skip
    groups = [(name, [_score(line, line["sets"][name]) for line in report["lines"] if name in line["sets"]]) for name in report["sets"]]
    lead = "Exact match over all questions; lines are 95 % intervals over dialogues. Trained rows are means over the seeds."
    return section("Scores", table(columns, groups), id="scores", lead=lead)


def _score(line: Report, part: Report) -> list[Any]:
    found = part["greedy"]
    colour = {"anchor": "m0", "trained": "m1"}.get(line["state"], "m5")
    drawn = whisker(SHARES, found["mean"], found["low"], found["high"], colour, f"{line['title']}: {figure(found['mean'])}")
    seeds = " ".join(figure(value, ".2f") for value in part["seeds"].values()) if len(part["seeds"]) > 1 else ""
    return [
        _name(line),
        drawn,
        tag("b", figure(found["mean"])),
        interval(found["low"], found["high"]),
        figure(part["sampled"]["mean"]),
        seeds,
    ]


def _gains(report: Report) -> Html:
    return _differences(
        report, report["gains"], "What training gave", "gains", lambda row: f"{title_of(report, row['row'])}, {row['kind']}"
    )


def _between(report: Report) -> Html:
    def named(row: Report) -> str:
        return f"{title_of(report, row['row'])} − {title_of(report, row['base'])}"

    return _differences(report, report["between"], "The paradigms against each other", "between", named)


def _differences(report: Report, rows: Any, title: str, id: str, named: Any) -> Html:
    def numbers(row: Report) -> tuple[float | None, float | None, float | None]:
        return (row["diff"], row["low"], row["high"]) if is_compared(row) else (None, None, None)

    scale = around_zero([value for row in rows for value in numbers(row) if value is not None])
    columns = [
        Column(""),
        Column(axis(scale, "+g"), "plot"),
        Column("difference", "num"),
        Column("95 % interval", "num wide"),
        Column("verdict"),
    ]
    groups = [
        (
            name,
            [
                [
                    named(row),
                    whisker(scale, *numbers(row), row["verdict"] if is_compared(row) else "unknown", named(row)),
                    tag("b", figure(numbers(row)[0], "+.3f")),
                    interval(numbers(row)[1], numbers(row)[2], "+.3f"),
                    verdict(row["verdict"]),
                ]  # fmt: skip
                for row in rows
                if row["set"] == name
            ],
        )
        for name in report["sets"]
    ]
    lead = COVERAGE_NOTE if any(row["scored"] != 1 for row in rows) else None
    return section(title, table(columns, groups), id=id, lead=lead) if rows else Html()


def _types(report: Report) -> Html:
    parts = []
    for name in report["sets"]:
        lines = [line for line in report["lines"] if name in line["sets"]]
        types = list(lines[0]["sets"][name]["types"]) if lines else []
        columns = [Column("row"), *(Column(kind.replace("_", " "), "num") for kind in types)]
        rows = [[_name(line), *(figure(line["sets"][name]["types"][kind]["mean"], ".2f") for kind in types)] for line in lines]
        parts.append(html([tag("h3", name), table(columns, [(None, rows)])]))
    return section("By type of question", parts, id="types", lead="Greedy exact match.")


def _losses(report: Report) -> Html:
    columns = [Column("row"), Column("right", "num"), *(Column(name, "num", MEANING[name]) for name in LOST)]
    groups = []
    for name in report["sets"]:
        held = [(line, line["sets"][name]["lost"]) for line in report["lines"] if line["sets"].get(name, {}).get("lost", {}).get("asked")]
        groups.append(
            (name, [[_name(line), *(figure(lost.get(what, 0) / lost["asked"]) for what in ("right", *LOST))] for line, lost in held])
        )
    lead = "Where the greedy attempts' wrong answers were lost, as shares of all questions; hover a heading for what it means."
    return section("Where answers are lost", table(columns, groups), id="lost", lead=lead)


def _cost(report: Report) -> Html:
    columns = [Column("row"), Column("memory, words", "num"), Column("tokens written", "num"), Column("tokens read", "num")]
    groups = []
    for name in report["sets"]:
        held = [(line, line["sets"][name]) for line in report["lines"] if name in line["sets"]]
        rows = [[_name(line), *(figure(part.get(key), ",.0f") for key in ("memory", "written", "read"))] for line, part in held]
        groups.append((name, rows))
    trained = [[title_of(report, row), f"{cost['tokens']:,.0f}", f"{cost['steps']:.0f}", f"{cost['cpu_seconds']:.0f}"]
               for row, cost in report["training"].items() if row in report["plan"]["rows"]]  # fmt: skip
    heads = [Column("row"), Column("sampled tokens", "num"), Column("steps", "num"), Column("CPU seconds", "num")]
    lead = "For one question; what is written once for several questions is shared out among them."
    return section("Cost", table(columns, groups, "cost"), tag("h3", "Training"), table(heads, [(None, trained)]), id="cost", lead=lead)


def _commands(report: Report) -> Html:
    shown = [tag("details", tag("summary", _name(line)), [tag("pre", command) for command in line["commands"]]) for line in report["lines"]]
    return section("How to make a line again", shown, id="commands", lead="For the first seed of a trained row.")
