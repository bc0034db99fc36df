"""What the GPU benchmark measures against: shapes of models, what cards can do, and the arithmetic of `docs/performance.md`. No torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    """A Qwen3 of random weights."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    vocab_size: int = 151936
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True

    @property
    def block_parameters(self) -> int:
        """Parameters of the layers' matrices."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def weight_bytes(self) -> int:
        """What a decode step reads of the weights in bf16: the layers and the head, which is the embedding too."""
        return 2 * (self.block_parameters + self.vocab_size * self.hidden_size)

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in bf16."""
        return 4 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def step_bytes(self, rows: int, context: float) -> float:
        """What one decode step of `rows` rows must read."""
        return self.weight_bytes + rows * context * self.token_bytes

    def update_flops(self, lengths: list[int], trained: int) -> float:
        """Operations of a forward and backward pass over rows of these lengths with `trained` tokens at the head, nothing recomputed."""
        layers = 2 * self.block_parameters * sum(lengths)
        scores = (
            2 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * sum(n * n for n in lengths)
        )  # causal: half of 4 n^2
        return 3 * (layers + scores + 2 * self.vocab_size * self.hidden_size * trained)

    def recomputed_flops(self, lengths: list[int]) -> float:
        """What gradient checkpointing computes once more: the layers' forward pass."""
        return (self.update_flops(lengths, 0)) / 3

    def options(self) -> dict[str, object]:
        """Keyword arguments of Qwen3Config."""
        return asdict(self) | {"bos_token_id": None, "eos_token_id": None}


SHAPES = {
    "1.7b": Shape(2048, 6144, 28, 16, 8),
    "4b": Shape(2560, 9728, 36, 32, 8),
    "dry": Shape(64, 96, 2, 4, 2, head_dim=16, vocab_size=9216, max_position_embeddings=1024),
}

CARDS = (
    ("B200", 8.0e12, 2250e12),
    ("H200", 4.8e12, 989e12),
    ("H100 NVL", 3.9e12, 835e12),
    ("H100 PCIe", 2.0e12, 756e12),
    ("H100", 3.35e12, 989e12),
    ("A100-SXM4-40GB", 1.555e12, 312e12),
    ("A100", 2.039e12, 312e12),
    ("A800", 2.039e12, 312e12),
    ("L40S", 0.864e12, 362e12),
    ("4090", 1.008e12, 165e12),
)
"""(part of the name, bytes/s of its memory, dense bf16 operations/s), by its maker's data sheet; the first that fits."""


def card_of(name: str) -> tuple[float, float] | None:
    """(bytes/s, operations/s) of a card by the name that CUDA gives; None if it is not in the table."""
    return next(((bandwidth, flops) for part, bandwidth, flops in CARDS if part.lower() in name.lower()), None)


@dataclass(frozen=True)
class Work:
    """How much is measured."""

    shapes: tuple[str, ...]
    batches: tuple[int, ...]
    prompt: int
    """Tokens of a prompt in decoding; half of `new` more is the mean context."""
    new: int
    skipped: int
    """Decode steps before the clock starts: prefill, warm-up and recording."""
    generated: tuple[int, int]
    """New tokens of the two calls of `model.generate` whose difference is its time for a token."""
    rows: int
    """Rows of a micro-batch of the update, each of `row` tokens with `trained` at its end trained."""
    row: int
    trained: int
    micro_batches: int


REAL = Work(("1.7b", "4b"), (16, 64, 128), 3168, 160, 24, (8, 40), 4, 4096, 1280, 3)
"""3168 + 160 / 2 = 3,248 tokens of context: a chunk of 2,500, the memory and half a response."""

DRY = Work(("dry",), (2, 4), 40, 24, 8, (2, 6), 2, 48, 16, 2)


def launcher(name: str = "RunMemoryAgent4B.sh") -> dict[str, str]:
    """The flags of a launcher, as it has them."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^ +--(\w+) (\S+) \\$", text, flags=re.MULTILINE))
