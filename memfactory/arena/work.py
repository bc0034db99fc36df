"""The arena's work: data, trainings, evaluations, each made once and taken up where it stopped. Knows no score.

A training is a process of its own (`memfactory train`), so that as many run as there are cores; evaluations are the evaluation's own jobs.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memfactory.arena.plan import ArenaRow, Plan
from memfactory.common.errors import ConfigError, InfrastructureError
from memfactory.common.files import read_json, write_json, write_text
from memfactory.common.progress import Lines
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators import synth_dialog as _generator  # noqa: F401 - registers it
from memfactory.evaluation.anchors import kinds_of, with_anchors
from memfactory.evaluation.config import EvalConfig, slug
from memfactory.evaluation.jobs import Job
from memfactory.evaluation.orchestrator import evaluate_jobs, gpus

BEFORE = "untrained"


@dataclass(frozen=True)
class Place:
    """Where things of one arena lie."""

    root: Path

    def data(self, name: str) -> Path:
        """A set's file."""
        return self.root / "data" / f"{slug(name)}.json"

    def run(self, name: str) -> Path:
        """A training's folder."""
        return self.root / "runs" / name

    @property
    def scores(self) -> Path:
        """The evaluation's folder."""
        return self.root / "evaluation"


def make_data(plan: Plan, place: Place) -> None:
    """Write the sets that are not there; one that was made by other options is an error, for scores lie beside it."""
    for name, options in {"train": plan.train_on, **plan.held_out}.items():
        made_by = {**plan.dialogues, **options}
        file, about = place.data(name), place.data(name).with_suffix(".options.json")
        if about.is_file() and read_json(about) != made_by:
            raise ConfigError(f"{file} was made with other options than the plan's: {read_json(about)}. Give another --output_dir.")
        if not file.is_file():
            rows = [{key: row[key] for key in row if key != "gold"} for row in GENERATOR_REGISTRY.get("synth_dialog")(**made_by)]
            write_json(file, rows)
            write_json(about, made_by)


# Training


def train_config(plan: Plan, row: ArenaRow, seed: int, place: Place) -> dict[str, Any]:
    """The options of one training, as `memfactory train` takes them."""
    folder = place.run(plan.run_name(row.name, seed))
    return {
        "model_name_or_path": plan.model, "data_path": str(place.data("train")), "output_dir": str(folder),
        "agent_type": row.agent, "agent_options": dict(row.agent_options), "env_type": row.env, "env_options": dict(row.env_options),
        "roles": dict(row.roles), **plan.training, **row.training, "max_rollout_tokens": plan.budget, "seed": seed,
    }  # fmt: skip


def train_all(plan: Plan, place: Place, workers: int, console: Console) -> None:
    """Every training that is not done, `workers` at a time (0: one a GPU, else one a core); one that fails ends the arena with its last
    words."""
    waiting = [(row, seed) for seed in plan.seeds for row in plan.rows.values() if not _done(place.run(plan.run_name(row.name, seed)))]
    if not waiting:
        return
    free, running = _devices(workers), list[tuple[str, str, subprocess.Popen[bytes]]]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    lines = Lines(bar=console.is_terminal, every=60)
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=1) as progress:
        task = progress.add_task("trainings", total=len(waiting))
        try:
            while waiting or running:
                while waiting and free:
                    row, seed = waiting.pop(0)
                    name, device = plan.run_name(row.name, seed), free.pop(0)
                    running.append((name, device, _start(train_config(plan, row, seed, place), place.run(name), device)))
                time.sleep(0.2)
                names = ", ".join(name for name, _, _ in running)
                progress.update(task, description=f"training {names}")
                lines.tell(f"training {names}: {progress.tasks[0].completed:.0f} of {progress.tasks[0].total:.0f} done")
                for ended in [one for one in running if one[2].poll() is not None]:
                    name, device, process = ended
                    running.remove(ended)
                    free.append(device)
                    if process.returncode:
                        raise InfrastructureError(_last_words(place.run(name), process.returncode))
                    write_text(place.run(name) / "done", "")
                    progress.advance(task)
        finally:
            for _, _, process in running:
                process.terminate()
                process.wait()


def _devices(workers: int) -> list[str]:
    """Where trainings run, each for one at a time: CUDA_VISIBLE_DEVICES of a GPU, or "" for a process on a core."""
    found = gpus("auto")
    return [found[at % len(found)] for at in range(workers or len(found))] if found else [""] * (workers or os.cpu_count() or 1)


def _done(folder: Path) -> bool:
    return (folder / "done").is_file()


def _start(config: dict[str, Any], folder: Path, device: str) -> subprocess.Popen[bytes]:
    file = folder.with_suffix(".yaml")
    write_text(file, yaml.safe_dump(config, sort_keys=False))
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(config.get("threads") or 1)}
    environment["CUDA_VISIBLE_DEVICES"] = device or "-1"
    with folder.with_suffix(".log").open("ab") as log:
        own = [sys.executable, "-m", "memfactory.common.processes", str(os.getpid())]
        command = [*own, "memfactory.cli", "train", str(file), "--resume", "True"]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


def _last_words(folder: Path, code: int) -> str:
    log = folder.with_suffix(".log")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return f"The training {folder.name} ended with exit code {code}; the last it said: {lines[-1] if lines else 'nothing'} ({log})."


# Evaluation


def jobs_of(plan: Plan, place: Place) -> list[Job]:
    """Untrained and trained models of every row on every held-out set, and the anchors beside one untrained row."""
    jobs: list[Job] = []
    for row in plan.rows.values():
        for model, path in [(f"{row.name}-{BEFORE}", plan.model), *_trained(plan, row, place)]:
            found = [_job(plan, row, model, path, name, place) for name in plan.held_out]
            beside = plan.anchors.get("beside") == row.name and model.endswith(BEFORE)
            jobs += with_anchors(found, kinds_of(plan.anchors["kinds"]), {}) if beside else found
    return jobs


def _trained(plan: Plan, row: ArenaRow, place: Place) -> list[tuple[str, str]]:
    names = [plan.run_name(row.name, seed) for seed in plan.seeds]
    return [(name, str(place.run(name) / "last")) for name in names]


def _job(plan: Plan, row: ArenaRow, model: str, path: str, dataset: str, place: Place) -> Job:
    return Job(
        model, path, dataset, str(place.data(dataset)), str(place.scores / slug(model) / slug(dataset)), agent=row.agent,
        agent_options=dict(row.agent_options), env="task", env_options={"task": "synth_dialog"}, roles=dict(row.roles),
        reference=plan.model, k=plan.k, limit=plan.limit, shown=1_000_000, threads=1,
    )  # fmt: skip


def evaluate(plan: Plan, place: Place, workers: int, console: Console) -> int:
    """Score every job; returns the exit code. The evaluation's own tables, a page for each row, are shown only if something failed."""
    config = EvalConfig(output_dir=str(place.scores), k=plan.k, workers=workers, threads=1)
    told = io.StringIO()
    code = evaluate_jobs(config, jobs_of(plan, place), console, Console(file=told, width=console.width))
    if code:
        console.print(told.getvalue(), markup=False, highlight=False)
    return code
