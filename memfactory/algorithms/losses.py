"""Policy losses: pure functions from log-probs and advantages to a loss per token. Know no model and no batch layout.

A loss of your own is a function `(logprobs, old, advantages, segments, *, options) -> TokenLoss` in `LOSS_REGISTRY`. The first three
are [N]; `segments` [N] says which trained sample (turn) a token belongs to, 0 .. S-1 in order, and a sample is always there whole, so
that a loss may look at sequences. Keyword arguments are its options, and their defaults are the run's where no flag says otherwise.
Formulas side by side, with what each is for: docs/losses.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from memfactory.algorithms.ratios import ratio_of, segment_means
from memfactory.common.registry import LOSS_REGISTRY

F = TypeVar("F", bound=Callable)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What a loss says of N tokens."""

    loss: Tensor
    """[N], with gradient."""
    ratio: Tensor
    """[N], detached."""
    clipped: Tensor
    """[N] bool: the clip, not the ratio, decided the loss. The token has no gradient, but for losses that clip a weight (cispo)."""


def aggregated_by(aggregation: str) -> Callable[[F], F]:
    """Decorator: the aggregation that a loss is defined with, used unless `--aggregation` says otherwise."""

    def mark(loss: F) -> F:
        loss.aggregation = aggregation  # type: ignore[attr-defined]
        return loss

    return mark


def options_of(loss: Callable) -> dict[str, Any]:
    """{option: default} of a loss: its keyword arguments."""
    parameters = inspect.signature(loss).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@LOSS_REGISTRY.register("grpo")
@aggregated_by("token")
def clipped_surrogate(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    segments: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> TokenLoss:
    """PPO's `-min(r A, clip(r, 1 - low, 1 + high) A)`, for A < 0 at most `-dual_clip A`; r = exp(logprobs - old).

    Schulman et al., 2017, arXiv 1707.06347; with group advantages GRPO's (2402.03300); the dual clip is Ye et al.'s (1912.09729).
    """
    _check(logprobs, old, advantages)
    return _clipped(ratio_of(logprobs, old), advantages, clip_low, clip_high, dual_clip)


@LOSS_REGISTRY.register("dapo")
@aggregated_by("token")
def dapo(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    segments: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> TokenLoss:
    """DAPO (arXiv 2503.14476): the clipped surrogate with more room up than down, a mean over all tokens."""
    return clipped_surrogate(logprobs, old, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


@LOSS_REGISTRY.register("dr_grpo")
@aggregated_by("constant")
def dr_grpo(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    segments: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """Dr. GRPO (arXiv 2503.20783): the clipped surrogate summed over a constant, so that no length is divided by."""
    return clipped_surrogate(logprobs, old, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


@LOSS_REGISTRY.register("bnpo")
@aggregated_by("token")
def bnpo(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    segments: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """TRL's `bnpo` (of arXiv 2506.02864): a mean over the tokens of the update; TRL's is over each micro-batch's."""
    return clipped_surrogate(logprobs, old, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


@LOSS_REGISTRY.register("gspo")
@aggregated_by("sequence")
def gspo(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    segments: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> TokenLoss:
    """GSPO (arXiv 2507.18071): one ratio per turn, `s = exp(mean over its tokens of logprobs - old)`, clipped as a whole.

    In the paper's token form: every token has the value s and the gradient `s A grad logprob`, so that advantages may differ within
    a turn. Summed by the aggregation `sequence` it is the gradient of the sequence form.
    """
    _check(logprobs, old, advantages)
    mean = segment_means((logprobs - old).detach(), segments)
    return _clipped(ratio_of(mean[segments] + logprobs - logprobs.detach(), 0.0), advantages, clip_low, clip_high, dual_clip)


@LOSS_REGISTRY.register("cispo")
@aggregated_by("token")
def cispo(
    logprobs: Tensor, old: Tensor, advantages: Tensor, segments: Tensor, *, clip_low: float = 1.0, clip_high: float = 4.0
) -> TokenLoss:
    """CISPO (MiniMax-M1, arXiv 2506.13585): `-sg(clip(r, 1 - low, 1 + high)) A logprobs`: the weight is clipped, no token is lost.

    A `clip_low` of 1 is no lower clip, as in the paper; a `clip_high` of 4 is TRL's `epsilon_high` of 5.
    """
    _check(logprobs, old, advantages)
    ratio = ratio_of(logprobs, old).detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return TokenLoss(-weight * advantages * logprobs, ratio, weight != ratio)


@LOSS_REGISTRY.register("sapo")
@aggregated_by("sequence")
def sapo(
    logprobs: Tensor, old: Tensor, advantages: Tensor, segments: Tensor, *, tau_positive: float = 1.0, tau_negative: float = 1.05
) -> TokenLoss:
    """SAPO (arXiv 2511.20347): `-(4 / tau) sigmoid(tau (r - 1)) A`, a soft gate in place of the clip; tau by the advantage's sign."""
    _check(logprobs, old, advantages)
    ratio = ratio_of(logprobs, old)
    tau = torch.full_like(advantages, tau_negative).masked_fill_(advantages > 0, tau_positive)
    gated = 4 / tau * torch.sigmoid(tau * (ratio - 1))
    return TokenLoss(-gated * advantages, ratio.detach(), torch.zeros_like(advantages, dtype=torch.bool))


def _clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> TokenLoss:
    plain, bounded = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return TokenLoss(loss, ratio.detach(), clipped)


def _check(logprobs: Tensor, old: Tensor, advantages: Tensor) -> None:
    if not logprobs.shape == old.shape == advantages.shape or logprobs.ndim != 1:
        raise ValueError(f"expected three [N] tensors, got {tuple(logprobs.shape)}, {tuple(old.shape)}, {tuple(advantages.shape)}.")
