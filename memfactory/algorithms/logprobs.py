"""Log-probs of sampled tokens under a model: the one place where logits become probabilities in training.

Only the trained positions pass through the head, and log-softmax is in fp32 whatever the model's type: in bf16 its
rounding alone is of the size of a ratio's clip. Where their logits would be large they are never made whole (chunked_logprobs.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from memfactory.algorithms.chunked_logprobs import chunked_logprobs
from memfactory.algorithms.packing import MicroBatch
from memfactory.algorithms.tree_attention import model_inputs
from memfactory.common.errors import unknown_name

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

_PLAIN: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
"""Models whose heads were tried."""

_LOUD = 50.0
"""The size of the logits that a head is tried with: far past where any model caps them."""

LOGPROB_CHUNKS = ("auto", "dense", "chunked")

DENSE_LOGITS = 1 << 23
"""From here on (32 MiB in fp32) `auto` is chunked. On a CPU dense is up to a third faster below it and as slow or slower above."""


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    """bf16 arithmetic over fp32 weights, or nothing: what both the sampler and the trainer compute under."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def logits_at(model: PreTrainedModel, where: tuple[Any, ...], inputs: dict[str, Any]) -> Tensor:
    """fp32 logits [n, V] of the positions that `where` indexes in [rows, columns]: for the sampler and the trainer alike.

    Only those positions pass through the head, and it computes in fp32 also under bf16 autocast: rounding logits to
    bf16 moves a log-prob by hundredths of a nat. A model that changes its logits after the head is asked for them whole.
    """
    head = plain_head(model)
    if head is None:
        return model(**inputs).logits[where].float()
    hidden = model.base_model(**inputs).last_hidden_state[where]
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())


def plain_head(model: PreTrainedModel) -> torch.nn.Linear | None:
    """The layer whose weight [V, H] (and bias) alone makes logits of hidden states; tried once per model.

    None if there is more to it: an adapter in the layer, a packed weight, or a model that changes what goes in or comes out.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model:
        return None
    if model not in _PLAIN:
        _PLAIN[model] = _makes_the_logits(model, head)
    return head if _PLAIN[model] else None


class _Decoded(BaseModelOutputWithPast):
    """What a decoder returns, with hidden states and nothing else that any class may look for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def _makes_the_logits(model: PreTrainedModel, head: torch.nn.Linear) -> bool:
    """Whether the model's logits are the head's of hidden states that are put in the place of its decoder's, and are large."""
    weight, bias = head.weight.float(), 0.0 if head.bias is None else head.bias.float()
    numbers = np.random.Generator(np.random.Philox(1)).standard_normal((2, weight.shape[1]))
    hidden = torch.from_numpy(numbers).to(weight)
    hidden = (hidden * (_LOUD / (hidden @ weight.T).std().clamp(min=1e-9))).to(head.weight.dtype)[None]

    base: Any = model.base_model
    own = vars(base).get("forward")
    base.forward = lambda *inputs, **options: _Decoded(last_hidden_state=hidden)
    try:
        with evaluating(model), torch.autocast(hidden.device.type, enabled=False):
            logits = model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=hidden.device), use_cache=False).logits[0].float()
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False  # it is asked for its logits whole, and whoever does so says what is wrong
    finally:
        del base.forward
        if own is not None:
            base.forward = own
    wanted = hidden[0].float() @ weight.T + bias
    return logits.shape == wanted.shape and bool(
        (logits - wanted).abs().max() < (1e-3 if weight.dtype == head.weight.dtype else 0.05) * _LOUD
    )


def response_logits(model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """fp32 logits [N, V] of the trained positions of a micro-batch on the model's device."""
    return logits_at(model, (micro.rows, micro.cols), _inputs(model, micro))


def _inputs(model: PreTrainedModel, micro: MicroBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": micro.ids, "use_cache": False}
    if micro.tree is not None:
        inputs |= model_inputs(model, micro.tree)
    return inputs


def response_logprobs(model: PreTrainedModel, micro: MicroBatch, temperature: float = 1.0, chunks: str = "auto") -> tuple[Tensor, Tensor]:
    """Log-probs [N] in nats of the sampled tokens at the sampling temperature, with gradient, and entropies [N] without.

    A temperature of 0 (greedy) is read as 1, as the engine reports it. `chunks`: `chunked` makes no logits [N, V], `dense` does,
    `auto` decides by their number; the values are equal to rounding. A model that changes its logits after the head is always dense.
    """
    temperature = temperature or 1.0
    head = plain_head(model)
    if head is None or not is_chunked(chunks, len(micro.targets) * len(head.weight)):
        return dense_logprobs(response_logits(model, micro), micro.targets, temperature)
    hidden = model.base_model(**_inputs(model, micro)).last_hidden_state[micro.rows, micro.cols]
    return chunked_logprobs(hidden, head.weight, micro.targets, temperature, head.bias)


def is_chunked(chunks: str, logits: int) -> bool:
    """Whether so many logits (tokens x vocabulary) are made tile by tile under `--logprob_chunks`."""
    if chunks not in LOGPROB_CHUNKS:
        raise unknown_name("logprob_chunks", chunks, LOGPROB_CHUNKS)
    return chunks == "chunked" or (chunks == "auto" and logits >= DENSE_LOGITS)


def dense_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs [N] of `targets` [N], and entropies [N] without gradient, from whole logits [N, V]."""
    table = torch.log_softmax(logits / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(table.exp() * table).sum(-1)
    return table.gather(-1, targets[:, None])[:, 0], entropy


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout inside the block; the model's mode is put back after it."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:  # one by one: a part that was kept in eval mode stays so
            module.training = training


@contextmanager
def as_sampled(model: torch.nn.Module) -> Iterator[None]:
    """The update's mode: nothing drawn by chance (dropout, a router's jitter, layers left out), for the sampler has none.

    Only what recomputes a layer in the backward pass must find that layer itself in train mode.
    """
    with evaluating(model):
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
        yield


def without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off for good, in train mode too (which gradient checkpointing needs).

    The sampler has none, and a policy gradient is of the policy that sampled.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):  # modules of their own, and rates that are passed to functions
            chance = "drop" in name or (name == "p" and "dropout" in type(module).__name__.lower())
            if chance and isinstance(value, float):
                setattr(module, name, 0.0)
