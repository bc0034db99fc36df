"""What a task is: how a benchmark's file is read, what is asked of it and which rules score the answers. Knows no model and no ledger.

A sample is what one memory is written of; its questions are asked of that memory. A task says what it repaired in the file,
and refuses a wrong record by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.registry import build_options
from memfactory.judges.benchmarks import ABSTAIN

Session = dict[str, Any]
"""`{"date": str, "turns": [{"id": str, "speaker": str, "text": str}]}`: an event for agents that are told things one by one."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its gold.

    Example: Question("conv-26/3", "When did Ann paint a sunrise?", ("2022",), "2", ("D1:12",), scorer="f1_locomo@1")
    """

    id: str
    """Its own among all of the file."""
    text: str
    answers: tuple[str, ...]
    """All accepted answers; where the rule asks for all of them (RULER), all that are asked for."""
    type: str = "all"
    """The benchmark's kind of question, by its own number or name."""
    evidence: tuple[str, ...] = ()
    """Ids of the turns that the answer follows from."""
    abstain: bool = False
    """Right is to say that it cannot be known: reported apart, and scored by `abstain@1` where it names no other rule."""
    scorer: str = ""
    """The rule of its headline score, where it is not the task's."""
    date: str = ""
    """When it is asked, where the benchmark says so; shown with it."""
    labels: tuple[str, ...] = ()
    """All that can be an answer, for rules that need to know."""
    twin: str = ""
    """The id of the answerable question that it is the unanswerable twin of: such pairs are scored together too."""
    label_error: str = ""
    """What a list of known errors says is wrong with its gold; scores are given with and without such questions."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one memory is written of, as a text and as sessions, and the questions to it."""

    id: str
    questions: tuple[Question, ...]
    sessions: tuple[Session, ...]
    context: str
    cluster: str = ""
    """What it is part of: samples of one cluster are no independent observations. Empty: itself."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file's samples, and how often each kind of repair was made."""

    samples: list[Sample]
    repaired: Counter[str] = field(default_factory=Counter)

    @property
    def types(self) -> Counter[str]:
        """How many questions there are of each type."""
        return Counter(question.type for sample in self.samples for question in sample.questions)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A task without options."""


class Task(ABC):
    """Base of all tasks. A subclass says which rules score it and implements `load`."""

    Options: type = NoOptions
    """A frozen dataclass of the task's own options (`--task_options`)."""
    headline: str
    """The scorer whose mean is the task's score, and what tables call it; a question may name another for itself."""
    beside: tuple[str, ...] = ()
    """Scorers whose marks the ledger keeps beside it."""
    names: Mapping[str, str] = {}
    """The true names of types that the benchmark numbers."""
    instruction: str = ""
    """What is put behind each question, for the form of the answer; `--instruction` replaces it."""

    def __init__(self, **options: Any) -> None:
        self.options: Any = build_options(type(self).__name__, self.Options, options)

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """The samples of a file; a record of another form raises `DataError`, which names it."""

    def masked(self, record: Mapping[str, Any], loaded: Loaded) -> tuple[str, str]:
        """(question's id, what is wrong) of one record in a list of label errors: `{"question_id", "error_type"}`."""
        return str(record["question_id"]), str(record.get("error_type", "label error"))

    def rules_of(self, question: Question) -> tuple[str, ...]:
        """The scorers of a question: its headline first."""
        if question.abstain:
            of_abstaining = [name for name in self.beside if name.startswith("abstain")]
            return tuple(dict.fromkeys((question.scorer or ABSTAIN, *of_abstaining, ABSTAIN)))
        return tuple(dict.fromkeys((question.scorer or self.headline, self.headline, *self.beside, ABSTAIN)))


def check(loaded: Loaded, path: Path) -> Loaded:
    """The same samples, if ids are unique and every question has text and gold; what the loaders should have seen to."""
    seen: set[str] = set()
    for sample in loaded.samples:
        if not sample.context.strip() or not sample.sessions:
            raise DataError(f"{path}, {sample.id}: nothing to read. A sample needs `context` and `sessions`.")
        for question in sample.questions:
            if question.id in seen:
                raise DataError(f"{path}: two questions are called {question.id!r}. Each must have its own id.")
            seen.add(question.id)
            empty = [f.name for f in fields(Question) if f.name in ("text", "answers", "type") and not getattr(question, f.name)]
            if empty:
                raise DataError(f"{path}, question {question.id}: `{empty[0]}` is empty.")
    if not seen:
        raise DataError(f"{path} has no question.")
    return loaded
