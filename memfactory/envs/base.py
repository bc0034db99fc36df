"""What an env is: a data set that shows an agent what it may see, and pays for what comes back. Knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # noqa: UP035 - as subclasses of published code spell them

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from memfactory.common.errors import DataError
from memfactory.common.porting import refuse_old_style
from memfactory.common.registry import build_options
from memfactory.common.types import View


class BaseEnv(Dataset, ABC):
    """Base of all envs, constructed as `(data_path, tokenizer, **kwargs)`; `kwargs` fill the class's `Options`.

    A subclass implements `load`, `observe` and `compute_reward`; `collate_fn` turns examples into columns.
    """

    Options: type
    gold_columns: tuple[str, ...] = ("answers", "extra")
    """Columns that must never reach the agent: evaluation plants a text in them and looks for it in every prompt."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        wanted = "compute_reward(predictions, ground_truths, num_generations, **kwargs) returns {stage or 'default': tensor}."
        refuse_old_style(cls, "compute_reward", ("questions", "llm_client"), wanted)

    def __init__(self, data_path: str, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any) -> None:
        self.data_path, self.tokenizer = Path(data_path).expanduser(), tokenizer
        self.options: Any = build_options(type(self).__name__, self.Options, kwargs)
        self.check_options(self.options)
        self.examples: list[dict[str, Any]] = self.load()
        if not self.examples:
            raise DataError(f"{data_path} holds no examples.")

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse names in the options that nobody knows, before a file is read."""

    @abstractmethod
    def load(self) -> list[dict[str, Any]]:
        """Read and validate the file; each example has at least `example_id` and the columns of a batch."""

    def identity(self) -> dict[str, Any]:
        """What decides this env's scores beside its options, such as the model that a judge's name stands for."""
        return {}

    def contents(self) -> Sequence[dict[str, Any]]:
        """The examples, as far as attempts and scores depend on them: what ledgers are made of may not change."""
        return self.examples

    def questions(self) -> dict[str, Any]:
        """What `questions.json` of an evaluation holds, gold included; nothing, for envs that are reported example by example."""
        return {}

    def evidence(self, example: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        """Gold: for each question of an example the ids of the turns that answer it; () if the data does not say.

        Only the oracle anchor is shown it, by `evaluation/leak.py`; no view of `observe` may hold it.
        """
        return ()

    @abstractmethod
    def observe(self, example: dict[str, Any]) -> View:
        """What the agent may see of an example: never gold."""

    @abstractmethod
    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Rewards `{stage or "default": float32 [B*G]}` on CPU, example-major.

        `predictions`: {stage: [B*G]}. `ground_truths`: the batch's columns, [B] each. Keys "stage/component" are logged,
        not paid. NaN marks what could not be scored for want of infrastructure; what the policy did wrong is scored.
        `kwargs` may carry `trajectories=`, for envs that need more than texts.
        """

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def collate_fn(self, examples: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Examples as columns: {column: [B]}."""
        return {key: [example[key] for example in examples] for key in examples[0]}
