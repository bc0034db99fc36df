"""From logits to tokens: the inverse of the cumulative distribution at one uniform number per row. Knows no model and no slot.

Device work only, without a read by the host, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE_VOCABULARY = 8192
"""From here on the distribution is summed in blocks: a scan along a whole row of this length occupies one processor of a GPU."""

_BLOCK = 128

_COLDEST = 1e-30
"""Divided by less, logits would overflow; at this temperature already nothing but the most likely token has a probability."""


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens [n] and their log-probs [n] from logits [n, V], one uniform number [n] (float64) each.

    Temperature 0 takes the most likely token and reports its log-prob at temperature 1. The log-prob is always of the
    distribution before top-p. Of logits that hold NaN or plus infinity the log-prob is NaN, the token some token.
    """
    if top_p is None and logits.shape[-1] >= LARGE_VOCABULARY:
        return sample_in_blocks(logits, uniform, temperature)
    greedy = temperature == 0
    table = torch.log_softmax(logits.float() / _divisor(temperature), dim=-1)
    probabilities = table.double().exp()
    if top_p is not None:
        probabilities = _nucleus(probabilities, top_p)
    edges = probabilities.cumsum(-1)
    drawn = _first_above(edges, (uniform * edges[:, -1])[:, None])
    token = torch.where(greedy, table.argmax(-1), drawn)
    return token, table.gather(-1, token[:, None])[:, 0]


def sample_in_blocks(logits: Tensor, uniform: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """`sample` without top-p in two steps, first the block of the vocabulary, then the token in it: the same function of `uniform`.

    Only one table of the size of the logits is made, in fp32; sums are in fp64.
    """
    rows, vocabulary = logits.shape
    scaled = logits.float() / _divisor(temperature)
    if vocabulary % _BLOCK:
        scaled = torch.nn.functional.pad(scaled, (0, -vocabulary % _BLOCK), value=-torch.inf)
    best, likeliest = scaled.max(-1)
    weights = scaled.sub(best[:, None]).exp_().view(rows, -1, _BLOCK)
    sums = weights.sum(-1, dtype=torch.float64)
    edges = sums.cumsum(-1)
    total = edges[:, -1]
    mark = (uniform * total)[:, None]
    block = _first_above(edges, mark)[:, None]
    before = edges.gather(1, block) - sums.gather(1, block)
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double()
    drawn = (block[:, 0] * _BLOCK + _first_above(inside.cumsum(-1), mark - before)).clamp(max=vocabulary - 1)
    token = torch.where(temperature == 0, likeliest, drawn)
    return token, scaled.gather(1, token[:, None])[:, 0] - best - total.log().float()


def _divisor(temperature: Tensor) -> Tensor:
    return torch.where(temperature == 0, 1.0, temperature.clamp(min=_COLDEST))[:, None]


def _first_above(edges: Tensor, mark: Tensor) -> Tensor:
    """[n] the first column whose edge [n, V] is above `mark` [n, 1]; the last possible one, if rounding put the mark beyond all."""
    mark = torch.minimum(mark, torch.nextafter(edges[:, -1:], torch.zeros_like(edges[:, -1:])))
    return torch.searchsorted(edges, mark, right=True)[:, 0].clamp_(max=edges.shape[1] - 1)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero what lies outside the smallest set of tokens that holds `top_p` [n] of the probability: one token at least."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p[:, None]
    outside[:, 0] = False
    return probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
