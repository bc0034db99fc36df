"""Models x data sets as jobs, each in a process of its own, over the GPUs or CPU processes given; then one report over all.

A process that dies is started once more and then reported; its ledger keeps what it did. Knows no agent: a worker runs one job
(`jobs.run_job`), and every number of the report is computed from the ledgers.

output_dir/
  MODEL/DATASET/   job.json fingerprint.json attempts.jsonl examples.txt worker.log
  report.json report.md results.csv
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from memfactory.common.errors import ConfigError
from memfactory.common.files import write_json
from memfactory.evaluation.compare import other_differences
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job, load_scores
from memfactory.evaluation.report import summary, table, write_results

log = logging.getLogger(__name__)

WORKER = "memfactory.evaluation.worker"
_TRIES = 2
_USER_ERROR = 2
"""A worker's exit code for what no second try can mend."""


@dataclass(slots=True)
class _Running:
    """A worker process at a job."""

    job: Job
    process: subprocess.Popen[bytes]
    place: str
    tries: int
    task: TaskID


def evaluate_all(config: EvalConfig, console: Console) -> int:
    """Run every job of the configuration and report; returns the exit code: 0 if all are complete, else 1."""
    jobs, missing = jobs_of(config)
    for text in missing:
        console.print(f"[yellow]Not here:[/] {text}", highlight=False, soft_wrap=True)
    if not jobs:
        raise ConfigError(
            "Nothing to evaluate. What ships with the project: --models models/tiny --datasets datas/tiny/eval.json; "
            "any model folder and any file in a published format will do."
        )
    places = _places(config, len(jobs))
    failed = _run(jobs, places, config.threads or _threads(places), console)
    scores: dict[str, dict[str, Scores]] = {}
    for job in jobs:
        if (Path(job.folder) / "job.json").is_file():
            scores.setdefault(job.model_name, {})[job.dataset] = load_scores(Path(job.folder))
    if scores:
        results, paired = summary(scores)
        notes = _unlike(jobs)
        about = {"failed": failed, "notes": notes, "jobs": [asdict(job) for job in jobs]}
        write_results(Path(config.output_dir), results, paired, about, "\n\n".join(["# Evaluation", *notes]))
        console.print(table(results, paired))
        for note in notes:
            console.print(f"[yellow]Note:[/] {note}", highlight=False, soft_wrap=True)
        console.print(f"Look at {config.output_dir}/: report.md, report.json, results.csv, attempts and examples.", soft_wrap=True)
    for folder, reason in failed.items():
        console.print(f"[bold red]Failed:[/] {folder}: {reason}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _unlike(jobs: Sequence[Job]) -> list[str]:
    """What else than the model differs between a data set's first model and each other: a comparison should not hide it."""
    notes = []
    done = [job for job in jobs if (Path(job.folder) / "job.json").is_file()]
    for at, job in enumerate(done):
        first = next(other for other in done if other.dataset == job.dataset)
        if first is not done[at] and (other := other_differences(Path(first.folder), Path(job.folder))):
            notes.append(f"{job.dataset}: besides the model, {job.model_name} differs from {first.model_name}: {'; '.join(other)}.")
    return notes


def _places(config: EvalConfig, jobs: int) -> list[str]:
    """Where workers run: a GPU's number, or "" for a CPU process."""
    gpus = _gpus(config.gpus)
    if gpus:
        return gpus
    workers = config.workers or max(1, min(jobs, (os.cpu_count() or 1) // max(config.threads, 1)))
    return [""] * (1 if config.engine == "api" and not config.workers else workers)


def _gpus(given: str) -> list[str]:
    if given == "auto":
        import torch

        return [str(n) for n in range(torch.cuda.device_count())]
    if given in ("", "none", "cpu"):
        return []
    numbers = given.replace(" ", "").split(",")
    if not all(n.isdigit() for n in numbers):
        raise ConfigError(f"--gpus {given!r}: give numbers such as 0,1, or none for CPU processes, or auto.")
    return numbers


def _threads(places: Sequence[str]) -> int:
    """CPU threads of a worker when nobody said: the cores shared out."""
    return max(1, (os.cpu_count() or 1) // len(places))


def _run(jobs: Sequence[Job], places: Sequence[str], threads: int, console: Console) -> dict[str, str]:
    """Every job through a worker, the longest first; returns {folder: reason} of those that failed."""
    waiting = sorted((replace(job, threads=threads) for job in jobs), key=_size)
    free, running, failed = list(places), list[_Running](), dict[str, str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("attempts"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal, refresh_per_second=2) as progress:
        tasks = {job.folder: progress.add_task(f"{job.model_name} on {job.dataset}", total=None) for job in waiting}
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.pop()
                    place = free.pop(0)
                    running.append(_Running(job, _start(job, place), place, 1, tasks[job.folder]))
                time.sleep(0.2)
                for worker in list(running):
                    _show(progress, worker)
                    code = worker.process.poll()
                    if code is None:
                        continue
                    if code not in (0, _USER_ERROR) and worker.tries < _TRIES:
                        log.warning("The worker of %s died (exit %d); started once more.", worker.job.folder, code)
                        worker.process, worker.tries = _start(worker.job, worker.place), worker.tries + 1
                        continue
                    if code:
                        failed[worker.job.folder] = _reason(worker, code)
                    running.remove(worker)
                    free.append(worker.place)
        finally:
            for worker in running:
                worker.process.terminate()
    return failed


def _size(job: Job) -> float:
    path = Path(job.data_path)
    return (path.stat().st_size if path.is_file() else 0) * (job.k + 1)


def _start(job: Job, place: str) -> subprocess.Popen[bytes]:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "asked.json", asdict(job))
    # An idle OpenMP thread that spins would starve the worker beside it.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(job.threads)}
    environment["CUDA_VISIBLE_DEVICES"] = place if place else "-1"
    with (folder / "worker.log").open("ab") as output:
        command = [sys.executable, "-m", WORKER, str(folder / "asked.json"), "--parent", str(os.getpid())]
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)


def _show(progress: Progress, worker: _Running) -> None:
    """Progress by the ledger's lines: true whatever happened to the process that wrote them."""
    folder = Path(worker.job.folder)
    try:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        lines = (folder / "attempts.jsonl").read_bytes().count(b"\n")
    except (OSError, ValueError):
        return
    total = len(job["examples"]) * (worker.job.k + 1)
    progress.update(worker.task, total=total, completed=min(lines, total))


def _reason(worker: _Running, code: int) -> str:
    lines = (Path(worker.job.folder) / "worker.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = re.sub(r"^Error: ", "", next((line for line in reversed(lines) if line.strip()), "nothing was said"))
    again = "" if code == _USER_ERROR else f" after {worker.tries} tries, exit {code}"
    return f"{last.strip()}{again} (whole log: {worker.job.folder}/worker.log)"
