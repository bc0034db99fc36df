"""Choosing M of K without replacement, and learning from what became of each of them. Pure functions; know no memory.

Plackett-Luce (Luce, 1959; Plackett, 1975): an ordered choice is drawn one by one, each by the softmax of the logits of those
that are left. Taking the M largest of logits + Gumbel noise draws exactly that (Yellott, 1977; Kool et al., 2019, arXiv
1903.06059). The use is RMM's reranker: REINFORCE on citations (Tan et al., 2025, arXiv 2503.08026, section 4).

Letters: B rows, K candidates, M of them shown. `mask` [B, K] is True where there is a candidate; None: everywhere. A row
with fewer than M candidates shows all of them; the places left over in its choice count for nothing.

Differences from RMM's equations. (1) The paper perturbs the scores and then divides by tau, so that tau has no say in what
is chosen; here tau divides first and is the temperature of the choice. (2) The paper's `log P` is a softmax over all
candidates of scores that hold the noise: it is not the probability of the choice, its mean gradient is not 0, and so
a baseline moves more than the variance. Mode `paper_literal`, with noise of `scale` 1/tau, is both as printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from memfactory.common.errors import unknown_name

MODES = ("plackett_luce", "paper_literal", "independent_softmax")
"""What stands for the log-probability of a shown item."""
BASELINES = ("fixed", "ema", "leave_one_out")
"""What a reward is compared with."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An ordered choice for each row."""

    order: Tensor
    """[B, M] int64: places among the candidates, the first chosen first."""
    shown: Tensor
    """[B, M] bool: False where a row had no candidate left."""
    noise: Tensor
    """[B, K]: what was added to the logits before the M largest were taken."""


def top_m(values: Tensor, m: int, mask: Tensor | None = None) -> Choice:
    """The `m` largest of values [B, K], of equal ones the earlier: the choice without noise."""
    _check_rows(values, m, mask)
    values = values.detach()
    there = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    order = values.masked_fill(~there, -math.inf).argsort(dim=-1, descending=True, stable=True)[:, :m]
    return Choice(order, there.gather(1, order), torch.zeros_like(values))


def gumbel_top_m(logits: Tensor, m: int, generator: torch.Generator, mask: Tensor | None = None, scale: float = 1.0) -> Choice:
    """An exact draw of `m` of logits [B, K] from Plackett-Luce without replacement; `scale` multiplies the noise.

    The generator lives on the CPU: one seed draws the same noise for every device.
    """
    _check_rows(logits, m, mask)
    # In float64, since a float32 rounds one u in 17 million to 1, whose noise is infinite.
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
    noise = -torch.log(-torch.log(u)).to(logits) * scale
    chosen = top_m(logits.detach() + noise, m, mask)
    return Choice(chosen.order, chosen.shown, noise)


def plackett_luce_logprobs(logits: Tensor, order: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, M] log-probs (nats) of each draw given those before it: their sum is the ordered choice's. 0 where nothing was left."""
    left, shown = _left(logits, order, mask)
    return (logits.gather(1, order) - left.logsumexp(-1)).masked_fill(~shown, 0.0)


def selection_entropy(logits: Tensor, order: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, M] entropy (nats) of each draw given those before it; the mean of their sum is the entropy of the ordered choice."""
    left, shown = _left(logits, order, mask)
    logprobs = left.log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(left.isneginf(), 0.0)).sum(-1).masked_fill(~shown, 0.0)


def choice_logprobs(mode: str, logits: Tensor, choice: Choice, mask: Tensor | None = None) -> Tensor:
    """[B, M]: what a mode of `MODES` takes for the log-probs of the shown items; only `plackett_luce` are those of the choice."""
    if mode == "plackett_luce":
        return plackett_luce_logprobs(logits, choice.order, mask)
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    values = logits + choice.noise if mode == "paper_literal" else logits
    if mask is not None:
        values = values.masked_fill(~mask, torch.finfo(values.dtype).min)
    return values.log_softmax(-1).gather(1, choice.order).masked_fill(~choice.shown, 0.0)


def baseline(kind: str, rewards: Tensor, value: float) -> Tensor:
    """[B, M] of what rewards [B, M] are compared with; NaN is a reward that is not known, or a place with nothing shown.

    `fixed` and `ema`: `value` (RMM's b, or a running mean, `moved`). `leave_one_out`: the mean of the row's other rewards
    (Kool et al., 2019), or the reward itself where it is alone, which then teaches nothing.
    """
    if kind not in BASELINES:
        raise unknown_name("baseline", kind, BASELINES)
    if kind != "leave_one_out":
        return torch.full_like(rewards, value)
    known = ~rewards.isnan()
    others = known.sum(1, keepdim=True) - 1
    total = rewards.nan_to_num(0.0).sum(1, keepdim=True)
    return torch.where(others > 0, (total - rewards) / others.clamp_min(1), rewards)


def moved(value: float, rewards: Tensor, decay: float) -> float:
    """The running mean after rewards [B, M]; NaN is one that has not begun. Rewards that are not known leave it where it is."""
    known = rewards[~rewards.isnan()]
    if len(known) == 0:
        return value
    return float(known.mean()) if math.isnan(value) else decay * value + (1 - decay) * float(known.mean())


def reinforce_loss(logprobs: Tensor, rewards: Tensor, baselines: Tensor) -> Tensor:
    """RMM's equation 3 for an own reward of each item: `-sum over M of (R - b) log p`, mean over the rows that have a reward.

    All arguments [B, M]; a NaN reward has no part in it. A draw is paid for its own item only, not for what it left to later
    draws. As the mean of a draw's score is 0, a `value` that is known before the draw does not change the mean gradient.
    """
    if not logprobs.shape == rewards.shape == baselines.shape or logprobs.ndim != 2:
        raise ValueError(f"expected three [B, M] tensors, got {tuple(logprobs.shape)}, {tuple(rewards.shape)}, {tuple(baselines.shape)}.")
    known = ~rewards.isnan()
    weights = (rewards - baselines).masked_fill(~known, 0.0)
    return -(weights * logprobs).sum() / known.any(1).sum().clamp_min(1)


def _left(logits: Tensor, order: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """([B, M, K] logits at each draw, -inf for what is gone; [B, M] whether there was anything to draw)."""
    if logits.ndim != 2 or order.ndim != 2 or len(order) != len(logits) or order.shape[1] > logits.shape[1]:
        raise ValueError(f"expected logits [B, K] and order [B, M] with M <= K, got {tuple(logits.shape)} and {tuple(order.shape)}.")
    drawn = one_hot(order, logits.shape[1]).bool()
    gone = (drawn.cumsum(1) - drawn.long()) > 0
    if mask is not None:
        gone = gone | ~mask.unsqueeze(1)
    shown = ~(gone & drawn).any(-1)
    left = logits.unsqueeze(1).expand(gone.shape).masked_fill(gone, -math.inf)
    # A draw from nothing: any finite logits do, its result is dropped, but the gradient of a softmax of -inf alone is NaN.
    return left.masked_fill(~shown.unsqueeze(-1), 0.0), shown


def _check_rows(values: Tensor, m: int, mask: Tensor | None) -> None:
    if values.ndim != 2 or not 1 <= m <= values.shape[1]:
        raise ValueError(f"expected values [B, K] with K >= m >= 1, got {tuple(values.shape)} and m={m}.")
    if mask is not None and (mask.shape != values.shape or mask.dtype != torch.bool):
        raise ValueError(f"expected a bool mask {tuple(values.shape)}, got {mask.dtype} {tuple(mask.shape)}.")
