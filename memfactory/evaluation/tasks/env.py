"""`TaskEnv` (`task`): any task's samples shown to any agent, scored question by question.

A sample is shown as a text and as sessions, so that readers of long texts and keepers of banks can be compared. What is paid is
the mean over the questions that have an answer; those to abstain on are scored apart. Knows no agent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch
from torch.nn.utils.rnn import pad_sequence

from memfactory.algorithms.credit import BY_QUESTION
from memfactory.common.errors import ConfigError
from memfactory.common.ranges import ranged
from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY, TASK_REGISTRY
from memfactory.common.types import View
from memfactory.envs.base import BaseEnv
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task, check
from memfactory.evaluation.tasks.records import read_records
from memfactory.evaluation.tasks.selection import limited, of_types, ordered
from memfactory.evaluation.tasks.texts import in_parts
from memfactory.judges.benchmarks import mark
from memfactory.judges.exact import needs_all

log = logging.getLogger(__name__)


@ENV_REGISTRY.register("task")
class TaskEnv(BaseEnv):
    """A task of TASK_REGISTRY: its file, which of its questions, and its scores."""

    gold_columns = ("answers", "asked")

    @dataclass(frozen=True, slots=True)
    class Options:
        """Which task, and which of its questions."""

        task: str
        """A key of TASK_REGISTRY."""
        types: tuple[str, ...] = ()
        """Only questions of these types, by number or true name; empty: all."""
        limit: int = ranged(0, least=0)
        """So many questions, the same part of every type; 0: all."""
        shuffle_seed: int = ranged(0, least=0)
        """Another seed is another part."""
        mask: str = ""
        """A file of known label errors: scores are given with and without the questions it names."""
        session_words: int = ranged(0, least=0)
        """Sessions longer than so many words are told in parts; 0: as they are."""
        instruction: str | None = None
        """Put behind each question; None: the task's own."""
        options: dict[str, Any] = field(default_factory=dict)
        """The task's own options."""

    task: Task
    loaded: Loaded

    @classmethod
    def check_options(cls, options: Any) -> None:
        task = TASK_REGISTRY.get(options.task)(**options.options)
        for name in (task.headline, *task.beside):
            SCORER_REGISTRY.get(name)

    def load(self) -> list[dict[str, Any]]:
        options = self.options
        self.task = TASK_REGISTRY.get(options.task)(**options.options)
        loaded = check(self.task.load(self.data_path), self.data_path)
        loaded = self._masked(loaded) if options.mask else loaded
        loaded = of_types(loaded, options.types, self.task.names)
        self.several = any(len(sample.questions) > 1 for sample in loaded.samples)
        # One question a sample: the first samples are the limited ones, and more of them can be added to the same ledger.
        self.loaded = limited(loaded, options.limit, options.shuffle_seed) if self.several else ordered(loaded, options.shuffle_seed)
        for name in dict.fromkeys(rule for sample in self.loaded.samples for q in sample.questions for rule in self.task.rules_of(q)):
            SCORER_REGISTRY.get(name)
        self._tell()
        return [
            {
                "example_id": sample.id,
                "query": [self._shown(question) for question in sample.questions],
                "context": sample.context,
                "sessions": in_parts(sample.sessions, options.session_words),
                "answers": [list(question.answers) for question in sample.questions],
                "asked": [asdict(question) | {"cluster": sample.cluster or sample.id} for question in sample.questions],
            }
            for sample in self.loaded.samples
        ]

    def identity(self) -> dict[str, Any]:
        """The task's own instruction counts as if it were given; a limit does not count where it only says how many samples."""
        shown = self.task.instruction if self.options.instruction is None else self.options.instruction
        kept = {"limit": self.options.limit if self.several else 0, "mask": ""}
        return {"instruction": shown, "rules": [self.task.headline, *self.task.beside], **kept}

    def contents(self) -> list[dict[str, Any]]:
        """Scores are given with and without label errors, whichever are known."""
        return [example | {"asked": [asked | {"label_error": ""} for asked in example["asked"]]} for example in self.examples]

    def observe(self, example: dict[str, Any]) -> View:
        return View(example["example_id"], tuple(example["query"]), example["context"], tuple(example["sessions"]))

    def evidence(self, example: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        found = tuple(tuple(question["evidence"]) for question in example["asked"])
        return found if any(found) else ()

    def questions(self) -> dict[str, Any]:
        """The task, its rules, what was repaired, {example: its questions with their gold} and, where these name evidence, its sessions."""
        task, examples = self.task, {}
        for example in self.examples:
            asked = [dict(question) for question in example["asked"]]
            for question in asked:
                question["question"] = question.pop("text")
                question["scorer"] = task.rules_of(_question(question))[0]
                question["all_golds"] = needs_all(question["scorer"])
            examples[example["example_id"]] = asked
        return {
            "task": self.options.task, "headline": task.headline, "beside": list(task.beside), "names": dict(task.names),
            "repaired": dict(self.loaded.repaired), "examples": examples,
            "sessions": {sample.id: _outline(sample) for sample in self.loaded.samples if any(q.evidence for q in sample.questions)},
        }  # fmt: skip

    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """`default`: mean of the headline scores over the questions with an answer (over all, where none has one).

        `default/question` [B*G, Q] holds the headline scores, `question/SCORER` the marks of every scorer.
        """
        asked = [[_question(q) for q in column] for column in ground_truths["asked"] for _ in range(num_generations)]
        given = [t.answers for t in kwargs["trajectories"]] if kwargs.get("trajectories") else [[text] for text in predictions["answer"]]
        if len(given) != len(asked):
            raise ValueError(f"{len(given)} predictions for {len(ground_truths['asked'])} examples x {num_generations} attempts.")
        marks = [
            [self._marks(question, answers[at] if at < len(answers) else "") for at, question in enumerate(questions)]
            for questions, answers in zip(asked, given, strict=True)
        ]
        headline = [[next(iter(row.values())) for row in rows] for rows in marks]
        paid = [_paid(scores, questions) for scores, questions in zip(headline, asked, strict=True)]
        names = sorted({name for rows in marks for row in rows for name in row})
        by_rule = {f"{BY_QUESTION}/{name}": _table([[row.get(name, math.nan) for row in rows] for rows in marks]) for name in names}
        return {"default": torch.tensor(paid), f"default/{BY_QUESTION}": _table(headline), **by_rule}

    def _marks(self, question: Question, answer: str) -> dict[str, float]:
        """{scorer: its mark}, the headline's first."""
        return {name: mark(name, answer, question.answers, question.text, question.labels) for name in self.task.rules_of(question)}

    def _shown(self, question: Question) -> str:
        instruction = self.task.instruction if self.options.instruction is None else self.options.instruction
        date = f"Today is {question.date}." if question.date else ""
        return "\n".join(part for part in (date, question.text, instruction) if part)

    def _masked(self, loaded: Loaded) -> Loaded:
        path = Path(self.options.mask)
        errors = dict(self.task.masked(record, loaded) for _, record in read_records(path))
        known = {question.id for sample in loaded.samples for question in sample.questions}
        if unknown := sorted(set(errors) - known):
            raise ConfigError(f"--mask {path}: {unknown[0]!r} is no question of {self.data_path}.")
        samples = [
            replace(sample, questions=tuple(replace(q, label_error=errors.get(q.id, "")) for q in sample.questions))
            for sample in loaded.samples
        ]
        return replace(loaded, samples=samples)

    def _tell(self) -> None:
        """What was read and what was repaired, for people."""
        counts = ", ".join(f"{number} {self.task.names.get(kind, kind)}" for kind, number in sorted(self.loaded.types.items()))
        mended = "; ".join(f"{number} x {what}" for what, number in sorted(self.loaded.repaired.items()))
        repairs = f". Repaired: {mended}" if mended else ""
        log.info("%s from %s: %d samples, %s%s", self.options.task, self.data_path, len(self.loaded.samples), counts, repairs)


def _question(asked: dict[str, Any]) -> Question:
    """A question from the columns of a batch, or from `questions.json`."""
    known = {name: asked[name] for name in Question.__dataclass_fields__ if name in asked}
    return Question(**known | {"text": asked.get("text", asked.get("question"))})


def _outline(sample: Sample) -> list[dict[str, Any]]:
    """A sample's sessions without what was said, as in the file: a session told in parts is one."""
    return [{"date": session["date"], "turns": [turn["id"] for turn in session["turns"]]} for session in sample.sessions]


def _paid(scores: Sequence[float], questions: Sequence[Question]) -> float:
    chosen = [score for score, question in zip(scores, questions, strict=True) if not question.abstain] or scores
    return sum(chosen) / len(chosen)


def _table(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """[B*G, Q], NaN behind the questions of an example with fewer than others."""
    return pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True, padding_value=math.nan)
