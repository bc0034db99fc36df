"""What a judge's ledger comes to: rows, a table and its notes. The judged accuracy never stands alone.

Beside it are the deterministic score, the share of answers that got a verdict, how far the votes agree, and how often the same
judge accepts answers that are known to be wrong. Rows are plain dicts for whoever shows them. Asks no judge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from memfactory.evaluation.calibration import GOLD, SENTENCE, SPECIFIC, VAGUE, WRONG
from memfactory.evaluation.compare import Row, number
from memfactory.evaluation.estimates import count_votes, fleiss_kappa, wilson
from memfactory.evaluation.judge_questions import Answer, Evaluated, evaluated
from memfactory.evaluation.judgments import Line, Place, case_hash, read_judgments
from memfactory.evaluation.ledger import GREEDY, SAMPLED
from memfactory.evaluation.report import markdown_table
from memfactory.evaluation.statistics import COVERED, clustered_mean, few_clusters

LENIENT = 0.1
"""A judge that accepts more than this share of the known-wrong specific answers is warned of, and one that rejects as many right ones."""

_NAMES = {SPECIFIC: "accepts_specific", VAGUE: "accepts_vague", GOLD: "rejects_gold", SENTENCE: "rejects_sentence"}
"""{kind of known answers: the key of its rate in a row}."""

_WORDS = {SPECIFIC: "wrong specific answers accepted", VAGUE: "wrong vague ones accepted", GOLD: "gold answers rejected",
          SENTENCE: "gold answers in a sentence rejected"}  # fmt: skip

CAPTION = (
    "rule: the deterministic score of the same answers. judged: what has no verdict counts as wrong; scored only leaves it out. agree: "
    "answers on which all votes agree. lets in: share of known-wrong answers, specific / vague, that this judge accepts."
)


def rows_of(folder: Path) -> list[Row]:
    """The rows of every judge that judged a data set's folder; none where no judge did. Each row names its judge."""
    found = evaluated(folder)
    return [row for judge in read_judgments(folder)[0] for row in judged_rows(found, judge)]


def judged_rows(found: Evaluated, judge: str, kinds: Sequence[str] = (GREEDY, SAMPLED)) -> list[Row]:
    """A row for each kind of attempts that the judge of this fingerprint judged: means with 95 % intervals, rates with Wilson's."""
    judges, lines = read_judgments(found.folder)
    mine = {place: line for place, line in lines.items() if line.judge == judge}
    said = judges[judge]
    rates = {_NAMES[kind]: _rate([line for line in mine.values() if line.kind == kind], kind in WRONG) for kind in _NAMES}
    rows = []
    for kind in kinds:
        if any(line.kind == kind for line in mine.values()):
            about = {"dataset": found.job["dataset"], "model": found.job["model_name"], "metric": kind, "fingerprint": judge}
            about |= {"judge": said["model"], **{key: said[key] for key in ("prompt", "prompt_sha256", "votes", "temperature")}}
            row = about | _scores(found, kind, judge, mine) | rates
            rows.append(row | {"warnings": [*(f"the judge: {text}" for text in _of_judge(row)), *_of_answers(row)]})
    return rows


def _scores(found: Evaluated, kind: str, judge: str, lines: dict[Place, Line]) -> Row:
    """The judged and the deterministic score of one kind of attempts."""
    answers = [answer for answer in found.answers(kind) if not answer.question.abstain]
    given = [_line(answer, judge, lines) for answer in answers]
    made = [line is not None or (answer.attempt is not None and answer.text is None) for answer, line in zip(answers, given, strict=True)]
    verdicts = [math.nan if line is None or line.score is None else line.score for line in given]
    counted = [0.0 if there and math.isnan(score) else score for score, there in zip(verdicts, made, strict=True)]
    rule = [found.rule_score(answer) for answer in answers]
    rule = [0.0 if math.isnan(score) and answer.attempt is not None else score for score, answer in zip(rule, answers, strict=True)]
    votes = [[math.nan if v["score"] is None else v["score"] for v in line.votes] for line in given if line is not None and line.votes]
    tally, completed = count_votes(votes), clustered_mean(_by_question(answers, verdicts))
    row: Row = {
        "n": len({answer.question for answer in answers}), "rule": found.rule,
        **_interval("rule_score", found, answers, rule), **_interval("judged", found, answers, counted),
        "judged_completed_only": number(completed.value),
        "coverage": number(sum(not math.isnan(score) for score in verdicts) / len(verdicts)) if verdicts else None,
        "no_answer": sum(there and line is None for there, line in zip(made, given, strict=True)), "unjudged": made.count(False),
        "failures": dict(sorted(Counter(vote["failure"] for line in given if line for vote in line.votes if vote["failure"]).items())),
        "per_vote": [number(share) for share in tally.per_run], "non_unanimous": tally.non_unanimous,
        "unanimous": number(1 - tally.non_unanimous / len(votes)) if votes else None, "kappa": number(fleiss_kappa(votes)),
    }  # fmt: skip
    abstained = [line for answer in found.answers(kind) if answer.question.abstain and (line := _line(answer, judge, lines)) is not None]
    scored = [line.score for line in abstained if line.score is not None]
    return row | (
        {"abstention_n": len(abstained), "abstention_judged": number(sum(scored) / len(scored)) if scored else None} if abstained else {}
    )


