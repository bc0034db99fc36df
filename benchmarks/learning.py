#!/usr/bin/env python3
"""What the tiny agent learns, and from what: GRPO beside its ablations and beside more supervised steps, on one budget.

Every arm starts from the same base, gets about the same CPU minutes on one thread and is scored on the same held-out questions;
gains are paired by question. Finished arms are kept: a second start runs what is missing.

    python benchmarks/learning.py --seeds 0 1 2 --workers 2
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

from memfactory.common.files import read_json, write_json, write_jsonl, write_text
from memfactory.data.generators.demonstrator import FORGETFUL, MILD, demonstrations
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import load_scores as load_folder
from memfactory.evaluation.statistics import clustered_mean, paired_difference

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "examples/configs/tiny.yaml"
SETS = ["eval", "eval_8chunks", "eval_newnames", "eval_16chunks"]
ARMS: dict[str, dict[str, object]] = {
    "grpo": {},
    "sft_same": {"demonstrator": FORGETFUL},
    "final_turn": {"credit": "final_turn", "max_steps": 164},  # its updates are shorter: more steps for the same minutes
    "public_style": {"old_logprobs": "recompute", "aggregation": "sequence", "advantage": "std"},
    "sft_mild": {"demonstrator": MILD},
}
ABOUT = {
    "grpo": "examples/configs/tiny.yaml as it ships",
    "final_turn": "only the answer turn is paid",
    "public_style": "old log-probs recomputed before each update, sequence mean, advantages divided by the group's std",
    "sft_same": "more supervised steps from the base's own demonstrator",
    "sft_mild": "more supervised steps from the more careful demonstrator of its first stage",
}
SFT_FLAGS = ["--optimizer", "muon", "--lr", "1e-3", "--lr_schedule", "linear", "--batch_size", "48", "--num_minibatches", "1"]


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> None:
    """Train one arm in a process of its own, then score it there."""
    folder = args.output / f"{arm}-{seed}"
    if (folder / "scores.json").is_file():
        return
    flags = ["--output_dir", str(folder), "--seed", str(seed), "--eval_steps", "0"]
    options = dict(ARMS[arm])
    habits = options.pop("demonstrator", None)
    if habits is not None:
        data = folder.with_suffix(".jsonl")
        write_jsonl(data, itertools.islice(demonstrations(1000 + seed, habits), args.sft_steps * 48))  # type: ignore[arg-type]
        flags += ["--trainer", "mem_sft", "--data_path", str(data), *SFT_FLAGS, "--max_steps", str(args.sft_steps)]
    else:
        options = {"max_steps": args.steps} | options
        flags += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    train = [sys.executable, "-m", "memfactory.cli", "train", CONFIG, *flags, "--resume", "True", "--save_steps", "20"]
    score = [sys.executable, __file__, "--score", str(folder / "last"), "--into", str(folder / "scores.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with folder.with_suffix(".log").open("w") as log:
        for command in (train, score):
            subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=log, stderr=log)
    folder.with_suffix(".jsonl").unlink(missing_ok=True)


def score_folder(model_folder: str, into: Path) -> None:
    """avg@4 and greedy of a model folder on every held-out set."""
    from memfactory.evaluation.jobs import Job, run_job

    shared = {"agent": "memagent", "agent_options": {"chunk_size": 16, "max_generate_length": 32}, "device": "cpu", "threads": 1}
    folders = {name: into.with_suffix("") / name for name in SETS}
    for name, folder in folders.items():
        run_job(Job(into.parent.name, model_folder, name, f"datas/tiny/{name}.json", str(folder), **shared))  # type: ignore[arg-type]
    write_json(into, {name: str(folder) for name, folder in folders.items()})


def load_scores(path: Path) -> dict[str, Scores]:
    return {name: load_folder(Path(folder)) for name, folder in read_json(path).items()}


def cpu_and_steps(folder: Path) -> str:
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return f"{last['step']} steps, {last['cpu_seconds_total'] / 60:.1f} min"


def per_length(base: dict[str, Scores], arms: dict[str, dict[str, Scores]]) -> list[str]:
    """Sampled accuracy by number of chunks and hops, the base beside the mean over GRPO's seeds."""
    examples = {name: read_json(ROOT / f"datas/tiny/{name}.json") for name in SETS}
    lines = ["| chunks | hops | n | base | grpo |", "|--:|--:|--:|--:|--:|"]
    cells: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in ("eval", "eval_8chunks", "eval_16chunks"):
        for at, row in enumerate(examples[name]):
            cells.setdefault((row["num_chunks"], row["hops"]), []).append((name, at))
    trained = [scores for key, scores in arms.items() if key.startswith("grpo-")]
    for (chunks, hops), places in sorted(cells.items()):
        before = clustered_mean([base[name].sampled[at] for name, at in places]).value
        after = sum(clustered_mean([s[name].sampled[at] for name, at in places]).value for s in trained) / max(len(trained), 1)
        lines.append(f"| {chunks} | {hops} | {len(places)} | {before:.2f} | {after:.2f} |")
    return lines


