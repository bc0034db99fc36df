"""A key-value cache of slots: every row at its own position, written in place. For decode steps only.

Prefill goes through an ordinary `DynamicCache` and is copied in. A subclass of `Cache` that overrides only `update`
leaves the model unmodified and works for any decoder with a standard cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig


def key_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """(keys, values) of each layer of a prefilled cache, [rows, heads, width, dim]."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr,misc]


def cache_bytes_per_token(text: PretrainedConfig, wide: int) -> int:
    """Bytes of keys and values that one token of one row takes, over all layers; `wide`: bytes of a number."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * dim * wide


def slots_that_fit(config: PretrainedConfig, length: int, free: int, prefill_tokens: int, by_model: bool = False) -> int:
    """How many rows of `length` tokens `free` bytes hold in bf16, beside a prefill and a step's logits; at least one.

    `by_model`: the model's own attention repeats the keys and values of one layer for every head that shares them.
    """
    text = config.get_text_config()
    token = cache_bytes_per_token(text, 2)
    heads = text.num_attention_heads
    repeated = 4 * heads * (getattr(text, "head_dim", None) or text.hidden_size // heads) if by_model else 0
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    work = prefill_tokens * (token + 2 * (8 * text.hidden_size + 4 * inner)) + 2**30
    row = (token + repeated) * length + 20 * text.vocab_size
    return max(1, int((0.97 * free - work) / row))


class SlotCache(Cache):
    """Keys and values [layers, slots, heads, length, dim], grown in length as rows need it."""

    def __init__(self, slots: int, dtype: torch.dtype | None = None) -> None:
        """`dtype`: what keys and values are stored in; None takes the prefilled cache's."""
        super().__init__(layers=[])
        self.slots, self.length, self.dtype = slots, 0, dtype
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.count = self.span = 0
        self._like: tuple[int, Tensor, Tensor] | None = None

    def adopt(self, like: DynamicCache) -> None:
        """Take the number of layers and the heads, dims and types of a prefilled cache as this one's."""
        if self._like is None:
            keys, values = key_values(like)[0]
            self._like = (len(like.layers), keys[:1, :, :0], values[:1, :, :0])

    def reserve(self, length: int) -> None:
        """Make room for `length` positions per slot; what is there stays."""
        if length <= self.length:
            return
        assert self._like is not None, "adopt() comes first"
        layers, *likes = self._like
        heads = likes[0].shape[1]
        for name, like in zip(("keys", "values"), likes, strict=True):  # in turn: only one old buffer stands beside its new one
            old = getattr(self, name)
            new = like.new_zeros(layers, self.slots, heads, length, like.shape[3], dtype=self.dtype)
            if old is not None:
                new[:, :, :, : self.length] = old
            setattr(self, name, new)
            del old
        assert self.keys is not None
        self.length = length
        self._base = torch.arange(self.slots * heads, device=self.keys.device).view(self.slots, heads) * length

    def insert(self, prefilled: DynamicCache, rows: Tensor, owners: Tensor) -> None:
        """Copy row `owners[i]` of a prefilled cache into slot `rows[i]`."""
        assert self.keys is not None and self.values is not None
        for at, (keys, values) in enumerate(key_values(prefilled)):
            width = keys.shape[2]
            self.keys[at, rows, :, :width] = keys[owners].to(self.keys.dtype)
            self.values[at, rows, :, :width] = values[owners].to(self.values.dtype)

    def move(self, target: Tensor, source: Tensor, width: int) -> None:
        """Copy the first `width` columns of slots onto others, to close holes; layer by layer, since the copy stands beside both."""
        assert self.keys is not None and self.values is not None
        for buffer in (self.keys, self.values):
            for layer in buffer:
                layer[target, :, :width] = layer[source, :, :width]

    def aim(self, positions: Tensor, span: int) -> None:
        """Prepare one decode step: rows 0..n-1 write at `positions` [n] and see columns 0..span-1."""
        self.count, self.span = len(positions), span
        self._at = (self._base[: self.count] + positions[:, None]).reshape(-1)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by the model's attention with one new position per row."""
        assert self.keys is not None and self.values is not None
        for buffer, new in ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states)):
            buffer.view(-1, new.shape[-1]).index_copy_(0, self._at, new.reshape(-1, new.shape[-1]).to(buffer.dtype))
        return self.keys[layer_idx, : self.count, :, : self.span], self.values[layer_idx, : self.count, :, : self.span]
