"""`ruler_*`: RULER's thirteen tasks (Hsieh et al., 2024, arXiv 2404.06654) at any length.

Reads our own files (`memfactory data build niah | vt | cwe | fwe | qa`), MemAgent's fork of them, and NVIDIA's, whose `input`
is the whole prompt: it is taken apart again, for a memory must not be asked before it has read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import answer_texts, field
from memfactory.data.documents import split_documents
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_documents, of_text

_ASKED = ("\nQuestion:", "\nWhat are all", "\nWhat is the")
"""How the question begins in NVIDIA's prompts, after the text."""


class Ruler(Task):
    """All that is asked for must be said (`string_match_all`)."""

    headline = "ruler_all@1"

    def load(self, path: Path) -> Loaded:
        repaired: Counter[str] = Counter()
        rows = read_records(path)
        return Loaded([self._sample(row, f"{path}, record {at}", f"{path.stem}/{at}", repaired) for at, row in rows], repaired)

    def _sample(self, row: dict[str, Any], where: str, name: str, repaired: Counter[str]) -> Sample:
        asked = field(row, "input", str, where)
        if isinstance(row.get("context"), str):
            context = field(row, "context", str, where)
        else:
            context, asked = _apart(asked, where)
            repaired["prompt taken apart into text and question"] += 1
        golds = answer_texts(row.get("outputs", row.get("answers")), where, "outputs", repaired)
        question = Question(name, asked.strip(), tuple(golds), evidence=tuple(map(str, row.get("evidence") or ())))
        documents = split_documents(context)
        sessions = of_documents(documents)[1] if len(documents) > 1 else of_text(context)
        return Sample(name, (question,), sessions, context)


class RulerQA(Ruler):
    """One of the gold answers must be said (`string_match_part`)."""

    headline = "ruler_part@1"
    beside = ("f1_hotpot@1", "em_squad@1")
    instruction = "Answer in a few words."


def _apart(prompt: str, where: str) -> tuple[str, str]:
    """(text, question) of NVIDIA's prompt: the question stands after the text, what comes before it is about both."""
    at = max(prompt.rfind(begin) for begin in _ASKED)
    if at < 1 or not prompt[:at].strip():
        raise DataError(f"{where}: no `context`, and `input` does not end with a question as RULER's prompts do: {prompt[-80:]!r}.")
    return prompt[:at].strip(), prompt[at:].strip()


def _register(name: str, base: type[Task], what: str) -> None:
    made = type(f"Ruler_{name}", (base,), {"__doc__": f"RULER's {name} (arXiv 2404.06654): {what}", "__module__": __name__})
    TASK_REGISTRY.register(f"ruler_{name}")(made)


for _name, _what in {
    "niah_single_1": "a number in noise.", "niah_single_2": "a number in essays.", "niah_single_3": "a uuid in essays.",
    "niah_multikey_1": "one of four keys in essays.", "niah_multikey_2": "one key among needles.",
    "niah_multikey_3": "one uuid among uuids.", "niah_multivalue": "four values of one key.", "niah_multiquery": "four keys asked for.",
    "vt": "variables through assignments.", "cwe": "the ten most common words.", "fwe": "the three most frequent coded words.",
}.items():  # fmt: skip
    _register(_name, Ruler, _what)
_register("qa_1", RulerQA, "SQuAD's questions among other paragraphs.")
_register("qa_2", RulerQA, "HotpotQA's questions among other paragraphs.")
