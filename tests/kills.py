"""Kill a command at random moments, start it again, and compare what it made with an undisturbed run's.

`python tests/kills.py KIND FOLDER KILLS SEED` imports the package once and forks a child for each start, so that the moments fall
into the work and not into imports. `KIND` is a key of `KINDS`. Prints one line of JSON; exits 1 with what was found wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny"

CLOCKS = ("seconds", "cpu_seconds", "finished", "tokens_per_second", "memory", "time/", "share/", "rate", "mfu")
"""Beginnings and parts of the names of figures that depend on when and where something ran."""


@dataclass(frozen=True)
class Kind:
    """A command to kill."""

    words: Callable[[Path], list[str]]
    """Its arguments, for the folder that it writes to."""
    state: Callable[[Path], Any]
    """What it made, without times: equal for every undisturbed run."""
    progress: Callable[[Path], Any]
    """What was acknowledged so far; after a kill it must not be less than before."""


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without the clock's part of it."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(clock in k for clock in CLOCKS)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def lines(path: Path) -> list[Any]:
    """A JSONL file's whole lines, without times."""
    found = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [timeless(json.loads(line)) for line in found]


# Training: a checkpoint a step, a held-out check every third


def train_words(out: Path) -> list[str]:
    return [
        "train", str(ROOT / "examples/configs/tiny.yaml"), "--output_dir", str(out), "--data_path", str(DATA / "train.json"),
        "--model_name_or_path", str(MODEL), "--eval_data_path", f"dev={DATA / 'dev.json'}", "--max_steps", "9", "--save_steps", "1",
        "--save_total_limit", "3", "--eval_steps", "3", "--eval_samples", "8", "--eval_k", "1", "--batch_size", "4",
        "--num_generations", "4", "--resume", "True",
    ]  # fmt: skip


def train_state(out: Path) -> Any:
    last, best = (out / "last").resolve(), (out / "best").resolve()
    return {"last": (last.name, sha(last / "model.safetensors")), "best": (best.name, sha(best / "model.safetensors")),
            "metrics": lines(out / "metrics.jsonl")}  # fmt: skip


def train_progress(out: Path) -> Any:
    """(newest checkpoint, a best one stands): each loads, and no link dangles."""
    from memfactory.trainers.checkpoint import checkpoints, load_state

    found = checkpoints(out)
    if found:
        assert load_state(found[-1])["step"] == int(found[-1].name.rsplit("-", 1)[1])
    for link in ("last", "best"):
        assert not (out / link).is_symlink() or (out / link / "model.safetensors").exists(), f"{link} dangles"
    # The first check is at step 3; its mark follows its checkpoint, so a kill between the two shows at the next step.
    best = (out / "best").exists()
    step = int(found[-1].name.rsplit("-", 1)[1]) if found else 0
    assert best or step <= 3, f"step {step} and no best checkpoint"
    return (step, best)


# Evaluation: two data sets, two workers


def eval_words(out: Path) -> list[str]:
    sets = [str(out.parent / f"{name}.json") for name in ("first", "second")]
    return ["eval", "--models", f"tiny={MODEL}", "--datasets", *sets, "--k", "3", "--workers", "2", "--threads", "1", "--gpus", "none",
            "--output_dir", str(out), "--engine_slots", "8"]  # fmt: skip


def attempts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/*/attempts.jsonl")):
        for row in lines(path):
            for stages in row.get("cost", {}).values():
                for stage, figures in stages.items():
                    stages[stage] = figures[:3]  # the fourth are seconds
            key = f"{path.parent.name} {row['example']} {row['kind']} {row['number']}"
            assert key not in found, f"{key} was made twice"
            found[key] = row
    return found


def eval_state(out: Path) -> Any:
    return {"attempts": attempts(out), "report": (out / "report.md").read_text(), "results": (out / "results.csv").read_text()}


def judge_words(out: Path) -> list[str]:
    return ["judge", str(out), "--judge", "api:big", "--calibration", "2", "--votes", "3", "--retries", "0"]


def judge_state(out: Path) -> Any:
    found = {}
    for path in sorted(out.rglob("judgments*.jsonl")):
        rows = sorted(json.dumps(row, sort_keys=True) for row in lines(path))
        found[path.relative_to(out).as_posix()] = rows
    assert found
    return {"judgments": found, "table": timeless(json.loads((out / "judged.json").read_text()))["rows"]}


def build_words(out: Path) -> list[str]:
    return ["data", "build", "synth_hop", "--docs", "12", "--number", "400", "--output", str(out / "set.json"), "--overwrite", "True"]


def build_progress(out: Path) -> int:
    """Whole or absent; the older version stays until the new one is whole."""
    path = out / "set.json"
    return len(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0


KINDS = {
    "train": Kind(train_words, train_state, train_progress),
    "eval": Kind(eval_words, eval_state, lambda out: len(attempts(out))),
    "judge": Kind(judge_words, judge_state, lambda out: sum(len(lines(path)) for path in out.rglob("judgments*.jsonl"))),
    "build": Kind(build_words, lambda out: sha(out / "set.json"), build_progress),
}


# The killer


def start(words: list[str], log: Path) -> int:
    """Fork a child, of a session of its own, that runs the command."""
    child = os.fork()
    if child == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 77
        try:
            from memfactory.cli import main

            code = main(words)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def of_session(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def no_orphans(session: int) -> float:
    """Seconds until the last process that a killed child had started is gone; more than ten are a failure."""
    began = time.monotonic()
    while left := of_session(session):
        if time.monotonic() - began > 10:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{len(left)} processes outlived the killed one by 10 s")
        time.sleep(0.02)
    return time.monotonic() - began


def warm() -> None:
    """Import what the children need, once; no thread may be running when they are forked."""
    import torch

    import memfactory.evaluation.judging
    import memfactory.evaluation.orchestrator  # noqa: F401
    from memfactory.common.registry import REGISTRIES

    torch.set_num_threads(1)
    assert all(map(list, REGISTRIES))  # looking into them imports the parts


def main(kind: Kind, work: Path, kills: int, seed: int, prepared: Path | None) -> dict[str, Any]:
    rng, log = random.Random(seed), work / "log"

    def fresh(name: str) -> Path:
        out = work / name
        if prepared is not None:
            import shutil

            shutil.copytree(prepared, out)
        else:
            out.mkdir()
        return out

    def finish(out: Path) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(start(kind.words(out), log), 0)[1])
        assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"

    began = time.monotonic()
    finish(whole := fresh("whole"))
    span, wanted = time.monotonic() - began, kind.state(whole)
    killed = rounds = 0
    slowest = 0.0
    out = fresh("killed-0")
    while killed < kills:
        before = kind.progress(out)
        child = start(kind.words(out), log)
        time.sleep(rng.uniform(0.0, 0.6) * span)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (-9, 0), f"exit code {code}: {log.read_text()[-2000:]}"
        slowest = max(slowest, no_orphans(child))
        after = kind.progress(out)
        assert after >= before, f"{before} was acknowledged, {after} is left"
        killed += code == -9
        if code == 0 or rng.random() < 0.1 or killed == kills:
            finish(out)
            assert kind.state(out) == wanted, f"{out.name} is not what an undisturbed run makes"
            rounds += 1
            out = fresh(f"killed-{rounds}")
    return {"kills": killed, "runs compared": rounds, "slowest end of a child's process, s": round(slowest, 2)}


if __name__ == "__main__":
    name, folder, number, seed_of = sys.argv[1:5]
    warm()
    made_before = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    print(json.dumps(main(KINDS[name], Path(folder), int(number), int(seed_of), made_before)))
