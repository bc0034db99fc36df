"""Texts as sessions and sessions as text: each sample is shown both ways, to readers of long texts and to keepers of banks.

A long text becomes sessions of whole documents, lines or sentences, in order, dated `part 1`, `part 2`, ... Knows no task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from memfactory.data.documents import join_documents
from memfactory.evaluation.tasks.base import Session

SESSION_WORDS = 512
"""Words of a session that is made of a long text; a document, line or sentence that is longer is one by itself."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def text_of(sessions: Iterable[Session]) -> str:
    """Dialogues as one text: the date above each session, who speaks before each turn."""
    return "\n\n".join(
        "\n".join([f"[{session['date']}]", *(f"{turn['speaker']}: {turn['text']}" for turn in session["turns"])]) for session in sessions
    )


def in_parts(sessions: Iterable[Session], words: int) -> tuple[Session, ...]:
    """The same turns in sessions of at most `words` words (0: as they are); a longer turn is told in parts, which keep its id."""
    if not words:
        return tuple(sessions)
    parts: list[Session] = []
    for session in sessions:
        taken = words + 1  # a session begins a part
        for turn in session["turns"]:
            said = turn["text"].split()
            cut = [" ".join(said[at : at + words]) for at in range(0, len(said), words)] if len(said) > words else [turn["text"]]
            for text in cut:
                length = len(text.split())
                if taken + length > words:
                    parts.append({"date": session["date"], "turns": []})
                    taken = 0
                parts[-1]["turns"].append(turn | {"text": text})
                taken += length
    return tuple(parts)


def of_documents(documents: Sequence[str], words: int = SESSION_WORDS) -> tuple[str, tuple[Session, ...]]:
    """(one text of numbered documents, sessions of whole documents): a turn's id is the document's number, from 1."""
    return join_documents(documents), _packed(documents, "document", words)


def of_text(text: str, words: int = SESSION_WORDS) -> tuple[Session, ...]:
    """Sessions of a text's lines; of a few sentences at a time where a line is longer than a session."""
    pieces = [piece for line in text.split("\n") if line.strip() for piece in _cut(line, words)]
    return _packed(pieces, "text", words)


def _cut(line: str, words: int) -> list[str]:
    if len(line.split()) <= words:
        return [line]
    pieces: list[list[str]] = [[]]
    for sentence in _SENTENCE.split(line):
        said = sentence.split()
        if len(pieces[-1]) + len(said) > words // 8:  # a turn is some sentences: fwe's text has one at every third word
            pieces.append([])
        pieces[-1] += said
    return [" ".join(piece[at : at + words]) for piece in pieces for at in range(0, len(piece), words)]


def _packed(pieces: Sequence[str], speaker: str, words: int) -> tuple[Session, ...]:
    """Neighbouring pieces together, up to `words` words a session."""
    sessions: list[Session] = []
    taken = words
    for number, piece in enumerate(pieces, 1):
        length = len(piece.split())
        if taken + length > words:
            sessions.append({"date": f"part {len(sessions) + 1}", "turns": []})
            taken = 0
        sessions[-1]["turns"].append({"id": str(number), "speaker": speaker, "text": piece})
        taken += length
    return tuple(sessions)
