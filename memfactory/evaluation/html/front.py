"""The front page of the report: what was run, scores, differences, types, abstention, judgments, cost, and the way to the samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from memfactory.evaluation.compare import Row, is_compared
from memfactory.evaluation.html.markup import Html, html, tag
from memfactory.evaluation.html.results import abstention, cost, differences, judged, retrieval, scores, types
from memfactory.evaluation.html.table import Column, Page, count, facts, figure, interval, model_name, section, table, verdict


def front(page: Page) -> Html:
    """The whole front page; a part that has nothing to show is left out."""
    parts = (alarms, scores, differences, types, abstention, retrieval, judged, cost, samples, runs)
    return tag("main", {"id": "front"}, header(page), [part(page) for part in parts])


def header(page: Page) -> Html:
    """The title, what was run in a line, and what came of it."""
    runs: Sequence[Row] = page["runs"]
    anchors = len(page["anchors"])
    told = [
        count(len(page["models"]) - anchors, "model"), count(anchors, "anchor") if anchors else "", count(len(page["datasets"]), "set"),
        count(sum(run["attempts"] for run in runs), "attempt"),
        max((run["last"] for run in runs), default=""),
        ", ".join(dict.fromkeys(f"memfactory {run['versions']['memfactory']}" for run in runs if "memfactory" in run["versions"])),
    ]  # fmt: skip
    outcome: dict[tuple[str, str], list[Row]] = {}
    for row in page["paired"]:
        if row["model"] not in page["anchors"] and (row["diff"] is not None or not is_compared(row)):
            outcome.setdefault((row["model"], row["dataset"]), []).append(row)
    lines = [
        tag("li", model_name(page, model), f" on {dataset}", [_outcome(row) for row in rows]) for (model, dataset), rows in outcome.items()
    ]
    title = tag("h1", tag("span", {"class": "kicker"}, "Evaluation"), page["title"])
    return tag("header", title, tag("p", {"class": "told"}, " · ".join(part for part in told if part)),
               bool(lines) and tag("ul", {"class": "outcome"}, lines), _what(page))  # fmt: skip


def _outcome(row: Row) -> Html:
    """A metric's verdict with its difference, or why there is none."""
    apart = f" than {row['base']} by " if row["verdict"] in ("better", "worse") else f" with {row['base']}, "
    return html([f"; {row['metric']} ", verdict(row["verdict"]), is_compared(row) and html([apart, _change(row)])])


def _what(page: Page) -> Html:
    """Models, sets and decoding in a few lines; `runs` has the rest."""
    runs: Sequence[Row] = page["runs"]
    models = {
        run["model"]: tag("div", model_name(page, run["model"]), _quiet(run["path"], run["agent"], _print(run, "model")))
        for run in runs
        if run["model"] not in page["anchors"]
    }
    sets = {run["dataset"]: tag("div", run["dataset"], _quiet(run["data_path"], run["env"], _print(run, "data"))) for run in runs}
    return facts([
        ("models", list(models.values())), ("sets", list(sets.values())), ("decoding", html(sorted({_decoding(run) for run in runs}))),
    ])  # fmt: skip


def _quiet(*words: str) -> Html:
    return tag("span", {"class": "metric"}, " · ".join(word for word in words if word))


def _print(run: Row, what: str) -> str:
    return str(run["prints"].get(what) or "")[:12]


def _decoding(run: Row) -> Html:
    drawn = f", {run['k']} sampled at temperature {run['temperature']:g}, top-p {run['top_p']:g}, seed {run['seed']}" if run["k"] else ""
    return tag("div", f"one greedy attempt{drawn}")


def alarms(page: Page) -> Html:
    """What is missing or failed first; then what else a reader must know."""
    missing = tag(
        "div", {"class": "alarm", "role": "alert"}, tag("h2", "Not complete"), tag("ul", [tag("li", note) for note in page["alarms"]])
    )
    told = tag("ul", [tag("li", note) for note in page["notes"]])
    notes = tag("details", {"class": "notes", "open": True}, tag("summary", f"Notes ({len(page['notes'])})"), told)
    return html([bool(page["alarms"]) and missing, bool(page["notes"]) and notes])


def samples(page: Page) -> Html:
    """The way to the sample pages: an example a line, a model a column."""
    models = [model for model in page["models"] if any(sample["model"] == model for sample in page["samples"])]
    columns = [Column("example"), Column("asked", "wide"), *(Column(model, "num") for model in models)]
    groups = []
    for dataset in dict.fromkeys(sample["dataset"] for sample in page["samples"]):
        found: dict[str, dict[str, Row]] = {}
        for sample in page["samples"]:
            if sample["dataset"] == dataset:
                found.setdefault(sample["example"], {})[sample["model"]] = sample
        groups.append((dataset, [_sample(name, row, models) for name, row in found.items()]))
    lead = "A page each: what was told, the memory after it and what changed, what each answer was made from. Scores: the greedy attempt's."
    return section("Samples", table(columns, groups, "samples"), id="samples", lead=lead) if groups else Html()


def _sample(name: str, row: Mapping[str, Row], models: Sequence[str]) -> list[Any]:
    any_of = next(iter(row.values()))
    asked = any_of["questions"][0]["question"] if any_of["questions"] else ""
    more = f" and {len(any_of['questions']) - 1} more" if len(any_of["questions"]) > 1 else ""
    links = [
        tag("a", {"href": f"#{row[model]['anchor']}"}, "lost" if row[model]["score"] is None else figure(row[model]["score"], ".2f"))
        if model in row
        else "–"
        for model in models
    ]
    return [tag("a", {"href": f"#{any_of['anchor']}"}, name), html([_short(asked, 90), more]), *links]


def runs(page: Page) -> Html:
    """Everything that decided the attempts, for whoever wants to make them again."""
    shown = [
        tag("details", tag("summary", model_name(page, run["model"]), f" on {run['dataset']}"), facts([
            ("model", run["path"]), ("data", run["data_path"]), ("agent", run["agent"]), ("agent's options", _json(run["agent_options"])),
            ("env", run["env"]), ("env's options", _json(run["env_options"])), ("roles", _json(run["roles"])), ("engine", run["engine"]),
            ("decoding", _decoding(run)),
            ("examples", f"{run['examples']:,}{' (limited)' if run['limit'] else ''}, {run['attempts']:,} attempts"),
            ("made", f"{run['first']} to {run['last']}" if run["first"] else ""),
            ("versions", ", ".join(f"{name} {value}" for name, value in run["versions"].items())),
            ("fingerprints", ", ".join(f"{name} {str(value)[:12]}" for name, value in run["prints"].items() if value)),
        ]))
        for run in page["runs"]
    ]  # fmt: skip
    return section("What was run", shown, id="runs") if shown else Html()


def _change(row: Row) -> Html:
    return html([tag("b", figure(row["diff"], "+.3f")), " ", interval(row["ci_low"], row["ci_high"], "+.3f")])


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""
