"""Frozen memories under another reader: what one evaluation wrote is asked by another, which writes nothing.

The reader may be another model, another answerer or retriever, or be shown more or fewer memories; data and what each example told must
be the same. Knows folders of evaluations and the agent that reads; no env and no score.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from memfactory.agents.base import BaseAgent, Request
from memfactory.common.errors import ConfigError, MissingFileError
from memfactory.common.files import read_json
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.evaluation.ledger import Attempt, Key, differences
from memfactory.evaluation.memories import FILE, Memories, Written, hash_told, pack, read_memories

log = logging.getLogger(__name__)


class Replay(Memories):
    """The memories of another job, read only."""

    def __init__(self, origin: Path, folder: Path, agent: BaseAgent, decides: Mapping[str, Any]) -> None:
        """Raises `ConfigError` where `agent`, whose attempts `decides` describes, cannot be asked on what `origin` holds."""
        if origin.resolve() == folder.resolve():
            raise ConfigError(f"--memories {origin} is where the answers are to go. Give another --output_dir; to go on, leave it out.")
        _check_stages(agent)
        here = json.loads(json.dumps(decides))
        there = read_json(origin / "fingerprint.json", "`--memories` takes folders that `memfactory eval` made.")
        if changed := differences(there["data"], here["data"], "data."):
            raise ConfigError(f"The memories in {origin} are of other data: {'; '.join(changed)}. Give the data that they were written on.")
        self.origin, self._agent = origin, agent
        self._env_changed = differences(there["env"], here["env"], "env.")
        self._lines = {line.key: line for line in read_memories(origin)}
        if not self._lines:
            raise ConfigError(_why_none(origin, there["agent"]["type"]))
        written = sorted({line.write for line in self._lines.values()})
        self.about: dict[str, Any] = {
            "memories": {
                "sha256": hash_all(self._lines.values()), "model": there["model"], "agent": there["agent"]["type"],
                "write": ", ".join(written),
            }
        }  # fmt: skip
        """What the fingerprint says of them."""

    def request(self, key: Key, request: Request, *, shown: bool = False) -> Request:
        """The attempt, asked on the memory that the same attempt wrote there."""
        line, (example, kind, number) = self._lines.get(key), key
        if line is None:
            others = sorted(f"{k} {n}" for e, k, n in self._lines if e == example)
            here = f"only of its attempts {', '.join(others)}: give --k accordingly" if others else "nor of any attempt at it"
            raise ConfigError(f"{self.origin} has no memory of {example}, {kind} {number}, {here}; or evaluate it there first.")
        if line.told != hash_told(request.view):
            why = "; ".join(self._env_changed) or "its env shows it otherwise"
            raise ConfigError(f"The memory of {example} in {self.origin} was written on something else than is told here: {why}.")
        own = pack(self._agent.initial(request.view))
        if own is not None and own[0] != line.form:
            name = type(self._agent).__name__
            raise ConfigError(f"{name} reads a memory of the form {own[0]}; in {self.origin} it is {line.form}. Give another --agent.")
        return replace(request, written=line.trajectory())

    def entered(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The ledger's lines: whose memory it was, and only what answering cost."""
        return [_answered(attempt, self._lines[attempt.key]) for attempt in super().entered(attempts)]

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """There is nothing to close."""


def _check_stages(agent: BaseAgent) -> None:
    name = type(agent).__name__
    if agent.question_aware:
        raise ConfigError(
            f"--memories: {name} reads with the question in hand and writes a memory anew for each question, so there is nothing to "
            "replay: no memory stands before its question."
        )
    if not agent.in_stages:
        raise ConfigError(f"--memories: {name} has a `run` of its own. Only agents that leave `run` as it is can be asked apart.")


def _why_none(origin: Path, kind: str) -> str:
    agents = dict(AGENT_REGISTRY.items())
    if kind in agents and getattr(agents[kind], "question_aware", False):
        return f"{origin} was evaluated with {kind}, which writes with the question in hand: such a memory is of one question and not kept."
    return (
        f"{origin} holds no {FILE}: it was made before memories were kept, by an agent with a `run` of its own, or with a memory that "
        "is no bank, text or plain JSON. Evaluate it again in another --output_dir."
    )


def _answered(attempt: Attempt, line: Written) -> Attempt:
    """A line without what writing cost, which somebody else paid."""
    prompt, completion = (sum(turn["usage"][at] for turn in line.turns) for at in (0, 1))
    parts: dict[str, Any] = getattr(attempt, "cost", {})  # by stages, where the ledger tells them apart
    by_stage: dict[str, Any] = {"cost": {part: costs for part, costs in parts.items() if part != "writing"}} if parts else {}
    return replace(
        attempt, replayed=line.sha256, turns=attempt.turns - len(line.turns), prompt_tokens=attempt.prompt_tokens - prompt,
        completion_tokens=attempt.completion_tokens - completion, **by_stage,
    )  # fmt: skip


def hash_all(lines: Iterable[Written]) -> str:
    """16 hex digits over all memories of a folder, whatever their order."""
    rows = sorted((*line.key, line.sha256) for line in lines)
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def origin_of(given: str, model: str, dataset: str) -> str:
    """The job's folder whose memories `--memories` means for this model on this data set; "" if it was not given.

    Of a whole evaluation that is the same model's, or the only one's. Who answered from another's memories stands for that other.
    """
    if not given:
        return ""
    top = Path(given)
    found = [top] if (top / "job.json").is_file() else sorted(job.parent for job in [*top.glob("*/job.json"), *top.glob("*/*/job.json")])
    jobs = {folder: read_json(folder / "job.json") for folder in found}
    if not jobs:
        raise MissingFileError(f"--memories {given}: no evaluated data set there (no job.json). Give a folder that `memfactory eval` made.")
    if found != [top]:
        sets = dict.fromkeys(job["dataset"] for job in jobs.values())
        jobs = {folder: job for folder, job in jobs.items() if job["dataset"] == dataset}
        if not jobs:
            raise ConfigError(f"--memories {given} has nothing on {dataset}; it has {', '.join(sets)}. Name a set alike: NAME=PATH.")
        jobs = {folder: job for folder, job in jobs.items() if job["model_name"] == model} or jobs
    if len(jobs) > 1:
        raise ConfigError(f"--memories {given}: several wrote on {dataset}. Name one of {', '.join(map(str, jobs))}.")
    ((folder, job),) = jobs.items()
    return job.get("memories") or str(folder)


def hash_in(folder: Path) -> str | None:
    """The hash of the memories that a job's folder answered from, its own or another's; None if it kept none."""
    frozen = read_json(folder / "fingerprint.json").get("memories")
    if frozen:
        return str(frozen["sha256"])
    lines = {line.key: line for line in read_memories(folder)}
    return hash_all(lines.values()) if lines else None


def replay_notes(folders: Sequence[Path]) -> list[str]:
    """Of every job that answered from another's memories, whose they were."""
    notes = []
    for folder in folders:
        job = read_json(folder / "job.json")
        if job.get("memories"):
            who = f"{job['model_name']} on {job['dataset']}"
            notes.append(f"{who} answers from the memories in {job['memories']} ({hash_in(folder)}); it wrote nothing.")
    return notes
