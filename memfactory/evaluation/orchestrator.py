"""Models x data sets as jobs, each in a process of its own, over the GPUs or CPU processes given; then one report over all.

A process that dies is started once more and then reported; its ledger keeps what it did. Knows no agent: a worker runs one job
(`jobs.run_job`), and every number of the report is computed from the ledgers.

output_dir/
  MODEL/DATASET/   job.json fingerprint.json attempts.jsonl examples.txt worker.log
  report.json report.md report.html results.csv
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from memfactory.agents.build import answered_by_others
from memfactory.common.errors import ConfigError, MissingFileError
from memfactory.common.files import alone, check_place, read_json, write_json
from memfactory.common.progress import Lines
from memfactory.common.redaction import without_secrets
from memfactory.evaluation.anchors import anchor_notes
from memfactory.evaluation.by_type import all_type_rows, task_notes, type_markdown, type_table
from memfactory.evaluation.compare import other_differences
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.costs import cost_rows
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.html import write_html
from memfactory.evaluation.jobs import Job, check_names, load_scores
from memfactory.evaluation.lm_eval import write_lm_eval
from memfactory.evaluation.replay import replay_notes
from memfactory.evaluation.report import summary, table, write_results
from memfactory.evaluation.retrieval import found_in, retrieval_markdown, retrieval_notes, retrieval_rows, retrieval_table
from memfactory.evaluation.worker import LEFT_OUT

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
    """Run every job of the configuration and report; returns the exit code: 0 if every attempt has a score, else 1."""
    jobs, missing = jobs_of(config)
    for text in missing:
        console.print(f"[yellow]Not here:[/] {escape(text)}", highlight=False, soft_wrap=True)
    if not jobs:
        raise ConfigError(
            "Nothing to evaluate. What ships with the project: --models models/tiny --datasets datas/tiny/eval.json; "
            "any model folder and any file in a published format will do."
        )
    return evaluate_jobs(config, jobs, console)


def evaluate_jobs(config: EvalConfig, jobs: Sequence[Job], console: Console, told: Console | None = None) -> int:
    """The same for jobs of one's own; of the configuration only where and how they are run. `told`: where the tables go, if elsewhere."""
    check_names(jobs)
    check_place(Path(config.output_dir))
    places = _places(config, jobs)
    with alone(Path(config.output_dir)):
        failed, refused, without = _run(jobs, places, config.threads or _threads(places), console)
        return report_jobs(config, jobs, failed, refused, told or console, without)


def report_jobs(
    config: EvalConfig, jobs: Sequence[Job], failed: dict[str, str], refused: set[str], console: Console,
    without: Mapping[str, str] = MappingProxyType({}),
) -> int:  # fmt: skip
    """Tables and files of what the ledgers hold now; returns the exit code."""
    # What was refused may lie beside attempts made under other conditions: they are not this evaluation's.
    done = [job for job in jobs if job.folder not in {*refused, *without} and (Path(job.folder) / "job.json").is_file()]
    themselves = [job for job in done if not job.anchor]
    scores: dict[str, dict[str, Scores]] = {}
    for job in done:
        scores.setdefault(job.model_name, {})[job.dataset] = load_scores(Path(job.folder))
    lost = [
        f"{job.model_name} on {job.dataset}: {found.lost}. {found.remedy}"
        for job in done
        if (found := scores[job.model_name][job.dataset]).lost
    ]
    told = list(dict.fromkeys(note for job in themselves for note in task_notes(job.model_name, scores[job.model_name][job.dataset])))
    told += dict.fromkeys(replay_notes([Path(job.folder) for job in done]))
    found_by = [retrieval_rows(job.dataset, job.model_name, found_in(Path(job.folder))) for job in done]
    retrieval = [row for rows in found_by for row in rows]
    cut = [note for job in done if job.anchor for note in anchor_notes(job.model_name, scores[job.model_name][job.dataset])]
    told += [*retrieval_notes(retrieval), *cut, *(f"Left out: {reason}" for reason in without.values())]
    told += [*_unlike(themselves), *_trained_otherwise(themselves)]
    notes = [*told, *lost, *(f"Failed: {folder}: {reason}" for folder, reason in failed.items())]
    if scores or failed:
        results, paired = summary(scores, {job.model_name: (job.anchor_of, job.anchor) for job in done if job.anchor})
        types = all_type_rows(scores)
        about = {"failed": failed, "notes": notes, "jobs": [asdict(job) for job in jobs], "by_type": types, "retrieval": retrieval}
        about |= {"cost": cost_rows(scores), "left_out": dict(without)}
        drawn = f"{config.k} sampled attempts a question at temperature {config.temperature:g}, top-p {config.top_p:g}."
        sections = [f"## By type of question\n\n{type_markdown(types)}"] if types else []
        sections += [f"## Retrieval\n\n{retrieval_markdown(retrieval)}"] if retrieval else []
        write_results(Path(config.output_dir), results, paired, about, "\n\n".join(["# Evaluation", drawn, *notes]), sections)
        page = write_html(Path(config.output_dir))
        exported = write_lm_eval(Path(config.output_dir)) if config.export else []
        if results:
            console.print(table(results, paired))
        if types:
            console.print(type_table([row for row in types if row["model"] in {job.model_name for job in themselves}]))
        if retrieval:
            console.print(retrieval_table(retrieval))
        console.print(f"Look at {page}; beside it report.md, report.json, results.csv, attempts and examples.", soft_wrap=True)
        for path in exported:
            console.print(f"In lm-evaluation-harness's shape: {path}", soft_wrap=True)
    for note in notes:
        console.print(escape(note), style="bold red" if note.startswith("Failed") else "yellow", highlight=False, soft_wrap=True)
    return 1 if failed or lost else 0


