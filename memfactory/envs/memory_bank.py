"""`MemoryBankEnv` (`memory_bank`): conversations to remember and questions about them, paid by outcome.

Memory-R1's reward (arXiv 2508.19828): does the answer become right. Exact match by default, mean over an example's
questions. What cannot be read leaves the bank as it was and costs a little, so that a valid NONE beats something broken;
an empty list earns only what the unchanged bank answers. Every component is logged; weights say what is paid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch
from torch.nn.utils.rnn import pad_sequence

from memfactory.algorithms.credit import BY_QUESTION
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.ranges import ranged
from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY
from memfactory.common.types import Trajectory, View
from memfactory.data.dialogs import LoadedRows, load_memory_file, only_told
from memfactory.envs.base import BaseEnv
from memfactory.judges import exact as _rules  # noqa: F401 - registers the rules
from memfactory.judges.judge_prompts import DEFAULT
from memfactory.judges.llm import LLM_JUDGE, LLMJudge
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryItem

Asked = list[tuple[str, list[str]]]
"""The questions of an example, each with its gold answers."""

UNREADABLE = "unreadable_"
"""How the counts of what could not be read begin."""


@ENV_REGISTRY.register("memory_bank")
class MemoryBankEnv(BaseEnv):
    """Dialogues (our generator's, LoCoMo, LongMemEval) or the public memory-bank rows, told apart by their keys."""

    gold_columns = ("answers", "extra", "context_memory")
    components: tuple[str, ...] = ("outcome", "malformed", "operations")
    """What `weights` can name."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """What is paid."""

        reward: str = "answer_em"
        """The outcome's rule: a key of SCORER_REGISTRY, or llm_judge."""
        log: tuple[str, ...] = ("answer_em", "answer_f1")
        """Rules logged beside it, unpaid."""
        weights: dict[str, float] = field(default_factory=lambda: {"outcome": 1.0, "malformed": -0.1, "operations": 0.0})
        """outcome: mean over the questions; malformed: share of the turns before the answer that could not be read; operations: edits
        made, for each event."""
        answers_paid: str = "mean"
        """mean: an answer turn is paid by the whole outcome, as writing is; own: for its own question, as Memory-R1's answer agent."""
        types: tuple[str, ...] = ()
        """Only questions of these types; empty: all."""
        judge: str = "api:"
        """Who judges under llm_judge."""
        judge_prompt: str = DEFAULT
        """What it is asked: a key of JUDGE_PROMPT_REGISTRY."""
        judge_votes: int = ranged(1, least=1)
        """How often it judges each answer, an odd number."""

    judge: LLMJudge | None = None

    @classmethod
    def check_options(cls, options: Any) -> None:
        if unknown := sorted(set(options.weights) - set(cls.components)):
            raise ConfigError(f"weights names {', '.join(unknown)}; {cls.__name__} has {', '.join(cls.components)}.")
        if options.answers_paid not in ("own", "mean"):
            raise unknown_name("answers_paid", options.answers_paid, ("own", "mean"))
        for name in {options.reward, *options.log} - {LLM_JUDGE}:
            SCORER_REGISTRY.get(name)

    def load(self) -> list[dict[str, Any]]:
        options = self.options
        if options.reward == LLM_JUDGE:
            self.judge = LLMJudge(options.judge, prompt=options.judge_prompt, votes=options.judge_votes)
        loaded = load_memory_file(self.data_path)
        examples = _of_rows(loaded.rows) if isinstance(loaded, LoadedRows) else _of_dialogues(loaded.dialogues, set(options.types))
        kept = [example for example in examples if example["query"]]
        self._types = {
            (question, tuple(golds)): type_
            for example in kept
            for question, golds, type_ in zip(example["query"], example["answers"], example["extra"].get("types", []), strict=False)
        }  # a judge's prompt may have a wording of its own for a type
        if examples and not kept:
            raise ConfigError(f"{self.data_path} has no question of the types {', '.join(options.types)}.")
        return kept

    def identity(self) -> dict[str, Any]:
        return {"judge": self.judge.identity()} if self.judge is not None else {}

    def observe(self, example: dict[str, Any]) -> View:
        bank = None if example["memory"] is None else MemoryBank.of(MemoryItem.from_dict(item) for item in example["memory"])
        return View(example["example_id"], tuple(example["query"]), events=tuple(example["sessions"]), memory=bank)

    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        number = num_generations * len(ground_truths["query"])
        # Without trajectories only the first question was answered, and nothing is known of the writing.
        attempts: list[Trajectory] = kwargs.get("trajectories") or [Trajectory(answers=[text]) for text in predictions["answer"]]
        if len(attempts) != number:
            raise ValueError(f"{len(attempts)} predictions for {len(ground_truths['query'])} examples x {num_generations} attempts.")
        asked = [
            list(zip(questions, golds, strict=True))
            for questions, golds in zip(ground_truths["query"], ground_truths["answers"], strict=True)
            for _ in range(num_generations)
        ]
        weights = self.options.weights
        each = self.of_questions(attempts, asked)
        parts = {name: torch.stack([column.mean() for column in columns]) for name, columns in each.items()} | self.of_attempts(attempts)
        paid = sum((weights.get(name, 0.0) * column for name, column in parts.items()), torch.zeros(number))
        logged = parts | {name: torch.stack([c.mean() for c in self._marks(name, attempts, asked)]) for name in self.options.log}
        tables = {name: pad_sequence(columns, batch_first=True, padding_value=math.nan) for name, columns in each.items()}
        own = {}
        if self.options.answers_paid == "own":
            own[BY_QUESTION] = sum((weights.get(name, 0.0) * table for name, table in tables.items()), torch.zeros(()))
        return own | {"default": paid, f"default/{BY_QUESTION}": tables["outcome"]} | {f"default/{name}": c for name, c in logged.items()}

    def of_questions(self, attempts: list[Trajectory], asked: list[Asked]) -> dict[str, list[torch.Tensor]]:
        """{component: [B*G] of [questions]}: what is paid for single questions. `outcome` must be among them."""
        return {"outcome": self._marks(self.options.reward, attempts, asked)}

    def of_attempts(self, attempts: list[Trajectory]) -> dict[str, torch.Tensor]:
        """{component: [B*G]}: what is paid for an attempt as a whole."""
        return {
            "malformed": torch.tensor([_malformed(attempt) for attempt in attempts], dtype=torch.float32),
            "operations": torch.tensor([_operations(attempt) for attempt in attempts], dtype=torch.float32),
        }

    def _marks(self, name: str, attempts: list[Trajectory], asked: list[Asked]) -> list[torch.Tensor]:
        """Each attempt's scores, one a question; one that was not reached was answered with nothing."""
        cases = [
            (question, golds, attempt.answers[at] if at < len(attempt.answers) else "")
            for attempt, questions in zip(attempts, asked, strict=True)
            for at, (question, golds) in enumerate(questions)
        ]
        if name == LLM_JUDGE:
            assert self.judge is not None
            types = [self._types.get((question, tuple(golds)), "") for question, golds, _ in cases]
            marks = self.judge.scores([q for q, _, _ in cases], [g for _, g, _ in cases], [a for _, _, a in cases], types)
        else:
            rule = SCORER_REGISTRY.get(name)
            marks = [rule(answer, golds) for _, golds, answer in cases]
        return list(torch.tensor(marks, dtype=torch.float32).split([len(questions) for questions in asked]))


def _malformed(attempt: Trajectory) -> float:
    """The share of an attempt's turns before the answer that could not be read."""
    turns = sum(turn.stage != "answer" for turn in attempt.turns)
    return sum(number for name, number in attempt.report.items() if name.startswith(UNREADABLE)) / max(turns, 1)


def _operations(attempt: Trajectory) -> float:
    """Edits that an attempt made, for each event."""
    return sum(attempt.report.get(f"operation_{kind}", 0) for kind in ("ADD", "UPDATE", "DEL")) / max(len(attempt.steps), 1)


def _of_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Public rows: one event (the last turns), the bank before it, one question."""
    examples = []
    for row in rows:
        turns = [{"speaker": turn["role"], "text": turn["content"], "id": str(turn.get("dia_id", ""))} for turn in row["fact"]]
        event = {"date": str(row["fact"][-1].get("timestamp", "")), "turns": turns}
        examples.append(row | {"query": [row["query"]], "answers": [row["answers"]], "sessions": [event]})
    return examples


def _of_dialogues(dialogues: list[dict[str, Any]], types: set[str]) -> list[dict[str, Any]]:
    """Whole dialogues from an empty bank: a session is an event."""
    examples = []
    for dialogue in dialogues:
        asked = [q for q in dialogue["questions"] if not types or q["type"] in types]
        examples.append(
            {
                "example_id": dialogue["dialog_id"],
                "memory": None,
                "fact": None,
                "context_memory": None,
                "sessions": list(only_told(dialogue["sessions"])),
                "query": [q["question"] for q in asked],
                "answers": [q["answers"] for q in asked],
                "extra": {
                    "types": [q["type"] for q in asked],
                    "evidence": [q["evidence"] for q in asked],
                    "abstain": [bool(q.get("abstain")) for q in asked],
                },
            }
        )
    return examples
