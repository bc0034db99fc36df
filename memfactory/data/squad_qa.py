"""`qa`: RULER's question answering (arXiv 2404.06654) at any length: SQuAD's or HotpotQA's questions among other paragraphs of the file.

As in RULER, SQuAD's questions without an answer are left out. Not as in RULER: the paragraphs of every record have an order of
their own, and none of the others bears a title of the record's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, DataError
from memfactory.common.files import read_json, read_rows
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.dialog_records import field, objects
from memfactory.data.documents import join_documents, permuted, split_documents
from memfactory.data.generators.fitting import Count
from memfactory.data.generators.ruler import ruler_record
from memfactory.data.hotpotqa import Item, Pool, read_items

ANSWER_TOKENS = 32
"""Left of the length for the answer (`tokens_to_generate` of RULER)."""
PREFIX = " Answer:"
Record = dict[str, Any]


@GENERATOR_REGISTRY.register("qa")
def qa(num_examples: int, *, source: Sequence[str], count: Count, seed: int = 0, tokens: int = 16384) -> Iterator[Record]:
    """RULER's qa_1 from SQuAD's file, qa_2 from HotpotQA's, told apart by their form: the first questions, each among other paragraphs.

    Records are `{index, input, context, outputs, answer_prefix, length}` with `evidence`, the numbers of the documents that hold
    the answer. `length` is at most `tokens`; a file with too few paragraphs for it is a `ConfigError`.
    """
    items: list[Item] = []
    golds: dict[int, list[str]] = {}
    for path in [Path(name).expanduser() for name in source]:
        read = _squad(path, len(items)) if _is_squad(path) else [(item, [item.answer]) for item in read_items([path])]
        for item, answers in read:
            golds[len(items)] = answers
            items.append(Item(len(items), item.question, answers[0], item.documents, item.gold_titles))
    if num_examples > len(items):
        raise ConfigError(f"number={num_examples}, but {', '.join(source)} has {len(items)} usable questions. Ask for at most that many.")
    pool = Pool(items)
    return (_record(item, golds[item.number], pool, seed, tokens, count) for item in items[:num_examples])


def _record(item: Item, answers: list[str], pool: Pool, seed: int, tokens: int, count: Count) -> Record:
    own = [text for _, text in item.documents]
    most = pool.largest(item) - len(own)

    def render(units: int) -> str:
        drawn = pool.draw(item, min(units, most), random.Random(f"qa/{seed}/{item.number}/documents"))
        return join_documents(permuted([*own, *drawn], random.Random(f"qa/{seed}/{item.number}/order"))[0])

    made = ruler_record(item.number, item.question, PREFIX, answers, render, count, tokens, ANSWER_TOKENS, least=1, owner="qa")
    documents = split_documents(made["context"])
    if len(documents) >= len(own) + most:
        raise ConfigError(
            f"qa with tokens={tokens}: all {len(documents)} paragraphs that question {item.number} can have take {made['length']} tokens. "
            "Ask for fewer tokens, or name more files with --from."
        )
    gold = {text for title, text in item.documents if title in item.gold_titles}
    return made | {"evidence": [number for number, text in enumerate(documents, 1) if text in gold]}


def _is_squad(path: Path) -> bool:
    held = read_rows(path) if path.suffix == ".json" else None
    return isinstance(held, dict) and "data" in held


def _squad(path: Path, first: int) -> Iterator[tuple[Item, list[str]]]:
    """(question with its paragraph, all its answers) of SQuAD 1.1 or 2.0, those that can be answered."""
    found = 0
    for at, article in enumerate(objects(read_json(path), "data", str(path))):
        title = field(article, "title", str, f"{path}, data[{at}]")
        for number, paragraph in enumerate(objects(article, "paragraphs", f"{path}, {title}")):
            where = f"{path}, {title}, paragraphs[{number}]"
            text = field(paragraph, "context", str, where)
            for asked in objects(paragraph, "qas", where, empty=True):
                answers = [answer["text"] for answer in objects(asked, "answers", where, empty=True)]
                if answers and not asked.get("is_impossible"):
                    name = f"{title}/{number}"
                    question = field(asked, "question", str, where)
                    yield Item(first + found, question, answers[0], ((name, text),), (name,)), list(dict.fromkeys(answers))
                    found += 1
    if not found:
        raise DataError(f"{path}: no question with an answer.")
