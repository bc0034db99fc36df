"""One decode step from the state of the slots to logits: by the model's own forward with a mask, or by the fused decoder.

Device work only, so that a CUDA graph can hold it. Knows no request and samples nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memfactory.algorithms.logprobs import autocast, logits_at
from memfactory.engines.fused import build_decoder, kernel_errors
from memfactory.engines.slot_cache import SlotCache

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CLOSE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""How far the fused decoder's logits may be from the model's, relative to their spread, by the type of the weights: several times
what rounding was seen to do, and a fraction of what any mistake does."""


class DecodeForward:
    """Logits of one new token per row."""

    def __init__(self, model: PreTrainedModel, bf16: bool = False, attention: str = "auto") -> None:
        self.model, self.bf16 = model, bf16
        self.fused, reason = build_decoder(model, attention, bf16)
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
        dtype = torch.bfloat16 if self.bf16 else self.model.dtype
        # Additive, in the model's type: a boolean 4-D mask is silently wrong under eager attention.
        hidden = torch.arange(span, device=positions.device) > positions[:, None]
        mask = torch.zeros(len(tokens), 1, 1, span, dtype=dtype, device=positions.device)
        mask.masked_fill_(hidden[:, None, None], torch.finfo(dtype).min)
        inputs = {
            "input_ids": tokens[:, None],
            "position_ids": positions[:, None],
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        return logits_at(self.model, (slice(None), -1), inputs)


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
