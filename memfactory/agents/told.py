"""What an application tells an agent and what it is told in return, as values. Knows no store and asks no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.parsing import ANSWER_MARK, strip_thinking
from memfactory.common.text import mend_value
from memfactory.common.types import Dropped, Trajectory
from memfactory.memory.citations import parse_citations
from memfactory.memory.items import MemoryItem, Rejection
from memfactory.memory.merge import Edit

Said = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""What an application tells: a text, a turn `{"speaker": ..., "text": ...}` (or `role` and `content`), or several of them."""


MAX_PIECE = 8000
"""Characters of one turn: a longer one is told in pieces, each of which any store can keep and most models can read."""
LEFT_OUT = "left_out_memories"
"""The count of memories that were found and did not fit the model beside the others."""
_ENDS = ("\n\n", "\n", ". ", "。", "! ", "? ", "！", "？", "; ", ", ", " ")


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
    def dropped(self) -> tuple[Dropped, ...]:
        """What was told or written and not taken over, and why: what could not be read is never remembered."""
        return tuple(self.trajectory.dropped)

    @property
    def repeated(self) -> tuple[Edit, ...]:
        """What was told again in the same words."""
        return tuple(edit for edit in self.edits if edit.op.kind == "NONE")

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


AddResult = Change


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

    @property
    def left_out(self) -> int:
        """How many memories were found and did not fit the model beside those shown: the least similar ones."""
        return self.trajectory.report[LEFT_OUT]

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


TOLD = "told"
"""The stage of what is dropped of what an application told."""
_NOT_SAID = {
    "system": "instructions, not conversation", "developer": "instructions, not conversation",
    "tool": "what a tool returned, not conversation", "function": "what a tool returned, not conversation",
}  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_OF_MESSAGES = ("tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations")
"""Further keys of a message, which say nothing of who said what."""


def turns_of(said: Said, speaker: str, drop: Callable[[str, str], None] = lambda what, why: None) -> list[dict[str, Any]]:
    """What was said as turns `{"speaker", "text"}` with whatever else they came with.

    Of messages (`role` and `content`) a user's and an assistant's are turns, by `name` where there is one; instructions, tools and
    parts that are no text are told to `drop` with the reason, and so is a message without text.
    """
    turns = []
    parts = [said] if isinstance(said, (str, Mapping)) else list(said)
    if not parts:
        raise DataError("Nothing was told: an empty list of turns.")
    for part in parts:
        if isinstance(part, Mapping) and "content" in part and "text" not in part:
            turn = _message(part, speaker, drop)
        else:
            turn = {"speaker": speaker, "text": part} if isinstance(part, str) else {"speaker": speaker, "text": None} | dict(part)
            role = turn.pop("role", None)
            if isinstance(part, Mapping) and "speaker" not in part and role not in (None, "user"):
                turn["speaker"] = role
            if not isinstance(turn["text"], str) or not turn["text"].strip():
                raise DataError(f"What is told is a text, or turns with a speaker and a text, not {part!r:.80}.")
        if turn is not None:
            turns.append(_mended(turn, drop))
    return turns


def _message(message: Mapping[str, Any], speaker: str, drop: Callable[[str, str], None]) -> dict[str, Any] | None:
    """A message as a turn; None, and the reason to `drop`, if nobody says anything in it."""
    turn = {name: value for name, value in message.items() if name not in _OF_MESSAGES}
    role, content, name = turn.pop("role", "user"), turn.pop("content"), turn.pop("name", None)
    if isinstance(content, list):
        texts = [text for part in content if (text := _text_of(part, drop))]
        content = "\n".join(texts)
    if not isinstance(content, (str, type(None))):
        raise DataError(f"The content of a message is a text, null or a list of parts, not {content!r:.80}.")
    if role in _NOT_SAID:
        drop(content or str(role), _NOT_SAID[role])
        return None
    if content is None or not content.strip():
        drop(f"a message of {name or role}", "it has no text" + (" but calls of tools" if message.get("tool_calls") else ""))
        return None
    named = name if isinstance(name, str) and name.strip() else speaker if role == "user" else role
    return {"speaker": named, "text": content} | turn


def _text_of(part: Any, drop: Callable[[str, str], None]) -> str:
    """The text of a part of a message's content."""
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    text = part if isinstance(part, str) else part.get(kind if kind == "refusal" else "text") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    drop(f"a part of the type {kind!r}", "it is no text")
    return ""


def _mended(turn: dict[str, Any], drop: Callable[[str, str], None]) -> dict[str, Any]:
    whole, broken = mend_value(turn)
    if broken:
        drop(f"{broken} half characters of {whole['text']!r:.80}", "half a character is none: U+FFFD stands for each")
    assert isinstance(whole, dict)
    return whole


def pieces_of(text: str, most: int = MAX_PIECE) -> list[str]:
    """A text in pieces of at most so many characters, cut behind paragraphs, lines, sentences or words, whichever come first."""
    pieces = []
    while len(text) > most:
        at = _cut(text, most // 2, most)
        pieces.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [piece for piece in (*pieces, text) if piece.strip()] or [text]


def in_pieces(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns whose texts are no longer than a piece."""
    return [{**turn, "text": piece} for turn in turns for piece in pieces_of(turn["text"])]


def in_halves(turns: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Turns as two lists; None for one that is short."""
    if len(turns) > 1:
        return list(turns[: len(turns) // 2]), list(turns[len(turns) // 2 :])
    text = turns[0]["text"]
    at = _cut(text, len(text) // 4, 3 * len(text) // 4) if len(text) > 80 else 0
    first, second = text[:at].rstrip(), text[at:].lstrip()
    return ([{**turns[0], "text": first}], [{**turns[0], "text": second}]) if first.strip() and second.strip() else None


def _cut(text: str, least: int, most: int) -> int:
    """The last place in this span behind which something ends."""
    return next((at + len(end) for end in _ENDS if (at := text.rfind(end, least, most)) >= 0), most)
