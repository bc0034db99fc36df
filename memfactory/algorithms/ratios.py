"""Ratios of probabilities under two policies: bounded, averaged over samples, and as the correction of a sampler that is off.

An engine that is not the trainer (vLLM) computes other log-probs from the same weights, to rounding and kernels. `mismatch` says
by how much; `truncated_weights` corrects for it: Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training"; truncation is Ionides, 2008. Knows no loss and no batch layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp() of more than this is no ratio any more but an overflow in waiting."""

TIS = ("none", "token", "sequence")


def ratio_of(logprobs: Tensor, old: Tensor | float) -> Tensor:
    """`exp(logprobs - old)` per token, bounded; any shape."""
    return torch.exp((logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def segments_of(lengths: list[int], device: torch.device | str = "cpu") -> Tensor:
    """[N] int64: the number of the sample that each token belongs to, from the samples' lengths."""
    return torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, dtype=torch.int64, device=device))


def segment_sums(values: Tensor, segments: Tensor) -> Tensor:
    """Sums [S] of values [N] over the tokens of each sample."""
    number = int(segments.max()) + 1 if len(segments) else 0
    return values.new_zeros(number).index_add(0, segments, values)


def segment_means(values: Tensor, segments: Tensor) -> Tensor:
    """Means [S] of values [N] over the tokens of each sample."""
    return segment_sums(values, segments) / segment_sums(torch.ones_like(values), segments)


def truncated_weights(old: Tensor, sampler: Tensor, segments: Tensor, level: str, cap: float) -> Tensor:
    """Weights [N] of truncated importance sampling, `min(exp(old - sampler), cap)`, from the trainer's and the sampler's log-probs [N].

    `level` token: of each token; sequence: of each sample, from the sum over its tokens.
    """
    difference = old - sampler
    if level == "sequence":
        difference = segment_sums(difference, segments)[segments]
    return ratio_of(difference, 0.0).clamp(max=cap)


def mismatch(trainer: Tensor, sampler: Tensor) -> dict[str, float]:
    """How far the sampler's log-probs [N] are from the trainer's, in nats.

    `mean` and `max` of the absolute difference; `kl`: the k3 estimate of KL(sampler || trainer); `ess`: the effective sample size of
    the untruncated token weights, as a share of N (1: no mismatch).
    """
    difference = (trainer - sampler).double()
    weight = ratio_of(difference, 0.0)
    return {
        "mean": float(difference.abs().mean()),
        "max": float(difference.abs().max()),
        "kl": float((weight - difference - 1).mean()),
        "ess": float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),
    }
