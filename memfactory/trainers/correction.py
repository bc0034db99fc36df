"""A sampler that is not the trainer: how far off it is, and what its tokens weigh in the loss. Knows samples and metrics, no model."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from memfactory.algorithms.packing import MicroBatch, Sample
from memfactory.algorithms.ratios import mismatch, truncated_weights
from memfactory.common.config import TrainConfig
from memfactory.trainers.metrics import Averages

log = logging.getLogger(__name__)

_FAR = 0.5
"""Below this effective share of the tokens the sampler is another policy, not the same one rounded otherwise."""


def sampler_logprobs(sample: Sample) -> tuple[float, ...]:
    """Log-probs of the engine that sampled: the old ones, unless those were computed anew."""
    return sample.old_logprobs if sample.sampler_logprobs is None else sample.sampler_logprobs


def all_of(samples: list[Sample], field: Literal["old_logprobs", "sampler_logprobs"]) -> Tensor:
    """Log-probs [N] of samples in their order."""
    of = sampler_logprobs if field == "sampler_logprobs" else lambda sample: sample.old_logprobs
    return torch.tensor([value for sample in samples for value in of(sample)], dtype=torch.float32)


def correction(micro: MicroBatch, segments: Tensor, config: TrainConfig, averages: Averages) -> Tensor:
    """Weights [N] of the tokens' losses by `config.tis`, from `micro.old`, which is the trainer's, and the sampler's log-probs."""
    sampler = all_of(micro.samples, "sampler_logprobs").to(micro.old.device)
    weights = truncated_weights(micro.old, sampler, segments, config.tis, config.tis_cap)
    averages.add("tis_weight", float(weights.sum()), len(weights))
    averages.add("tis_truncated", float((weights >= config.tis_cap).sum()), len(weights))
    return weights


def log_mismatch(averages: Averages, trainer: Tensor, sampler: Tensor) -> None:
    """Log the distance of log-probs [N]: its mean and maximum, the KL of the sampler to the trainer, the effective sample size."""
    found, number = mismatch(trainer, sampler), len(trainer)
    averages.add("logprob_mismatch", found["mean"] * number, number)
    averages.maximum("logprob_mismatch_max", found["max"])
    averages.add("mismatch_kl", found["kl"] * number, number)
    averages.add("mismatch_ess", found["ess"] * number, number)
    if found["ess"] < _FAR:
        log.warning("The sampler's log-probs are not the trainer's: effective sample size %.2f. Has it the weights of now?", found["ess"])
