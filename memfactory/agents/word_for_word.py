"""A memory that keeps everything as it was said or written: items in their order, each with the turn it is. What anchors read from.

Turns of a dialogue are items; so are the documents of a text, or else its lines, or its sentences where it has no lines.
Asks no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from memfactory.data.documents import split_documents
from memfactory.memory.bank import MemoryBank
from memfactory.memory.bm25 import BM25Index
from memfactory.memory.items import MemoryItem

PIECES = ("document", "text")
"""Who `speaks` where a task cuts a text into turns: nobody, so neither a name nor a date is written before such a turn."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class WordForWord:
    """Items in the order they came. Its text is short: ledgers keep it with every attempt."""

    items: tuple[MemoryItem, ...] = ()
    evidence: tuple[tuple[str, ...], ...] = ()
    """For the oracle alone: for each question the ids of the turns that answer it."""

    def __str__(self) -> str:
        return f"{len(self.items)} items, word for word"

    def with_event(self, event: Mapping[str, Any], style: str) -> WordForWord:
        """The memory with the turns of `{"date": ..., "turns": [{"id", "speaker", "text"}]}`."""
        new = items_of(event, style, len(self.items))
        return WordForWord((*self.items, *new), self.evidence)

    @cached_property
    def bm25(self) -> BM25Index:
        """The index of the items, made once for all questions."""
        return BM25Index([item.text for item in self.items])


def items_of(event: Mapping[str, Any], style: str, first: int = 0) -> list[MemoryItem]:
    """An event's turns as items numbered from `first`, in the form that a bank's extractor would copy them (`verbatim_extractor`)."""
    items = []
    for number, turn in enumerate(event["turns"], first):
        speaker, said = str(turn.get("speaker", "")), str(turn["text"])
        spoken = bool(speaker) and speaker not in PIECES
        text = said.removesuffix(" .") if style == "lines" else f"{speaker}: {said}" if spoken else said
        sources = (str(turn["id"]),) if "id" in turn else ()
        items.append(MemoryItem(str(number), text, created=str(event.get("date", "")) if spoken else "", sources=sources))
    return items


def pieces_of(text: str) -> list[dict[str, Any]]:
    """A text that comes without turns as one event: its documents, or lines, or sentences, whichever first are several."""
    lines = [line for line in text.split("\n") if line.strip()]
    documents = split_documents(text)
    found = documents if len(documents) > 1 else lines if len(lines) > 1 else _SENTENCE.split(text)
    return [{"date": "", "turns": [{"speaker": PIECES[1], "text": piece} for piece in found if piece.strip()]}]


def held(memory: Any) -> WordForWord:
    """The memory; a bank that an env starts from counts as what was said before."""
    if isinstance(memory, MemoryBank):
        return WordForWord(tuple(replace(item, id=str(at)) for at, item in enumerate(memory.items())))
    return memory


def as_text(items: Sequence[MemoryItem]) -> str:
    """Items as a text again: dated lines of what was said; documents with blank lines between, sentences without."""
    if any(item.created for item in items):
        return "\n".join(f"[{item.created}] {item.text}" if item.created else item.text for item in items)
    texts = [item.text for item in items]
    return ("\n\n" if any("\n" in text for text in texts) else " ").join(texts)


def of_sources(items: Iterable[MemoryItem], wanted: Iterable[str]) -> list[int]:
    """Places of the items that come from any of these turns."""
    ids = set(wanted)
    return [at for at, item in enumerate(items) if ids.intersection(item.sources)]
