"""`memoryagentbench`: a long text told once and asked many times (Hu et al., 2025, arXiv 2507.05257); FactConsolidation above all.

A type is the row's `source`. Sources that only a judge or a ranking can score (LongMemEval-S*, summaries, recommendation) are refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import answer_texts, field, texts
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_text

STRICT = ("icl_", "detective")
"""Sources that ask for just the answer: `label: 43` is not `43`."""
UNSCORED = ("longmemeval", "infbench_sum", "recsys")


@TASK_REGISTRY.register("memoryagentbench")
class MemoryAgentBench(Task):
    """MemoryAgentBench (arXiv 2507.05257): FactConsolidation and the other sources that rules can score; later facts win."""

    headline = "sub_em_oneway@1"
    beside = ("em_squad@1", "f1_squad@1")
    instruction = "Answer in a few words."

    def load(self, path: Path) -> Loaded:
        repaired: Counter[str] = Counter()
        samples: list[Sample] = []
        clusters: dict[str, str] = {}
        for at, row in read_records(path):
            sample = _sample(row, f"{path}, record {at}", f"{path.stem}/{at}", repaired)
            # Rows may be of one text: what is remembered for one is not independent of the other.
            samples.append(replace(sample, cluster=clusters.setdefault(sample.context, sample.id)))
        return Loaded(samples, repaired)


def _sample(row: dict[str, Any], where: str, name: str, repaired: Counter[str]) -> Sample:
    context, asked = field(row, "context", str, where), texts(row, "questions", where)
    golds = field(row, "answers", list, where)
    about = field(row, "metadata", dict, where)
    source = field(about, "source", str, where)
    if source.startswith(UNSCORED):
        raise DataError(f"{where}: the source {source!r} is scored by a judge or a ranking, which this task has not. Leave such rows out.")
    if len(golds) != len(asked):
        raise DataError(f"{where}: {len(asked)} `questions` and {len(golds)} `answers`; each question needs its list of answers.")
    ids = about.get("qa_pair_ids") or []
    if len(ids) != len(asked) or len(set(ids)) < len(ids):
        repaired["row without an id for each question: numbered"] += 1
        ids = [f"{name}/{number}" for number in range(len(asked))]
    rule = "em_squad@1" if source.lower().startswith(STRICT) else ""
    questions = tuple(
        Question(str(identity), text, tuple(answer_texts(gold, f"{where}, answers[{at}]", "answers", repaired)), source, scorer=rule)
        for at, (identity, text, gold) in enumerate(zip(ids, asked, golds, strict=True))
    )
    return Sample(name, questions, of_text(context), context)
