#!/usr/bin/env python3
"""What each way to hold the weights makes of AdamW's update: its direction and size beside fp32's, its bytes, its time.

OMP_NUM_THREADS=1 python benchmarks/optimizer.py

All get the same gradients: those of next-token loss on texts of datas/tiny along the fp32 run of models/tiny, in fp32. So the
figures are the optimizer's alone. Raw figures go to output/benchmarks/optimizer.json.
"""

from __future__ import annotations

import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from memfactory.algorithms.lean_adamw import LeanAdamW
from memfactory.algorithms.optim import Lean, build_optimizers
from memfactory.algorithms.split_master import join, split_model
from memfactory.common.files import read_json
from memfactory.engines.load import load_model

ROOT = Path(__file__).resolve().parent.parent
BETAS = (0.9, 0.99)

SCHEMES: dict[str, dict[str, Any] | None] = {
    "fp32": {},
    "bf16 weights alone": None,
    "split": {"moments": "fp32"},
    "split, 8-bit moments": {"moments": "8bit"},
    "split, 8-bit, on the CPU": {"moments": "8bit", "offload": True},
}


class Run:
    """A model under one scheme."""

    def __init__(self, model: nn.Module, scheme: dict[str, Any] | None, lr: float) -> None:
        self.model = deepcopy(model).bfloat16() if scheme is None else deepcopy(model)
        lean = Lean(split_model(self.model), **scheme) if scheme else None
        (self.optimizer,) = build_optimizers(self.model, "adamw", lr, 0.01, BETAS, lean)
        self.start = [value.clone() for value in self.masters_of(self.optimizer)]
        self.seconds = 0.0

    def masters_of(self, optimizer: Any) -> list[Tensor]:
        if not isinstance(optimizer, LeanAdamW):
            return [parameter.detach().float() for parameter in self.model.parameters()]
        states = [(p.detach(), optimizer.state[p].get("residual")) for p in self.model.parameters()]
        return [p.float() if kept is None else join(p.view(-1), kept).view(p.shape) for p, kept in states]

    def update(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient.to(parameter.grad_dtype or gradient.dtype)
        began = time.process_time()
        self.optimizer.step()
        self.seconds += time.process_time() - began

    def moved(self) -> Tensor:
        pairs = zip(self.masters_of(self.optimizer), self.start, strict=True)
        return torch.cat([(now - before).flatten() for now, before in pairs]).double()

    def state_bytes(self) -> float:
        tensors = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.dim()]
        return sum(t.nbytes for t in tensors) / sum(p.numel() for p in self.model.parameters())


def gradients_of(model: nn.Module, texts: list[list[int]]) -> list[Tensor]:
    """Of the mean next-token loss on a batch."""
    width = min(map(len, texts))
    ids = torch.tensor([text[:width] for text in texts])
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def measure(lr: float, updates: int, batch: int = 8) -> list[dict[str, Any]]:
    model, tokenizer = load_model(str(ROOT / "models/tiny"))
    texts = [tokenizer(example["context"]).input_ids for example in read_json(ROOT / "datas/tiny/train.json")[: updates * batch]]
    runs = {name: Run(model, scheme, lr) for name, scheme in SCHEMES.items()}
    for at in range(updates):
        gradients = gradients_of(runs["fp32"].model, texts[at * batch : (at + 1) * batch])
        for run in runs.values():
            run.update(gradients)
    exact = runs["fp32"].moved()
    rows = []
    for name, run in runs.items():
        moved = run.moved()
        rows.append({
            "lr": lr, "updates": updates, "scheme": name,
            "cosine": float(moved @ exact / (moved.norm() * exact.norm())), "norm": float(moved.norm() / exact.norm()),
            "max_deviation": float((moved - exact).abs().max()), "weights_moved": float((moved != 0).double().mean()),
            "state_bytes": run.state_bytes(), "ms_per_update": 1000 * run.seconds / updates,
        })  # fmt: skip
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for lr, updates in ((5e-7, 20), (1e-6, 20), (1e-6, 200)) for row in measure(lr, updates)]
    out = ROOT / "output/benchmarks/optimizer.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1), encoding="utf-8")
    table = Table(title="Updates of AdamW beside fp32's, models/tiny, one thread")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "scheme" else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