def _interval(name: str, found: Evaluated, answers: Sequence[Answer], scores: Sequence[float]) -> Row:
    """`name`, `name_low`, `name_high`: Wilson's for one attempt at independent questions, Student's over the clusters otherwise."""
    table = _by_question(answers, scores)
    clusters = _clusters(answers) if found.clustered else None
    mean = clustered_mean(table, clusters=clusters)
    there = [row[0] for row in table if len(row) == 1 and not math.isnan(row[0])]
    if clusters is None and len(there) == mean.n and all(score in (0.0, 1.0) for score in there):
        low, high = wilson(int(sum(there)), len(there))
    else:
        low, high = mean.interval() if mean.clusters > 1 else (math.nan, math.nan)
    row = {name: number(mean.value), f"{name}_low": number(max(low, 0.0)), f"{name}_high": number(min(high, 1.0))}
    return row | ({"clusters": mean.clusters} if clusters else {})


def _by_question(answers: Sequence[Answer], scores: Sequence[float]) -> list[list[float]]:
    """[n][k] scores, by question."""
    table: dict[tuple[str, int], list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        table.setdefault((answer.question.example, answer.question.number), []).append(score)
    return list(table.values())


def _clusters(answers: Sequence[Answer]) -> list[str]:
    """[n] each question's conversation, in the order of `_by_question`."""
    return list({(answer.question.example, answer.question.number): answer.question.cluster for answer in answers}.values())


def _line(answer: Answer, judge: str, lines: dict[Place, Line]) -> Line | None:
    """The judgment of an answer, unless it is of what the attempt or the gold was before."""
    question = answer.question
    line = lines.get((question.example, answer.kind, answer.number, question.number, judge))
    return line if line is not None and answer.text is not None and line.case == case_hash(question.case(answer.text)) else None


def _rate(lines: Sequence[Line], wrong: bool) -> dict[str, Any]:
    """How often known-wrong answers were accepted, or known-right ones rejected, of those that got a verdict; with Wilson's interval."""
    scores = [line.score for line in lines if line.score is not None]
    missed = scores.count(1.0 if wrong else 0.0)
    low, high = wilson(missed, len(scores))
    return {
        "rate": number(missed / len(scores)) if scores else None, "low": number(low), "high": number(high),
        "n": len(scores), "lost": len(lines) - len(scores),
    }  # fmt: skip


def _of_judge(row: Row) -> list[str]:
    """Warnings of the judge itself, from the known answers."""
    measured = {kind: row[name] for kind, name in _NAMES.items()}
    if not any(rate["n"] + rate["lost"] for rate in measured.values()):
        return ["it was not measured on known answers (--calibration)"]
    found = [] if measured[SPECIFIC]["n"] else ["it gave no verdict on known-wrong answers, so nothing is known of its verdicts"]
    for kind in (SPECIFIC, GOLD, SENTENCE):
        rate = measured[kind]
        if rate["n"] and rate["rate"] > LENIENT:
            found.append(f"{rate['rate']:.0%} of {rate['n']} known {_WORDS[kind]}")
    return found


def _of_answers(row: Row) -> list[str]:
    """Warnings of the judged number: verdicts that are missing and why, conversations that are few."""
    found = []
    if (row["coverage"] or 0) < 1:
        why = {f"votes lost ({what})": count for what, count in row["failures"].items()}
        why |= {"attempts without an answer": row["no_answer"], "answers not judged yet": row["unjudged"]}
        reasons = ", ".join(f"{count} {what}" for what, count in why.items() if count)
        few = f": below {COVERED:.0%} it compares with nothing" if (row["coverage"] or 0) < COVERED else ""
        found.append(f"{row['coverage'] or 0:.1%} of the answers have a verdict; {reasons}{few}")
    if "clusters" in row and (few := few_clusters(row["clusters"])):
        found.append(few)
    return found


def _share(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def judged_interval(row: Row) -> tuple[float | None, float | None, float | None]:
    """(judged, low, high) as tables show it; nothing where no answer got a verdict, though what is lost counts as wrong in `judged`."""
    return (row["judged"], row["judged_low"], row["judged_high"]) if row["coverage"] else (None, None, None)


def _cells(row: Row) -> list[str]:
    rates = [row[_NAMES[kind]]["rate"] for kind in WRONG]
    mark = " !" if rates[0] is None or rates[0] > LENIENT else ""
    judged, low, high = map(_share, judged_interval(row))
    alone = f"{_share(row['judged_completed_only'])} of {_share(row['coverage'], '.0%')}"
    return [
        f"  {row['metric']}", _share(row["rule_score"]), f"{judged} [{low}, {high}]", alone,
        _share(row["unanimous"], ".0%"), " / ".join(_share(rate, ".2f") for rate in rates) + mark,
    ]  # fmt: skip


_HEADINGS = ("data set", "rule", "judged [95 %]", "scored only", "agree", "lets in")


def judged_table(rows: Sequence[Row]) -> Table:
    """What `memfactory judge` prints."""
    shown = Table(title=escape(_judge_of(rows)), box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), caption=CAPTION)
    for name in _HEADINGS:
        shown.add_column(name, justify="left" if name == "data set" else "right", no_wrap=name != "data set", overflow="fold")
    for at, row in enumerate(rows):
        if at == 0 or _set_of(row) != _set_of(rows[at - 1]):  # the terminal is 80 columns wide: names have lines of their own
            shown.add_row(escape(row["dataset"]), "", escape(f"{row['model']:.20}"), style="bold")
        cells = [escape(cell) for cell in _cells(row)]
        shown.add_row(*cells[:-1], f"[red]{cells[-1]}" if cells[-1].endswith("!") else cells[-1])
    return shown


def judged_notes(rows: Sequence[Row]) -> list[str]:
    """Lines under the table: warnings first, then each calibration rate with its interval, and which rule is shown."""
    warnings = {f"WARNING the judge on {row['dataset']}: {text}.": None for row in rows for text in _of_judge(row)}
    warnings |= {f"WARNING {row['model']} on {row['dataset']}, {row['metric']}: {text}.": None for row in rows for text in _of_answers(row)}
    rates: dict[str, None] = {}
    for row in rows:
        told = [
            f"{row[name]['rate']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}] of {row[name]['n']} {_WORDS[kind]}"
            for kind, name in _NAMES.items()
            if row[name]["rate"] is not None
        ]
        if told:
            rates[f"The judge on {row['dataset']}: {'; '.join(told)}."] = None
    rules = {f"The rule on {row['dataset']}: {row['rule']}.": None for row in rows}
    return [*warnings, *rates, *rules]


def judged_markdown(rows: Sequence[Row]) -> str:
    """The same in Markdown."""
    lines = [["data set", "model", "n", "metric", "rule", *_HEADINGS[2:]]]
    for row in rows:
        cells = _cells(row)
        lines.append([row["dataset"], row["model"], str(row["n"]), row["metric"], f"{cells[1]} ({row['rule']})", *cells[2:]])
    notes = "\n".join(f"- {note}" for note in judged_notes(rows))
    return f"# {_judge_of(rows)}\n\n{markdown_table(lines, right=(2, 4, 5, 6, 7, 8))}\n\n{CAPTION}\n\n{notes}\n"


def _set_of(row: Row) -> tuple[str, str]:
    return row["model"], row["dataset"]


def _judge_of(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing to judge"
    row = rows[0]
    return f"Judged by {row['judge']}: {row['prompt']} ({row['prompt_sha256']}), {row['votes']} vote{'s' if row['votes'] > 1 else ''}"
