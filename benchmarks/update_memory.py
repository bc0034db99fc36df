#!/usr/bin/env python3
"""Peak memory of one policy update at Qwen3's vocabulary of 151,936 words: ours, chunked and dense, beside the public MemFactory's path.

Each call is a process of its own: a random Qwen3 (tied head), rows of random tokens, one update of a warm-up model of 64 words so that
libraries are loaded, then the update that counts. What is given is the most resident memory (VmHWM, reset before) less the resident
memory before, so weights are not in it and gradients are; first over the forward and backward passes of all micro-batches, then with the
optimizer's step, whose two moments everybody makes. Rows of a micro-batch, their length, the loss (ratio 1, mean of each row's mean) and
gradient checkpointing (off) are equal for all, and so is the norm of the gradient, which is printed to show it.

`written` is the public path's arithmetic, written here: a forward pass for old log-probs, logits of all positions in the model's type, a
contiguous copy without the last, `F.cross_entropy` on it, for each micro-batch. With `--public PATH` the public code itself is measured
instead (`public`; its trainer as it is, see public_code.py): the two agreed to 10 MiB. Linux only.

    OMP_NUM_THREADS=1 python benchmarks/update_memory.py --public /path/to/public/MemFactory
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import types
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfactory.algorithms.optim import build_optimizers, clip_and_step
from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.files import write_json
from memfactory.trainers.metrics import Averages
from memfactory.trainers.policy_update import PolicyUpdate

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Size:
    """One update."""

    hidden: int
    vocabulary: int = 151_936
    layers: int = 2
    rows: int = 12
    micro: int = 8
    """Rows of a micro-batch."""
    prompt: int = 256
    response: int = 256
    dtype: str = "float32"

    def model(self) -> Qwen3ForCausalLM:
        config = Qwen3Config(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=3 * self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64, num_key_value_heads=max(1, self.hidden // 128), head_dim=64, tie_word_embeddings=True,
            max_position_embeddings=self.prompt + self.response,
        )  # fmt: skip
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).to(getattr(torch, self.dtype))

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [rows, prompt + response] and advantages [rows]."""
        generator = torch.Generator().manual_seed(1)
        return (
            torch.randint(self.vocabulary, (self.rows, self.prompt + self.response), generator=generator),
            torch.randn(self.rows, generator=generator),
        )


class Arm(Protocol):
    """Who makes the update."""

    def gradient(self) -> None:
        """Forward and backward passes."""

    def step(self) -> None:
        """The optimizer's."""


class Ours:
    def __init__(self, model: Qwen3ForCausalLM, size: Size, chunks: str) -> None:
        ids, advantages = size.data()
        # `frozen` and one update: the ratio is 1, as the public code's is.
        config = TrainConfig(
            logprob_chunks=chunks, aggregation="sequence", old_logprobs="frozen", tokens_per_micro_batch=size.micro * ids.shape[1]
        )
        self.model, self.policy = model, PolicyUpdate(model, config, torch.device("cpu"), bf16=False)
        self.optimizers = build_optimizers(model, "adamw", lr=1e-6)
        rows = [(tuple(row[: size.prompt]), tuple(row[size.prompt :])) for row in ids.tolist()]
        samples = [Sample(*row, (0.0,) * size.response, float(advantages[at]), at, 0) for at, row in enumerate(rows)]
        self.batch = TrainBatch(samples, "sequence")

    def gradient(self) -> None:
        self.policy.backward(self.batch, Averages(), measure_mismatch=False)

    def step(self) -> None:
        clip_and_step(self.model, self.optimizers, 1.0)


