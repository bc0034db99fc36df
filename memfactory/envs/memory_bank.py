"""`MemoryBankEnv` (`memory_bank`): conversations to remember and questions about them, paid by outcome.

Memory-R1's reward (arXiv 2508.19828): does the answer become right. Exact match by default, mean over an example's
questions. What cannot be read leaves the bank as it was and costs a little, so that a valid NONE beats something broken;
an empty list earns only what the unchanged bank answers. Every component is logged; weights say what is paid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch

from memfactory.common.errors import ConfigError
from memfactory.common.files import read_json, read_jsonl
from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY
from memfactory.common.types import Trajectory, View
from memfactory.data.dialogs import load_bank_rows, load_dialogs
from memfactory.envs.base import BaseEnv
from memfactory.judges import exact as _rules  # noqa: F401 - registers the rules
from memfactory.judges.llm import LLM_JUDGE, LLMJudge
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryItem

UNREADABLE = ("unreadable_extraction", "unreadable_update")


@ENV_REGISTRY.register("memory_bank")
class MemoryBankEnv(BaseEnv):
    """Dialogues (our generator's, LoCoMo, LongMemEval) or the public memory-bank rows, told apart by their keys."""

    gold_columns = ("answers", "extra", "context_memory")

    @dataclass(frozen=True, slots=True)
    class Options:
        """What is paid."""

        reward: str = "answer_em"
        """The outcome's rule: a key of SCORER_REGISTRY, or llm_judge."""
        log: tuple[str, ...] = ("answer_em", "answer_f1")
        """Rules logged beside it, unpaid."""
        weights: dict[str, float] = field(default_factory=lambda: {"outcome": 1.0, "malformed": -0.1, "operations": 0.0})
        """outcome: mean over the questions; malformed: share of the writing turns that could not be read; operations: edits made, for
        each event."""
        types: tuple[str, ...] = ()
        """Only questions of these types; empty: all."""
        judge: str = "api:"
        """Who judges under llm_judge."""

    judge: LLMJudge | None = None

    def load(self) -> list[dict[str, Any]]:
        options = self.options
        if unknown := sorted(set(options.weights) - {"outcome", "malformed", "operations"}):
            raise ConfigError(f"weights names {', '.join(unknown)}; MemoryBankEnv has outcome, malformed and operations.")
        for name in {options.reward, *options.log} - {LLM_JUDGE}:
            SCORER_REGISTRY.get(name)
        if options.reward == LLM_JUDGE:
            self.judge = LLMJudge(options.judge)
        examples = _bank_rows(self) if _is_bank_file(self) else _dialogues(self)
        kept = [example for example in examples if example["query"]]
        if examples and not kept:
            raise ConfigError(f"{self.data_path} has no question of the types {', '.join(options.types)}.")
        return kept

    def identity(self) -> dict[str, Any]:
        return {"judge_model": str(self.judge.chat)} if self.judge is not None else {}

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
        parts = {
            "outcome": self._outcome(self.options.reward, attempts, asked),
            "malformed": torch.tensor([_malformed(attempt) for attempt in attempts], dtype=torch.float32),
            "operations": torch.tensor([_operations(attempt) for attempt in attempts], dtype=torch.float32),
        }
        paid = torch.zeros(number)
        for name, weight in self.options.weights.items():
            paid = paid + weight * parts[name]
        logged = parts | {name: self._outcome(name, attempts, asked) for name in self.options.log}
        return {"default": paid} | {f"default/{name}": column for name, column in logged.items()}

    def _outcome(self, name: str, attempts: list[Trajectory], asked: list[list[tuple[str, list[str]]]]) -> torch.Tensor:
        """[B*G] mean score over each attempt's questions; one that was not reached was answered with nothing."""
        cases = [
            (question, golds, attempt.answers[at] if at < len(attempt.answers) else "")
            for attempt, questions in zip(attempts, asked, strict=True)
            for at, (question, golds) in enumerate(questions)
        ]
        if name == LLM_JUDGE:
            assert self.judge is not None
            marks = self.judge.scores([q for q, _, _ in cases], [g for _, g, _ in cases], [a for _, _, a in cases])
        else:
            rule = SCORER_REGISTRY.get(name)
            marks = [rule(answer, golds) for _, golds, answer in cases]
        columns = torch.tensor(marks, dtype=torch.float32).split([len(questions) for questions in asked])
        return torch.stack([column.mean() for column in columns])


def _malformed(attempt: Trajectory) -> float:
    """The share of an attempt's writing turns that could not be read."""
    writing = sum(turn.stage in ("extraction", "update") for turn in attempt.turns)
    return sum(attempt.report.get(name, 0) for name in UNREADABLE) / max(writing, 1)


def _operations(attempt: Trajectory) -> float:
    """Edits that an attempt made, for each event."""
    return sum(attempt.report.get(f"operation_{kind}", 0) for kind in ("ADD", "UPDATE", "DEL")) / max(len(attempt.steps), 1)


def _is_bank_file(env: BaseEnv) -> bool:
    rows = read_jsonl(env.data_path) if env.data_path.suffix == ".jsonl" else read_json(env.data_path)
    first = rows[0] if isinstance(rows, list) and rows else rows
    return isinstance(first, dict) and bool({"q", "query"} & first.keys())


def _bank_rows(env: BaseEnv) -> list[dict[str, Any]]:
    """Public rows: one event (the last turns), the bank before it, one question."""
    examples = []
    for row in load_bank_rows(env.data_path).rows:
        turns = [{"speaker": turn["role"], "text": turn["content"], "id": str(turn.get("dia_id", ""))} for turn in row["fact"]]
        event = {"date": str(row["fact"][-1].get("timestamp", "")), "turns": turns}
        examples.append(row | {"query": [row["query"]], "answers": [row["answers"]], "sessions": [event]})
    return examples


def _dialogues(env: BaseEnv) -> list[dict[str, Any]]:
    """Whole dialogues from an empty bank: a session is an event."""
    types = set(env.options.types)
    examples = []
    for dialogue in load_dialogs(env.data_path).dialogues:
        asked = [q for q in dialogue["questions"] if not types or q["type"] in types]
        examples.append(
            {
                "example_id": dialogue["dialog_id"],
                "memory": None,
                "fact": None,
                "context_memory": None,
                "sessions": dialogue["sessions"],
                "query": [q["question"] for q in asked],
                "answers": [q["answers"] for q in asked],
                "extra": {"types": [q["type"] for q in asked], "evidence": [q["evidence"] for q in asked]},
            }  # fmt: skip
        )
    return examples
