"""A sampler that is not the trainer: how far off it is, and what its tokens weigh in the loss. Knows samples and metrics, no model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memfactory.algorithms.packing import Sample
from memfactory.algorithms.ratios import mismatch, segments_of, truncated_weights
from memfactory.common.config import TrainConfig
from memfactory.trainers.metrics import Averages


def corrected(sampled: list[Sample], fresh: list[Sample], config: TrainConfig, averages: Averages | None) -> list[Sample]:
    """The `fresh` samples, whose old log-probs are the trainer's, with what `config.tis` makes of the sampler's in `sampled`.

    `averages`: where the mismatch and the weights are logged, if they are to be.
    """
    if not sampled:
        return fresh
    lengths = [len(sample.response_ids) for sample in sampled]
    trainer, sampler = (torch.tensor([p for s in side for p in s.old_logprobs], dtype=torch.float32) for side in (fresh, sampled))
    if averages is not None:
        log_mismatch(averages, trainer, sampler)
    if config.tis == "none":
        return fresh
    weights = truncated_weights(trainer, sampler, segments_of(lengths), config.tis, config.tis_cap)
    if averages is not None:
        averages.add("tis_weight", float(weights.sum()), len(weights))
        averages.add("tis_truncated", float((weights >= config.tis_cap).sum()), len(weights))
    return [replace(sample, correction=tuple(part.tolist())) for sample, part in zip(fresh, weights.split(lengths), strict=True)]


def weights_of(samples: list[Sample]) -> Tensor | None:
    """The corrections [N] of samples in their order; None if they have none."""
    if samples[0].correction is None:
        return None
    return torch.tensor([weight for sample in samples for weight in sample.correction or ()], dtype=torch.float32)


def log_mismatch(averages: Averages, trainer: Tensor, sampler: Tensor) -> None:
    """Log the distance of log-probs [N]: its mean and maximum, the KL of the sampler to the trainer, the effective sample size."""
    found, number = mismatch(trainer, sampler), len(trainer)
    averages.add("logprob_mismatch", found["mean"] * number, number)
    averages.maximum("logprob_mismatch_max", found["max"])
    averages.add("mismatch_kl", found["kl"] * number, number)
    averages.add("mismatch_ess", found["ess"] * number, number)
