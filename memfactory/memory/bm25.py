"""BM25 over texts (Robertson and Zaragoza, 2009; Lucene's form of it, by the library bm25s): what a search without vectors finds.

The same words count as for the hashed embedder: in lower case, without function words, not stemmed. Knows no item and no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memfactory.common.words import content_of
from memfactory.memory.search import DIGITS


class BM25Index:
    """Texts that can be ranked by BM25; building it is linear in their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = [content_of(text).split() for text in texts]
        self._number, self._index = len(words), None
        if any(words):  # the library divides by the mean length
            # Costs a third of a second, which only those who search so should pay.
            from bm25s import BM25

            self._index = BM25()
            self._index.index(words, show_progress=False)

    def rank(self, query: str) -> list[int]:
        """The places of all texts, best first; equal ones (those that share no word with the query, say) in the order given."""
        words = content_of(query).split()
        if self._index is None or not words:
            return list(range(self._number))
        scores = np.asarray(self._index.get_scores(words), np.float64).round(DIGITS)
        return [int(at) for at in np.argsort(-scores, kind="stable")]
