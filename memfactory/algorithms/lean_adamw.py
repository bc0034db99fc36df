"""AdamW that keeps little: split master weights, 8-bit moments, all of its state on the CPU if asked. Knows no model.

The update is that of `torch.optim.AdamW` in fp32 (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101), bit for bit where
the moments are fp32. Bytes of state per parameter, beside the weight: residual 2 (bf16 weights only), moments 8 in fp32 or 2.03 in
8 bits. A parameter is worked through in slices, so that what stands in fp32 for a moment stays small.

Of the second moment 8 bits keep the square root: it is what divides, and its codes then reach as far down as the first moment's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memfactory.algorithms.eight_bit import BLOCK, quantised, restored
from memfactory.algorithms.split_master import join, split
from memfactory.common.errors import ConfigError

MOMENTS = ("fp32", "8bit")

SLICE = 1 << 24
"""Numbers of a parameter that are worked on at a time, 64 MiB in fp32. A multiple of BLOCK."""

SMALL = 4096
"""Parameters with fewer numbers (norms, biases) keep fp32 moments: there is nothing to gain."""


class LeanAdamW(Optimizer):
    """AdamW over fp32 parameters, and over bf16 ones whose masters `residuals` complete."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        residuals: Mapping[nn.Parameter, Tensor] | None = None,
        moments: str = "fp32",
        offload: bool = False,
    ) -> None:
        """`residuals`: {parameter: int16}, from `split_model`. `offload`: residuals and moments live on the CPU, pinned for a GPU."""
        if moments not in MOMENTS:
            raise ConfigError(f"Unknown moments {moments!r}. Known: {', '.join(MOMENTS)}.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments, self.offload = moments, offload
        for parameter in self._parameters():
            self.state[parameter] = {"step": 0} | self._fresh(parameter, (residuals or {}).get(parameter))

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _fresh(self, parameter: nn.Parameter, residual: Tensor | None) -> dict[str, Tensor]:
        """State of a parameter before its first update: flat tensors."""
        if (residual is None) != (parameter.dtype == torch.float32):
            raise ConfigError(f"A parameter of type {parameter.dtype} needs a residual if, and only if, it is not fp32.")
        number = parameter.numel()
        state: dict[str, Tensor] = {}
        for name in ("mean", "second"):
            if self.moments == "8bit" and number >= SMALL:
                state[name] = self._room(parameter, number, torch.uint8)
                state[f"{name}_scale"] = self._room(parameter, -(-number // BLOCK), torch.float32)
            else:
                state[name] = self._room(parameter, number, torch.float32)
        if residual is not None:
            state["residual"] = self._room(parameter, number, torch.int16)
            state["residual"].copy_(residual.flatten())
        return state

    def _room(self, parameter: nn.Parameter, length: int, dtype: torch.dtype) -> Tensor:
        pinned = self.offload and parameter.device.type == "cuda"
        return torch.zeros(length, dtype=dtype, device="cpu" if self.offload else parameter.device, pin_memory=pinned)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] += 1
                    for start in range(0, parameter.numel(), SLICE):
                        self._update(parameter, group, slice(start, start + SLICE))
        if self.offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies back to the CPU are on their way: nobody may read them before they are there
        return loss

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], where: slice) -> None:
        """AdamW on a slice of a parameter, in fp32."""
        assert parameter.grad is not None
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        step = state["step"]
        gradient = parameter.grad.view(-1)[where].float()
        weight = parameter.detach().view(-1)[where]
        residual = self._fetched(state["residual"][where], weight.device) if "residual" in state else None
        master = weight if residual is None else join(weight, residual)
        mean, square = self._moment(state, "mean", where, weight.device), self._moment(state, "second", where, weight.device)

        master.mul_(1 - group["lr"] * group["weight_decay"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        divisor = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        master.addcdiv_(mean, divisor, value=-group["lr"] / (1 - beta1**step))

        self._keep(state, "mean", where, mean)
        self._keep(state, "second", where, square)
        if residual is not None:
            upper, lower = split(master)
            weight.copy_(upper)
            state["residual"][where].copy_(lower, non_blocking=True)

    def _fetched(self, kept: Tensor, device: torch.device) -> Tensor:
        """A kept slice on the device that computes; a copy of it, if it lives elsewhere."""
        return kept.to(device, non_blocking=True, copy=True) if self.offload else kept

    def _moment(self, state: dict[str, Any], name: str, where: slice, device: torch.device) -> Tensor:
        """A moment's slice in fp32: what is kept itself, if it is fp32 and here."""
        kept = self._fetched(state[name][where], device)
        if f"{name}_scale" not in state:
            return kept
        values = restored(kept, self._fetched(state[f"{name}_scale"][_blocks(where)], device), signed=name == "mean")
        return values if name == "mean" else values.square_()

    def _keep(self, state: dict[str, Any], name: str, where: slice, values: Tensor) -> None:
        """Store a moment's slice as it is kept."""
        kept = {name: values}
        if f"{name}_scale" in state:
            signed = name == "mean"
            codes, scales = quantised(values if signed else values.sqrt(), signed)
            kept = {name: codes, f"{name}_scale": scales}
        elif not self.offload:
            return  # it was updated in place
        for key, value in kept.items():
            state[key][_blocks(where) if key.endswith("_scale") else where].copy_(value, non_blocking=True)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that a bitwise resume needs beside the weights; learning rate and betas come from the configuration."""
        return {"moments": self.moments, "state": [dict(self.state[parameter]) for parameter in self._parameters()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, into the tensors that are there: types, devices and pinned memory stay."""
        own = [self.state[parameter] for parameter in self._parameters()]
        saved = state_dict.get("state", [])
        if state_dict.get("moments") != self.moments or len(own) != len(saved):
            raise ConfigError(f"The saved optimizer has {state_dict.get('moments', 'no LeanAdamW')} moments; this one has {self.moments}.")
        for mine, theirs in zip(own, saved, strict=True):
            if mine.keys() != theirs.keys():
                raise ConfigError(f"The saved optimizer keeps {sorted(theirs)} of a parameter; this one keeps {sorted(mine)}.")
            for name, value in theirs.items():
                if isinstance(value, Tensor):
                    mine[name].copy_(value)
                else:
                    mine[name] = value


def _blocks(where: slice) -> slice:
    """The scales of a slice that starts at a block."""
    return slice(where.start // BLOCK, -(-where.stop // BLOCK))
