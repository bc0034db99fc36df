"""The ledger of an evaluation: one line per attempt, only ever appended. Every number of a report is computed from it.

A folder holds one model on one data set: `attempts.jsonl` and `fingerprint.json`, which says what decided those attempts.
Knows no agent and no statistics.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.common.files import read_object, write_json
from memfactory.common.records import record
from memfactory.common.redaction import masked

GREEDY, SAMPLED = "greedy", "sampled"
Key = tuple[str, str, int]
"""(example, kind, number)."""

_PATIENCE = 15.0
"""Seconds to wait for another process that still writes: a worker whose parent was killed needs a moment to notice."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of the ledger."""

    example: str
    kind: str
    """greedy or sampled."""
    number: int
    status: str
    """ok; truncated (a turn hit its length limit: scored); failed (infrastructure: no score)."""
    score: float | None
    """The headline reward; null if and only if the attempt failed."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Every reward and component by its key."""
    questions: list[float | None] = field(default_factory=list)
    """The score of each answer, where the env scores them one by one ("default/question")."""
    marks: dict[str, list[float | None]] = field(default_factory=dict)
    """{scorer: its mark of each answer}, where the env has several ("question/SCORER"); null where a rule is not of that question."""
    answers: list[str] = field(default_factory=list)
    memory: Any = None
    report: dict[str, int] = field(default_factory=dict)
    retrieved: list[dict[str, Any]] = field(default_factory=list)
    """Where the memories come from that were retrieved for each question: `Retrieved`'s fields; {} where nothing was retrieved."""
    error: str | None = None
    steps: list[list[str]] = field(default_factory=list)
    """[event, memory after it], of the few attempts that are shown to people."""
    given: list[list[str]] = field(default_factory=list)
    """Of each answer the memories it was made from, where the agent says so; of the same few attempts."""
    cost: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """{writing or answering: {stage: [calls, prompt tokens, completion tokens, seconds from asking to having the reply]}}."""
    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: float = 0.0
    """Unix time in seconds."""
    replayed: str = ""
    """SHA-256 of the memory that it was answered from, if another evaluation wrote that."""

    @property
    def key(self) -> Key:
        """What makes it this attempt and no other."""
        return (self.example, self.kind, self.number)


class Ledger:
    """Attempts in the order they ended, in memory and, with a folder, on disk. A process killed while writing loses one line at most."""

    def __init__(self, folder: Path | None = None, fingerprint: Mapping[str, Any] | None = None) -> None:
        """Open for writing; without a fingerprint nothing is checked.

        A folder made under another fingerprint raises `ConfigError`, which names what differs.
        """
        self.folder = folder
        self._attempts: dict[Key, Attempt] = {}
        self._file: int | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open_locked(folder / "attempts.jsonl")
            opened = False
            try:
                if fingerprint is not None:
                    _check(folder, dict(fingerprint))
                os.ftruncate(self._file, whole_length(folder / "attempts.jsonl"))  # a torn last line is an attempt that never was
                self._attempts = {attempt.key: attempt for attempt in read_attempts(folder)}
                opened = True
            finally:
                if not opened:
                    self.close()

    def done(self) -> set[Key]:
        """Attempts that need not run: all but those lost to infrastructure, which get another chance."""
        return {key for key, attempt in self._attempts.items() if attempt.status != "failed"}

    def attempts(self) -> dict[Key, Attempt]:
        """The last line of every attempt."""
        return dict(self._attempts)

    def append(self, attempts: Iterable[Attempt]) -> None:
        """Add lines; they are on the disk when this returns."""
        new = list(attempts)
        self._attempts |= {attempt.key: attempt for attempt in new}
        if self._file is not None and new:
            append_lines(self._file, (asdict(attempt) for attempt in new))

    def close(self) -> None:
        """Let another process write."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_job(folder: Path) -> dict[str, Any]:
    """What a job's folder was asked, as its job.json says."""
    return read_object(folder / "job.json", {"dataset": str, "model_name": str, "k": int, "examples": list[str]})


_ADVICE = "Remove the line, and a second start makes the attempt again; or move the folder away."


def read_attempts(folder: Path) -> list[Attempt]:
    """Every whole line of a folder's ledger, in order; several lines of one attempt are a failure and its later repeats."""
    path = folder / "attempts.jsonl"
    if not path.is_file():
        raise MissingFileError(f"{folder} holds no attempts.jsonl. `memfactory eval` makes one for each model and data set.")
    attempts = []
    for number, line in enumerate(path.read_bytes()[: whole_length(path)].split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not an attempt ({error}). {_ADVICE}") from error
        attempts.append(record(Attempt, row, f"{path}, line {number}", _ADVICE))
    return attempts


def append_lines(file: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add one JSON object a line; they are on the disk when this returns."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n" for row in rows)
    data = masked(text).encode(errors="backslashreplace")  # half a surrogate pair from a server becomes its JSON escape
    while data:
        data = data[os.write(file, data) :]
    os.fsync(file)


def whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def open_locked(path: Path) -> int:
    """Open a file of lines for appending, for this process alone; another one's is waited for, then `ConfigError`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(file)
                raise ConfigError(f"Another process is writing {path}. Wait for it, stop it, or give another --output_dir.") from error
            time.sleep(0.1)


def _check(folder: Path, fingerprint: dict[str, Any]) -> None:
    path = folder / "fingerprint.json"
    if not path.is_file():
        if whole_length(folder / "attempts.jsonl"):
            raise ConfigError(f"{folder} holds attempts but no fingerprint.json to say what made them. Move the folder away.")
        write_json(path, fingerprint)
        return
    changed = differences(read_object(path), json.loads(json.dumps(fingerprint)))
    if changed:
        raise ConfigError(
            f"{folder} holds attempts made under other conditions, so the two must not be mixed: {'; '.join(changed)}. "
            "Give the same options, another --output_dir, or move the folder away."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`field: old -> new` for every field of two fingerprints that differs; nested fields are named with dots."""
    changed: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            changed.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return changed