def report(args: argparse.Namespace) -> str:
    """Every arm and seed against the base, as Markdown."""
    base = load_scores(args.output / "base.json")
    lines = ["One thread an arm; the CPU minutes of training stand in each row. Base: `models/tiny`.", ""]
    lines += [f"- `{arm}`: {ABOUT[arm]}" for arm in args.arms]
    arms: dict[str, dict[str, Scores]] = {}
    for name in SETS:
        lines += [
            "",
            f"### {name}",
            "",
            "| arm | seed | trained for | sampled (avg@4) | greedy | gain sampled [95 %] | gain greedy [95 %] |",
        ]
        lines += ["|---|--:|---|--:|--:|--:|--:|"]
        before = base[name]
        lines.append(f"| base | | | {before.avg_at_k.value:.3f} ± {before.avg_at_k.se:.3f} | {before.greedy_mean.value:.3f} | | |")
        for arm, seed in itertools.product(args.arms, args.seeds):
            folder = args.output / f"{arm}-{seed}"
            if not (folder / "scores.json").is_file():
                continue
            scores = arms.setdefault(f"{arm}-{seed}", load_scores(folder / "scores.json"))[name]
            gains = []
            for metric in ("sampled", "greedy"):
                pair = paired_difference(getattr(before, metric), getattr(scores, metric))
                gains.append(f"{pair.diff:+.3f} [{pair.ci_low:+.3f}, {pair.ci_high:+.3f}]")
            mean = scores.avg_at_k
            lines.append(
                f"| {arm} | {seed} | {cpu_and_steps(folder)} | {mean.value:.3f} ± {mean.se:.3f} | {scores.greedy_mean.value:.3f} | "
                f"{gains[0]} | {gains[1]} |"
            )
    return "\n".join([*lines, "", "### By chunks and hops (sampled)", "", *per_length(base, arms)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output/learning")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=88, help="GRPO steps: about 5.5 CPU minutes")
    parser.add_argument("--sft_steps", type=int, default=1600, help="supervised steps of the controls: at least the same CPU minutes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the report of what has been run, and run nothing")
    parser.add_argument("--score", help="internal: a model folder to score")
    parser.add_argument("--into", type=Path)
    args = parser.parse_args()
    if args.score:
        score_folder(args.score, args.into)
        return
    os.chdir(ROOT)
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "base.json").is_file():
        score_folder("models/tiny", args.output / "base.json")
    if args.report:
        print(report(args))
        return
    jobs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    with ThreadPoolExecutor(args.workers) as pool:
        for job, _ in zip(jobs, pool.map(lambda job: run_arm(*job, args), jobs), strict=True):
            print("done:", *job, flush=True)
    write_text(args.output / "report.md", report(args))
    print(report(args))


if __name__ == "__main__":
    main()
