"""The KL of the policy to a reference, per sampled token: three estimators, and three gradients. Knows no model and no batch layout.

With `d = log(policy / reference)` of a token that the policy sampled (Schulman, 2020, joschu.net/blog/kl-approx.html):

    k1 = d                  mean is the KL        its own gradient is 0 on average, and so no penalty
    k2 = d^2 / 2            mean is not the KL    its own gradient is the KL's
    k3 = exp(-d) - 1 + d    mean is the KL        its own gradient is that of KL(reference || policy)

The value that is logged and the gradient that is followed are thus two choices (Tang and Munos, 2025, arXiv 2506.09477).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from memfactory.algorithms.ratios import MAX_LOG_RATIO, ratio_of

GRADIENTS = ("plain", "straight_through", "ratio")

K3_BOUND = 10.0
"""The largest value of k3, MemAgent's and verl's."""


def k1_kl(logprobs: Tensor, ref: Tensor) -> Tensor:
    """`log(policy / reference)` per token: unbiased, of either sign, of high variance."""
    return logprobs - ref


def k2_kl(logprobs: Tensor, ref: Tensor) -> Tensor:
    """Half the squared log-ratio per token: biased as a value; its expected gradient is exactly the KL's."""
    return 0.5 * (logprobs - ref) ** 2


def k3_kl(logprobs: Tensor, ref: Tensor) -> Tensor:
    """`exp(d) - d - 1` per token with d = ref - logprobs: unbiased below its bound, never negative, of low variance.

    The value is at most 10, as MemAgent's and verl's: a token beyond (d above 2.6 or below -11) has no gradient. That of the others
    is in expectation not the KL's, which is why it is MemAgent's small coefficient and not a constraint.
    """
    d = (ref - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # as verl's: exp must stay finite, for its gradient is multiplied by 0
    return (torch.exp(d) - d - 1).clamp(max=K3_BOUND)


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1_kl, "k2": k2_kl, "k3": k3_kl}


def kl_term(logprobs: Tensor, ref: Tensor, old: Tensor, kind: str = "k3", gradient: str = "plain") -> Tensor:
    """The KL of each token [N], to be weighed by beta in a loss: the value of `kind`, with the gradient that is asked for.

    plain: the estimator's own. straight_through: k2's, whatever the value (verl's `k3+`). ratio: that of `exp(logprobs - old)` times
    the estimator, which is the exact gradient for k1 and k3, also after updates (TRL's `use_bias_correction_kl`; its value is
    multiplied too).
    """
    value = KL[kind](logprobs, ref)
    if gradient == "ratio":
        return ratio_of(logprobs, old) * value
    if gradient == "straight_through":
        exact = k2_kl(logprobs, ref)
        return exact - exact.detach() + value.detach()
    return value
