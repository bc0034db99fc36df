"""`MemSFTTrainer` (`mem_sft`): supervised learning of single turns. Knows no agent: a row is messages and a response.

Rows are JSON lines `{"messages": [{"role", "content"}], "response": "..."}`, read in order (`batch_size` a step), so a
curriculum is the order of the file. Only the response and the end-of-turn token are trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memfactory.algorithms.logprobs import autocast, response_logprobs
from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, DataError
from memfactory.common.files import numbered_jsonl
from memfactory.common.registry import TRAINER_REGISTRY
from memfactory.engines.prompt import encode_messages, encode_plain
from memfactory.trainers.agreement import agreeing_update
from memfactory.trainers.base import BaseTrainer


@TRAINER_REGISTRY.register("mem_sft")
class MemSFTTrainer(BaseTrainer):
    """Maximum likelihood of responses, token-mean over the batch."""

    def __init__(self, config: TrainConfig, model: Any = None, tokenizer: Any = None) -> None:
        if not config.data_path:
            raise ConfigError("--data_path is required: a JSONL file of turns {messages, response}.")
        rows = numbered_jsonl(Path(config.data_path), "Give the JSONL file of turns by --data_path.")
        if not rows:
            raise DataError(f"{config.data_path} holds no turns.")
        for number, row in rows:
            messages = row.get("messages")
            said = isinstance(messages, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
            if not said or not isinstance(row.get("response"), str):
                raise DataError(
                    f"{config.data_path}, line {number}: a turn needs `messages` [{{role, content}}] and `response` (a string)."
                )
        self.rows = [row for _, row in rows]
        super().__init__(config, model, tokenizer)
        if config.dry_run:
            return
        _, self._budget = agreeing_update(self.model, None, config.tokens_per_micro_batch, config.logprob_chunks, self.bf16)

    @property
    def num_steps(self) -> int:
        return self.config.epoch * max(1, len(self.rows) // self.config.examples_per_step)

    def training_step(self) -> dict[str, Any]:
        size = self.config.examples_per_step
        first = self.step * size
        samples = [self._sample(self.rows[(first + n) % len(self.rows)], n) for n in range(size)]
        self.model.train()
        total = 0.0
        batch = TrainBatch(samples)
        for micro in batch.micro_batches(self._budget):
            micro = micro.to(self.device)
            with autocast(self.device, self.bf16):
                logprobs, _ = response_logprobs(self.model, micro, chunks=self.config.logprob_chunks)
            loss = -(logprobs * micro.weights).sum()
            loss.backward()
            total += float(loss.detach())
        norm, lr = self.optimizer_update()
        return {"loss": total, "grad_norm": norm, "lr": lr, "tokens": sum(map(len, samples))}

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        prompt = encode_messages(self.tokenizer, row["messages"])
        response = [*encode_plain(self.tokenizer, row["response"]), self.tokenizer.eos_token_id]
        return Sample(prompt, tuple(response), (0.0,) * len(response), 1.0, number, 0)
