"""Fixtures of all tests: a tiny tokenizer, random tiny models, one thread and no network."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)  # no test speaks TLS: a client need not read the system's certificates (20 ms)

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the process that hands the tests out runs none: it need not load torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

gc.disable()


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: the collector need not look at it after each test."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def quiet_and_on_one_thread() -> None:
    """Bitwise promises hold on one thread."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer; shared, so leave it as it is."""
    from memfactory.data.tiny_tokenizer import make_tiny_tokenizer

    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Qwen3ForCausalLM]:
    """`tiny_qwen3(seed=0, **config)`: a new random fp32 Qwen3 of 2 layers over the tiny tokenizer, in eval mode."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
    from memfactory.common.registry import REGISTRIES

    before = [dict(registry._parts) for registry in REGISTRIES]
    yield
    for registry, parts in zip(REGISTRIES, before, strict=True):
        registry._parts.clear()
        registry._parts.update(parts)
    for name in [name for name in sys.modules if name.startswith("memfactory_plugin_")]:
        del sys.modules[name]