def report_folder(folder: Path, export: str, console: Console) -> int:
    """`memfactory report`: the report of an evaluation's folder made again from its ledgers; nothing is run."""
    places = sorted(folder.glob("*/*/job.json"))
    if not places:
        raise MissingFileError(f"{folder} holds no evaluation. `memfactory eval --output_dir {folder}` makes one.")
    before = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    order = [(job["model_name"], job["dataset"]) for job in before.get("jobs", [])]
    known = {field.name for field in fields(Job)}
    jobs = [Job(**{**{k: v for k, v in read_json(path).items() if k in known}, "folder": str(path.parent)}) for path in places]
    jobs.sort(key=lambda job: order.index((job.model_name, job.dataset)) if (job.model_name, job.dataset) in order else len(order))
    config = EvalConfig(output_dir=str(folder), k=jobs[0].k, temperature=jobs[0].temperature, top_p=jobs[0].top_p, export=export)
    still = {job.folder for job in jobs if load_scores(Path(job.folder)).lost}
    failed = {place: reason for place, reason in before.get("failed", {}).items() if place in still or not Path(place).is_dir()}
    with alone(folder):
        return report_jobs(config, jobs, failed, set(), console, before.get("left_out", {}))


def _unlike(jobs: Sequence[Job]) -> list[str]:
    """What else than the model differs between a data set's first model and each other: a comparison should not hide it."""
    notes = []
    for job in jobs:
        first = next(other for other in jobs if other.dataset == job.dataset)
        if first is not job and (other := other_differences(Path(first.folder), Path(job.folder))):
            notes.append(f"{job.dataset}: besides the model, {job.model_name} differs from {first.model_name}: {'; '.join(other)}.")
    return notes


def _trained_otherwise(jobs: Sequence[Job]) -> list[str]:
    """What a checkpoint's memfactory.json says of its training that this evaluation does not follow."""
    notes: dict[str, None] = {}
    for job in jobs:
        others = answered_by_others(job.model)
        if others and not job.roles:
            notes[f"{job.model_name} was trained with the roles {others}; here it answers every stage itself (--roles, --reference)."] = (
                None
            )
    return list(notes)


