"""What an application tells an agent and what it is told in return, as values. Knows no store and asks no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.parsing import ANSWER_MARK, strip_thinking
from memfactory.common.types import Trajectory
from memfactory.memory.citations import parse_citations
from memfactory.memory.items import MemoryItem, Rejection
from memfactory.memory.merge import Edit

Said = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""What an application tells: a text, a turn `{"speaker": ..., "text": ...}` (or `role` and `content`), or several of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """What came of `add`."""

    edits: tuple[Edit, ...]
    """As executed, in the order of the memories."""
    rejected: tuple[Rejection, ...]
    """What the policy asked for in vain, and what no longer fitted because somebody else wrote meanwhile."""
    trajectory: Trajectory
    """The turns as sampled, and counts of what happened on the way."""

    @property
    def remembered(self) -> tuple[Edit, ...]:
        """What is new."""
        return tuple(edit for edit in self.edits if edit.op.kind == "ADD")

    @property
    def changed(self) -> tuple[Edit, ...]:
        """What has a new text."""
        return tuple(edit for edit in self.edits if edit.op.kind == "UPDATE")

    @property
    def forgotten(self) -> tuple[Edit, ...]:
        """What was deleted, or closed."""
        return tuple(edit for edit in self.edits if edit.op.kind == "DEL")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of `ask`; as a text it is the answer alone."""

    text: str
    """The final answer: what stands after **Answer:**, or in the box; "" if a thought was cut off."""
    whole: str
    """All that the model wrote."""
    shown: tuple[MemoryItem, ...]
    """The memories that it had before it; none for an agent that does not say."""
    useful: tuple[MemoryItem, ...]
    """Those of them that it named before its answer, by their words or by citing them."""
    trajectory: Trajectory

    def __str__(self) -> str:
        return self.text


def named(whole: str, shown: Sequence[MemoryItem]) -> tuple[MemoryItem, ...]:
    """The memories that an answer names before **Answer:**, in the order shown: it cites their numbers, or repeats their texts."""
    if cited := parse_citations(whole, len(shown)).ids:
        return tuple(item for at, item in enumerate(shown) if at in cited)
    head, marked, _ = (strip_thinking(whole) or "").rpartition(ANSWER_MARK)
    found = set()
    for item in sorted(shown, key=lambda item: -len(item.text)):  # a text may be the beginning of another
        text = item.text.removesuffix(" .")
        if marked and text in head:
            head = head.replace(text, "\n")
            found.add(item.id)
    return tuple(item for item in shown if item.id in found)


def turns_of(said: Said, speaker: str) -> list[dict[str, Any]]:
    """What was said as turns `{"speaker", "text"}` with whatever else they came with."""
    turns = []
    for part in [said] if isinstance(said, (str, Mapping)) else said:
        turn = {"text": part} if isinstance(part, str) else dict(part)
        role, content = turn.pop("role", "user"), turn.pop("content", None)
        turn = {"speaker": speaker if role == "user" else role, "text": content} | turn
        if not isinstance(turn["text"], str) or not turn["text"].strip():
            raise DataError(f"What is told is a text, or turns with a speaker and a text, not {part!r:.80}.")
        turns.append(turn)
    if not turns:
        raise DataError("Nothing was told: an empty list of turns.")
    return turns
