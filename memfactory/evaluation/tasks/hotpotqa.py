"""`hotpotqa` and `2wiki`: questions over several documents, in the files' own form or in MemAgent's (`eval_50`, `eval_100`, ...).

MemAgent's files (arXiv 2507.02259) are HotpotQA's questions among more documents, at any number of them:
`memfactory data build hotpotqa --docs 400`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.common.files import numbered_jsonl, read_rows
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import field, texts
from memfactory.data.documents import split_documents
from memfactory.data.formats import load_longcontext
from memfactory.data.hotpotqa import Item, read_items
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.texts import of_documents

log = logging.getLogger(__name__)


@TASK_REGISTRY.register("hotpotqa")
class HotpotQA(Task):
    """HotpotQA (arXiv 1809.09600): its own files, the Hugging Face form, or MemAgent's eval_N over N documents."""

    headline = "f1_hotpot@1"
    beside = ("em_squad@1", "sub_em_oneway@1", "boxed_em@1")
    instruction = "Answer in a few words."

    def load(self, path: Path) -> Loaded:
        rows = [] if path.suffix == ".parquet" else read_rows(path)
        first: Any = rows[0] if isinstance(rows, list) and rows else {}
        if isinstance(first, dict) and "input" in first:
            return Loaded([_of_row(row) for row in load_longcontext(path)])
        items = read_items([path])
        skipped = len(rows) - len(items)
        repaired = Counter({"record without documents left out": skipped} if rows and skipped else {})
        return Loaded([_of_item(item, path, self.other_names(item, path)) for item in items], repaired)

    def other_names(self, item: Item, path: Path) -> Collection[str]:
        """What is right beside the answer as the file has it."""
        return ()


@TASK_REGISTRY.register("2wiki")
class TwoWiki(HotpotQA):
    """2WikiMultiHopQA (arXiv 2011.01060): HotpotQA's form, four types of reasoning; with its file of aliases the best of all names.

    The published scores (2wikimultihop_evaluate_v1.1.py) are with `id_aliases.json`; it is read from beside the questions if it is there.
    """

    @dataclass(frozen=True, slots=True)
    class Options:
        """Where the answers' other names are."""

        aliases: str = "auto"
        """A file of lines `{"Q_id", "aliases", "demonyms"}`; auto: id_aliases.json beside the questions, if there; empty: none."""

    def load(self, path: Path) -> Loaded:
        beside = path.with_name("id_aliases.json")
        chosen = self.options.aliases
        found = Path(chosen).expanduser() if chosen not in ("", "auto") else beside if chosen and beside.is_file() else None
        self._names: dict[str, list[str]] = {}
        for number, row in numbered_jsonl(found) if found else []:
            where = f"{found}, line {number}"
            self._names[field(row, "Q_id", str, where)] = [*texts(row, "aliases", where), *texts(row, "demonyms", where)]
        if found is None:
            log.info("%s: no file of aliases, so each answer has one name. The published scores are with id_aliases.json.", path)
        return super().load(path)

    def other_names(self, item: Item, path: Path) -> Collection[str]:
        return self._names.get(item.answer_id, ())


def _of_row(row: dict[str, Any]) -> Sample:
    """A record of MemAgent's form; files that were built here say which documents hold the answer."""
    evidence = tuple(map(str, row["extra"].get("evidence", ())))
    question = Question(row["example_id"], row["question"], tuple(row["answers"]), evidence=evidence)
    _, sessions = of_documents(split_documents(row["context"]))
    return Sample(row["example_id"], (question,), sessions, row["context"])


def _of_item(item: Item, path: Path, names: Collection[str] = ()) -> Sample:
    name = item.name or f"{path.stem}/{item.number}"
    evidence = tuple(str(at) for at, (title, _) in enumerate(item.documents, 1) if title in item.gold_titles)
    answers = tuple(dict.fromkeys([item.answer, *(other for other in names if other.strip())]))
    context, sessions = of_documents([text for _, text in item.documents])
    return Sample(name, (Question(name, item.question, answers, item.kind or "all", evidence),), sessions, context)
