"""The update of a policy: log-probs of what was sampled, the loss, its gradient. Knows no agent, no reward and no optimizer.

`MemTrainer` decides what is trained on and when a step of the optimizer is taken; this is all that runs the model in between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from memfactory.algorithms.kl import kl_term
from memfactory.algorithms.logprobs import as_sampled, autocast, evaluating, response_logprobs
from memfactory.algorithms.objective import configured_loss
from memfactory.algorithms.packing import MicroBatch, Sample, TrainBatch
from memfactory.algorithms.ratios import segments_of
from memfactory.algorithms.tree_attention import attending, choose_backend
from memfactory.common.config import TrainConfig
from memfactory.trainers.agreement import agreeing_update
from memfactory.trainers.correction import all_of, correction, log_mismatch, sampler_logprobs
from memfactory.trainers.distributed import Ranks, Replicated
from memfactory.trainers.health import Flops
from memfactory.trainers.metrics import Averages

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel


class PolicyUpdate:
    """Forward and backward passes over a `TrainBatch`, in micro-batches."""

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, device: torch.device, bf16: bool, parallel: Replicated | None = None
    ) -> None:
        """`parallel`: how several processes hold the model; None: this one alone."""
        self.parallel, self.model = parallel or Replicated(model, Ranks()), model
        self.config, self.device, self.bf16 = config, device, bf16
        self._flops = Flops.of(self.model)
        self.freezes = config.old_logprobs == "frozen" and config.num_minibatches * config.num_iterations > 1
        """Whether the old log-probs of a rollout batch take a forward pass of their own."""
        # `recompute`, or one update per rollout batch: the weights are still those of the update, and so are the old log-probs.
        self._old_is_own = config.old_logprobs != "sampler" and not self.freezes
        trees = config.packing == "tree" and config.share_prompts
        half = bf16 or model.dtype in (torch.bfloat16, torch.float16)
        self.backend, self._budget = agreeing_update(
            model, choose_backend(model, config.attention_backend, half) if trees else None, config.tokens_per_micro_batch,
            config.logprob_chunks, bf16, self.parallel,
        )  # fmt: skip
        self._loss = configured_loss(config)

    def recomputed(self, data: TrainBatch, averages: Averages) -> TrainBatch:
        """The batch with old log-probs from a forward pass; logs how far they are from the sampler's."""
        fresh = self.with_logprobs(data.samples, self.model, "old_logprobs")
        fresh = [replace(new, sampler_logprobs=sampler_logprobs(old)) for old, new in zip(data.samples, fresh, strict=True)]
        if fresh:
            log_mismatch(averages, all_of(fresh, "old_logprobs"), all_of(fresh, "sampler_logprobs"))
        return replace(data, samples=fresh)

    @torch.no_grad()
    def with_logprobs(self, samples: list[Sample], model: PreTrainedModel, field: str) -> list[Sample]:
        """The samples with `field` filled from a forward pass of `model`."""
        filled: dict[int, Sample] = {}
        holder = self.parallel if model is self.model else Replicated(model, Ranks())
        place = {id(sample): at for at, sample in enumerate(samples)}
        with evaluating(model), attending(model, self.backend):
            for micro in holder.passes(TrainBatch(samples).micro_batches(self._budget, self.backend)):
                with autocast(self.device, self.bf16):
                    values, _ = self._scored(holder, (micro or self._nothing()).to(self.device))
                if micro is None:
                    continue
                parts = values.float().cpu().split([len(s.response_ids) for s in micro.samples])
                for sample, part in zip(micro.samples, parts, strict=True):
                    filled[place[id(sample)]] = replace(sample, **{field: tuple(part.tolist())})  # type: ignore[arg-type]
        return [filled[at] for at in range(len(samples))]

    def backward(self, part: TrainBatch, averages: Averages, measure_mismatch: bool) -> None:
        """Accumulate the gradient of one optimizer update."""
        total = 0.0
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        with as_sampled(self.model):
            for own in self.parallel.passes(part.micro_batches(self._budget, self.backend)):
                micro = (own or self._nothing()).to(self.device)
                with attending(self.model, self.backend):  # gradient checkpointing runs the forward pass again in the backward pass
                    with autocast(self.device, self.bf16):
                        logprobs, entropy = self._scored(self.parallel, micro)
                    if own is None:  # the others have a pass more
                        logprobs.sum().mul(0.0).backward()
                        continue
                    if measure_mismatch:
                        pairs.append((logprobs.detach(), micro.old))
                    if self._old_is_own:
                        micro = replace(micro, old=logprobs.detach())
                    loss = self._micro_loss(micro, logprobs, averages)
                    loss.backward()
                if self._flops is not None:
                    averages.add("update_flops", self._flops.of_batch(micro), 0)
                total += float(loss.detach())
                averages.add("entropy", float(entropy.sum()), len(entropy))
        if pairs:
            log_mismatch(averages, *(torch.cat(side) for side in zip(*pairs, strict=True)))
        averages.add("loss", total, 1)

    def _scored(self, holder: Replicated, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return holder.call(response_logprobs, micro, self.config.temperature, self.config.logprob_chunks)

    def _nothing(self) -> MicroBatch:
        """Two tokens of no weight: a pass that adds no gradient."""
        return next(TrainBatch([Sample((0,), (0,), (0.0,), 0.0, 0, 0)], weights=(0.0,)).micro_batches(2, self.backend))

    def _micro_loss(self, micro: MicroBatch, logprobs: torch.Tensor, averages: Averages) -> torch.Tensor:
        """This micro-batch's share of the update's loss: the weights of all micro-batches of an update sum to 1."""
        segments = segments_of([len(sample.response_ids) for sample in micro.samples], logprobs.device)
        token = self._loss(logprobs, micro.old, micro.advantages, segments)
        per_token, number = token.loss, len(logprobs)
        if self.config.tis != "none":
            per_token = per_token * correction(micro, segments, self.config, averages)
        if micro.ref is not None:
            kl = kl_term(logprobs, micro.ref, micro.old, self.config.kl, self.config.kl_gradient)
            per_token = per_token + self.config.beta * kl
            averages.add("kl", float(kl.detach().sum()), number)
        loss = (per_token * micro.weights).sum()
        averages.add("ratio", float(token.ratio.sum()), number)
        averages.add("clip_fraction", float(token.clipped.float().sum()), number)
        averages.maximum("ratio_max", float(token.ratio.max()))
        return loss
