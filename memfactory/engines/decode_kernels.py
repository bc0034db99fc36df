"""Triton kernels of a decode step: one new token per row against a cache of slots.

Only imported where Triton is; torch for CUDA brings it. Each rounds where the model's own forward rounds. What they compute is
said by their twins in `decode_ops`, which tests compare them with.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Keys that a program of `attend` reads at a time."""

PROGRAMS = 2112
"""Programs of `attend` that fill a large GPU: sixteen per multiprocessor of an H100."""


@triton.jit
def _attend_part(
    q_ptr: tl.tensor, k_ptr: tl.tensor, v_ptr: tl.tensor, lengths_ptr: tl.tensor, acc_ptr: tl.tensor,
    max_ptr: tl.tensor, sum_ptr: tl.tensor, scale: tl.tensor, slot_stride: tl.tensor, head_stride: tl.tensor, position_stride: tl.tensor,
    kv_heads: tl.tensor, splits: tl.tensor, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """One row, one key-value head and its GROUP queries, over one of `splits` stretches of the row's keys."""
    row, part = tl.program_id(0) // kv_heads, tl.program_id(1)
    head = tl.program_id(0) % kv_heads
    length = tl.load(lengths_ptr + row).to(tl.int32)
    stretch = tl.cdiv(tl.cdiv(length, splits), BLOCK_N) * BLOCK_N
    start = part * stretch
    end = tl.minimum(start + stretch, length)
    groups, dims, columns = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, BLOCK_N)
    heads = row * kv_heads * GROUP + head * GROUP + groups
    own = groups < GROUP
    q = tl.load(q_ptr + heads[:, None] * DIM + dims[None, :], mask=own[:, None], other=0.0)
    base = row.to(tl.int64) * slot_stride + head.to(tl.int64) * head_stride
    highest = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    for at in range(start, end, BLOCK_N):
        seen = at + columns < end
        offsets = base + (at + columns)[:, None].to(tl.int64) * position_stride + dims[None, :]
        k = tl.load(k_ptr + offsets, mask=seen[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        v = tl.load(v_ptr + offsets, mask=seen[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, 1)
        highest = higher
    to = heads * splits + part
    tl.store(acc_ptr + to[:, None] * DIM + dims[None, :], acc, mask=own[:, None])
    tl.store(max_ptr + to, highest, mask=own)
    tl.store(sum_ptr + to, total, mask=own)


@triton.jit
def _attend_merge(
    acc_ptr: tl.tensor,
    max_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    out_ptr: tl.tensor,
    splits: tl.tensor,
    SPLITS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """One query head of one row: its stretches' softmaxes as one."""
    head = tl.program_id(0).to(tl.int64)
    parts, dims = tl.arange(0, SPLITS), tl.arange(0, DIM)
    real = parts < splits
    highs = tl.load(max_ptr + head * splits + parts, mask=real, other=-1.0e30)
    sums = tl.load(sum_ptr + head * splits + parts, mask=real, other=0.0)
    share = tl.exp(highs - tl.max(highs, 0))
    acc = tl.load(acc_ptr + (head * splits + parts)[:, None] * DIM + dims[None, :], mask=real[:, None], other=0.0)
    out = tl.sum(acc * share[:, None], 0) / tl.sum(sums * share, 0)
    tl.store(out_ptr + head * DIM + dims, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _add_norm(
    x_ptr: tl.tensor, delta_ptr: tl.tensor, weight_ptr: tl.tensor, sum_ptr: tl.tensor, out_ptr: tl.tensor,
    width: tl.tensor, eps: tl.tensor, ADD: tl.constexpr, BLOCK_W: tl.constexpr
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_W)
    real = columns < width
    x = tl.load(delta_ptr + row * width + columns, mask=real, other=0.0)
    if ADD:
        x = (tl.load(x_ptr + row * width + columns, mask=real, other=0.0).to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row * width + columns, x, mask=real)
    wide = x.to(tl.float32)
    normed = (wide / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)).to(x.dtype)
    weight = tl.load(weight_ptr + columns, mask=real, other=0.0)
    tl.store(out_ptr + row * width + columns, (weight.to(tl.float32) * normed.to(tl.float32)).to(x.dtype), mask=real)


@triton.jit
def _silu_mul(gate_ptr: tl.tensor, up_ptr: tl.tensor, out_ptr: tl.tensor, number: tl.tensor, BLOCK_W: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    real = at < number
    gate = tl.load(gate_ptr + at, mask=real, other=0.0)
    up = tl.load(up_ptr + at, mask=real, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out_ptr + at, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=real)


@triton.jit
def _turn_one(
    x_ptr: tl.tensor, weight_ptr: tl.tensor, cos_ptr: tl.tensor, sin_ptr: tl.tensor, to_ptr: tl.tensor, eps: tl.tensor,
    NORM: tl.constexpr, TURN: tl.constexpr, HALF: tl.constexpr,
) -> None:  # fmt: skip
    """One head of DIM = 2 * HALF numbers: normed, turned by its position's angles, stored."""
    dims = tl.arange(0, HALF)
    one, two = tl.load(x_ptr + dims), tl.load(x_ptr + HALF + dims)
    kind = one.dtype
    if NORM:
        a, b = one.to(tl.float32), two.to(tl.float32)
        root = tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (2 * HALF) + eps)
        one = (tl.load(weight_ptr + dims).to(tl.float32) * (a / root).to(kind).to(tl.float32)).to(kind)
        two = (tl.load(weight_ptr + HALF + dims).to(tl.float32) * (b / root).to(kind).to(tl.float32)).to(kind)
    if TURN:
        a, b = one.to(tl.float32), two.to(tl.float32)
        cos, cos_two = tl.load(cos_ptr + dims).to(tl.float32), tl.load(cos_ptr + HALF + dims).to(tl.float32)
        sin, sin_two = tl.load(sin_ptr + dims).to(tl.float32), tl.load(sin_ptr + HALF + dims).to(tl.float32)
        one = ((a * cos).to(kind).to(tl.float32) - (b * sin).to(kind).to(tl.float32)).to(kind)
        two = ((b * cos_two).to(kind).to(tl.float32) + (a * sin_two).to(kind).to(tl.float32)).to(kind)
    tl.store(to_ptr + dims, one.to(to_ptr.dtype.element_ty))
    tl.store(to_ptr + HALF + dims, two.to(to_ptr.dtype.element_ty))


@triton.jit
def _turn_and_store(
    q_ptr: tl.tensor, k_ptr: tl.tensor, v_ptr: tl.tensor, q_weight_ptr: tl.tensor, k_weight_ptr: tl.tensor, cos_ptr: tl.tensor,
    sin_ptr: tl.tensor, positions_ptr: tl.tensor, turned_ptr: tl.tensor, keys_ptr: tl.tensor, values_ptr: tl.tensor, eps: tl.tensor,
    slot_stride: tl.tensor, head_stride: tl.tensor, position_stride: tl.tensor, heads: tl.tensor, kv_heads: tl.tensor,
    NORM: tl.constexpr, HALF: tl.constexpr,
) -> None:  # fmt: skip
    """One row and one head: of the queries, which go to `turned`, of the keys or of the values, which go to the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    DIM: tl.constexpr = 2 * HALF
    cos, sin = cos_ptr + row * DIM, sin_ptr + row * DIM
    if head < heads:
        at = (row * heads + head) * DIM
        _turn_one(q_ptr + at, q_weight_ptr, cos, sin, turned_ptr + at, eps, NORM, True, HALF)
    else:
        own = head - heads
        place = row * slot_stride + tl.load(positions_ptr + row) * position_stride
        if own < kv_heads:
            at = (row * kv_heads + own) * DIM
            _turn_one(k_ptr + at, k_weight_ptr, cos, sin, keys_ptr + place + own * head_stride, eps, NORM, True, HALF)
        else:
            own -= kv_heads
            at = (row * kv_heads + own) * DIM
            _turn_one(v_ptr + at, k_weight_ptr, cos, sin, values_ptr + place + own * head_stride, eps, False, False, HALF)


def splits_for(rows_and_heads: int, length: int) -> int:
    """Stretches that a row's keys are cut into, so that the programs fill the GPU; a power of two."""
    wanted = max(1, min(PROGRAMS // max(rows_and_heads, 1), length // (2 * BLOCK)))
    return min(64, 1 << (wanted - 1).bit_length()) if wanted > 1 else 1


def attend(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float,
    *, splits: int | None = None, block: int = BLOCK, warps: int = 4, stages: int = 3,
) -> Tensor:  # fmt: skip
    """Attention [n, H, D] of one query per row: q [n, H, D], keys and values [n, K, length, D] of which row i has lengths[i]."""
    rows, heads, dim = q.shape
    kv_heads, group = keys.shape[1], heads // keys.shape[1]
    splits = splits or splits_for(rows * kv_heads, keys.shape[2])
    acc = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=q.device)
    highs, sums = (torch.empty(rows, heads, splits, dtype=torch.float32, device=q.device) for _ in range(2))
    out = torch.empty_like(q)
    strides = (keys.stride(0), keys.stride(1), keys.stride(2))
    precise = "ieee" if q.dtype == torch.float32 else "tf32"
    _attend_part[(rows * kv_heads, splits)](
        q, keys, values, lengths, acc, highs, sums, scale, *strides, kv_heads, splits,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), DIM=dim, BLOCK_N=block, PRECISION=precise,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    _attend_merge[(rows * heads,)](acc, highs, sums, out, splits, SPLITS=triton.next_power_of_2(splits), DIM=dim)
    return out


def add_norm(residual: Tensor | None, delta: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """(residual + delta, RMSNorm of it), both [n, width]."""
    rows, width = delta.shape
    out = torch.empty_like(delta)
    summed = delta if residual is None else torch.empty_like(delta)
    add, block = residual is not None, triton.next_power_of_2(width)
    warps = 8 if block >= 2048 else 4
    _add_norm[(rows,)](
        delta if residual is None else residual, delta, norm.weight, summed, out, width, norm.variance_epsilon,
        ADD=add, BLOCK_W=block, num_warps=warps,
    )  # fmt: skip
    return summed, out


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out = torch.empty_like(gate)
    _silu_mul[(triton.cdiv(gate.numel(), 1024),)](gate, up, out, gate.numel(), BLOCK_W=1024, num_warps=4)
    return out


def turn_and_store(
    q: Tensor, k: Tensor, v: Tensor, norms: tuple[Any, Any] | None, cos: Tensor, sin: Tensor,
    keys: Tensor, values: Tensor, positions: Tensor,
) -> Tensor:  # fmt: skip
    """Norm and turn queries [n, H, D] and keys [n, K, D]; put keys and values into the cache [n, K, length, D]. Returns the queries."""
    (rows, heads, dim), kv_heads = q.shape, k.shape[1]
    turned = torch.empty_like(q)
    q_weight, k_weight = (q, k) if norms is None else (norms[0].weight, norms[1].weight)
    _turn_and_store[(rows, heads + 2 * kv_heads)](
        q, k, v, q_weight, k_weight, cos, sin, positions, turned, keys, values,
        0.0 if norms is None else norms[0].variance_epsilon, keys.stride(0), keys.stride(1), keys.stride(2), heads, kv_heads,
        NORM=norms is not None, HALF=dim // 2, num_warps=1,
    )  # fmt: skip
    return turned
