"""The ledger of a judge: `judgments.jsonl` beside `attempts.jsonl`, only ever appended, with every vote raw.

A line says what one judge, named by its fingerprint, said about one answer: of an attempt, or known to be wrong or right
(`calibration`). A judge's first line says what its fingerprint stands for. Knows no model and no statistics.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.records import record
from memfactory.evaluation.ledger import append_lines, open_locked, whole_length
from memfactory.judges.judgment import Case, Judgment

FILE = "judgments.jsonl"
Place = tuple[str, str, int, int, str]
"""(example, kind, number, question, judge)."""

_BATCH = 16
"""Judgments that are written at a time: what a kill costs at the most."""


@dataclass(frozen=True, slots=True)
class Line:
    """One judgment."""

    example: str
    kind: str
    """greedy or sampled, or a kind of known answers (`calibration.KINDS`)."""
    number: int
    question: int
    judge: str
    case: str
    """Hash of what was judged: an attempt made again, or other gold answers, makes the judgment stale."""
    score: float | None
    """1, 0, or null where the judge failed."""
    votes: list[dict[str, Any]] = field(default_factory=list)
    """{reply, score, failure}, as they came."""
    answer: str | None = None
    """The known answer; an attempt's is in attempts.jsonl."""
    finished: float = 0.0
    """Unix time in seconds."""

    @property
    def place(self) -> Place:
        """What makes it this judgment and no other."""
        return (self.example, self.kind, self.number, self.question, self.judge)


def short_hash(value: Any) -> str:
    """16 hex digits over a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def case_hash(case: Case) -> str:
    """Names a case by its content."""
    return short_hash([case.question, case.golds, case.answer, case.type])


def line_of(place: Place, case: Case, judgment: Judgment, known: bool = False) -> Line:
    """A judgment as a line; `known`: the answer is of the calibration set and stands nowhere else."""
    votes = [{"reply": vote.reply, "score": _or_null(vote.score), "failure": vote.failure} for vote in judgment.votes]
    return Line(*place, case_hash(case), _or_null(judgment.score), votes, case.answer if known else None, finished=round(time.time(), 3))


def read_judgments(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[Place, Line]]:
    """({fingerprint: what the judge is}, the last line of each place); both empty where nothing was judged."""
    path = folder / FILE
    judges: dict[str, dict[str, Any]] = {}
    lines: dict[Place, Line] = {}
    if not path.is_file():
        return judges, lines
    for number, text in enumerate(path.read_bytes()[: whole_length(path)].split(b"\n")[:-1], 1):
        try:
            row = json.loads(text)
            if "identity" in row:
                judges[row["judge"]] = row["identity"]
            else:
                line = record(Line, row, f"{path}, line {number}", "Remove the line, and judge again.")
                lines[line.place] = line
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not a judgment ({error}). Move the file away and judge again.") from error
    return judges, lines


class Judgments:
    """A folder's judgments, open for one judge to add to."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.judge = short_hash(dict(identity))
        self._waiting: list[Line] = []
        self._file: int | None = open_locked(folder / FILE)
        opened = False
        try:
            os.ftruncate(self._file, whole_length(folder / FILE))  # a torn last line is a judgment that never was
            judges, self.lines = read_judgments(folder)
            if self.judge not in judges:
                append_lines(self._file, [{"judge": self.judge, "identity": dict(identity)}])
            opened = True
        finally:
            if not opened:
                self.close()

    def known(self, place: Place, case: Case) -> bool:
        """True if this very case was judged; one that the judge failed on gets another chance."""
        line = self.lines.get(place)
        return line is not None and line.score is not None and line.case == case_hash(case)

    def add(self, line: Line) -> None:
        """Keep a judgment; it is on the disk after `flush`, or a few more."""
        self.lines[line.place] = line
        self._waiting.append(line)
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines, self._waiting = self._waiting, []
        if self._file is not None and lines:
            append_lines(self._file, [asdict(line) for line in lines])

    def close(self) -> None:
        """Write what waits and let another process write."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Judgments:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score
