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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memfactory.algorithms.tree_rows import Batch, TreeRows, hidden, mask_mod
from memfactory.common.errors import ConfigError

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

BACKENDS = ("auto", "sdpa4d", "paths", "flash", "flex")

_IMPLEMENTATION = {name: f"memfactory_{name}" for name in ("paths", "flash", "flex")}
"""What transformers calls our attention functions."""


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
        mask = create_block_mask(mask_mod(rows.ends), 1, None, width, width, device=rows.ends.device)
        return inputs | {"attention_mask": mask, "tree_dtype": dtype}
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


def _flex(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *,
    tree_dtype: torch.dtype, scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    from transformers.integrations.flex_attention import flex_attention_forward

    _refuse(others)
    # Under autocast a norm leaves queries and keys in fp32 beside values in bf16, which flex attention refuses.
    query, key, value = (states.to(tree_dtype) for states in (query, key, value))
    return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling)[0], None


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

    AttentionInterface.register(name, {"paths": _paths, "flash": _flash, "flex": _flex}[backend or ""])
    was = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = was


# Which of them a model can have


def choose_backend(model: PreTrainedModel, choice: str = "auto", half: bool = False) -> str | None:
    """The backend for a model on its device, or None if it cannot have trees (then rows are computed one by one).

    auto: sdpa4d under eager attention; flash on a GPU in half precision (`half`) where flash-attn is installed; else paths.
    A backend that was asked for by name and cannot be had here is a `ConfigError`.
    """
    if choice not in BACKENDS:
        raise ConfigError(f"Unknown attention_backend {choice!r}. Known: {', '.join(BACKENDS)}.")
    own = model.config._attn_implementation
    on_gpu = model.device.type == "cuda"
    installed = importlib.util.find_spec("flash_attn") is not None
    reason = None if own in (None, "sdpa", "eager") or own.startswith("flash_attention") else f"its attention is {own}"
    auto = "sdpa4d" if own in (None, "eager") else "flash" if on_gpu and installed and half else "paths"
    reason = reason or _no_trees(model, by_mask=(auto if choice == "auto" else choice) == "sdpa4d")
    if choice == "auto":
        return None if reason else auto
    if choice == "flash" and not (on_gpu and installed and half):
        reason = "flash-attn runs on a GPU" if not on_gpu else "it computes in bf16" if installed else "flash-attn is not installed"
    elif choice == "flex" and not on_gpu:
        reason = "torch's flex attention has no backward pass on a CPU"
    elif choice == "sdpa4d" and own not in ("sdpa", "eager"):
        reason = f"the model's attention is {own}, which takes no dense mask"
    if reason:
        raise ConfigError(f"--attention_backend {choice}: {reason}. Use auto, or --packing rows.")
    return choice


def _no_trees(model: PreTrainedModel, by_mask: bool) -> str | None:
    """Why a model's tokens cannot be given their places and sight, or None; `by_mask`: its own attention stays, with a mask."""
    config = model.config
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{type(model).__name__} has layers of type {', '.join(sorted(kinds))}"
    own_window = not getattr(config, "layer_types", None) and getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if own_window else None
    if window is not None and window < getattr(config, "max_position_embeddings", 0):
        return f"{type(model).__name__} attends in a window of {window}"
    if not by_mask and not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not let its attention be replaced"
    if not by_mask and len({id(module.config) for module in model.modules() if hasattr(module, "config")}) != 1:
        return f"{type(model).__name__} has parts with configurations of their own"
    return None
