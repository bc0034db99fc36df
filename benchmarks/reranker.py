#!/usr/bin/env python3
"""What RMM's linear reranker learns from citations on `synth_topics`, by loss, temperature, baseline and seed.

Every run: 1,000 updates of four questions each (4,000 questions, each once), one thread, held-out questions and memories that share
no combination of words with training. Finished runs are kept: a second start runs what is missing.

    python benchmarks/reranker.py --workers 2          about 75 CPU seconds a run, 27 runs; --modes paper_literal adds the paper's own loss
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from memfactory.algorithms.plackett_luce import BASELINES, MODES
from memfactory.common.files import read_jsonl, write_text
from memfactory.data.build import BuildConfig, build
from memfactory.evaluation.report import markdown_table

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.5
"""Held-out usefulness that counts as learned; the retriever has about 0.2."""
Arm = tuple[str, float, str]
"""Loss, tau, baseline."""


def name_of(arm: Arm) -> str:
    return "-".join(map(str, arm))


def make_data(folder: Path, seeds: list[int], updates: int) -> None:
    """Training questions of each seed, and one held-out set for all."""
    sets = {f"train-{seed}": ("train", seed, 4 * updates) for seed in seeds} | {"held_out": ("held_out", 0, 200)}
    for name, (split, seed, number) in sets.items():
        options = json.dumps({"split": split})
        build(BuildConfig("synth_topics", str(folder / f"{name}.json"), number=number, seed=seed, options=options, overwrite=True))


def run(arm: Arm, seed: int, args: argparse.Namespace) -> None:
    """One training run in a process of its own."""
    mode, tau, baseline = arm
    folder = args.output / f"{name_of(arm)}-{seed}"
    if (folder / "last").exists():
        return
    options = {"mode": mode, "baseline": baseline, "reranker": {"tau": tau, "rank": args.rank}}
    flags = {
        "trainer": "mem_reinforce", "data_path": args.output / f"train-{seed}.json", "eval_data_path": f"dev={args.output}/held_out.json",
        "output_dir": folder, "trainer_options": json.dumps(options), "seed": seed, "max_steps": args.updates, "device": "cpu",
        "threads": 1, "save_steps": args.updates, "eval_steps": 50, "resume": True,
    }  # fmt: skip
    words = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (args.output / f"{folder.name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "memfactory.cli", "train", *words], check=True, cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def shown(values: list[Any], form: str) -> str:
    return " / ".join("–" if value is None else format(value, form) for value in values)


def report(args: argparse.Namespace, arms: list[Arm]) -> str:
    """A line for each arm, its seeds side by side."""
    lines = [["loss", "tau", "baseline", "usefulness", "gain, least of the seeds [95 %]", f"updates to {GOAL}", "entropy", "CPU s"]]
    retriever = None
    for arm in arms:
        runs = [args.output / f"{name_of(arm)}-{seed}" for seed in args.seeds]
        rows = [read_jsonl(folder / "metrics.jsonl") for folder in runs if (folder / "last").exists()]
        if not rows:
            continue
        ends = [some[-1] for some in rows]
        retriever = ends[0]["eval/dev/retriever"]
        reached = [next((row["step"] for row in some if row.get("eval/dev/usefulness", 0) > GOAL), None) for some in rows]
        least = min(ends, key=lambda end: end["gain/dev"])
        lines.append([
            arm[0], f"{arm[1]:g}", arm[2], shown([end["eval/dev/usefulness"] for end in ends], ".2f"),
            f"{least['gain/dev']:+.2f} [{least['gain/dev/low']:+.2f}, {least['gain/dev/high']:+.2f}]", shown(reached, "d"),
            shown([end["entropy"] for end in ends], ".1f"), shown([end["cpu_seconds_total"] for end in ends], ".0f"),
        ])  # fmt: skip
    seeds = ", ".join(map(str, args.seeds))
    about = f"Seeds {seeds}; {args.updates} updates. The retriever's usefulness: {retriever}. Entropy of a draw in nats."
    return f"{about}\n\n{markdown_table(lines, right=())}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output/reranker")
    parser.add_argument("--modes", nargs="+", default=["plackett_luce"], choices=MODES)
    parser.add_argument("--taus", nargs="+", type=float, default=[0.05, 0.1, 0.5])
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--rank", type=int, help="rank of the maps; left out: whole matrices")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the report of what has been run, and run nothing")
    args = parser.parse_args()
    args.output = args.output.resolve()
    arms = list(itertools.product(args.modes, args.taus, args.baselines))
    if not args.report:
        make_data(args.output, args.seeds, args.updates)
        jobs = [(arm, seed) for arm in arms for seed in args.seeds]
        with ThreadPoolExecutor(args.workers) as pool:
            for job, _ in zip(jobs, pool.map(lambda job: run(*job, args), jobs), strict=True):
                print("done:", name_of(job[0]), job[1], flush=True)
        write_text(args.output / "report.md", report(args, arms))
    print(report(args, arms))


if __name__ == "__main__":
    main()
