"""`babilong`: bAbI's facts, alone or in a haystack (Kuratov et al., 2024, arXiv 2406.10149).

Reads rows `{input, question, target}` (the hub data set RMT-team/babilong, a file of each task and length) and bAbI's own texts
(arXiv 1502.05698), where a question is asked of the lines before it in its story.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memfactory.common.errors import ConfigError, DataError
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialog_records import answer_texts, field
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.texts import of_text

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")
_GONE = ("apple", "football", "milk")
LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _PLACES),
    "qa5": ("bill", "fred", "jeff", "mary", *_GONE), "qa6": _YES_NO, "qa7": ("none", "one", "three", "two"),
    "qa8": (*_GONE, "nothing"), "qa9": _YES_NO, "qa10": ("maybe", *_YES_NO),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"), "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"), "qa17": _YES_NO, "qa18": _YES_NO,
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}  # fmt: skip
"""What can be the answer in each of bAbI's tasks."""
_KIND = re.compile(r"qa\d+")
_LINE = re.compile(r"(\d+) (.*)")
_SEPARATOR = re.compile(r"\t|\|")


@TASK_REGISTRY.register("babilong")
class Babilong(Task):
    """BABILong (arXiv 2406.10149): bAbI's questions, qa1 to qa20, at any length of the text around the facts."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """What the file does not say."""

        task: str = ""
        """qa1, qa2, ...; empty: as the file's name has it."""

    headline = "babilong@1"
    beside = ("em_squad@1",)
    instruction = "Answer with one word."

    def load(self, path: Path) -> Loaded:
        found = _KIND.search(path.stem)
        kind = self.options.task or (found[0] if found else "")
        if kind not in LABELS:
            raise ConfigError(
                f"{path}: which of BABILong's tasks is it? Known: {', '.join(LABELS)}. Name the file after it or give "
                """--task_options '{"task": "qa1"}'."""
            )
        repaired: Counter[str] = Counter()
        if path.suffix == ".txt":
            return Loaded(list(_stories(path, kind)), repaired)
        samples = []
        for at, row in read_records(path):
            where, name = f"{path}, record {at}", f"{path.stem}/{at}"
            golds = tuple(answer_texts(row.get("target"), where, "target", repaired))
            context = field(row, "input", str, where)
            question = Question(name, field(row, "question", str, where).strip(), golds, kind, labels=LABELS[kind])
            samples.append(Sample(name, (question,), of_text(context), context))
        return Loaded(samples, repaired)


def _stories(path: Path, kind: str) -> Iterator[Sample]:
    """A sample for each question of bAbI's text; its lines are numbered from 1 in every story."""
    facts: dict[int, str] = {}
    story = -1
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise DataError(f"{path}, line {at}: must begin with a number, got {line!r:.60}.")
        number, said = int(match[1]), match[2]
        if number == 1:
            facts, story = {}, story + 1
        parts = _SEPARATOR.split(said)
        if len(parts) == 1:
            facts[number] = said
            continue
        if len(parts) != 3 or not facts:
            raise DataError(f"{path}, line {at}: a question must be `question<tab>answer<tab>lines`, after some facts; got {said!r:.60}.")
        name, context = f"{path.stem}/{story}/{number}", "\n".join(facts.values())
        places = {fact: place for place, fact in enumerate(facts, 1)}
        evidence = tuple(str(places[int(word)]) for word in parts[2].split() if int(word) in places)
        asked = Question(name, parts[0].strip(), (parts[1].strip(),), kind, evidence, labels=LABELS[kind])
        yield Sample(name, (asked,), of_text(context), context, cluster=f"{path.stem}/{story}")
