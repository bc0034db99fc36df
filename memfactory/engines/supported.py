"""Which models the in-process engine can run: decoders whose every layer attends to all that came before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memfactory.common.errors import ConfigError

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel


def refuse_unsupported(model: PreTrainedModel) -> None:
    """A `ConfigError` for what the engine would compute wrongly."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder-decoder; the hf engine samples from decoders.")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"The hf engine has no cache for layers of type {sorted(kinds)}; use full-attention models.")
    window = getattr(config, "sliding_window", None)
    used = "sliding_attention" in kinds or ("layer_types" not in config.to_dict() and getattr(config, "use_sliding_window", True))
    if window and used and window < getattr(config, "max_position_embeddings", 0):
        raise ConfigError(
            f"{type(model).__name__} attends in a window of {window}; the hf engine would ignore it. Use a full-attention model."
        )
