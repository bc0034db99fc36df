"""Promise: the page that shows the algorithm is the algorithm: it makes the weights that `MemTrainer` makes, bit for bit."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from memfactory.common.config import TrainConfig
from memfactory.trainers.mem_grpo_trainer import MemTrainer

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "recipes" / "grpo_loop.py"


def page() -> Any:
    spec = importlib.util.spec_from_file_location("grpo_loop", PAGE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo_loop"] = module
    spec.loader.exec_module(module)
    return module


def test_three_steps_give_the_weights_of_the_trainer(tmp_path: Path) -> None:
    recipe = page()
    settings = recipe.Settings(
        model=str(ROOT / "models/tiny"), train=str(ROOT / "datas/tiny/train.json"), steps=3, examples=2, attempts=4, seed=4
    )
    ours = recipe.train(settings, show=False).state_dict()
    trainer = MemTrainer(
        TrainConfig(
            model_name_or_path=settings.model, data_path=settings.train, output_dir=str(tmp_path), batch_size=2,
            num_generations=4, chunk_size=16, max_generate_length=32, num_minibatches=2, lr=settings.lr, lr_schedule="constant",
            warmup_updates=settings.warmup, adam_beta2=0.98, weight_decay=0.0, max_steps=3, packing="rows",
            tokens_per_micro_batch=settings.micro_batch, seed=4, device="cpu", threads=1, save_steps=1000,
        )
    )  # fmt: skip
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    theirs = trainer.model.state_dict()
    assert trainer.updates == 6 and any(not torch.equal(start[name], theirs[name]) for name in theirs), "something was learned"
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def test_it_is_one_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    inner = [n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("memfactory.")]
    assert len(inner) <= 3, f"write the page against the public names, not {inner}"
