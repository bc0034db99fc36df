"""Attention over prefix trees: each token sees the tokens from its root to itself, whatever stands beside it in the row.

Everything else in a decoder works token by token and needs only the position ids. Four ways to the same numbers:

sdpa4d  a dense additive mask over the row: any model with full attention, any device; the reference. O(width^2).
paths   each segment's queries against the gathered keys from its root to itself, in padded batches through torch's own
        kernel: no dense mask, nothing but torch, any device.
flash   the same without padding, in one variable-length call of flash-attn (GPU, half precision).
flex    torch's flex attention with a block mask (GPU; compiled on first use).

All but the first replace the model's attention function, so a forward pass and its backward pass (gradient checkpointing
runs the forward again there) stand inside `attending`. Knows no sample and no loss.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from memfactory.algorithms.prefix_tree import PrefixTree
from memfactory.common.errors import ConfigError

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

BACKENDS = ("auto", "sdpa4d", "paths", "flash", "flex")

SDPA4D_WIDTH = 512
"""No row with a dense mask is longer: the mask has one number per pair of tokens, and no fast kernel takes one."""

_FLEX_BLOCK = 128
"""Flex attention's block: rows are padded to whole ones, so that few lengths are compiled."""

_IMPLEMENTATION = {"paths": "memfactory_paths", "flash": "memfactory_flash", "flex": "flex_attention"}


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
    """Segments of similar length together."""
    paths = tree.paths()
    order = torch.empty(len(tree.ids), dtype=torch.int64)
    batches, at = [], 0
    for members in _similar([len(path) for path in paths], [stop - start for start, stop, _ in tree.segments]):
        lengths = torch.tensor([[tree.segments[n].start, tree.segments[n].stop, len(paths[n])] for n in members])
        start, stop, path = lengths.T
        length = int((stop - start).max())
        queries = start[:, None] + torch.arange(length)
        mine = queries < stop[:, None]
        order[queries[mine]] = at + mine.flatten().nonzero()[:, 0]
        keys = torch.zeros(len(members), int(path.max()), dtype=torch.int64)
        for row, n in enumerate(members):
            keys[row, : len(paths[n])] = torch.tensor(paths[n])
        batches.append(Batch(queries.where(mine, start[:, None]), keys, path - (stop - start)))
        at += queries.numel()
    return tuple(batches), order


def _similar(paths: list[int], lengths: list[int]) -> list[list[int]]:
    """Segments by the power of two of their length: at most half of a batch's queries are padding."""
    found: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        found.setdefault(length.bit_length(), []).append(at)
    return list(found.values())


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


# What a token sees, in each backend's form


def hidden(ends: Tensor) -> Tensor:
    """[R, 1, W, W] bool from `ends` [R, W]: the columns that a token may not see."""
    at = torch.arange(ends.shape[1], device=ends.device)
    return ~((at[None, :] <= at[:, None]) & (at[:, None] < ends[:, None, :]))[:, None]


def mask_mod(ends: Tensor) -> Any:
    """The same as flex attention asks for it: a function of (row, head, query, key)."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[row, key])

    return seen


def _additive(not_seen: Tensor, dtype: torch.dtype) -> Tensor:
    # Additive: a boolean 4-D mask is silently wrong under eager attention.
    return torch.zeros(not_seen.shape, dtype=dtype, device=not_seen.device).masked_fill_(not_seen, torch.finfo(dtype).min)


def model_inputs(model: PreTrainedModel, rows: TreeRows) -> dict[str, Any]:
    """What the model's forward needs beside the ids."""
    device = rows.ends.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    inputs: dict[str, Any] = {"position_ids": rows.positions}
    if rows.backend == "sdpa4d":
        return inputs | {"attention_mask": _additive(hidden(rows.ends), dtype)}
    if model.config._attn_implementation != _IMPLEMENTATION[rows.backend]:
        raise ConfigError(f"Trees laid out for {rows.backend} run inside `attending(model, {rows.backend!r})`, forward and backward.")
    if rows.backend == "flex":
        from torch.nn.attention.flex_attention import create_block_mask

        width = rows.ends.shape[1]
        return inputs | {"attention_mask": create_block_mask(mask_mod(rows.ends), 1, None, width, width, device=rows.ends.device)}
    masks = tuple(_additive(_after(batch), dtype) for batch in rows.batches)
    return inputs | {"tree_rows": rows, "tree_masks": masks, "tree_dtype": dtype}


def _after(batch: Batch) -> Tensor:
    """[S, 1, L, K] bool: causal, with the last query at the path's last key."""
    query, key = (torch.arange(indices.shape[1], device=indices.device) for indices in (batch.queries, batch.keys))
    return (key[None, None, :] > batch.before[:, None, None] + query[None, :, None])[:, None]


# The attention functions, as transformers calls them: query [1, H, W, D], key and value [1, H', W, D] -> [1, W, H, D]


