"""Eight-bit numbers in blocks, for the moments of AdamW: Dettmers et al., 2021, https://arxiv.org/abs/2110.02861.

Each block of 256 numbers is divided by its largest magnitude and every quotient takes the code of a near entry of a fixed table of
256: dynamic tree quantisation, whose entries are evenly spaced within each of seven decades, finer the larger the decade. 1.016
bytes a number. Knows no optimizer.

Differences from the paper: blocks of 256, not 2048, so that fewer numbers suffer from one that stands out; and unsigned, nothing
above zero becomes zero. Rounding is to the nearest entry, as there: drawn at random so that the mean is kept, what is below a
block's resolution came back as noise, and updates agreed less with fp32's, not more (docs/training_large.md).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share one scale."""

_DECADES = 7


@lru_cache(maxsize=8)
def table(signed: bool, device: torch.device) -> Tensor:
    """[256] the entries, ascending: 0 and 1, and in decade e (10**-e-1 to 10**-e) 2**(7-e) middles of equal intervals.

    Signed, half as many in each decade, and their negatives.
    """
    positive = [1.0]
    for decade in range(_DECADES):
        number = 2 ** (_DECADES - decade - signed)
        width = 0.9 / number
        positive += [10.0**-decade * (0.1 + (at + 0.5) * width) for at in range(number)]
    negative = [-value for value in positive if value != 1.0] if signed else []
    return torch.tensor(sorted([0.0, *positive, *negative]), device=device)


@lru_cache(maxsize=8)
def _edges(signed: bool, device: torch.device) -> Tensor:
    """[255] half-way between neighbouring entries; unsigned, the first is 0, so that only 0 becomes 0."""
    entries = table(signed, device)
    edges = (entries[1:] + entries[:-1]) / 2
    return edges if signed else torch.cat([edges.new_zeros(1), edges[1:]])


def quantised(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes uint8 [n], scales fp32 [ceil(n / 256)]) of flat fp32 values [n]: of each share of its block's largest the nearest entry.

    Unsigned, nothing above zero becomes zero: a second moment of zero would let the first divide by nothing.
    """
    blocks = _blocks(values)
    scales = blocks.abs().amax(dim=1)
    shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, _edges(signed, values.device), out_int32=True)
    return codes.to(torch.uint8).flatten()[: values.numel()], scales


def restored(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """fp32 [n] from what `quantised` made."""
    entries = table(signed, codes.device)
    return (_blocks(entries[codes.int()]) * scales[:, None]).flatten()[: codes.numel()]


def _blocks(values: Tensor) -> Tensor:
    """[blocks, 256], the last one filled with zeros."""
    missing = -values.numel() % BLOCK
    return torch.nn.functional.pad(values, (0, missing)).view(-1, BLOCK)
