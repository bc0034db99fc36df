"""Numbered documents in one text, as MemAgent's files have them: `Document {k}:\\n<title>\\n<text>`, blank lines between.

Knows no question. The benchmark's own format (arXiv 2507.02259, evaluation files), so that agents and scorers need no other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

LEGACY_SEED = 4
"""The seed with which MemAgent's script shuffles the documents of every item alike."""


def join_documents(documents: Sequence[str]) -> str:
    """One text of all documents, numbered from 1."""
    return "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, 1))


def split_documents(context: str) -> list[str]:
    """The documents of a text that `join_documents` made; the numbers must follow each other, so a text may quote `Document 7:`."""
    documents = []
    rest, number = context.removeprefix("Document 1:\n"), 2
    while True:
        text, found, rest = rest.partition(f"\n\nDocument {number}:\n")
        documents.append(text)
        if not found:
            return documents
        number += 1


def permuted(documents: Sequence[str], rng: random.Random) -> tuple[list[str], list[int]]:
    """The documents in a random order, and the number (from 1) at which each of them now stands."""
    order = list(range(len(documents)))
    rng.shuffle(order)
    numbers = [0] * len(order)
    for place, which in enumerate(order):
        numbers[which] = place + 1
    return [documents[which] for which in order], numbers