class Written:
    """The public path's arithmetic; see the module's docstring."""

    def __init__(self, model: Qwen3ForCausalLM, size: Size) -> None:
        self.model, self.size = model, size
        self.ids, self.advantages = size.data()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        shifted, labels = logits[:, :-1, :].contiguous(), ids[:, 1:].contiguous()
        losses = torch.nn.functional.cross_entropy(shifted.view(-1, shifted.size(-1)), labels.view(-1), reduction="none")
        return -losses.view(labels.size())[:, -self.size.response :]

    def gradient(self) -> None:
        parts = range(0, self.size.rows, self.size.micro)
        with torch.no_grad():
            old = torch.cat([self.logprobs(self.ids[at : at + self.size.micro]) for at in parts])
        for at in parts:
            part = slice(at, at + self.size.micro)
            ratio = torch.exp(self.logprobs(self.ids[part]) - old[part])
            advantages = self.advantages[part].unsqueeze(1)
            loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean(1).mean()
            (loss * len(advantages) / self.size.rows).backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class Public:
    """The public code's trainer at `path`."""

    def __init__(self, model: Qwen3ForCausalLM, size: Size, path: Path) -> None:
        from arms import Work
        from public_code import load_public

        code = load_public(path, Work())
        args = code.trainer.MemGRPOArguments(
            device="cpu", lr=1e-6, beta=0.0, train_micro_batch_size=size.micro, logprob_batch_size=size.micro, gradient_checkpointing=False,
            gradient_accumulation_steps=2,  # so that its train_step leaves the optimizer's step to us
        )  # fmt: skip
        self.trainer = code.trainer.MemGRPOTrainer(model, args, tokenizer=None)
        ids, advantages = size.data()
        mask = torch.ones_like(ids)
        self.samples = types.SimpleNamespace(
            prompt_response_ids=ids, attention_mask=mask, action_mask=mask[:, size.prompt :], num_actions=size.response,
            sample_weight=None, rewards=2 * advantages,  # it divides by the accumulation
        )  # fmt: skip

    def gradient(self) -> None:
        self.trainer.train_step(self.trainer._prepare_train_inputs(self.samples), 0)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trainer.policy_model.parameters(), 1.0)
        self.trainer.optimizer.step()


def arm_of(name: str, size: Size, public: Path | None) -> tuple[Arm, Qwen3ForCausalLM]:
    model = size.model()
    if name == "written":
        return Written(model, size), model
    if name == "public":
        assert public is not None
        return Public(model, size, public), model
    return Ours(model, size, {"ours": "auto", "ours_dense": "dense"}[name]), model


def memory(name: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def call(name: str, size: Size, public: Path | None) -> dict[str, Any]:
    """One update, in this process."""
    torch.set_num_threads(1)
    small, _ = arm_of(name, replace(size, vocabulary=64, rows=2, micro=1, prompt=8, response=8), public)
    small.gradient()
    small.step()
    arm, model = arm_of(name, size, public)
    del small
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    arm.gradient()
    row = {"arm": name, "before": before, "gradient": memory("VmHWM") - before}
    row |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    norm = torch.linalg.vector_norm(torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]))
    arm.step()
    return row | {"update": memory("VmHWM") - before, "gradient_norm": float(norm)}


def in_a_child(name: str, size: Size, public: Path | None) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", json.dumps({"arm": name, "size": asdict(size)})]
    words += ["--public", str(public)] if public else []
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return asdict(size) | json.loads(done.stdout.splitlines()[-1])


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: medians over the rounds."""
    out = [
        "| hidden | who | gradient, MiB | x ours | with the step, MiB | x ours | CPU s | gradient norm |",
        "| --: | --- " + "| --: " * 6 + "|",
    ]
    for hidden in dict.fromkeys(row["hidden"] for row in rows):
        median = {
            name: {key: statistics.median(row[key] for row in rows if row["arm"] == name and row["hidden"] == hidden) for key in
                   ("gradient", "update", "cpu_seconds", "gradient_norm")}
            for name in dict.fromkeys(row["arm"] for row in rows)
        }  # fmt: skip
        for name, mine in median.items():
            ours = median["ours"]
            out.append(
                f"| {hidden} | {name} | {mine['gradient']:,.0f} | {mine['gradient'] / ours['gradient']:.1f} | {mine['update']:,.0f} "
                f"| {mine['update'] / ours['update']:.1f} | {mine['cpu_seconds']:.1f} | {mine['gradient_norm']:.6f} |"
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--public", type=Path, help="a copy of the public MemFactory's repository")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=1)
    for name in ("layers", "rows", "micro", "prompt", "response"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    parser.add_argument("--dtype", default=Size.dtype, choices=("float32", "bfloat16"), help="of the model")
    parser.add_argument("--output", type=Path, default=ROOT / "output/benchmarks/update_memory.json", help="where the raw numbers go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        given = json.loads(args.child)
        print(json.dumps(call(given["arm"], Size(**given["size"]), args.public)))
        return
    from side_by_side import versions

    if args.public is None:
        print("The public code itself is not measured, its arithmetic is (`written`): name a copy of it with --public PATH.")
    arms = ["ours", "ours_dense", "public" if args.public else "written"]
    sizes = [Size(h, **{n: getattr(args, n) for n in ("layers", "rows", "micro", "prompt", "response", "dtype")}) for h in args.hidden]
    rows: list[dict[str, Any]] = []
    for at in range(args.rounds):
        for size in sizes:
            for name in arms:
                rows.append({"round": at} | in_a_child(name, size, args.public))
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                write_json(args.output.resolve(), {"what": "update_memory", "date": now, "versions": versions(), "calls": rows})
    print("\n".join(lines(rows)))
    print(f"Raw numbers: {args.output}")


if __name__ == "__main__":
    main()
