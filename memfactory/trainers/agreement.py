"""The update's forward pass, compared with the model's own: in trees, in rows, or turn by turn, whichever agrees first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from memfactory.algorithms.logprobs import as_sampled, autocast, response_logprobs
from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.algorithms.tree_attention import attending
from memfactory.common.errors import ConfigError
from memfactory.engines.probe import NEW, TEMPERATURE, Found, Scored, Verdict, compared, first_that_agrees, prompts_for, seen_once
from memfactory.trainers.distributed import Ranks, Replicated

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def agreeing_update(
    model: PreTrainedModel, backend: str | None, budget: int, chunks: str, bf16: bool, parallel: Replicated | None = None
) -> tuple[str | None, int]:
    """(backend, tokens of a micro-batch) with which the update's log-probs are the model's own, or a `ConfigError` with the figure.

    As asked, if that agrees; else rows instead of trees; else each turn alone. What is changed is said. All ranks must ask.
    """
    way, verdict, wrong = update_verdict(model, backend, budget, chunks, bf16, parallel)
    if not verdict.agrees:
        raise ConfigError(
            f"The update would not differentiate {type(model).__name__} as it is. {verdict.worst}. Nothing that can be set makes it agree; "
            "take another model. `memfactory doctor MODEL` shows every comparison."
        )
    if wrong:
        log.warning("%s is trained %s, for otherwise its log-probs are not the model's own (%s).", type(model).__name__, way, wrong[0])
    if verdict.beyond:
        log.info("The update was compared up to %d tokens; %s lies past it.", verdict.covered, verdict.beyond)
    return (backend, budget) if not wrong else (None, 1 if way == ALONE else budget)


TREES, ROWS, ALONE = "in prefix trees", "in rows", "turn by turn"


def update_verdict(
    model: PreTrainedModel, backend: str | None, budget: int, chunks: str, bf16: bool, parallel: Replicated | None = None
) -> Found:
    """(how the update computes, what the comparisons said, what is wrong with the ways before)."""
    holder, prompts = parallel or Replicated(model, Ranks()), prompts_for(model)
    samples = [
        Sample(prompt, prompts.long[at : at + NEW], (0.0,) * len(prompts.long[at : at + NEW]), 0.0, at, 0)
        for at, prompt in enumerate(prompts.all)
    ]

    def scored(attend: str | None, tokens: int) -> list[Scored]:
        found: list[Scored] = []
        with torch.no_grad(), as_sampled(model), attending(model, attend):
            for micro in holder.passes(TrainBatch(samples).micro_batches(tokens, attend)):
                assert micro is not None
                with autocast(model.device, bf16):
                    values, _ = holder.call(response_logprobs, micro.to(model.device), TEMPERATURE, chunks)
                parts = values.float().cpu().split([len(sample.response_ids) for sample in micro.samples])
                found += [(s.prompt_ids, s.response_ids, part.tolist()) for s, part in zip(micro.samples, parts, strict=True)]
        return found

    def ways() -> Iterator[tuple[str, Verdict]]:
        for name, attend, tokens in ((TREES, backend, budget), (ROWS, None, budget), (ALONE, None, 1)):
            if name != TREES or backend is not None:
                case = compared(model, f"the update {name}", lambda attend=attend, tokens=tokens: scored(attend, tokens), bf16)  # type: ignore[misc]
                yield name, Verdict((case,), prompts.covered, prompts.beyond)

    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    what = ("update", backend, budget, chunks, bf16, checkpointed, type(holder).__name__)
    return seen_once(model, what, lambda: first_that_agrees(ways()))
