"""Questions with memories, for rerankers: the file's form, its loader, and the rule that cites what is known to be useful.

    {"input": question, "M": [text of a memory, ...], "outputs": [texts of the useful ones]}      (`synth_topics` writes it)

`outputs` may be missing where something else says what was useful. Knows no reranker.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from memfactory.common.errors import ConfigError, DataError
from memfactory.common.files import read_rows

HINT = "`memfactory data build synth_topics --output FILE.json` makes one."


@dataclass(frozen=True, slots=True)
class RerankExample:
    """One question. Example: RerankExample("dev/0", "Which visa?", ("Has a passport.", "Likes tofu."), frozenset({0}))."""

    id: str
    query: str
    memories: tuple[str, ...]
    useful: frozenset[int] | None
    """Places of the useful memories; None: the file does not say."""


class Citer(Protocol):
    """Says what an answer to a question would cite of the memories that it is shown."""

    def cite(self, examples: Sequence[RerankExample], shown: Sequence[Sequence[int]]) -> list[Collection[int] | None]:
        """For each question the places *within its shown memories* that are cited.

        `shown`: for each question the places of its memories, in the order shown. None where it cannot be known: a server
        that failed, or an answer that could not be read, says nothing of any memory.
        """
        ...


class GoldCiter:
    """Cites what the file says is useful. Knows what no reranker may see."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        """`noise`: how likely each verdict is turned round. The same question with the same memories gets the same verdicts."""
        if not 0 <= noise <= 1:
            raise ConfigError(f"noise={noise} is a probability, in [0, 1].")
        self.noise, self.seed = noise, seed

    def cite(self, examples: Sequence[RerankExample], shown: Sequence[Sequence[int]]) -> list[Collection[int] | None]:
        """As `Citer.cite`; a question without gold raises `DataError`."""
        return [self._one(example, places) for example, places in zip(examples, shown, strict=True)]

    def _one(self, example: RerankExample, places: Sequence[int]) -> list[int]:
        if example.useful is None:
            raise DataError(f"{example.id} has no `outputs`, so the gold citer cannot say what is useful. {HINT}")
        rng = random.Random(f"{self.seed}/{example.id}/{list(places)}")
        return [at for at, place in enumerate(places) if (place in example.useful) != (rng.random() < self.noise)]


def load_rerank(path: Path) -> list[RerankExample]:
    """The questions of a JSON list or JSON lines; what is wrong is a `DataError` that names the record and the field."""
    rows = read_rows(path, HINT)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} must hold a list of questions with memories, {{input, M, outputs}}. {HINT}")
    return [_example(row, f"{path}, record {number}", f"{path.stem}/{number}") for number, row in enumerate(rows)]


def _example(row: Any, where: str, name: str) -> RerankExample:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object {{input, M, outputs}}, got a {type(row).__name__}.")
    query, memories, gold = row.get("input"), row.get("M"), row.get("outputs")
    if not isinstance(query, str) or not query.strip():
        raise DataError(f"{where}: `input` must be a question, got {query!r:.60}. Keys here: {', '.join(map(str, row))}.")
    for key, value in (("M", memories), ("outputs", gold)):
        if not (key == "outputs" and value is None) and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise DataError(f"{where}: `{key}` must be a list of texts, got {value!r:.60}. Keys here: {', '.join(map(str, row))}.")
    memories = list(memories or ())
    if not memories or len(set(memories)) < len(memories):
        raise DataError(f"{where}: `M` must hold memories, each once; it has {len(memories)}, {len(set(memories))} of them different.")
    if unknown := [text for text in gold or () if text not in memories]:
        raise DataError(f"{where}: `outputs` names {unknown[0]!r:.60}, which is none of the memories in `M`.")
    useful = None if gold is None else frozenset(at for at, text in enumerate(memories) if text in gold)
    return RerankExample(name, query, tuple(memories), useful)
