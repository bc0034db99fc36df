"""The speed benchmarks' measuring: trainers in turns (A B C A B C ...), ratios of times that stand next to each other."""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from arms import Arm, Ours, Trl, Work, quiet
from public_code import Public, load_public
from rich.console import Console
from rich.table import Table

from memfactory.common.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def arms_of(work: Work, public: Path | None, rounds: int, what: str) -> list[Arm]:
    """Every trainer that can be had here; a missing one is named."""
    with quiet():
        ours = Ours(work)
    arms: list[Arm] = [ours]
    size = work.questions * work.trl_batches
    try:
        with quiet():
            arms.append(Trl(work, [row for at in range(rounds + 1) for row in _shuffled(ours.prompts(at), at, size)]))
    except ImportError as error:
        print(f"TRL is not measured: {error}. Install it with `pip install trl==1.16.0`.")
    if public is None:
        print("The public MemFactory is not measured: name a copy of its code with --public PATH.")
    else:
        with quiet():
            code = load_public(public, work)
            kinds = (False, True) if what == "step" else (False,)  # its defaults change nothing in sampling
            arms += [Public(work, code, ours.trainer.examples_of, defaults) for defaults in kinds]
    return arms


def _shuffled(rows: list[dict[str, Any]], seed: int, number: int) -> list[dict[str, Any]]:
    """`number` of the rows in random order, some twice if there are fewer."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[order[at % len(rows)]] for at in range(number)]


def measure(arms: list[Arm], what: str, rounds: int) -> list[dict[str, Any]]:
    """One row per call, after a round that is not kept; `what` is the method to time."""
    rows = []
    for at in range(rounds + 1):
        for arm in arms:
            arm.prepare(at)
            with quiet():
                wall, cpu = time.perf_counter(), time.process_time()
                getattr(arm, what)(at)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            row = {"round": at, "arm": arm.name, "seconds": wall, "cpu_seconds": cpu, "sampled": arm.sampled()}
            if at:
                rows.append(row | ({"parts": arm.parts} if isinstance(arm, Ours) and what == "step" else {}))
    return rows


def ratios(rows: list[dict[str, Any]], arm: str, clock: str) -> list[float]:
    """Time per sampled token of an arm over ours, round by round."""
    cost = {(row["round"], row["arm"]): row[clock] / row["sampled"] for row in rows}
    return [cost[at, arm] / cost[at, "ours"] for at, name in sorted(cost) if name == arm]


def spread(values: list[float]) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """Each trainer's times beside ours."""
    out = Table(title=title)
    for column in ("trainer", "sampled tokens", "ms/1000", "CPU ms/1000", "x ours, wall", "x ours, CPU"):
        out.add_column(column, justify="left" if column == "trainer" else "right")
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name]
        cost = {clock: statistics.median(1e6 * row[clock] / row["sampled"] for row in mine) for clock in ("seconds", "cpu_seconds")}
        both = [spread(ratios(rows, name, clock)) for clock in ("seconds", "cpu_seconds")]
        tokens = str(round(statistics.mean(row["sampled"] for row in mine)))
        out.add_row(name, tokens, f"{cost['seconds']:.0f}", f"{cost['cpu_seconds']:.0f}", *both)
    return out


def versions() -> dict[str, str | None]:
    """Of what is measured and of the machine."""
    found: dict[str, str | None] = {"python": platform.python_version(), "processor": _processor(), "cores": str(os.cpu_count())}
    for name in ("torch", "transformers", "trl", "accelerate"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(what: str, title: str) -> None:
    """The command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--public", type=Path, help="a copy of the public MemFactory's repository")
    parser.add_argument("--rounds", type=int, default=6, help="rounds that are kept; one more comes first")
    parser.add_argument("--output", type=Path, default=ROOT / f"output/benchmarks/{what}.json", help="where the raw numbers go")
    parser.add_argument("--full_length", action="store_true", help="no response ends before its last token")
    parser.add_argument("--rows", type=int, default=Work.rows, help="rows of a micro-batch")
    args = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    work = Work(full_length=args.full_length, rows=args.rows)
    rows = measure(arms_of(work, args.public, args.rounds, what), what, args.rounds)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(args.output.resolve(), {"what": what, "date": now, "versions": versions(), "work": asdict(work), "calls": rows})
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table(rows, title))
    parts = [row["parts"] for row in rows if "parts" in row]
    if parts:
        means = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        console.print("ours, median step: " + ", ".join(f"{name} {value:.2f}" for name, value in means.items()))
    console.print(f"Raw numbers: {args.output}")
