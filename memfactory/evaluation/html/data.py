"""The report as plain dicts, from `report.json` and the folders of its jobs: what was run, what came of it, what to be warned of.

Knows no markup; every number is the report's or the ledgers' own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memfactory.common.files import read_json
from memfactory.evaluation.compare import Row
from memfactory.evaluation.estimates import wilson
from memfactory.evaluation.html.samples import Sample, anchor, samples_of
from memfactory.evaluation.ledger import Attempt, read_attempts

SAMPLES = 160
"""Sample pages of a report, over all models and sets: more of them would say less each (see `html.sample.Room`)."""


def page_of(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """All that the page shows of an evaluation's folder."""
    results = [_scored(row) for row in report["results"]]
    runs, samples = _runs(folder, results)
    models = list(dict.fromkeys(row["model"] for row in [*results, *runs]))
    anchors = {row["model"]: (row["of"], row["anchor"]) for row in results if row.get("anchor")}
    lost = [row for row in results if row["coverage"] is not None and row["coverage"] < 1]
    notes = list(report.get("notes", []))
    alarms = [note for note in notes if note.startswith("Failed") or any(_is_of(note, row) for row in lost)]
    return {
        "title": folder.resolve().name, "models": models, "anchors": anchors,
        "datasets": list(dict.fromkeys(row["dataset"] for row in [*results, *runs])),
        "results": results, "paired": report.get("paired", []), "by_type": report.get("by_type", []), "judged": _judged(folder, results),
        "cost": report.get("cost", []), "retrieval": report.get("retrieval", []),
        "alarms": alarms, "notes": [note for note in notes if note not in alarms],
        "abstention": [row for row in results if row.get("abstention_n")], "runs": runs, "samples": samples,
    }  # fmt: skip


def _judged(folder: Path, results: Sequence[Row]) -> list[Row]:
    """The rows that `memfactory judge` left, of what is in the report."""
    path = folder / "judged.json"
    here = {(row["dataset"], row["model"]) for row in results}
    return [row for row in (read_json(path)["rows"] if path.is_file() else []) if (row["dataset"], row["model"]) in here]


def _is_of(note: str, row: Row) -> bool:
    return note.startswith(f"{row['model']} on {row['dataset']}:") and "of the attempts have a score" in note


def _scored(row: Row) -> Row:
    """A row of `results` with its headline: `score`, its interval `low` and `high`, and `kind`, which attempts it is of."""
    kind = "sampled" if row["k"] else "greedy"
    score = row["avg_at_k"] if row["k"] else row["greedy"]
    low, high = (row.get("ci_low"), row.get("ci_high")) if row["k"] else (row.get("greedy_low"), row.get("greedy_high"))
    if low is None and row["k"] and row["se"] is not None and score is not None:
        low, high = _student(score, row["se"], (row.get("clusters") or row["n"]) - 1)
    return row | {"kind": kind, "score": score, "low": low, "high": high}


def _student(mean: float, se: float, degrees: int) -> tuple[float | None, float | None]:
    """Student's 95 % interval of a score, which lies between 0 and 1; Wilson's where all are wrong or all right and se is 0."""
    from scipy import stats  # not above: importing it takes half a second

    if degrees < 1 or (se == 0 and mean not in (0.0, 1.0)):
        return None, None
    if se == 0:
        return wilson(round(mean * (degrees + 1)), degrees + 1)
    half = float(stats.t.ppf(0.975, degrees)) * se
    return max(0.0, mean - half), min(1.0, mean + half)


def _runs(folder: Path, results: Sequence[Row]) -> tuple[list[Row], list[Sample]]:
    """(what was run, sample pages) of the jobs in a folder, in the order of the results."""
    places = {(row["dataset"], row["model"]): at for at, row in enumerate(results)}
    found = [(job.parent, read_json(job)) for job in sorted(folder.glob("*/*/job.json"))]
    found = [(place, job) for place, job in found if (job["dataset"], job["model_name"]) in places]
    found.sort(key=lambda pair: places[pair[1]["dataset"], pair[1]["model_name"]])
    runs, samples, taken = [], list[Sample](), set[str]()
    anchors = {row["model"] for row in results if row.get("anchor")}
    most = max(2, SAMPLES // max(sum(job["model_name"] not in anchors for _, job in found), 1))
    for place, job in found:
        attempts = {attempt.key: attempt for attempt in read_attempts(place)}
        runs.append(_run(place, job, list(attempts.values())))
        if job["model_name"] in anchors:  # there is no memory to follow
            continue
        told = samples_of(place, job, attempts, most)
        samples += [sample | {"anchor": anchor(taken, job["model_name"], job["dataset"], sample["example"])} for sample in told]
    return runs, samples


def _run(place: Path, job: Mapping[str, Any], attempts: Sequence[Attempt]) -> Row:
    """What decided a job's attempts, and when they were made."""
    path = place / "fingerprint.json"
    prints = read_json(path) if path.is_file() else {}
    ended = [attempt.finished for attempt in attempts if attempt.finished]
    agent = prints.get("agent", {})
    return {
        "model": job["model_name"], "dataset": job["dataset"], "path": job["model"], "data_path": job["data_path"],
        "agent": agent.get("type") or job["agent"], "agent_options": {name: agent[name] for name in agent if name != "type"},
        "env": job["env"], "env_options": job["env_options"], "engine": job["engine"], "roles": job["roles"], "k": job["k"],
        "limit": job["limit"], "temperature": job["temperature"], "top_p": job["top_p"], "seed": job["seed"],
        "examples": len(job["examples"]), "attempts": len(attempts), "versions": job.get("versions", {}),
        "first": _date(min(ended, default=0.0)), "last": _date(max(ended, default=0.0)),
        "prints": {
            "model": prints.get("model"), "data": prints.get("data", {}).get("sha256"), "prompts": prints.get("prompts"),
            "code": prints.get("code"),
        },
    }  # fmt: skip


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds else ""
