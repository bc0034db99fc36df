"""Shapes of models for arithmetic without their weights: from a folder, a config.json, or the names of the Qwen3 family.

Knows sizes only. The numbers of the family are those of its published config.json files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from memfactory.common.errors import MissingFileError
from memfactory.engines.load import load_config
from memfactory.engines.slot_cache import cache_bytes_per_token

_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}

KNOWN: dict[str, dict[str, Any]] = {
    name: _QWEN3
    | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    for name, hidden, inner, layers, heads, tied in (
        ("Qwen3-0.6B", 1024, 3072, 28, 16, True),
        ("Qwen3-1.7B", 2048, 6144, 28, 16, True),
        ("Qwen3-4B", 2560, 9728, 36, 32, True),
        ("Qwen3-8B", 4096, 12288, 36, 32, False),
    )
}
"""Also under longer names: Qwen/Qwen3-4B-Instruct-2507 has the shape of Qwen3-4B."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic needs of a causal LM."""

    config: PretrainedConfig
    parameters: int
    linears: tuple[tuple[str, int, int], ...]
    """(name, inputs, outputs) of every linear layer but the head."""

    @property
    def text(self) -> PretrainedConfig:
        """The configuration of the language model."""
        return self.config.get_text_config()

    @property
    def head(self) -> int:
        """Parameters of the output embedding."""
        return self.text.vocab_size * self.text.hidden_size

    def cache_bytes(self, wide: int) -> int:
        """Bytes of keys and values that one token of one row takes; `wide`: bytes of a number."""
        return cache_bytes_per_token(self.text, wide)

    def adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of LoRA adapters on the targets (ends of names, or all-linear)."""
        chosen = [(i, o) for name, i, o in self.linears if targets == ("all-linear",) or name.rpartition(".")[2] in targets]
        return rank * sum(inputs + outputs for inputs, outputs in chosen)

    def activation_bytes(self, wide: int) -> int:
        """Bytes that autograd keeps of one token inside one layer; `wide`: bytes of a number, 2 under bf16 arithmetic.

        The norms' inputs in fp32 and their results, the inputs of the projections, queries, keys, values and what attention
        makes of them, and four tensors of the inner layer. Within a tenth of what a Qwen3 layer was seen to keep in bf16.
        """
        text = self.text
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        queries = text.num_attention_heads * dim
        keys = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * dim
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return (16 * text.hidden_size + 12 * queries + 10 * keys + 8 * inner) * wide // 2


def shape_of(model: str) -> Shape:
    """The shape of a model: a folder, a config.json, a hub name, or a name of the Qwen3 family, for which no network is needed."""
    config = _config_of(model)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    head = made.get_output_embeddings()
    linears = [(n, m.in_features, m.out_features) for n, m in made.named_modules() if isinstance(m, nn.Linear) and m is not head]
    return Shape(config, sum(p.numel() for p in made.parameters()), tuple(linears))


def _config_of(model: str) -> PretrainedConfig:
    path = Path(model).expanduser()
    if path.is_file():
        return AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    known = _known(path.name)
    if known is None or (path / "config.json").is_file():
        try:
            return load_config(model)
        except MissingFileError as error:
            raise MissingFileError(f"{error} Known by name, without a download: {', '.join(KNOWN)}.") from error
    return AutoConfig.for_model(**known)


def _known(name: str) -> dict[str, Any] | None:
    found = re.match(r"(Qwen3-(?:0\.6|1\.7|4|8)B)(?:-|$)", name, re.IGNORECASE)
    return {key.lower(): value for key, value in KNOWN.items()}[found[1].lower()] if found else None
