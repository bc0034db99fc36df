"""Optimizers and the learning-rate schedule, counted in optimizer updates. Knows no loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from memfactory.algorithms.lean_adamw import LeanAdamW
from memfactory.common.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine", "trapezoid")
OPTIMIZERS = ("adamw", "muon")


def lr_scale(update: int, warmup: int, total: int | None, schedule: str) -> float:
    """Factor on the learning rate of update number `update` (from 0): linear warm-up, then the schedule.

    `trapezoid` is constant for half of what follows the warm-up, then linear down to 5 %; `constant` needs no `total`.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"Unknown lr_schedule {schedule!r}. Known: {', '.join(SCHEDULES)}.")
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if not total:
        raise ConfigError(f"lr_schedule {schedule!r} needs to know the number of updates: set max_steps or epoch.")
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 if done < 0.5 else 1.0 - 0.95 * (done - 0.5) * 2


@dataclass(frozen=True, slots=True)
class Lean:
    """How AdamW is kept small; as it stands, not at all."""

    residuals: Mapping[nn.Parameter, Tensor] | None = None
    """Of bf16 weights, the lower halves of their masters (`split_model`)."""
    moments: str = "fp32"
    """fp32 or 8bit."""
    offload: bool = False
    """Residuals and moments live on the CPU."""


def build_optimizers(
    model: nn.Module, name: str, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99), lean: Lean | None = None
) -> list[Optimizer]:
    """AdamW for all, or Muon for the hidden matrices with AdamW for the rest. Norms, biases and embeddings do not decay.

    `lean` is for AdamW alone. Muon: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"Unknown optimizer {name!r}. Known: {', '.join(OPTIMIZERS)}.")
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and id(parameter) not in embeddings else others).append(parameter)
    plain = {"params": others, "weight_decay": 0.0}
    if lean is not None and lean != Lean():
        if name != "adamw":
            raise ConfigError(
                f"--optimizer {name} updates fp32 weights with fp32 moments on the device: leave --master_weights, "
                "--moments and --offload_optimizer out, or use --optimizer adamw."
            )
        groups = [{"params": matrices, "weight_decay": weight_decay}, plain]
        return [LeanAdamW(groups, lr, betas, residuals=lean.residuals, moments=lean.moments, offload=lean.offload)]
    if name == "adamw":
        return [AdamW([{"params": matrices, "weight_decay": weight_decay}, plain], lr=lr, betas=betas)]
    return [
        Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW([plain], lr=lr, betas=betas),
    ]


def set_lr(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def clip_and_step(model: nn.Module, optimizers: Iterable[Optimizer], max_norm: float) -> tuple[float, bool]:
    """One update; returns the gradient norm before the clip, and False if it was not finite and the update was skipped."""
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    norm = float(getattr(total, "full_tensor", lambda: total)())  # of sharded gradients it is sharded too
    finite = math.isfinite(norm)
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm, finite
