"""Policy losses: pure functions from log-probs and advantages to a loss per token. Know no model and no batch layout.

PPO's clipped surrogate (Schulman et al., 2017, arXiv 1707.06347) with separate clips up and down (DAPO, 2503.14476),
the dual clip (Ye et al., 1912.09729), and the k3 estimate of the KL to a reference (Schulman, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memfactory.common.registry import LOSS_REGISTRY

MAX_LOG_RATIO = 20.0
"""exp() of more than this is no ratio any more but an overflow in waiting."""


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What a loss says of N tokens."""

    loss: Tensor
    """[N], with gradient."""
    ratio: Tensor
    """[N], detached."""
    clipped: Tensor
    """[N] bool: the clip, not the ratio, decided the loss, so the token has no gradient."""


@LOSS_REGISTRY.register("grpo")
def clipped_surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = 3.0
) -> TokenLoss:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)`, for A < 0 at most `-dual_clip A`; all arguments [N], r = exp(logprobs - old)."""
    if not logprobs.shape == old.shape == advantages.shape or logprobs.ndim != 1:
        raise ValueError(f"expected three [N] tensors, got {tuple(logprobs.shape)}, {tuple(old.shape)}, {tuple(advantages.shape)}.")
    ratio = torch.exp((logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    plain, bounded = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return TokenLoss(loss, ratio.detach(), clipped)


def k3_kl(logprobs: Tensor, ref: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) per token, `exp(d) - d - 1` with d = ref - logprobs, bounded as MemAgent's.

    Non-negative and of low variance. As a loss its expected gradient is not exactly the KL's (that
    of k2 is), which is why it is MemAgent's small coefficient and not a constraint.
    """
    d = (ref - logprobs).clamp(-10.0, 10.0)
    return torch.exp(d) - d - 1
