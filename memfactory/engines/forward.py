"""One decode step from the state of the slots to logits: by the model's own forward with a mask, or by the fused decoder.

Device work only, so that a CUDA graph can hold it. Knows no request and samples nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memfactory.algorithms.logprobs import autocast, logits_at, plain_head
from memfactory.engines.fused import build_decoder, kernel_errors
from memfactory.engines.slot_cache import SlotCache

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Hidden = Callable[[Tensor, Tensor], Tensor]

CLOSE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""How far the fused decoder's logits may be from the model's, relative to their spread, by the type of the weights: several times
what rounding was seen to do, and a fraction of what any mistake does."""


class DecodeForward:
    """Logits of one new token per row."""

    def __init__(self, model: PreTrainedModel, bf16: bool = False, attention: str = "auto") -> None:
        self.model, self.bf16 = model, bf16
        self._windows = windows(model)
        own = "" if self._windows == [("full_attention", None)] else "its layers attend in a window"
        self.fused, reason = build_decoder(model, attention, bf16, own or ("" if plain_head(model) else "its head is more than one matrix"))
        self._checked = self.fused is None or model.device.type != "cuda"
        if self.fused is None and attention == "auto" and model.device.type == "cuda":
            log.warning("Decode steps use the model's own forward, which is slower: %s.", reason)

    @property
    def reads_by_row(self) -> bool:
        """True if neither the longest row nor rows that are not alive slow the others down."""
        return self.fused is not None and self.fused.reads_by_row

    @torch.inference_mode()
    def logits(self, tokens: Tensor, positions: Tensor, cache: SlotCache, span: int) -> Tensor:
        """fp32 logits [n, V] after `tokens` [n] at `positions` [n], whose keys and values are written to rows 0..n-1 of the cache."""
        if self.fused is None:
            with autocast(self.model.device, self.bf16):
                return self._by_model(tokens, positions, cache, span)
        return fp32_head(self.model, self.fused(tokens, positions, cache, span))

    def check(self, tokens: Tensor, positions: Tensor, cache: SlotCache, span: int) -> None:
        """On a GPU, once: the fused decoder must agree with the model's own forward, or it is not used. Writes what the step will write."""
        if self._checked or self.fused is None:
            return
        self._checked = True
        tokens, positions = tokens[:4], positions[:4]  # the model's own attention repeats what it reads, as often as heads share it
        try:
            fused = self.logits(tokens, positions, cache, span)
        except kernel_errors() as error:
            self._give_up(f"it does not run here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
            return
        with torch.inference_mode():
            plain = self._by_model(tokens, positions, cache, span)
        off = float((fused - plain).norm() / (plain - plain.mean(-1, keepdim=True)).norm())
        if not off < CLOSE.get(self.model.dtype, 1e-3):
            self._give_up(f"it is off by {off:.3g} here")

    def _give_up(self, reason: str) -> None:
        assert self.fused is not None
        log.warning("Decode steps use the model's own forward: %s attention: %s.", self.fused.attention, reason)
        self.fused = None

    def _by_model(self, tokens: Tensor, positions: Tensor, cache: SlotCache, span: int) -> Tensor:
        cache.aim(positions, span)
        columns = torch.arange(span, device=positions.device)
        later = columns > positions[:, None]
        masks = {
            kind: self._additive(later if hidden is None else later | hidden(columns, positions[:, None])) for kind, hidden in self._windows
        }
        inputs = {
            "input_ids": tokens[:, None],
            "position_ids": positions[:, None],
            # A model whose layers attend in different ways takes a mask for each.
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "past_key_values": cache,
            "use_cache": True,
        }
        return logits_at(self.model, (slice(None), -1), inputs)

    def _additive(self, hidden: Tensor) -> Tensor:
        # In the model's type: a boolean 4-D mask is silently wrong under eager attention.
        dtype = torch.bfloat16 if self.bf16 else self.model.dtype
        mask = torch.zeros(len(hidden), 1, 1, hidden.shape[1], dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden[:, None, None], torch.finfo(dtype).min)


def windows(model: PreTrainedModel) -> list[tuple[str, Hidden | None]]:
    """(kind of layer, the keys that it does not see though they came before): one for all layers, or one per kind."""
    text = model.config.get_text_config()
    size, chunk = getattr(text, "sliding_window", None) or 0, getattr(text, "attention_chunk_size", None) or 0
    hides: dict[str, Hidden | None] = {
        "full_attention": None,
        "sliding_attention": (lambda keys, queries: keys <= queries - size) if size else None,
        "chunked_attention": (lambda keys, queries: keys // chunk != queries // chunk) if chunk else None,
    }
    kinds = sorted(set(getattr(text, "layer_types", None) or ["sliding_attention"]))
    if kinds == ["full_attention"] or not all(hides.get(kind) for kind in kinds if kind != "full_attention"):
        return [("full_attention", None)]
    # Those with kinds of layers look for each kind's mask by its name, also where all layers are of one.
    return [(kind, hides[kind]) for kind in (kinds if len(kinds) == 1 else dict.fromkeys(("full_attention", *kinds)))]


def fp32_head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """fp32 logits [n, V] of hidden states [n, width], without an fp32 copy of the head where the device multiplies bf16 into fp32."""
    head = model.get_output_embeddings()
    assert head is not None
    weight, bias = head.weight, getattr(head, "bias", None)
    if hidden.is_cuda and hidden.dtype == weight.dtype == torch.bfloat16:
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().t()
    return logits if bias is None else logits + bias.float()
