"""Prefix trees as tensors: rows of tokens, and how the tokens of a row see each other in the form that each backend asks for.

Knows no model: `tree_attention.py` attends by what is laid out here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfactory.algorithms.prefix_tree import PrefixTree

SDPA4D_WIDTH = 512
"""No row with a dense mask is longer: the mask has one number per pair of tokens, and no fast kernel takes one."""

_FLEX_BLOCK = 128
"""Flex attention's block: rows are padded to whole ones, so that few lengths are compiled."""


class Batch(NamedTuple):
    """S segments of at most L tokens whose paths have at most K."""

    queries: Tensor
    """[S, L] index in the row; past a segment's end that of some token, whose result is not read."""
    keys: Tensor
    """[S, K] the same of the path."""
    before: Tensor
    """[S] tokens of the path before the segment."""


class Varlen(NamedTuple):
    """Segments and their paths end to end, as flash-attn takes them."""

    keys: Tensor
    """[sum of the paths' lengths] index in the row."""
    starts_q: Tensor
    """[S + 1] int32."""
    starts_k: Tensor
    """[S + 1] int32."""
    longest: tuple[int, int]
    """Tokens of the longest segment and path."""


@dataclass(frozen=True, slots=True)
class TreeRows:
    """How the tokens of R rows of width W see each other."""

    backend: str
    positions: Tensor
    """[R, W] each token's place in its sequences."""
    ends: Tensor
    """[R, W] token k is seen by q of its row exactly if k <= q < ends[k]."""
    batches: tuple[Batch, ...] = ()
    """Of `paths`."""
    order: Tensor | None = None
    """[W] of `paths`: where each token's result stands among those of the batches, laid end to end."""
    varlen: Varlen | None = None
    """Of `flash`."""

    def to(self, device: torch.device | str) -> TreeRows:
        """The same on `device`."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, tuple):
                parts = [moved(part) for part in value]
                return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
            return value

        return replace(self, **{name: moved(getattr(self, name)) for name in ("positions", "ends", "batches", "order", "varlen")})


def tree_rows(trees: list[PrefixTree], backend: str | None) -> tuple[Tensor, TreeRows | None]:
    """(ids [R, W] padded with 0, how they see each other), one tree a row; all backends but sdpa4d take one row.

    `backend` None is for rows of one sequence each, which need nothing but causal attention.
    """
    width = max(len(tree.ids) for tree in trees)
    width = -(-width // _FLEX_BLOCK) * _FLEX_BLOCK if backend == "flex" else width
    ids, positions = torch.zeros(2, len(trees), width, dtype=torch.int64)
    ends = torch.arange(1, width + 1).repeat(len(trees), 1)  # padding sees itself: a row without any key has no softmax
    for row, tree in enumerate(trees):
        for tensor, values in ((ids, tree.ids), (positions, tree.positions), (ends, tree.ends)):
            tensor[row, : len(values)] = torch.tensor(values)
    if backend is None:
        return ids, None
    rows = TreeRows(backend, positions, ends)
    if backend == "paths":
        batches, order = _batched(trees[0])
        rows = replace(rows, batches=batches, order=order)
    elif backend == "flash":
        rows = replace(rows, varlen=_varlen(trees[0]))
    return ids, rows


def _batched(tree: PrefixTree) -> tuple[tuple[Batch, ...], Tensor]:
    """Segments of similar length with paths of similar length together, and where each token's result comes to stand."""
    paths = tree.paths()
    alike: dict[tuple[int, int], list[int]] = {}
    for at, ((first, last, _), path) in enumerate(zip(tree.segments, paths, strict=True)):
        alike.setdefault((_size(last - first, 1), _size(len(path), 64)), []).append(at)
    order = torch.empty(len(tree.ids), dtype=torch.int64)
    batches, done = [], 0
    for members in alike.values():
        start, stop, length = torch.tensor([(*tree.segments[at][:2], len(paths[at])) for at in members]).T
        queries = start[:, None] + torch.arange(int((stop - start).max()))
        mine = queries < stop[:, None]
        order[queries[mine]] = done + mine.flatten().nonzero()[:, 0]
        keys = torch.zeros(len(members), int(length.max()), dtype=torch.int64)
        for row, at in enumerate(members):
            keys[row, : len(paths[at])] = torch.tensor(paths[at])
        batches.append(Batch(queries.where(mine, start[:, None]), keys, length - (stop - start)))
        done += queries.numel()
    return tuple(batches), order


def _size(number: int, least: int) -> int:
    """A class of like numbers: steps of `least`, then four to eight of them to a doubling, so that little of a batch is padding."""
    step = max(least, 2 ** max(number.bit_length() - 3, 0))
    return -(-number // step) * step


def _varlen(tree: PrefixTree) -> Varlen:
    paths = tree.paths()
    lengths = [stop - start for start, stop, _ in tree.segments]
    starts_q, starts_k = ([0, *torch.tensor(sizes).cumsum(0).tolist()] for sizes in (lengths, list(map(len, paths))))
    return Varlen(
        torch.tensor([at for path in paths for at in path]),
        torch.tensor(starts_q, dtype=torch.int32),
        torch.tensor(starts_k, dtype=torch.int32),
        (max(lengths), max(map(len, paths))),
    )


def hidden(ends: Tensor) -> Tensor:
    """[R, 1, W, W] bool from `ends` [R, W]: the columns that a token may not see."""
    at = torch.arange(ends.shape[1], device=ends.device)
    return ~((at[None, :] <= at[:, None]) & (at[:, None] < ends[:, None, :]))[:, None]


def mask_mod(ends: Tensor) -> Any:
    """The same as flex attention asks for it: a function of (row, head, query, key)."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[row, key])

    return seen
