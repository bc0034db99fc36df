"""`LongcontextEnv` (`longcontext`): a question about a long text, paid by rule, or by an LLM judge where one is configured.

MemAgent's reward (arXiv 2507.02259) by default: 1 if the last box equals an accepted answer, else 0; where every gold
answer is asked for (RULER's tasks), the share of them that the answer names. An answer without a box, cut off or empty is
the policy's failure and scores 0; a judge that fails makes it NaN. Token F1 is logged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch

from memfactory.common.ranges import ranged
from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY
from memfactory.common.types import View
from memfactory.data.formats import load_longcontext
from memfactory.envs.base import BaseEnv
from memfactory.judges import exact as _rules  # noqa: F401 - registers the rules
from memfactory.judges.judge_prompts import DEFAULT
from memfactory.judges.llm import LLM_JUDGE, LLMJudge

AUTO = {"any": "boxed_em", "all": "ruler_all"}
"""The rule that `reward: auto` takes for a record, by whether any or all of its gold answers are asked for."""


@ENV_REGISTRY.register("longcontext")
class LongcontextEnv(BaseEnv):
    """Long texts with questions, in the published formats (JSON, JSON lines, MemAgent's parquet)."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How answers are paid."""

        reward: str = "auto"
        """auto (boxed_em, or ruler_all where all gold answers are asked for), a key of SCORER_REGISTRY, or llm_judge."""
        log: tuple[str, ...] = ("boxed_em", "boxed_f1")
        """Rules logged beside it, unpaid."""
        judge: str = "api:"
        """Who judges under llm_judge: `api:MODEL` at OPENAI_BASE_URL; `api:` is LLM_MODEL."""
        judge_prompt: str = DEFAULT
        """What it is asked: a key of JUDGE_PROMPT_REGISTRY."""
        judge_votes: int = ranged(1, least=1)
        """How often it judges each answer, an odd number."""

    judge: LLMJudge | None = None

    @classmethod
    def check_options(cls, options: Any) -> None:
        for name in {options.reward, *options.log} - {"auto", LLM_JUDGE}:
            SCORER_REGISTRY.get(name)  # an unknown rule fails here, not after the first rollout

    def load(self) -> list[dict[str, Any]]:
        if LLM_JUDGE in {self.options.reward, *self.options.log}:
            self.judge = LLMJudge(self.options.judge, prompt=self.options.judge_prompt, votes=self.options.judge_votes)
        return load_longcontext(self.data_path)

    def identity(self) -> dict[str, Any]:
        return {"judge": self.judge.identity()} if self.judge is not None else {}

    def observe(self, example: dict[str, Any]) -> View:
        return View(example["example_id"], (example["question"],), context=example["context"])

    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        answers = predictions["answer"]
        golds = ground_truths["answers"]
        given = {"question": [""] * len(golds), "match": ["any"] * len(golds)} | ground_truths
        columns = {name: given[name] for name in ("question", "answers", "match")}
        repeated = {name: [value for value in column for _ in range(num_generations)] for name, column in columns.items()}
        if len(answers) != len(repeated["answers"]):
            raise ValueError(f"{len(answers)} predictions for {len(golds)} examples x {num_generations} attempts.")

        def scores(name: str) -> torch.Tensor:
            if name == LLM_JUDGE:
                assert self.judge is not None
                wanted = [[", ".join(g)] if m == "all" else g for g, m in zip(repeated["answers"], repeated["match"], strict=True)]
                return torch.tensor(self.judge.scores(repeated["question"], wanted, answers), dtype=torch.float32)
            rules = [SCORER_REGISTRY.get(AUTO[match] if name == "auto" else name) for match in repeated["match"]]
            marks = [rule(text, gold) for rule, text, gold in zip(rules, answers, repeated["answers"], strict=True)]
            return torch.tensor(marks, dtype=torch.float32)

        return {"default": scores(self.options.reward)} | {f"default/{name}": scores(name) for name in self.options.log}
