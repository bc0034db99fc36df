"""The questions of an evaluated folder with their gold answers, and what each attempt answered: all that a judge must know.

Reads what the evaluation left (`questions.json` of a task, else the data through the job's env) and makes nothing anew.
Knows no judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memfactory.envs as _envs  # noqa: F401 - registers the envs that jobs name
from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError
from memfactory.common.files import file_hash, read_json
from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY
from memfactory.evaluation.fingerprint import asked_hash
from memfactory.evaluation.ledger import GREEDY, Attempt, Key, read_attempts, read_job
from memfactory.judges.exact import needs_all
from memfactory.judges.judge_prompts import ABSTENTION
from memfactory.judges.judgment import Case
from memfactory.judges.llm import LLM_JUDGE


@dataclass(frozen=True, slots=True)
class Question:
    """One question of an example."""

    example: str
    number: int
    """Its place among the example's questions, and so among an attempt's answers."""
    text: str
    golds: tuple[str, ...]
    """As the rules see them."""
    accepted: tuple[str, ...]
    """As the judge sees them: what is asked for all together is one text."""
    type: str = ""
    cluster: str = ""
    """Its conversation or context."""
    abstain: bool = False
    """Right is to say that it cannot be known."""

    def case(self, answer: str) -> Case:
        """The question with an answer, for a judge."""
        return Case(self.text, self.accepted, answer, ABSTENTION if self.abstain else self.type)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt answered to one question; `text` is None where infrastructure lost it, `attempt` where it was not made yet."""

    question: Question
    kind: str
    number: int
    attempt: Attempt | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A job's folder as a judge finds it."""

    folder: Path
    job: dict[str, Any]
    questions: dict[str, list[Question]]
    """{example: its questions}, in the job's order."""
    attempts: dict[Key, Attempt]
    """The last line of every attempt."""
    rule: str
    """The deterministic score that stands beside the judge's."""
    recomputed: bool
    """True if that rule is computed here: the attempts were paid by a judge."""

    @property
    def clustered(self) -> bool:
        """True if questions share conversations."""
        asked = self.every_question()
        return len({question.cluster for question in asked}) < len(asked)

    def every_question(self) -> list[Question]:
        """All of them, in order."""
        return [question for questions in self.questions.values() for question in questions]

    def answers(self, kind: str) -> Iterator[Answer]:
        """One for each question and planned attempt of a kind."""
        count = 1 if kind == GREEDY else self.job["k"]
        for example, questions in self.questions.items():
            for number in range(count):
                attempt = self.attempts.get((example, kind, number))
                for question in questions:
                    yield Answer(question, kind, number, attempt, _said(attempt, question.number))

    def rule_score(self, answer: Answer) -> float:
        """The deterministic score; NaN for an attempt that was lost or is not there."""
        attempt, at = answer.attempt, answer.question.number
        if attempt is None or (attempt.score is None and not self.recomputed):
            return math.nan
        alone = len(self.questions[answer.question.example]) == 1
        unknown = not (attempt.questions or alone) and self.rule in SCORER_REGISTRY
        if self.recomputed or unknown:  # a judge paid, or the ledger is from before it had single questions
            return math.nan if answer.text is None else float(SCORER_REGISTRY.get(self.rule)(answer.text, answer.question.golds))
        marks = attempt.questions or [attempt.score] * (at + 1)
        mark = marks[at] if at < len(marks) else 0.0  # one that was not reached was answered with nothing
        return math.nan if mark is None else mark


