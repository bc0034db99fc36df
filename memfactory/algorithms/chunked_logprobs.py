"""Log-probs of sampled tokens from hidden states and the head, tile by tile: no tensor of tokens x vocabulary is ever made.

At Qwen3's 151,936 words one fp32 copy of the logits of 4,096 tokens is 2.5 GB, and log-softmax, entropy and gradient want several.
Here a tile of logits [token_chunk, vocab_chunk] is made, folded into a few sums per token and forgotten; the backward pass makes it again:
the head's product is done four times instead of three. It knows tensors only: no model, no micro-batch.

1. Sums, log-probs, entropies and both gradients are accumulated in fp32 (fp64 if that comes in). A product that is rounded to bf16 before
   it is summed over the vocabulary shifts the gradient a little the same way each time, which is seen only after dozens of updates.
2. bf16 inputs on a GPU are multiplied as they are, with fp32 results; anything else is brought to fp32 tile by tile.
3. The gradient of the weight is handed to autograd, which adds it to `weight.grad`, and is not written there: hooks (DDP, FSDP), a tied
   embedding and `torch.autograd.grad` need it to pass by. What this costs is one tensor of the weight's size, in fp32 where the
   weight's gradient is. Elsewhere each vocabulary chunk is summed over all tokens in fp32 and rounded once: no fp32 copy of it all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_TILE, GPU_TILE = (1024, 4096), (4096, 8192)
"""(tokens, words): 16 MiB in fp32, of which two stand at a time; on a GPU 128 MiB, so that it is not launches that count."""


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs [N] of `targets` [N] under softmax((hidden @ weight.T + bias) / temperature), in nats, and entropies [N] without gradient.

    `hidden` [N, H], `weight` [V, H] and `bias` [V] may be of any floating type; what comes out is fp32 (fp64 from fp64). Only the
    chunks, which have a default for each device, decide what memory it takes beside the gradients themselves. Finite logits give
    finite log-probs, however large.
    """
    rows, words = CPU_TILE if hidden.device.type == "cpu" else GPU_TILE
    rows = rows if token_chunk is None else token_chunk
    words = words if vocab_chunk is None else vocab_chunk
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
        raise ValueError(f"{shapes}: they must be [N, H], [V, H] and [N].")
    if temperature <= 0 or rows < 1 or words < 1:
        raise ValueError(f"temperature {temperature}, token_chunk {rows}, vocab_chunk {words}: each must be above 0.")
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, bias, targets, temperature, rows, words)
    return logprobs, entropy


class _Sums(NamedTuple):
    """What is known of some tokens' logits z after some of the vocabulary: [n] each."""

    top: Tensor
    """max z"""
    mass: Tensor
    """sum exp(z - top)"""
    moment: Tensor
    """sum exp(z - top) (z - top)"""


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, rows: int, words: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropy, tops, masses = (torch.empty(len(hidden), dtype=_wide(hidden), device=hidden.device) for _ in range(4))
        with torch.autocast(hidden.device.type, enabled=False):
            for row in _slices(len(hidden), rows):
                sums, chosen = _sums(hidden[row], weight, bias, targets[row], temperature, words)
                # Never the sum of top and log mass: with large logits it is rough, and here they are subtracted from it again.
                tops[row], masses[row] = sums.top, sums.mass
                logprobs[row] = (chosen - sums.top) - sums.mass.log()
                entropy[row] = sums.mass.log() - sums.moment / sums.mass
        ctx.save_for_backward(hidden, weight, bias, targets, tops, masses)
        ctx.chunks = temperature, rows, words
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, tops, masses = ctx.saved_tensors
        temperature, rows, words = ctx.chunks
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=_wide(hidden)) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=_gradient_type(weight)) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=_wide(hidden)) if wants_bias else None
        share = grad / temperature
        with torch.autocast(hidden.device.type, enabled=False):
            for word in _slices(len(weight), words):
                part = weight[word]
                total = None if d_weight is None else d_weight[word].to(_wide(hidden))  # in place, unless it is narrower
                for row in _slices(len(hidden), rows):
                    # share x (1 at the target - probability)
                    tile = _logits(hidden[row], part, bias, word, temperature).sub_(tops[row, None]).exp_()
                    tile.mul_((-share[row] / masses[row])[:, None])
                    place, inside = _place(targets[row], word)
                    tile.scatter_add_(1, place, torch.where(inside, share[row], 0.0)[:, None])
                    if d_bias is not None:
                        d_bias[word] += tile.sum(0)
                    factor = tile.bfloat16() if _in_bf16(hidden, part) else tile
                    if d_hidden is not None:
                        _add_product(d_hidden[row], factor, part)
                    if total is not None:
                        _add_product(total, factor.t(), hidden[row])
                if d_weight is not None and total is not None and total.dtype != d_weight.dtype:
                    d_weight[word] = total
        inputs = zip((hidden, weight, bias), (d_hidden, d_weight, d_bias), strict=True)
        return *(None if found is None else found.to(_gradient_type(given)) for given, found in inputs), None, None, None, None


