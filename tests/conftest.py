"""Fixtures of all tests: a tiny tokenizer, random tiny models, one thread and no network."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from memfactory.data.tiny_tokenizer import make_tiny_tokenizer

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer; shared, so leave it as it is."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Qwen3ForCausalLM]:
    """`tiny_qwen3(seed=0, **config)`: a new random fp32 Qwen3 of 2 layers over the tiny tokenizer, in eval mode."""

    def make(seed: int = 0, **overrides: Any) -> Qwen3ForCausalLM:
        settings: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "bos_token_id": None,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Qwen3ForCausalLM(Qwen3Config(**(settings | overrides))).eval()

    return make


@pytest.fixture
def forgotten_parts() -> Iterator[None]:
    """Forget the parts that a test registers, so that tests do not see each other's; the project's own stay."""
    import memfactory.cli  # noqa: F401 - registers the project's parts before the snapshot
    from memfactory.common.registry import REGISTRIES

    before = [dict(registry._parts) for registry in REGISTRIES]
    yield
    for registry, parts in zip(REGISTRIES, before, strict=True):
        registry._parts.clear()
        registry._parts.update(parts)
    for name in [name for name in sys.modules if name.startswith("memfactory_plugin_")]:
        del sys.modules[name]
