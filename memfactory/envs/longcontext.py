"""`LongcontextEnv` (`longcontext`): a question about a long text, paid by rule on the boxed answer.

MemAgent's reward (arXiv 2507.02259): 1 if the last box equals an accepted answer, else 0. All gold answers count; an
answer without a box, cut off or empty is the policy's failure and scores 0. Token F1 is logged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch

from memfactory.common.registry import ENV_REGISTRY, SCORER_REGISTRY
from memfactory.common.types import View
from memfactory.data.formats import load_longcontext
from memfactory.envs.base import BaseEnv
from memfactory.judges import exact as _rules  # noqa: F401 - registers the rules


@ENV_REGISTRY.register("longcontext")
class LongcontextEnv(BaseEnv):
    """Long texts with questions, in the public JSON format (`context`, `input`, `answers`)."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How answers are paid."""

        reward: str = "boxed_em"
        """The rule that pays: a key of SCORER_REGISTRY."""
        log: tuple[str, ...] = ("boxed_em", "boxed_f1")
        """Rules logged beside it, unpaid."""

    def load(self) -> list[dict[str, Any]]:
        for name in (self.options.reward, *self.options.log):
            SCORER_REGISTRY.get(name)  # an unknown rule fails here, not after the first rollout
        return load_longcontext(self.data_path)

    def observe(self, example: dict[str, Any]) -> View:
        return View(example["example_id"], (example["question"],), context=example["context"])

    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        answers = predictions["answer"]
        golds = [gold for gold in ground_truths["answers"] for _ in range(num_generations)]
        if len(answers) != len(golds):
            raise ValueError(f"{len(answers)} predictions for {len(ground_truths['answers'])} examples x {num_generations} attempts.")

        def scores(name: str) -> torch.Tensor:
            rule = SCORER_REGISTRY.get(name)
            return torch.tensor([rule(text, gold) for text, gold in zip(answers, golds, strict=True)], dtype=torch.float32)

        return {"default": scores(self.options.reward)} | {f"default/{name}": scores(name) for name in self.options.log}
