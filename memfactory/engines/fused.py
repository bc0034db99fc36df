"""A decode step for the Llama family: the model's own parameters, fewer and larger kernels, and keys read row by row.

transformers' forward runs some 55 kernels a layer for one token and reads every row's cache as far as the longest's. This
reads each row's own length, in about 13. Attention is one of three: `triton` (ours), `flash` (the flash-attn package) or
`sdpa` (torch; runs everywhere). Exact up to rounding; knows no slot and no sampling. Other architectures use their own forward.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from memfactory.common.config import DECODE_ATTENTIONS
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.engines import decode_ops
from memfactory.engines.slot_cache import SlotCache

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

FAMILY = ("qwen3", "qwen2", "llama", "mistral")
"""Model types whose layers are RMSNorm, attention with rotary embedding, RMSNorm, SiLU-gated MLP, and nothing else."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


class FusedDecoder:
    """The hidden states [n, width] of one new token per row, its keys and values written to a `SlotCache`."""

    def __init__(self, model: PreTrainedModel, attention: str) -> None:
        self.attention = attention
        self._base = cast(Any, model.base_model)
        self._attend = _attend_of(attention)
        self._ops = _ops_for(model.device)
        own = self._base.layers[0].self_attn
        self._dim, self._scale = own.head_dim, own.scaling

    @property
    def reads_by_row(self) -> bool:
        """True if a row costs what its own length costs, whatever the longest has."""
        return self.attention != "sdpa"

    def __call__(self, tokens: Tensor, positions: Tensor, cache: SlotCache, span: int) -> Tensor:
        """`tokens` [n] at `positions` [n]; no row has more than `span` keys, the new one counted."""
        assert cache.keys is not None and cache.values is not None
        base, ops, n = self._base, self._ops, len(tokens)
        delta = base.embed_tokens(tokens)
        cos, sin = (angles[:, 0].contiguous() for angles in base.rotary_emb(delta[:, None], positions[:, None]))
        lengths = positions + 1
        residual: Tensor | None = None
        for layer, keys, values in zip(base.layers, cache.keys, cache.values, strict=True):
            residual, hidden = ops.add_norm(residual, delta, layer.input_layernorm)
            attn = layer.self_attn
            q, k, v = (projection(hidden).view(n, -1, self._dim) for projection in (attn.q_proj, attn.k_proj, attn.v_proj))
            norms = (attn.q_norm, attn.k_norm) if hasattr(attn, "q_norm") else None
            keys, values = keys[:n], values[:n]
            q = ops.turn_and_store(q, k, v, norms, cos, sin, keys, values, positions)
            out = self._attend(q, keys[:, :, :span], values[:, :, :span], lengths, self._scale)
            residual, hidden = ops.add_norm(residual, attn.o_proj(out.view(n, -1)), layer.post_attention_layernorm)
            mlp = layer.mlp
            delta = mlp.down_proj(ops.silu_mul(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
        return ops.add_norm(residual, delta, base.norm)[1]


def build_decoder(model: PreTrainedModel, attention: str, bf16: bool, unlike: str = "") -> tuple[FusedDecoder | None, str]:
    """The decoder that `decode_attention` asks for, or None for the model's own forward; and why, in words.

    `model` is transformers' forward with a mask; `auto` is that on a CPU, and on a GPU the first of the others that can be had.
    What was asked for by name and cannot be had is a `ConfigError`. `unlike`: what is known to set the model apart from the family.
    """
    if attention not in DECODE_ATTENTIONS:
        raise unknown_name("decode_attention", attention, DECODE_ATTENTIONS)
    on_gpu = model.device.type == "cuda"
    if attention == "model" or (attention == "auto" and not on_gpu):
        return None, "as asked" if attention == "model" else "on a CPU"
    reason = unlike or _not_fused(model, bf16) or not_here(attention, on_gpu)
    if reason and attention != "auto":
        raise ConfigError(f"--decode_attention {attention}: {reason}. Use auto, or model (transformers' own forward).")
    if reason:
        return None, reason
    if attention == "auto":
        attention = next(name for name in ("flash", "triton", "sdpa") if not not_here(name, on_gpu))
    return FusedDecoder(model, attention), attention


def _not_fused(model: PreTrainedModel, bf16: bool) -> str:
    """Why this model's layers cannot be run by `FusedDecoder`; empty if they can."""
    config = model.config
    if config.model_type not in FAMILY or not hasattr(model.base_model, "layers"):
        return f"the architecture {config.model_type!r} is not one of {', '.join(FAMILY)}"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r} is not silu"
    base = cast(Any, model.base_model)
    kinds = {parameter.dtype for parameter in model.parameters()}
    if len(kinds) > 1 or (bf16 and kinds != {torch.bfloat16}):
        return "the weights are not all of the type that is computed in"
    dim = base.layers[0].self_attn.head_dim
    turned = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    if turned != 1.0:
        return f"only {turned:.0%} of a head's numbers are turned by position"
    if model.device.type == "cuda" and (dim & (dim - 1) or dim < 16):
        return f"heads have {dim} numbers, and the kernels want a power of two from 16 on"
    return ""


def not_here(attention: str, on_gpu: bool) -> str:
    """Why an attention cannot run here; empty if it can."""
    package = {"flash": "flash_attn", "triton": "triton"}.get(attention)
    if package and not on_gpu:
        return f"{attention} attention needs a GPU"
    if package and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    return ""


def kernel_errors() -> tuple[type[Exception], ...]:
    """What a kernel may raise that this machine's compiler, driver or card does not take."""
    errors: tuple[type[Exception], ...] = (RuntimeError, TypeError, ValueError, AttributeError, ImportError, OSError)
    if importlib.util.find_spec("triton") is not None:
        from triton.errors import TritonError  # only where Triton is

        errors = (*errors, TritonError)
    return errors


def _attend_of(attention: str) -> Attend:
    if attention == "flash":
        return flash_attend
    if attention == "triton":
        from memfactory.engines import decode_kernels  # only where Triton is

        return decode_kernels.attend
    return decode_ops.attend


def _ops_for(device: torch.device) -> ModuleType:
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from memfactory.engines import decode_kernels  # only where Triton is

        return decode_kernels
    return decode_ops


def flash_attend(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """`decode_ops.attend` by FlashAttention-2's kernel for caches (flash-attn >= 2.8)."""
    from flash_attn import flash_attn_with_kvcache  # only where it is installed

    out = flash_attn_with_kvcache(
        q[:, None], keys.transpose(1, 2), values.transpose(1, 2), cache_seqlens=lengths.to(torch.int32), softmax_scale=scale, causal=True
    )
    return out[:, 0]
