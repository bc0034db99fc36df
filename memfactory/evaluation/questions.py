"""A task's results question by question: what was asked, what was answered, every scorer's mark. Reads a job's folder; runs nothing.

`questions.json` holds what was asked, gold included, in the order of the answers in the ledger's lines. Questions to abstain on
are never in one mean with the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.files import read_json, write_json
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, read_attempts
from memfactory.judges.benchmarks import ABSTAIN

FILE = "questions.json"
Attempts = Mapping[tuple[str, str, int], Attempt]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as it was asked, with its gold; the fields are those of a task's `Question`."""

    example: str
    """The ledger's example that it belongs to."""
    place: int
    """Which of the example's answers is its."""
    id: str
    question: str
    answers: list[str]
    type: str
    cluster: str
    abstain: bool
    scorer: str
    """The rule of the headline score."""
    evidence: list[str] = field(default_factory=list)
    date: str = ""
    labels: list[str] = field(default_factory=list)
    twin: str = ""
    label_error: str = ""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """What a job's folder says was asked."""

    task: str
    headline: str
    beside: list[str]
    names: dict[str, str]
    """The true names of types that the benchmark numbers."""
    repaired: dict[str, int]
    examples: dict[str, list[Asked]]
    sessions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """{example: [{"date", "turns": [ids]}]} of the examples whose questions name evidence."""

    def all(self) -> list[Asked]:
        """Every question, example by example."""
        return [asked for questions in self.examples.values() for asked in questions]


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One answer to one question."""

    asked: Asked
    kind: str
    """greedy or sampled."""
    number: int
    status: str
    answer: str | None
    """None if the attempt was lost to infrastructure."""
    score: float | None
    """The headline's."""
    marks: dict[str, float | None]
    error: str | None


def write_questions(folder: Path, about: Mapping[str, Any], examples: Sequence[str]) -> None:
    """Keep what the env says of its questions, of the examples that are run; nothing to keep, nothing written."""
    if about:
        by_example = {key: about.get(key, {}) for key in ("examples", "sessions")}
        kept = {key: {name: rows[name] for name in examples if name in rows} for key, rows in by_example.items()}
        write_json(folder / FILE, {**about, **kept})


def read_questions(folder: Path) -> QuestionSet | None:
    """What was asked in a job's folder; None if it is no task's."""
    if not (folder / FILE).is_file():
        return None
    held = read_json(folder / FILE)
    known = {f.name for f in fields(Asked)}
    try:
        examples = {
            name: [Asked(name, at, **{key: value for key, value in row.items() if key in known}) for at, row in enumerate(rows)]
            for name, rows in held["examples"].items()
        }
        about = {key: held[key] for key in ("task", "headline", "beside", "names", "repaired")}
        return QuestionSet(**about, examples=examples, sessions=held.get("sessions", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / FILE} is not what `memfactory eval` writes ({error}). Move the folder away and start again.") from error


def rows_of(folder: Path) -> list[QuestionRow]:
    """Every answer in a task's folder, attempt by attempt; of an attempt made several times the last."""
    asked = read_questions(folder)
    if asked is None:
        raise DataError(f"{folder} holds no {FILE}: only tasks (`memfactory eval --tasks`) are told question by question.")
    return _rows(asked, {attempt.key: attempt for attempt in read_attempts(folder)})


def _rows(asked: QuestionSet, attempts: Attempts) -> list[QuestionRow]:
    found = []
    for (example, kind, number), attempt in attempts.items():
        for question in asked.examples.get(example, []):
            at, lost = question.place, attempt.status == "failed" or question.place >= len(attempt.questions)
            score = None if lost else attempt.questions[at]
            marks = {} if lost else {name: row[at] for name, row in attempt.marks.items()}
            answer = None if lost else attempt.answers[at]
            found.append(QuestionRow(question, kind, number, attempt.status, answer, score, marks, attempt.error))
    return found


def scores_by_question(dataset: str, asked: QuestionSet, k: int, attempts: Attempts) -> Scores:
    """The scores of the questions that have an answer; beside them those of the others, and how abstaining went."""
    questions = asked.all()
    answerable = _scores(dataset, [q for q in questions if not q.abstain], k, attempts)
    others = _scores(dataset, [q for q in questions if q.abstain], k, attempts)
    rows = [row for row in _rows(asked, attempts) if row.kind == (SAMPLED if k else GREEDY)]
    about = {"metric": asked.headline, "type_names": asked.names, "repaired": asked.repaired}
    about |= _without_label_errors(rows) | _grouped(rows) | (_abstaining(rows, len(others.examples)) if others.examples else {})
    return replace(answerable, about=about, abstention=others if others.examples else None)


def _scores(dataset: str, questions: Sequence[Asked], k: int, attempts: Attempts) -> Scores:
    def row(asked: Asked, kind: str, count: int) -> list[float]:
        found = [attempts.get((asked.example, kind, number)) for number in range(count)]
        marks = [a.questions[asked.place] if a and a.status != "failed" and asked.place < len(a.questions) else None for a in found]
        return [math.nan if mark is None else mark for mark in marks]

    return Scores(
        dataset, [q.id for q in questions], [row(q, SAMPLED, k) for q in questions], [row(q, GREEDY, 1) for q in questions],
        dict(attempts), [q.example for q in questions], [q.cluster for q in questions], [q.type for q in questions],
    )  # fmt: skip


def _mean(rows: Sequence[QuestionRow]) -> float | None:
    """Of the headline scores; what infrastructure lost counts as wrong."""
    return sum(row.score or 0.0 for row in rows) / len(rows) if rows else None


def _abstaining(rows: Sequence[QuestionRow], number: int) -> dict[str, Any]:
    """How often it abstained where it should, how often it should where it did, and the mean over all questions alike."""
    # Where `not mentioned` is an option to choose, the right choice is an abstention.
    abstained = [row for row in rows if row.marks.get(ABSTAIN) or (row.asked.abstain and row.score == 1)]
    rightly = sum(row.asked.abstain for row in abstained)
    return {
        "abstention_n": number,
        "abstention_recall": _mean([row for row in rows if row.asked.abstain]),
        "abstention_precision": rightly / len(abstained) if abstained else None,
        "overall": _mean(rows),
    }


def _grouped(rows: Sequence[QuestionRow]) -> dict[str, Any]:
    """MuSiQue-Full's grouped score: a question's own, if it was answered and its unanswerable twin was not; else 0."""
    refused = {(row.asked.twin, row.kind, row.number): row.score == 1 for row in rows if row.asked.twin}
    pairs = [(row, refused[key]) for row in rows if (key := (row.asked.id, row.kind, row.number)) in refused]
    scores = [(row.score or 0.0) * (rightly and not row.marks.get(ABSTAIN)) for row, rightly in pairs]
    return {"grouped": sum(scores) / len(scores)} if scores else {}


def _without_label_errors(rows: Sequence[QuestionRow]) -> dict[str, Any]:
    """The score of the questions whose gold is not known to be wrong, where a list of such was given."""
    wrong = {row.asked.id for row in rows if row.asked.label_error and not row.asked.abstain}
    kept = [row for row in rows if not row.asked.abstain and row.asked.id not in wrong]
    return {"label_errors": len(wrong), "without_label_errors": _mean(kept)} if wrong else {}
