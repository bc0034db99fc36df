#!/usr/bin/env python3
"""The update alone: prefix trees beside separate rows, on the same sampled turns, in both orders of the prompt.

Each round rolls `models/tiny` out on new questions, once, and then takes the gradient of the very same turns by every arm in
turn: log-probs, loss and backward pass, no optimizer step. Attempts alternate between two rewards, so every sampled token is
trained. Cases: the quick start's lengths; chunks of 250 tokens with up to 75 sampled; the same with 75 always.

    OMP_NUM_THREADS=1 python benchmarks/update.py                    about 2 minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/update.py --widths 128 256 512 1024    and the width of rows with a dense mask
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import ROOT, spread, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.algorithms import packing
from memfactory.algorithms.credit import Credit
from memfactory.algorithms.packing import TrainBatch, pack
from memfactory.common.config import TrainConfig
from memfactory.common.files import read_json, write_json
from memfactory.trainers.mem_grpo_trainer import MemTrainer
from memfactory.trainers.metrics import Averages

CASES: dict[str, dict[str, Any]] = {
    "quick start": {"batch_size": 24, "chunk_size": 16, "max_generate_length": 32},
    "long": {"batch_size": 2, "chunk_size": 250, "max_generate_length": 75},
    "long, full": {"batch_size": 2, "chunk_size": 250, "max_generate_length": 75},
}
"""Questions of a step and lengths, 8 attempts each; where a case is full, no response ends before its last token."""

ORDERS = ("memory_first", "chunk_first")


def long_texts() -> Path:
    """Questions over three texts of 16 chunks end to end: four sections of 250 tokens."""
    rows = read_json(ROOT / "datas/tiny/eval_16chunks.json")
    joined = [row | {"context": " ".join(rows[(at + n) % len(rows)]["context"] for n in range(3))} for at, row in enumerate(rows)]
    path = Path(tempfile.mkdtemp()) / "long.json"
    write_json(path, joined)
    return path


class Case:
    """One case in one order of the prompt: rolls out, and takes gradients by any arm."""

    def __init__(self, name: str, order: str, budget: int) -> None:
        self.name, self.order, self.budget = name, order, budget
        model = AutoModelForCausalLM.from_pretrained(ROOT / "models/tiny", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/tiny")
        self.config = TrainConfig(
            data_path=str(ROOT / "datas/tiny/train.json" if name == "quick start" else long_texts()),
            num_generations=8, agent_options=f'{{"module": {{"prompt_order": "{order}"}}}}', tokens_per_micro_batch=budget,
            output_dir=tempfile.mkdtemp(), threads=1, device="cpu", **CASES[name],
        )  # fmt: skip
        self.trainer = MemTrainer(self.config, model, tokenizer)
        if "full" in name:
            self.trainer.models.chats["policy"].engine.stop_ids = frozenset()  # type: ignore[attr-defined]

    def sampled(self, at: int) -> TrainBatch:
        """The turns of round `at`; within a group every second attempt did better."""
        trainer = self.trainer
        views = [trainer.env.observe(example) for example in trainer.examples_of(at)]
        groups = trainer.agent.rollout(trainer.models, views, 8, seed=0, step=at + 1, temperature=1.0)
        trajectories = [t for group in groups for t in group.trajectories]
        advantages: list[list[float | None]] = [[(-1.0) ** n] * len(t.turns) for n, t in enumerate(trajectories)]
        return pack(groups, Credit(advantages, 1.0, 0))

    def gradient(self, data: TrainBatch, arm: str) -> dict[str, float]:
        """Seconds of one gradient by an arm: rows, or a backend, with the width of its rows after a slash."""
        backend, _, width = arm.partition("/")
        packing.SDPA4D_WIDTH = int(width or 512)
        self.trainer.policy.backend = None if backend == "rows" else backend
        self.trainer.model.zero_grad()
        wall, cpu = time.perf_counter(), time.process_time()
        self.trainer.policy.backward(data, Averages(), measure_mismatch=False)
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}

    def tokens(self, data: TrainBatch, arm: str) -> int:
        """Tokens that an arm computes, padding included."""
        backend, _, width = arm.partition("/")
        packing.SDPA4D_WIDTH = int(width or 512)
        return sum(micro.ids.numel() for micro in data.micro_batches(self.budget, None if backend == "rows" else backend))


def measure(cases: list[Case], arms: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row per gradient, after a round that is not kept."""
    calls = []
    for at in range(rounds + 1):
        for case in cases:
            data = case.sampled(at)
            order = random.Random(at).sample(arms, len(arms))
            for arm in order:
                row = {"round": at, "case": case.name, "order": case.order, "arm": arm, "computed": case.tokens(data, arm)}
                row |= {"tokens": sum(map(len, data.samples)), "turns": len(data.samples)} | case.gradient(data, arm)
                calls += [row] if at else []
    return calls


def ratios(calls: list[dict[str, Any]], case: Case, arm: str, clock: str) -> list[float]:
    """Separate rows' time over an arm's, round by round: above 1 the arm is faster."""
    mine = [row for row in calls if (row["case"], row["order"]) == (case.name, case.order)]
    cost = {(row["round"], row["arm"]): row[clock] for row in mine}
    return [cost[at, "rows"] / cost[at, name] for at, name in sorted(cost) if name == arm]


def table(calls: list[dict[str, Any]], cases: list[Case], arms: list[str]) -> Table:
    """Median [least, most] over the rounds."""
    out = Table(title="Update alone, one thread: separate rows' time over the arm's")
    for column in ("lengths", "prompt", "arm", "tokens computed", "CPU s", "x rows, CPU", "x rows, wall"):
        out.add_column(column, justify="left" if column in ("lengths", "prompt", "arm") else "right")
    for case in cases:
        for arm in arms:
            mine = [row for row in calls if (row["case"], row["order"], row["arm"]) == (case.name, case.order, arm)]
            middle = {key: statistics.median(row[key] for row in mine) for key in ("computed", "cpu_seconds")}
            both = [spread(ratios(calls, case, arm, clock)) for clock in ("cpu_seconds", "seconds")]
            out.add_row(case.name, case.order, arm, f"{middle['computed']:.0f}", f"{middle['cpu_seconds']:.2f}", *both)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="rounds that are kept; one more comes first")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--widths", type=int, nargs="*", default=[512], help="widths of the rows with a dense mask")
    parser.add_argument("--orders", nargs="*", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--output", type=Path, default=ROOT / "output/benchmarks/update.json", help="where the raw numbers go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [Case(name, order, args.budget) for name in CASES for order in args.orders]
    arms = ["rows", "paths", *(f"sdpa4d/{width}" for width in args.widths)]
    calls = measure(cases, arms, args.rounds)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"what": "update", "date": now, "versions": versions(), "budget": args.budget, "cases": CASES}
    write_json(args.output.resolve(), about | {"calls": calls})
    Console(width=120).print(table(calls, cases, arms))
    print(f"Raw numbers: {args.output}")


if __name__ == "__main__":
    main()
