"""A model that no rank holds whole (FSDP2): weights, gradients and moments in shards. Knows ranks, no loss and no agent.

PyTorch's `fully_shard` gathers a layer's weights when its pass comes and sums its gradient into the shards. The in-process engine
needs whole weights for thousands of small steps, so a plain copy of the model is filled for a rollout, a check or a checkpoint,
and emptied for the update. With rollouts on servers the copy is filled only to be written.

Differences from `fully_shard` as it comes: gradients are summed, not averaged, for the tokens' weights already count all ranks;
they are reduced in the last pass of an update alone; and a rank with fewer micro-batches makes empty passes, for every pass is an
exchange in which all take part.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from memfactory.algorithms.packing import MicroBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.trainers.distributed import Ranks, Replicated

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

T = TypeVar("T")

log = logging.getLogger(__name__)

PARALLEL = ("auto", "ddp", "fsdp2")


def sharded(parallel: str, ranks: Ranks) -> bool:
    """Whether the ranks share the model out. `auto` follows accelerate's configuration file: FSDP of version 2, else each has all."""
    if parallel not in PARALLEL:
        raise unknown_name("parallel", parallel, PARALLEL)
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
    if parallel == "auto" and asked and os.environ.get("FSDP_VERSION", "2") != "2":
        raise ConfigError("The accelerate configuration asks for FSDP of version 1. Set fsdp_version: 2, or --parallel ddp.")
    return ranks.size > 1 and (parallel == "fsdp2" or (parallel == "auto" and asked))


def spread(model: PreTrainedModel, ranks: Ranks, config: TrainConfig, plain: bool) -> Replicated:
    """The model as the ranks hold it; `plain`: fp32 weights, all trained, with fp32 moments on the device."""
    if ranks.size > 1:
        each = "a shard of the model (fsdp2)" if sharded(config.parallel, ranks) else "the whole model (ddp)"
        log.info("%d processes train together, each with %s.", ranks.size, each)
    if not sharded(config.parallel, ranks):
        return Replicated(model, ranks)
    if config.optimizer != "adamw" or not plain:
        raise ConfigError(
            "fsdp2 shards fp32 weights and AdamW's fp32 moments: leave --optimizer, --master_weights, --moments, --offload_optimizer and "
            "--lora_r out, or use --parallel ddp, which takes them all."
        )
    return Sharded(model, ranks)


class Sharded(Replicated):
    """Every rank holds a shard of each tensor; `sampler` is a plain copy, whole only inside `gathered`."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks) -> None:
        super().__init__(model, ranks)
        self._sampler = copy.deepcopy(model).eval().requires_grad_(False)
        self._whole = True
        mesh = init_device_mesh(model.device.type, (ranks.size,))
        names = set(getattr(model, "_no_split_modules", None) or ())
        for layer in [m for m in model.modules() if type(m).__name__ in names]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        # What reads the head's weights directly must run inside a forward pass of the root, which gathers them.
        model.memfactory_call = MethodType(_call, model)  # type: ignore[assignment]
        register_fsdp_forward_method(model, "memfactory_call")

    @property
    def sampler(self) -> PreTrainedModel:
        return self._sampler

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self._fill()
        try:
            yield
        finally:
            for tensor in self._sampler.parameters():
                tensor.data = tensor.data.new_empty(0)  # the memory is the update's
            self._whole = False

    @torch.no_grad()
    def _fill(self) -> None:
        if not self._whole:
            for shard, whole in zip(self.model.parameters(), self._sampler.parameters(), strict=True):
                whole.data = _whole(shard.detach())
        self._whole = True

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return self.model.memfactory_call(function, *arguments)  # type: ignore[operator]

    def passes(self, micros: Iterable[MicroBatch]) -> Iterator[MicroBatch | None]:
        own = list(micros)
        most = max(self.ranks.gather(len(own)))
        for at in range(most):
            self.model.set_requires_gradient_sync(at == most - 1)  # type: ignore[operator]
            yield own[at] if at < len(own) else None

    def sum_gradients(self) -> None:
        """The last pass did."""

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        for name, shard in self.model.named_parameters():
            shard.copy_(_sharded(weights[name].to(shard.device, shard.dtype), shard))
        self._whole = False

    def state_of(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        whole = {at: {name: _whole(value).cpu() for name, value in values.items()} for at, values in state["state"].items()}
        return state | {"state": whole}

    def load_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        owners = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))

        def mine(at: int, value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.shape == owners[at].shape
            return _sharded(value.to(owners[at].device), owners[at]) if fits else value

        shards = {at: {name: mine(at, value) for name, value in values.items()} for at, values in state["state"].items()}
        optimizer.load_state_dict(state | {"state": shards})


def _call(self: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    # The hook that gathers for the backward pass hangs on what is returned, and is lost from a view.
    return tree_map_only(Tensor, Tensor.clone, function(self, *arguments))


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """The shards of a tensor that every rank has whole."""
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None) if isinstance(like, DTensor) else tensor
