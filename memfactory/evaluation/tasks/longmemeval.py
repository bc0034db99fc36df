"""`longmemeval`: an assistant's chats with one user, and a question about them (Wu et al., 2025, arXiv 2410.10813).

S, M and oracle files have one schema. The published score is a judge's; the rules here are what can be had without one, and
say little about `single-session-preference`, whose gold describes a good answer.
"""

from __future__ import annotations

from pathlib import Path

from memfactory.common.errors import unknown_name
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialogs import load_dialogs, only_told
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.texts import text_of

TYPES = (
    "single-session-user", "single-session-assistant", "single-session-preference", "multi-session", "temporal-reasoning",
    "knowledge-update",
)  # fmt: skip


@TASK_REGISTRY.register("longmemeval")
class LongMemEval(Task):
    """LongMemEval (arXiv 2410.10813), S, M or oracle: one question a history, six types, abstention (ids ending in _abs) apart."""

    headline = "f1_squad@1"
    beside = ("sub_em_oneway@1", "em_squad@1")
    instruction = "Answer in a few words. If the chats do not say, answer: not mentioned."

    def load(self, path: Path) -> Loaded:
        loaded = load_dialogs(path)
        samples = []
        for dialogue in loaded.dialogues:
            name, sessions = dialogue["dialog_id"], only_told(dialogue["sessions"])
            questions = []
            for at, asked in enumerate(dialogue["questions"]):
                if asked["type"] not in TYPES:
                    raise unknown_name(f"question type of {path}, {name}", asked["type"], TYPES)
                identity = name if len(dialogue["questions"]) == 1 else f"{name}/{at}"
                questions.append(
                    Question(
                        identity, asked["question"], tuple(asked["answers"]), asked["type"], tuple(asked["evidence"]), asked["abstain"],
                        date=asked.get("date", ""),
                    )
                )  # fmt: skip
            samples.append(Sample(name, tuple(questions), sessions, text_of(sessions)))
        return Loaded(samples, loaded.repairs)
