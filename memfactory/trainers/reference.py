"""The weights at the start, for the KL and for the role `reference`: a copy, a copy on the CPU, or the policy without its adapters.

They are asked for log-probs once a step, before the update. Knows no loss and no optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from memfactory.algorithms.lora import without_adapters

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel


class Reference(Protocol):
    """Where the starting weights are."""

    resident: PreTrainedModel | None
    """A model that can answer turns during a rollout; None if there is none."""

    def scoring(self) -> Any:
        """A context manager that gives the model to compute log-probs with, inside the block."""


def build_reference(kind: str, model: PreTrainedModel, device: torch.device, bf16: bool) -> Reference:
    """The reference of that kind (copy, cpu or lora), from the model as it is now; in bf16, if that is what is computed in."""
    if kind == "lora":
        return AdaptersOff(model)
    # It is only read, under the same bf16 arithmetic, so it needs no more than that.
    dtype = torch.bfloat16 if bf16 else None
    return Streamed(model, device, dtype) if kind == "cpu" else Copy(model, dtype)


class Copy:
    """A frozen copy on the same device."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
        self.resident: PreTrainedModel | None = frozen_copy(model, None, dtype)

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """The copy."""
        assert self.resident is not None
        yield self.resident


class AdaptersOff:
    """The policy itself with its LoRA adapters switched off: no copy, and bit for bit what it started as."""

    resident: PreTrainedModel | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """The policy without adapters."""
        with without_adapters(self.model):
            yield self.model


class Streamed:
    """A frozen copy on the CPU, pinned for a GPU; each layer is on the device only while it computes.

    The next layer's weights travel while one computes. What is not in a layer (embedding, last norm, head) is there for the block.
    """

    resident: PreTrainedModel | None = None

    def __init__(self, model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.model, self.device = frozen_copy(model, torch.device("cpu"), dtype), device
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        layers = max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=nn.ModuleList())
        inside = {id(parameter) for parameter in layers.parameters()}
        self._rest = [_Kept(p, device) for p in self.model.parameters() if id(p) not in inside]
        self._layers = [[_Kept(p, device) for p in layer.parameters()] for layer in layers]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for at, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda *_, at=at: self._enter(at))
            layer.register_forward_hook(lambda *_, at=at: self._leave(at))

    @contextmanager
    def scoring(self) -> Iterator[PreTrainedModel]:
        """The copy, ready to compute on the device."""
        for kept in self._rest:
            kept.fetch()
            kept.show(None)
        try:
            yield self.model
        finally:
            for kept in (*self._rest, *(kept for layer in self._layers for kept in layer)):
                kept.drop()

    def _enter(self, at: int) -> None:
        self._fetch(at)
        current = None
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
        for kept in self._layers[at]:
            kept.show(current)
        if at + 1 < len(self._layers):
            self._fetch(at + 1)

    def _fetch(self, at: int) -> None:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for kept in self._layers[at]:
                kept.fetch()

    def _leave(self, at: int) -> None:
        for kept in self._layers[at]:
            kept.drop()


class _Kept:
    """A parameter whose numbers are on the CPU, and empty on the device unless it is shown."""

    def __init__(self, parameter: nn.Parameter, device: torch.device) -> None:
        self.parameter, self.device = parameter, device
        self.home = parameter.data.pin_memory() if device.type == "cuda" else parameter.data
        self._nothing = torch.empty(0, dtype=parameter.dtype, device=device)
        self._fetched: Tensor | None = None
        self.drop()

    def fetch(self) -> None:
        """Begin to copy the numbers to the device, if that is not under way."""
        if self._fetched is None:
            self._fetched = self.home.to(self.device, non_blocking=True)

    def show(self, stream: torch.cuda.Stream | None) -> None:
        """Let the parameter have them; `stream`: who reads them, so that their memory is not given away before."""
        assert self._fetched is not None
        if stream is not None:
            self._fetched.record_stream(stream)
        self.parameter.data = self._fetched

    def drop(self) -> None:
        """Leave the device."""
        self._fetched = None
        self.parameter.data = self._nothing


def frozen_copy(model: PreTrainedModel, device: torch.device | None, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy in eval mode; its parameters are made on `device` and in `dtype` (None: as they are) without a stop in between."""
    made: dict[int, Any] = {}
    for parameter in model.parameters():
        value = parameter.detach().to(device or parameter.device, dtype or parameter.dtype, copy=True)
        made[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, made).eval()
