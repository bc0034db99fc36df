"""Log-probs of sampled tokens under a model: the one place where logits become probabilities in training.

Only the trained positions pass through the head, and log-softmax is in fp32 whatever the model's type: in bf16 its
rounding alone is of the size of a ratio's clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memfactory.algorithms.packing import MicroBatch
from memfactory.algorithms.tree_attention import model_inputs

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    """bf16 arithmetic over fp32 weights, or nothing: what both the sampler and the trainer compute under."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def logits_at(model: PreTrainedModel, where: tuple[Any, ...], inputs: dict[str, Any]) -> Tensor:
    """fp32 logits [n, V] of the positions that `where` indexes in [rows, columns]: for the sampler and the trainer alike.

    Only those positions pass through the head, and it computes in fp32 also under bf16 autocast: rounding logits to
    bf16 moves a log-prob by hundredths of a nat. A model that changes its logits after the head is asked for them whole.
    """
    head = model.get_output_embeddings()
    if head is None or any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_CHANGES):
        return model(**inputs).logits[where].float()
    hidden = model.base_model(**inputs).last_hidden_state[where]
    with torch.autocast(hidden.device.type, enabled=False):
        bias = getattr(head, "bias", None)
        return torch.nn.functional.linear(hidden.float(), head.weight.float(), None if bias is None else bias.float())


def response_logits(model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """fp32 logits [N, V] of the trained positions of a micro-batch on the model's device."""
    inputs: dict[str, Any] = {"input_ids": micro.ids, "use_cache": False}
    if micro.tree is not None:
        inputs |= model_inputs(model, micro.tree)
    return logits_at(model, (micro.rows, micro.cols), inputs)


def response_logprobs(model: PreTrainedModel, micro: MicroBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs [N] in nats of the sampled tokens at the sampling temperature, with gradient, and entropies [N] without.

    A temperature of 0 (greedy) is read as 1, as the engine reports it.
    """
    logits = response_logits(model, micro) / (temperature or 1.0)
    table = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -(table.exp() * table).sum(-1)
    return table.gather(-1, micro.targets[:, None])[:, 0], entropy


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


def without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off for good, in train mode too (which gradient checkpointing needs).

    The sampler has none, and a policy gradient is of the policy that sampled.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p", "dropout_prob"):  # rates that are passed to functions
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
