"""The steps of a decode step in plain torch: the twins of `decode_kernels`, for machines without Triton and for tests.

Each rounds where transformers' forward of the Llama family rounds. Knows no slot beyond the tensors it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_norm(residual: Tensor | None, delta: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """(residual + delta, RMSNorm of it), both [n, width]."""
    summed = delta if residual is None else residual + delta
    return summed, rms_norm(summed, norm)


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm over the last dimension, in fp32 inside."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return torch.nn.functional.silu(gate) * up


def turn_and_store(
    q: Tensor, k: Tensor, v: Tensor, norms: tuple[Any, Any] | None, cos: Tensor, sin: Tensor,
    keys: Tensor, values: Tensor, positions: Tensor,
) -> Tensor:  # fmt: skip
    """Norm and turn queries [n, H, D] and keys [n, K, D]; put keys and values into the cache [n, K, length, D]. Returns the queries."""
    if norms is not None:
        q, k = rms_norm(q, norms[0]), rms_norm(k, norms[1])
    where = positions[:, None, None, None].expand(-1, k.shape[1], 1, k.shape[2])
    keys.scatter_(2, where, turned(k, cos, sin)[:, :, None].to(keys.dtype))
    values.scatter_(2, where, v[:, :, None].to(values.dtype))
    return turned(q, cos, sin)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of heads [n, heads, D] at angles [n, D]."""
    one, two = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-two, one), -1) * sin[:, None]


def attend(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention [n, H, D] of one query per row: q [n, H, D], keys and values [n, K, span, D] of which row i has lengths[i].

    The queries of a key-value head are the rows of one small matrix, so the cache is read as it lies and never repeated.
    """
    rows, heads, dim = q.shape
    hidden = torch.arange(keys.shape[2], device=q.device) >= lengths[:, None]
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, torch.finfo(q.dtype).min)
    packed = q.view(rows, keys.shape[1], -1, dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, keys.to(q.dtype), values.to(q.dtype), attn_mask=mask[:, None, None], scale=scale
    )
    return out.reshape(rows, heads, dim)
