"""What the ledger keeps of an attempt beside its score: what it cost by stage, and what people are shown. Knows no env and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfactory.common.types import Trajectory, Turn
from memfactory.modules.memory_extractor import conversation_text

WRITING, ANSWERING = "writing", "answering"

_READING = ("rerank", "answer")
"""Stages that come after the memory is written, also where it is written for one question."""


def tokens(turn: Turn) -> tuple[int, int]:
    """(prompt, completion) tokens of a call, as the server counted them where there are no ids."""
    return turn.usage or (len(turn.prompt_ids), len(turn.response_ids))


def cost_of(turns: Sequence[Turn], question_aware: bool) -> dict[str, dict[str, list[float]]]:
    """{writing or answering: {stage: [calls, prompt tokens, completion tokens, seconds]}} of an attempt.

    What is done for one question is answering, unless the agent also writes for one question (`question_aware`): then stages decide.
    """
    costs: dict[str, dict[str, list[float]]] = {}
    for turn in turns:
        reading = turn.stage in _READING or (turn.question is not None and not question_aware)
        row = costs.setdefault(ANSWERING if reading else WRITING, {}).setdefault(turn.stage, [0, 0, 0, 0.0])
        prompt, completion = tokens(turn)
        row[0] += 1
        row[1] += prompt
        row[2] += completion
        row[3] = round(row[3] + turn.seconds, 4)
    return costs


def event_text(event: Any) -> str:
    """What an agent was told, for people: a part of a conversation as its lines, anything else as it prints itself."""
    turns = event.get("turns") if isinstance(event, Mapping) else None
    spoken = isinstance(turns, Sequence) and all(isinstance(turn, Mapping) and {"speaker", "text"} <= turn.keys() for turn in turns)
    return conversation_text(event) if turns and spoken else str(event)


def given_texts(trajectory: Trajectory) -> list[list[str]]:
    """Of each answer the memories it was made from, as `id: text`; [] if the agent never said."""
    if not trajectory.given:
        return []
    return [[f"{item.id}: {item.text}" for item in trajectory.given.get(at, ())] for at in range(len(trajectory.answers))]