def _paths(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    tree_rows: TreeRows, tree_masks: tuple[Tensor, ...], tree_dtype: torch.dtype, scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _refuse(others)
    query, key, value = (states.transpose(1, 2)[0].to(tree_dtype) for states in (query, key, value))
    found = []
    for batch, mask in zip(tree_rows.batches, tree_masks, strict=True):
        q, k, v = (_gathered(states, at) for states, at in ((query, batch.queries), (key, batch.keys), (value, batch.keys)))
        found.append(sdpa_attention_forward(module, q, k, v, mask, scaling=scaling)[0].flatten(0, 1))
    assert tree_rows.order is not None
    return torch.cat(found).index_select(0, tree_rows.order)[None], None


def _gathered(states: Tensor, indices: Tensor) -> Tensor:
    """[S, H, L, D] from [W, H, D]; the backward pass sums over what was gathered more than once."""
    return states.index_select(0, indices.flatten()).unflatten(0, indices.shape).transpose(1, 2)


def _flash(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    tree_rows: TreeRows, tree_masks: tuple[Tensor, ...], tree_dtype: torch.dtype, scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    _refuse(others)
    query, key, value = (states.transpose(1, 2)[0].to(tree_dtype) for states in (query, key, value))
    tree = tree_rows.varlen
    assert tree is not None
    # Causal at the bottom right: the last query of a segment stands at the last key of its path.
    out = flash_varlen()(
        query, key.index_select(0, tree.keys), value.index_select(0, tree.keys), tree.starts_q, tree.starts_k, *tree.longest,
        softmax_scale=scaling, causal=True,
    )  # fmt: skip
    return out[None], None


def flash_varlen() -> Any:
    """flash-attn's function for sequences of unlike lengths."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func


def _refuse(others: dict[str, Any]) -> None:
    """What a model asks of its attention beyond softmax(qk) v is refused rather than left out."""
    asked = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if others.get(name) is not None]
    if asked or others.get("dropout"):
        raise ConfigError(f"This model's attention uses {asked or ['dropout']}: give --attention_backend sdpa4d, or --packing rows.")


@contextmanager
def attending(model: PreTrainedModel, backend: str | None) -> Iterator[None]:
    """The model attends by `backend` inside the block, whatever it does outside (rollouts); None and sdpa4d change nothing."""
    name = _IMPLEMENTATION.get(backend or "")
    if name is None:
        yield
        return
    from transformers import AttentionInterface

    for own, function in (("memfactory_paths", _paths), ("memfactory_flash", _flash)):
        AttentionInterface.register(own, function)
    was = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = was


# Which of them a model can have


def choose_backend(model: PreTrainedModel, choice: str = "auto") -> str | None:
    """The backend for a model on its device, or None if it cannot have trees (then rows are computed one by one).

    auto: sdpa4d under eager attention, flash on a GPU where flash-attn is installed, else paths. A backend that was asked for by
    name and cannot be had here is a `ConfigError`.
    """
    if choice not in BACKENDS:
        raise ConfigError(f"Unknown attention_backend {choice!r}. Known: {', '.join(BACKENDS)}.")
    own = model.config._attn_implementation
    on_gpu = model.device.type == "cuda"
    flash = importlib.util.find_spec("flash_attn") is not None
    reason = None if own in (None, "sdpa", "eager") or own.startswith("flash_attention") else f"its attention is {own}"
    reason = reason or _no_trees(model, full=choice == "sdpa4d" or own == "eager")
    if choice == "auto":
        auto = "sdpa4d" if own in (None, "eager") else "flash" if on_gpu and flash else "paths"
        return None if reason else auto
    if choice == "flash" and not (on_gpu and flash):
        reason = "flash-attn is not installed" if on_gpu else "flash-attn runs on a GPU"
    elif choice == "flex" and not on_gpu:
        reason = "torch's flex attention has no backward pass on a CPU"
    elif choice == "sdpa4d" and own not in ("sdpa", "eager"):
        reason = f"the model's attention is {own}, which takes no dense mask"
    if reason:
        raise ConfigError(f"--attention_backend {choice}: {reason}. Use auto, or --packing rows.")
    return choice


def _no_trees(model: PreTrainedModel, full: bool) -> str | None:
    """Why a model's tokens cannot be given their places and sight, or None; `full`: by a mask alone, with its own attention."""
    config = model.config
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{type(model).__name__} has layers of type {', '.join(sorted(kinds))}"
    window = None if hasattr(config, "layer_types") else getattr(config, "sliding_window", None)
    if window is not None and window < getattr(config, "max_position_embeddings", 0):
        return f"{type(model).__name__} attends in a window of {window}"
    if not full and not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not let its attention be replaced"
    if not full and len({id(module.config) for module in model.modules() if hasattr(module, "config")}) != 1:
        return f"{type(model).__name__} has parts with configurations of their own"
    return None
