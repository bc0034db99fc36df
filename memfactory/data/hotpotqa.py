"""`hotpotqa`: HotpotQA's own files made into MemAgent's evaluation and training files (arXiv 2507.02259, its data script).

Reads the official form and the Hugging Face form, and any file of the same fields (2WikiMultihopQA). An item gets its own
documents and others of the pool. Not done: MemAgent's filter, which drops what a 7B model answers without the documents.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, DataError
from memfactory.common.files import read_rows
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.documents import LEGACY_SEED, join_documents, permuted
from memfactory.data.parquet import read_parquet

log = logging.getLogger(__name__)

HINT = (
    "hotpot_dev_distractor_v1.json is at https://hotpotqa.github.io, the Hugging Face form in the hub data set hotpotqa/hotpot_qa. "
    "Offline, synth_hop makes questions of the same form."
)


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a file with its own documents, each once, and the titles of those that the answer follows from."""

    number: int
    """Its place among the records of all files, from 0: the same however many items are asked for."""
    question: str
    answer: str
    documents: tuple[tuple[str, str], ...]
    """(title, title and text), in the file's order."""
    gold_titles: tuple[str, ...]
    kind: str = ""
    """bridge, comparison, ...; empty where the file does not say."""
    name: str = field(default="", compare=False)
    """Its id; the Hugging Face form's mirrors leave it out."""
    answer_id: str = field(default="", compare=False)
    """2WikiMultihopQA's: under what its other names are listed."""


class Pool:
    """All documents of the files, each once, in the order of their text."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.documents = sorted({(text, title) for item in items for title, text in item.documents})
        self._by_title = Counter(title for _, title in self.documents)

    def largest(self, item: Item) -> int:
        """The most documents that an item can have: its own, and the pool's without those that bear a title of its own."""
        own = {title for title, _ in item.documents}
        return len(item.documents) + len(self.documents) - sum(self._by_title[title] for title in own)

    def draw(self, item: Item, number: int, rng: random.Random) -> list[str]:
        """Random documents of other titles than the item's own, none twice; fewer of them are the first of more."""
        own = {title for title, _ in item.documents}
        drawn: dict[int, str] = {}
        while len(drawn) < number:
            at = rng.randrange(len(self.documents))
            text, title = self.documents[at]
            if title not in own:
                drawn.setdefault(at, text)
        return list(drawn.values())


@GENERATOR_REGISTRY.register("hotpotqa")
def hotpotqa(
    num_examples: int, *, source: Sequence[str], seed: int = 0, docs: int = 50, legacy_shuffle: bool = False
) -> Iterator[dict[str, Any]]:
    """HotpotQA's own files made into MemAgent's: the first usable questions, each over `docs` documents of the files' pool.

    Records are `{context, input, answers, num_docs, index}` with `evidence` (numbers of the gold documents) and
    `evidence_titles` beside; `index` is the record's number in the files. For one seed the questions are the same at every
    `docs`, and the documents of a smaller `docs` are among those of a larger. `legacy_shuffle` permutes every item alike, as
    MemAgent's script does, which puts an item's own documents at places that can be learned.
    """
    files = ", ".join(source)
    items = read_items([Path(name).expanduser() for name in source])
    if num_examples > len(items):
        raise ConfigError(f"number={num_examples}, but {files} has {len(items)} usable questions. Ask for at most {len(items)}.")
    pool, items = Pool(items), items[:num_examples]
    own = max(len(item.documents) for item in items)
    if docs < own:
        raise ConfigError(f"docs={docs}: an item of {files} has {own} documents of its own. Ask for at least {own}.")
    if docs > (most := min(pool.largest(item) for item in items)):
        raise ConfigError(
            f"docs={docs}: the pool of {files} holds {len(pool.documents)} documents, of which every item can have {most}. "
            f"Ask for at most {most}, or name more files with --from."
        )
    return (_record(item, pool, seed, docs, legacy_shuffle) for item in items)


def _record(item: Item, pool: Pool, seed: int, docs: int, legacy_shuffle: bool) -> dict[str, Any]:
    stream = f"hotpotqa/{seed}/{item.number}"
    documents = [text for _, text in item.documents]
    documents += pool.draw(item, docs - len(documents), random.Random(f"{stream}/documents"))
    order = random.Random(LEGACY_SEED) if legacy_shuffle else random.Random(f"{stream}/order")
    ordered, numbers = permuted(documents, order)
    gold = [(number, title) for (title, _), number in zip(item.documents, numbers, strict=False) if title in item.gold_titles]
    return {
        "context": join_documents(ordered),
        "input": item.question,
        "answers": [item.answer],
        "num_docs": docs,
        "index": item.number,
        "evidence": [number for number, _ in gold],
        "evidence_titles": list(item.gold_titles),
    }


def read_items(paths: Sequence[Path]) -> list[Item]:
    """The usable records of HotpotQA files, in order; those without documents are skipped, and a warning says how many."""
    items: list[Item] = []
    numbered = skipped = 0
    for path in paths:
        rows = _rows(path)
        for at, row in enumerate(rows):
            item = _item(row, numbered + at, f"{path}, record {at}")
            items += [item] if item else []
            skipped += item is None
        numbered += len(rows)
    files = ", ".join(map(str, paths))
    if not items:
        raise DataError(f"{files}: no usable record; {skipped} have no documents. {HINT}")
    if skipped:
        log.warning("%s: %d of %d records skipped: their `context` is null or empty.", files, skipped, numbered)
    return items


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return read_parquet(path, HINT)
    rows = read_rows(path, HINT)
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of HotpotQA records, not a {type(rows).__name__}.")
    return rows


def _item(row: Any, number: int, where: str) -> Item | None:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with `question`, `answer` and `context`, got {row!r:.60}.")
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{where}: `{key}` must be a text, got {row.get(key)!r:.60}. Keys here: {', '.join(row)}. {HINT}")
    if not row.get("context"):
        return None
    pairs = _pairs(row["context"], ("title", "sentences"))
    facts = _pairs(row.get("supporting_facts") or [], ("title", "sent_id"))
    if pairs is None or facts is None or not all(isinstance(title, str) and _texts(lines) for title, lines in pairs):
        raise DataError(
            f"{where}: `context` and `supporting_facts` must be lists of [title, [sentence, ...]] and [title, number], or the Hugging "
            f"Face form of them ({{title: [...], sentences: [[...]]}}); got {row['context']!r:.60}."
        )
    documents = dict.fromkeys((title, f"{title}\n{''.join(lines)}") for title, lines in pairs)
    gold = tuple(dict.fromkeys(title for title, _ in facts))
    kind, name = str(row.get("type") or ""), str(row.get("_id") or row.get("id") or "")
    return Item(number, row["question"], row["answer"], tuple(documents), gold, kind, name, str(row.get("answer_id") or ""))


def _pairs(value: Any, keys: tuple[str, str]) -> list[tuple[Any, Any]] | None:
    """Pairs from either form: a list of pairs, or a dict of two lists of one length. None if it is neither."""
    if isinstance(value, dict):
        columns = [value.get(key) for key in keys]
        if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:  # type: ignore[arg-type]
            return None
        return list(zip(*columns, strict=True))
    if not isinstance(value, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
        return None
    return [(first, second) for first, second in value]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