def _places(config: EvalConfig, jobs: Sequence[Job]) -> list[str]:
    """Where workers run: what a worker's CUDA_VISIBLE_DEVICES is to be, "" for a CPU process."""
    if all(job.engine == "api" for job in jobs):
        return [""] * max(1, config.workers)
    if found := gpus(config.gpus):
        return found
    cores, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Weights are read as fp32 on a CPU: about twice their files, and a gigabyte for the rest of the process.
    largest = max(sum(file.stat().st_size for file in Path(job.model).glob("*.safetensors")) for job in jobs)
    room = max(1, int(0.8 * memory / (2 * largest + (1 << 30))))
    return [""] * (config.workers or max(1, min(len(jobs), cores // max(config.threads, 1), room)))


def gpus(given: str) -> list[str]:
    """The GPUs to use, as the parent's CUDA_VISIBLE_DEVICES names them: numbers count among those that are visible here."""
    if given in ("", "none", "cpu"):
        return []
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    number = torch.cuda.device_count()
    names = visible[:number] if visible else [str(n) for n in range(number)]
    if given == "auto":
        return names
    asked = given.replace(" ", "").split(",")
    wrong = [n for n in asked if not n.isdigit() or int(n) >= number]
    if wrong:
        here = f"0 to {number - 1}" if number else "none: this torch sees no GPU"
        raise ConfigError(f"--gpus {given}: {wrong[0]!r} is not a GPU here ({here}). Give numbers such as 0,1, or none for CPU processes.")
    return [names[int(n)] for n in asked]


def _threads(places: Sequence[str]) -> int:
    """CPU threads of a worker when nobody said: the cores shared out."""
    return max(1, (os.cpu_count() or 1) // len(places))


def _run(jobs: Sequence[Job], places: Sequence[str], threads: int, console: Console) -> tuple[dict[str, str], set[str], dict[str, str]]:
    """Every job through a worker, the longest first; returns {folder: reason} of those that failed, which of them were refused, and
    {folder: reason} of those that mean nothing on their data."""
    waiting = sorted((replace(job, threads=threads) for job in jobs), key=_size)
    free, running, failed, refused, without = list(places), list[_Running](), dict[str, str](), set[str](), dict[str, str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("attempts"), TimeRemainingColumn())
    lines = Lines(bar=console.is_terminal)
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=2) as progress:
        tasks = {job.folder: progress.add_task(escape(f"{job.model_name} on {job.dataset}"), total=None) for job in waiting}
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.pop()
                    place = free.pop(0)
                    job = replace(job, device="cuda" if place else "cpu")
                    running.append(_Running(job, _start(job, place, "wb"), place, 1, tasks[job.folder]))
                time.sleep(0.2)
                for worker in list(running):
                    _show(progress, worker)
                    code = worker.process.poll()
                    if code is None:
                        continue
                    if code not in (0, _USER_ERROR, LEFT_OUT) and worker.tries < _TRIES:
                        log.warning("The worker of %s died (exit %d); started once more.", worker.job.folder, code)
                        worker.process, worker.tries = _start(worker.job, worker.place, "ab"), worker.tries + 1
                        continue
                    if code == LEFT_OUT:
                        without[worker.job.folder] = f"{worker.job.model_name} on {worker.job.dataset}: {_last_words(worker)}"
                    elif code:
                        failed[worker.job.folder] = _reason(worker, code)
                        refused |= {worker.job.folder} if code == _USER_ERROR else set()
                    running.remove(worker)
                    free.append(worker.place)
                    lines.tell(_told(progress, worker.task), now=True)
                if running:
                    lines.tell("; ".join(_told(progress, worker.task) for worker in running))
        finally:
            for worker in running:
                worker.process.terminate()
    return failed, refused, without


def _told(progress: Progress, task: TaskID) -> str:
    found = next(one for one in progress.tasks if one.id == task)
    return f"{found.description}: {found.completed:.0f} of {'?' if found.total is None else f'{found.total:.0f}'} attempts"


def _size(job: Job) -> float:
    path = Path(job.data_path)
    return (path.stat().st_size if path.is_file() else 0) * (job.k + 1)


def _start(job: Job, place: str, mode: str) -> subprocess.Popen[bytes]:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "asked.json", without_secrets(asdict(job)))
    # An idle OpenMP thread that spins would starve the worker beside it.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(job.threads)}
    environment["CUDA_VISIBLE_DEVICES"] = place if place else "-1"
    with (folder / "worker.log").open(mode) as output:
        # The whole job goes through the pipe: its keys are written nowhere.
        command = [sys.executable, "-m", WORKER, str(folder / "asked.json"), "--parent", str(os.getpid()), "--stdin"]
        worker = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.PIPE, env=environment)
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError), worker.stdin as pipe:  # one that dies at once is seen by its exit code
            pipe.write(json.dumps(asdict(job)).encode())
        return worker


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


def _last_words(worker: _Running) -> str:
    lines = (Path(worker.job.folder) / "worker.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return re.sub("^(Error|Left out): ", "", last)


def _reason(worker: _Running, code: int) -> str:
    last = _last_words(worker)
    log_file = f"{worker.job.folder}/worker.log"
    if code == _USER_ERROR:
        return f"{last} ({log_file})"
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the worker {ended}, {worker.tries} times over; the last it said: {last} ({log_file})"