def _sums(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, words: int) -> tuple[_Sums, Tensor]:
    """The sums of n tokens over the whole vocabulary, and the logits [n] of their targets."""
    kept: _Sums | None = None
    chosen = torch.zeros(len(hidden), dtype=_wide(hidden), device=hidden.device)
    for word in _slices(len(weight), words):
        logits = _logits(hidden, weight[word], bias, word, temperature)
        place, inside = _place(targets, word)
        chosen = torch.where(inside, logits.gather(1, place)[:, 0], chosen)
        top = logits.amax(1)
        mass = logits.sub_(top[:, None]).exp()
        more = _Sums(top, mass.sum(1), logits.mul_(mass).sum(1))
        kept = more if kept is None else _merged(kept, more)
    assert kept is not None
    return kept, chosen


def _merged(one: _Sums, other: _Sums) -> _Sums:
    """The sums over two parts of the vocabulary."""
    top = torch.maximum(one.top, other.top)
    mass, moment = torch.zeros_like(top), torch.zeros_like(top)
    for part in (one, other):
        down = (part.top - top).clamp_(min=-1e4)  # its exp is 0 long before; an infinity times that would be NaN
        scale = down.exp()
        mass += scale * part.mass
        moment += scale * (part.moment + down * part.mass)
    return _Sums(top, mass, moment)


def _logits(hidden: Tensor, part: Tensor, bias: Tensor | None, word: slice, temperature: float) -> Tensor:
    """A tile [n, v] of logits at the temperature, new and in the wide type."""
    tile = _product(hidden, part.t())
    if bias is not None:
        tile += bias[word]
    return tile if temperature == 1 else tile.div_(temperature)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other in the wide type: the factors may have been rounded to bf16, the product never is."""
    if _in_bf16(one, other):
        return torch.mm(one, other, out_dtype=torch.float32)
    return torch.mm(one.to(_wide(one)), other.to(_wide(other)))


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, where `total` is wide."""
    if _in_bf16(one, other):
        total += _product(one, other)
    else:
        total.addmm_(one.to(total.dtype), other.to(total.dtype))


def _in_bf16(one: Tensor, other: Tensor) -> bool:
    """True where bf16 is multiplied with fp32 results: a CPU has no such product."""
    return one.dtype == other.dtype == torch.bfloat16 and one.is_cuda


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _gradient_type(tensor: Tensor) -> torch.dtype:
    """What autograd keeps the gradient in: split weights (split_master.py) are bf16 and have fp32 gradients."""
    return (tensor.grad_dtype if tensor.is_leaf else None) or tensor.dtype


def _place(targets: Tensor, word: slice) -> tuple[Tensor, Tensor]:
    """Each target's column [n, 1] in the tile of words `word`, and whether it is there [n]; a GPU is not waited for."""
    inside = (targets >= word.start) & (targets < word.stop)
    return (targets - word.start).clamp(0, word.stop - word.start - 1)[:, None], inside


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, total)) for at in range(0, total, size))