def evaluated(folder: Path) -> Evaluated:
    """Read a job's folder. Data that changed since raises `ConfigError`: the gold answers are no longer those of the attempts."""
    job = read_job(folder)
    path = folder / "questions.json"
    try:
        questions, rule = _of_task(read_json(path)) if path.is_file() else _of_env(folder, job)
    except UnknownNameError as error:
        # A folder never says what is imported: it may be somebody else's.
        if own := " ".join(map(str, job.get("plugins", []))):
            raise ConfigError(
                f"{folder}: {error} It was evaluated with parts of somebody's own. If you trust them: --import {own}"
            ) from error
        raise
    if missing := [example for example in job["examples"] if example not in questions]:
        raise ConfigError(f"{folder}: the data has no example {missing[0]!r} any more. Judge with the data that was evaluated.")
    attempts = {attempt.key: attempt for attempt in read_attempts(folder)}
    recomputed = rule == LLM_JUDGE
    if recomputed:
        logged = [name for name in job["env_options"].get("log", ()) if name in SCORER_REGISTRY]
        rule = logged[0] if logged else "answer_em"
    return Evaluated(folder, job, {example: questions[example] for example in job["examples"]}, attempts, rule, recomputed)


def folders_of(root: Path) -> list[Path]:
    """The folders of all evaluated data sets in `root`: itself, a model's, or a whole output folder's."""
    for pattern in ("job.json", "*/job.json", "*/*/job.json"):
        if found := sorted(job.parent for job in root.glob(pattern)):
            return found
    raise MissingFileError(f"{root} holds no evaluated data set (no job.json). `memfactory eval` makes one.")


def _of_task(asked: dict[str, Any]) -> tuple[dict[str, list[Question]], str]:
    """Questions of a task, which wrote them down."""
    found: dict[str, list[Question]] = {}
    for example, rows in asked["examples"].items():
        found[example] = []
        for at, row in enumerate(rows):
            golds = tuple(str(gold) for gold in row["answers"])
            together = row.get("all_golds", needs_all(str(row.get("scorer", ""))))  # folders of old do not say it
            accepted = (", ".join(golds),) if together else golds
            found[example].append(Question(example, at, row["question"], golds, accepted, row["type"], row["cluster"], row["abstain"]))
    return found, asked["headline"]


def _of_env(folder: Path, job: dict[str, Any]) -> tuple[dict[str, list[Question]], str]:
    """Questions of a data set, through the env that paid for them; it gets no tokenizer, for it shows nothing to an agent."""
    env = ENV_REGISTRY.get(job["env"])(job["data_path"], None, **job["env_options"])
    print_ = read_json(folder / "fingerprint.json")
    made, now = print_["data"]["sha256"], file_hash(job["data_path"])
    if made == now and "asked" in print_.get("env", {}):  # another file that it reads may have changed
        made, now = print_["env"]["asked"], asked_hash(env)
    if made != now:
        raise ConfigError(f"{job['data_path']} has changed since {folder} was made ({made} -> {now}). Evaluate again, or restore it.")
    rule = getattr(env.options, "reward", "") or "score"
    return {example["example_id"]: _asked(example, needs_all(rule)) for example in env.examples}, rule


def _asked(example: dict[str, Any], all_golds: bool) -> list[Question]:
    """The questions among an example's columns: `question` (one) or `query` (a list), each with its gold answers (any or all of them)."""
    name, extra = example["example_id"], example.get("extra") or {}
    several = isinstance(example.get("query"), list)
    texts = example["query"] if several else [example.get("question", example.get("query", ""))]
    golds = example["answers"] if several else [example["answers"]]
    together = all_golds or example.get("match") == "all"
    found = []
    for at, (text, gold) in enumerate(zip(texts, golds, strict=True)):
        wanted = tuple(str(answer) for answer in gold)
        accepted = (", ".join(wanted),) if together else wanted
        type_, abstain = _at(extra.get("types"), at, ""), _at(extra.get("abstain"), at, False)
        found.append(Question(name, at, text, wanted, accepted, type_, name, abstain))
    return found


def _at(column: Any, at: int, default: Any) -> Any:
    return column[at] if isinstance(column, list) and at < len(column) else default


def _said(attempt: Attempt | None, at: int) -> str | None:
    if attempt is None:
        return None
    if at < len(attempt.answers):
        return attempt.answers[at]
    return None if attempt.status == "failed" else ""
