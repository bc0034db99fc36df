"""Training runs in several processes that meet over gloo, for tests: forked, so that what takes long is imported once.

`python tests/ranks.py FOLDER SCENARIO ...` runs each scenario and writes `FOLDER/SCENARIO.pt`: what each of its ranks returned.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers.utils import logging

from memfactory.algorithms.packing import TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import InfrastructureError
from memfactory.engines.load import load_model
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers.mem_grpo_trainer import MemTrainer

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()


class HashEnv(LongcontextEnv):
    """Pays 0, 0.25, ... 1 by a hash of the answer's text; of the example named in `flat` nothing can be learned."""

    flat = ""

    def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> dict[str, torch.Tensor]:
        values = torch.tensor([crc32(text.encode()) % 5 / 4 for text in predictions["answer"]])
        for at, name in enumerate(ground_truths["example_id"]):
            if name == self.flat:
                values[at * num_generations : (at + 1) * num_generations] = 0.5
        return {"default": values}


def trainer(name: str, flat: str = "", **options: Any) -> MemTrainer:
    """A trainer whose run is in FOLDER/name."""
    torch.manual_seed(os.getpid())  # nothing may depend on what the process did before
    model, tokenizer = load_model(str(FOLDER / "base"))
    settings: dict[str, Any] = {
        "model_name_or_path": str(FOLDER / "base"), "data_path": str(FOLDER / "facts.json"), "output_dir": str(FOLDER / name),
        "batch_size": 3, "num_generations": 4, "chunk_size": 16, "max_generate_length": 4, "lr": 5e-4, "warmup_updates": 0,
        "max_steps": 3, "device": "cpu", "save_steps": 100, "tokens_per_micro_batch": 200, "num_minibatches": 2,
    }  # fmt: skip
    env = HashEnv(str(FOLDER / "facts.json"))
    env.flat = flat
    return MemTrainer(TrainConfig(**(settings | options)), model, tokenizer, env=env, eval_envs={"facts": env})


def weights_after(made: MemTrainer) -> dict[str, torch.Tensor]:
    """The trained weights, whole."""
    made.train()
    with made.parallel.gathered():
        return {name: tensor.clone() for name, tensor in made.parallel.sampler.state_dict().items()}


def one(**options: Any) -> Any:
    return weights_after(trainer(f"one_{len(options)}", eval_steps=3, eval_samples=5, **options))


def several(name: str = "ddp", **options: Any) -> Any:
    """Weights; and how many micro-batches this rank's updates had."""
    passes: list[int] = []
    original = TrainBatch.micro_batches

    def counted(self: TrainBatch, *arguments: Any) -> Any:
        found = list(original(self, *arguments))
        passes.append(len(found))
        return iter(found)

    TrainBatch.micro_batches = counted  # type: ignore[method-assign]
    made = trainer(name, eval_steps=3, eval_samples=5, **options)
    return weights_after(made), passes


def resumed(name: str, **options: Any) -> Any:
    """Two steps, then a new trainer that goes on to the third."""
    trainer(name, save_steps=2, **(options | {"max_steps": 2})).train()
    return weights_after(trainer(name, resume=True, **options))


def dying() -> Any:
    """The second rank ends in the second step without a word."""
    made = trainer("dying")
    if made.ranks.rank == 1:
        original = made.training_step
        made.training_step = lambda: os._exit(9) if made.step == 1 else original()  # type: ignore[method-assign]
    try:
        made.train()
    except InfrastructureError as error:
        return str(error)
    return None


EVERY = {"beta": 0.05, "old_logprobs": "frozen", "aggregation": "prompt", "num_iterations": 2, "max_steps": 1, "lr": 2e-4}
"""Options that each take another path."""

SCENARIOS: dict[str, tuple[int, Callable[[], Any]]] = {
    "one": (1, one),
    "one_every": (1, lambda: one(**EVERY)),
    "ddp": (2, several),
    "ddp_every": (2, lambda: several("ddp_every", logprob_chunks="chunked", **EVERY)),
    "fsdp2": (2, lambda: several("fsdp2", parallel="fsdp2")),
    "fsdp2_every": (2, lambda: several("fsdp2_every", parallel="fsdp2", gradient_checkpointing=True, logprob_chunks="chunked", **EVERY)),
    "idle": (2, lambda: several("idle", batch_size=2, max_steps=1, flat="facts/3")),
    "idle_fsdp2": (2, lambda: several("idle_fsdp2", batch_size=2, max_steps=1, flat="facts/3", parallel="fsdp2")),
    "idle_one": (1, lambda: weights_after(trainer("idle_one", batch_size=2, max_steps=1, flat="facts/3"))),
    "resumed": (2, lambda: resumed("resumed", eval_steps=3, eval_samples=5)),
    "resumed_fsdp2": (2, lambda: resumed("resumed_fsdp2", parallel="fsdp2", eval_steps=3, eval_samples=5)),
    "dying": (2, dying),
}


def in_ranks(number: int, function: Callable[[], Any], seconds: float = 120) -> list[Any]:
    """What `function` returns in each of `number` processes; what one raises is printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(number):
        child = os.fork()
        if child == 0:
            code = 1
            try:  # a child never comes back into the parent's code
                if number > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                torch.save(function(), FOLDER / f"rank{rank}.pt")
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    files = [FOLDER / f"rank{rank}.pt" for rank in range(number)]
    found = [torch.load(file, weights_only=False) if file.is_file() else math.nan for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    import memfactory.trainers.base as base

    base.plot_curves = lambda *args: None  # type: ignore[assignment]
    for scenario in sys.argv[2:]:
        torch.save(in_ranks(*SCENARIOS[scenario]), FOLDER / f"{scenario}.pt")
