#!/usr/bin/env python3
"""The quick start: evaluate the tiny base, train its memory by GRPO, evaluate again on the same held-out questions.

Run by `bash examples/quickstart.sh`. Everything lands in output/quickstart; a second start goes on where the first
stopped, or says that it is done; `--fresh` starts over. Any training flag may follow (`--max_steps 20`, `--seed 1`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from memfactory.cli import explain, guarded
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import ConfigError, InfrastructureError
from memfactory.common.files import read_json, read_jsonl
from memfactory.common.terminal import Terminal
from memfactory.evaluation.config import slug
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.report import summary, table, write_results
from memfactory.evaluation.statistics import COVERED
from memfactory.trainers.mem_grpo_trainer import MemTrainer, agent_options

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "2-4 chunks": "eval.json",  # the lengths of the training data
    "8 chunks (unseen)": "eval_8chunks.json",
    "new names (unseen)": "eval_newnames.json",
}
console = Terminal()


def score(name: str, folder: str, config: TrainConfig, limit: int) -> dict[str, Scores]:
    """Sampled and greedy exact match of a model folder on the held-out sets; what was scored before is read, not made again."""
    scores = {}
    for label, file in SETS.items():
        job = Job(
            name, folder, label, str(ROOT / "datas/tiny" / file), str(Path(config.output_dir) / "evaluation" / name / slug(label)),
            agent=config.agent_type, agent_options=agent_options(config), limit=limit, device=config.device, threads=config.threads or 1,
        )  # fmt: skip
        with tqdm(total=(limit or 160) * (job.k + 1), desc=f"{name} on {label}", unit="attempt", dynamic_ncols=True) as bar:
            scores[label] = run_job(job, bar.update)
            bar.set_postfix(sampled=f"{scores[label].avg_at_k.value:.3f}", greedy=f"{scores[label].greedy_mean.value:.3f}")
    return scores


def refuse_lost(name: str, scores: dict[str, Scores]) -> None:
    """Numbers of which too much is missing are no result."""
    if few := [f"{name} on {label}: {found.lost}. {found.remedy}" for label, found in scores.items() if not found.coverage >= COVERED]:
        raise InfrastructureError(" ".join(few))


def training_seconds(output: Path) -> float:
    """Seconds of the steps that are in the log already."""
    path = output / "metrics.jsonl"
    return sum(row["seconds"] for row in read_jsonl(path)) if path.is_file() else 0.0


def main() -> None:
    os.chdir(ROOT)
    arguments = [a for a in sys.argv[1:] if a != "--fresh"]
    limit = int(os.environ.get("QUICKSTART_EVAL_SAMPLES", "0"))  # 0: all questions; the tests take a few
    config = read_config(["examples/configs/tiny.yaml", "--output_dir", "output/quickstart", *arguments, "--resume", "True"])
    output = Path(config.output_dir)
    if "--fresh" in sys.argv:
        shutil.rmtree(output, ignore_errors=True)
    if (output / "report.json").is_file():
        report = read_json(output / "report.json")
        same = not config.changes(report["config"]) and config.max_steps == report["config"]["max_steps"]
        if same and all(row["coverage"] >= COVERED for row in report["results"]):
            console.print(table(report["results"], report["paired"]))
            console.print(f"Already done in {report['minutes']} minutes: {output}/report.md. Start over with --fresh.")
            return
    torch.set_num_threads(config.threads or 1)
    start = time.time()
    console.print("[bold]1/3 The base on held-out questions[/]")
    before = score("base", str(config.model_name_or_path), config, limit)
    refuse_lost("base", before)
    console.print("[bold]2/3 Train MemoryAgent with MemTrainer (GRPO)[/]")
    trainer = MemTrainer(config)
    earlier = training_seconds(output)  # of starts that were interrupted
    explain(config, trainer.total_steps, trainer.updates_per_step)
    last = trainer.train()
    console.print("[bold]3/3 The trained model on the same questions[/]")
    after = score("trained", str(last), config, limit)
    results, paired = summary({"base": before, "trained": after})
    weights = Path(str(config.model_name_or_path)) / "model.safetensors"
    about = {
        "minutes": round((time.time() - start + earlier) / 60, 1),
        "cpu_minutes_of_training": round(trainer.cpu_seconds / 60, 1),
        "base_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {config.threads} thread(s)",
        "torch": torch.__version__,
        "config": config.to_dict(),
    }
    write_results(output, results, paired, about, "# Quick start: what GRPO taught the tiny memory agent")
    console.print(table(results, paired))
    refuse_lost("trained", after)
    console.print(f"Done in {about['minutes']} minutes. Look at {output}/: report.md, learning_curve.png, evaluation/, last/ (the model).")


def started() -> None:
    try:
        main()
    except ConfigError as error:
        raise ConfigError(f"{error} Or start over: bash examples/quickstart.sh --fresh") from error


if __name__ == "__main__":
    sys.exit(guarded(started))
