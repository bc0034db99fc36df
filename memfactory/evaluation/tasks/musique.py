"""`musique`: questions of two to four hops over twenty paragraphs (Trivedi et al., 2022, arXiv 2108.00573)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import answer_texts, field, objects
from memfactory.data.locomo import NOT_KNOWN
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_documents


@TASK_REGISTRY.register("musique")
class MuSiQue(Task):
    """MuSiQue (arXiv 2108.00573), Ans or Full: two to four hops; the best of the answer and its aliases; unanswerable ones apart."""

    headline = "f1_squad@1"
    beside = ("em_squad@1", "sub_em_oneway@1")
    instruction = "Answer in a few words. If the text does not say, answer: not mentioned."

    def load(self, path: Path) -> Loaded:
        repaired: Counter[str] = Counter()
        return Loaded([_sample(row, f"{path}, record {at}", repaired) for at, row in read_records(path)], repaired)


def _sample(row: dict[str, Any], where: str, repaired: Counter[str]) -> Sample:
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
    answerable = row.get("answerable", True) is not False
    # The Full set's unanswerable twin of a question still has the answer that its other paragraphs gave.
    answers = answer_texts([row.get("answer"), *aliases], where, "answer", repaired) if answerable else [NOT_KNOWN]
    question = Question(
        name, field(row, "question", str, where), tuple(dict.fromkeys(answers)), f"{hops}-hop",
        tuple(str(at) for at, p in enumerate(paragraphs, 1) if p.get("is_supporting") is True),
        abstain=not answerable,
    )  # fmt: skip
    context, sessions = of_documents(documents)
    return Sample(name, (question,), sessions, context)
