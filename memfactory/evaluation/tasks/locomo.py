"""`locomo`: very long conversations of two friends (Maharana et al., 2024, arXiv 2402.17753), each written once and asked 200 times.

Differences from the published evaluation: an abstention is told by `abstain@1`, for answers that say `unknown`; LoCoMo's own
two phrases are marked beside it. Categories keep their numbers: other projects have swapped the names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError, unknown_name
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialogs import load_dialogs, only_told
from memfactory.data.locomo import ADVERSARIAL
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.texts import text_of

RULES = {"1": "f1_locomo_multi@1", "2": "f1_locomo@1", "3": "f1_locomo_open@1", "4": "f1_locomo@1", ADVERSARIAL: ""}
"""LoCoMo's rule for each category; 5 is scored as every abstention is."""
FORMS = ("free", "choice")
_CHOICE = "{question} Select the correct answer: (a) {a} (b) {b}"
_NOT_MENTIONED = "Not mentioned in the conversation"
_AUDIT = re.compile(r"locomo_(\d+)_qa(\d+)")
_HARMLESS = "WRONG_CITATION"
"""Labels whose evidence alone is wrong: the score is as it should be."""


@TASK_REGISTRY.register("locomo")
class Locomo(Task):
    """LoCoMo (arXiv 2402.17753): conversations of months; categories by number, 5 (adversarial) apart."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How category 5 is asked."""

        adversarial: str = "free"
        """free, or choice: between the wrong answer and `not mentioned`, as LoCoMo's code does; then no words have to be guessed at."""

    headline = "f1_locomo@1"
    beside = ("f1_mem0@1", "bleu1_mem0@1", "em_squad@1", "abstain_locomo@1")
    names = {"1": "multi-hop", "2": "temporal", "3": "open-domain", "4": "single-hop", "5": "adversarial"}
    instruction = "Answer in a few words, with a date if it is asked when. If the conversation does not say, answer: not mentioned."

    def load(self, path: Path) -> Loaded:
        if self.options.adversarial not in FORMS:
            raise unknown_name("way of asking category 5", self.options.adversarial, FORMS)
        loaded = load_dialogs(path)
        samples = []
        for dialogue in loaded.dialogues:
            name, sessions = dialogue["dialog_id"], only_told(dialogue["sessions"])
            questions = [self._question(question, f"{name}/{at}") for at, question in enumerate(dialogue["questions"])]
            samples.append(Sample(name, tuple(questions), sessions, text_of(sessions)))
        return Loaded(samples, loaded.repairs)

    def _question(self, question: Mapping[str, Any], name: str) -> Question:
        kind = question["type"]
        if kind not in RULES:
            raise unknown_name(f"category of question {name}", kind, RULES, "The file must be LoCoMo's, or made from it.")
        asked, golds, evidence = question["question"], tuple(question["answers"]), tuple(question["evidence"])
        if kind != ADVERSARIAL or self.options.adversarial == "free" or "adversarial_answer" not in question:
            return Question(name, asked, golds, kind, evidence, kind == ADVERSARIAL, RULES[kind])
        right = random.Random(name).choice("ab")  # of the question, not of the file: the same in every selection
        options = {"ab".replace(right, ""): question["adversarial_answer"], right: _NOT_MENTIONED}
        return Question(name, _CHOICE.format(question=asked, **options), (f"({right})",), kind, evidence, True, "option_set@1")

    def masked(self, record: Mapping[str, Any], loaded: Loaded) -> tuple[str, str]:
        """A record of the LoCoMo audit's errors.json: its ids count conversations and questions from 0, its text is compared."""
        match = _AUDIT.fullmatch(str(record["question_id"]))
        if not match:
            return super().masked(record, loaded)
        number, at = map(int, match.groups())
        asked = loaded.samples[number].questions if number < len(loaded.samples) else ()
        if at >= len(asked) or asked[at].text != record.get("question", asked[at].text):
            raise DataError(f"{record['question_id']} of the list of label errors is no question of this file. It is for locomo10.json.")
        error = str(record.get("error_type", "label error"))
        return asked[at].id, "" if error == _HARMLESS else error
