"""Written memories, kept before anything is asked of them: one line an attempt, in `memories.jsonl` beside the ledger.

An attempt that was lost after its memory was written is only asked again; another evaluation can ask it too (`replay.py`). Kept are
memories of agents that write before they are asked, if they are banks, texts or plain JSON. Knows no env and no score.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from memfactory.agents.base import BaseAgent, Request
from memfactory.common.errors import DataError
from memfactory.common.records import record
from memfactory.common.types import Trajectory, Turn, View
from memfactory.evaluation.fingerprint import write_fingerprint
from memfactory.evaluation.ledger import Attempt, Key, append_lines, open_locked, whole_length
from memfactory.memory.bank import MemoryBank

log = logging.getLogger(__name__)

FILE = "memories.jsonl"

_BULK = ("prompt_ids", "response_ids", "logprobs", "text")
"""What is not kept of a turn: nothing after writing looks at it."""


@dataclass(frozen=True, slots=True)
class Written:
    """One line: the memory of an attempt as it was before the first question, and what its record held then."""

    example: str
    kind: str
    number: int
    form: str
    """bank, text or json."""
    memory: Any
    """The bank's JSON, the text, or the JSON."""
    sha256: str
    """Of form and memory."""
    told: str
    """Hash of what the example told: context, events, starting memory."""
    write: str
    """`write_fingerprint`."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """The calls that wrote it, without their words: stage, tokens (`usage`), how they ended."""
    report: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    events: int = 0
    steps: list[list[Any]] = field(default_factory=list)
    """[event, memory after it], of the few attempts that are shown to people."""

    @property
    def key(self) -> Key:
        """Of the attempt."""
        return (self.example, self.kind, self.number)

    def trajectory(self) -> Trajectory:
        """The attempt's record as it was, to go on with."""
        empty: dict[str, Any] = {"prompt_ids": (), "response_ids": (), "logprobs": (), "text": ""}
        turns = [Turn(**empty | turn | {"usage": tuple(turn["usage"])}) for turn in self.turns]
        steps = [(event, after) for event, after in self.steps] or [("", None)] * self.events
        return Trajectory(turns, dict(self.outputs), memory=unpacked(self.form, self.memory), report=Counter(self.report), steps=steps)


class Memories:
    """What the attempts of a job write: kept as it is written, and given to those of them that are made again."""

    def __init__(self, folder: Path, agent: BaseAgent, decides: Mapping[str, Any]) -> None:
        """Open for writing beside the ledger that is open for `decides`; for an agent that is not `in_stages` nothing is kept."""
        self._file: int | None = None
        self._lock = threading.Lock()
        self._lines: dict[Key, Written] = {}
        self._write = write_fingerprint(agent, decides)
        if agent.in_stages:
            self._lines = {line.key: line for line in read_memories(folder) if line.write == self._write}
            self._file = open_locked(folder / FILE)
            os.ftruncate(self._file, whole_length(folder / FILE))  # a torn last line was not written

    def request(self, key: Key, request: Request, *, shown: bool = False) -> Request:
        """The attempt as it is to run now: asked on what it wrote already, or writing and keeping that."""
        if self._file is None:
            return request
        told, held = hash_told(request.view), self._lines.get(key)
        if held is not None and held.told == told:
            return replace(request, written=held.trajectory())
        return replace(request, keep=partial(self._keep, key, told, shown))

    def entered(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The ledger's lines of attempts that ended; steps that nobody kept are none."""
        return [replace(a, steps=[]) if a.key in self._lines and not self._lines[a.key].steps else a for a in attempts]

    def _keep(self, key: Key, told: str, shown: bool, trajectory: Trajectory) -> None:
        packed = pack(trajectory.memory)
        if packed is None:
            log.warning("A memory of the type %s is not kept: it is no bank, text or plain JSON.", type(trajectory.memory).__name__)
            return
        line = Written(
            *key, *packed, hash_of(packed), told, self._write, [_row(turn) for turn in trajectory.turns], dict(trajectory.report),
            dict(trajectory.outputs), len(trajectory.steps), [[_event(e), str(after)] for e, after in trajectory.steps] if shown else [],
        )  # fmt: skip
        with self._lock:
            if self._file is not None:
                append_lines(self._file, [asdict(line)])

    def __enter__(self) -> Memories:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def pack(memory: Any) -> tuple[str, Any] | None:
    """(form, the memory as JSON), of which `unpacked` makes an equal one; None for what has no such form."""
    if type(memory) is MemoryBank:
        return "bank", json.loads(memory.to_json())
    if type(memory) is str:
        return "text", memory
    try:
        value = json.loads(json.dumps(memory, allow_nan=False))
    except (TypeError, ValueError):
        return None
    return ("json", value) if memory is not None and value == memory else None


def unpacked(form: str, memory: Any) -> Any:
    """The memory that was packed, a value of its own."""
    if form == "bank":
        return MemoryBank.from_json(json.dumps(memory))
    return json.loads(json.dumps(memory))


def hash_of(packed: tuple[str, Any]) -> str:
    """SHA-256 of a packed memory."""
    return hashlib.sha256(json.dumps(packed).encode()).hexdigest()


def hash_told(view: View) -> str:
    """16 hex digits over what an example tells before it asks."""
    told = (view.context, view.events, pack(view.memory) or str(view.memory))
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def read_memories(folder: Path) -> list[Written]:
    """Every whole line of a folder's `memories.jsonl`; none if there is no such file. A line that is not as written is `DataError`."""
    path = folder / FILE
    if not path.is_file():
        return []
    found = []
    for number, text in enumerate(path.read_bytes()[: whole_length(path)].split(b"\n")[:-1], 1):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not a written memory ({error}). Remove the line.") from error
        line = record(Written, row, f"{path}, line {number}", "Remove the line.")
        if hash_of((line.form, line.memory)) != line.sha256:
            raise DataError(f"{path}, line {number}: the memory is not the one that was written (its SHA-256 differs). Remove the line.")
        found.append(line)
    return found


def _row(turn: Turn) -> dict[str, Any]:
    tokens = turn.usage or (len(turn.prompt_ids), len(turn.response_ids))
    return {f.name: getattr(turn, f.name) for f in fields(turn) if f.name not in _BULK} | {"usage": tokens}


def _event(event: Any) -> Any:
    """An event of which the ledger's text is made later: as JSON, or already as text."""
    packed = pack(event)
    return packed[1] if packed and packed[0] != "bank" else str(event)
