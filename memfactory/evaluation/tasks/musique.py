"""`musique`: questions of two to four hops over twenty paragraphs (Trivedi et al., 2022, arXiv 2108.00573)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import answer_texts, field, objects
from memfactory.data.locomo import NOT_KNOWN
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_documents

TWIN = "/unanswerable"
"""Put behind the id of a question whose answerable twin has the same."""


@TASK_REGISTRY.register("musique")
class MuSiQue(Task):
    """MuSiQue (arXiv 2108.00573), Ans or Full: two to four hops; the best of the answer and its aliases; unanswerable ones apart."""

    headline = "f1_squad@1"
    beside = ("em_squad@1", "sub_em_oneway@1")
    instruction = "Answer in a few words. If the text does not say, answer: not mentioned."

    def load(self, path: Path) -> Loaded:
        repaired: Counter[str] = Counter()
        rows = [(f"{path}, record {at}", row) for at, row in read_records(path)]
        answerable = {str(row.get("id")) for _, row in rows if _answerable(row)}
        return Loaded([_sample(row, where, answerable, repaired) for where, row in rows], repaired)


def _answerable(row: dict[str, Any]) -> bool:
    return row.get("answerable", True) is not False


def _sample(row: dict[str, Any], where: str, others: Set[str], repaired: Counter[str]) -> Sample:
    """A record; `others` are the ids of the answerable ones, which the Full set gives to their unanswerable twins too."""
    name = field(row, "id", str, where)
    where = f"{where} ({name})"
    paragraphs = objects(row, "paragraphs", where)
    documents = [
        f"{field(p, 'title', str, f'{where}, paragraphs[{at}]')}\n{field(p, 'paragraph_text', str, f'{where}, paragraphs[{at}]')}"
        for at, p in enumerate(paragraphs)
    ]
    hops, marked, _ = name.partition("hop")
    if not marked or not hops.isdigit():
        raise DataError(f"{where}: `id` must begin with the number of hops, such as 2hop__1_2.")
    aliases = row.get("answer_aliases") or []
    answerable = _answerable(row)
    twin = name if not answerable and name in others else ""
    own = f"{name}{TWIN}" if twin else name
    # The Full set's unanswerable twin of a question still has the answer that its other paragraphs gave.
    answers = answer_texts([row.get("answer"), *aliases], where, "answer", repaired) if answerable else [NOT_KNOWN]
    question = Question(
        own, field(row, "question", str, where), tuple(dict.fromkeys(answers)), f"{hops}-hop",
        tuple(str(at) for at, p in enumerate(paragraphs, 1) if p.get("is_supporting") is True),
        abstain=not answerable, twin=twin,
    )  # fmt: skip
    context, sessions = of_documents(documents)
    return Sample(own, (question,), sessions, context, cluster=name)
