"""The orchestrator runs every job to its end or says why not; kills, deaths and mistakes change no number of the final report."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from memfactory.common.errors import ConfigError
from memfactory.common.files import read_json, write_json
from memfactory.evaluation import orchestrator
from memfactory.evaluation.config import EvalConfig
from memfactory.evaluation.jobs import Job
from memfactory.evaluation.orchestrator import evaluate_all

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
ROW = {"context": "city alice paris .", "input": "city alice ?", "answers": ["paris"]}


# The orchestrator alone: its workers are small processes that do as the test says

STUB = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
folder = os.path.dirname(sys.argv[1])
tries = os.path.join(folder, "tries")
open(tries, "a").write("x")
def line(example, kind, number, score):
    status = "failed" if score is None else "ok"
    return json.dumps({"example": example, "kind": kind, "number": number, "status": status, "score": score}) + "\\n"
def works(score=1.0):
    examples = [job["dataset"] + "/0", job["dataset"] + "/1"]
    with open(os.path.join(folder, "attempts.jsonl"), "w") as f:
        f.write("".join(line(e, k, n, score) for e in examples for k, c in (("greedy", 1), ("sampled", job["k"])) for n in range(c)))
    json.dump({"env": job["env_options"], "model": job["model"]}, open(os.path.join(folder, "fingerprint.json"), "w"))
    json.dump(job | {"examples": examples}, open(os.path.join(folder, "job.json"), "w"))
if job["model_name"] == "refused" and job["env_options"]:
    print("Error: made under other conditions", file=sys.stderr); sys.exit(2)
dataset = job["dataset"]
if dataset == "dies":
    print("last words", flush=True); os._exit(9)
if dataset == "dies_once" and len(open(tries).read()) == 1:
    os._exit(9)
if dataset == "crashes":
    raise RuntimeError("a bug")
if dataset == "mistake":
    print("Error: Unknown option of MemoryAgent 'chunks'. Did you mean 'chunk_size'?", file=sys.stderr); sys.exit(2)
if dataset == "brackets":
    print("Error: got ['a'] and [bold] at [/models/x]", file=sys.stderr); sys.exit(2)
if dataset == "half":
    works(); os._exit(9)
if dataset == "lost":
    works(None); sys.exit(0)
if dataset == "waits":
    time.sleep(600)
time.sleep(0.3 if dataset.startswith("slow") else 0)
works()
"""


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen[bytes]]:
    """Workers become stubs; the processes that were started."""
    (tmp_path / "stub.py").write_text(STUB, encoding="utf-8")
    popen, started = subprocess.Popen, list[subprocess.Popen[bytes]]()

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "memfactory.evaluation.worker"] and command[4:] == ["--parent", str(os.getpid()), "--stdin"]
        started.append(popen([sys.executable, "-S", str(tmp_path / "stub.py"), command[3]], **options))
        return started[-1]

    monkeypatch.setattr(orchestrator.subprocess, "Popen", start)
    return started


def config(folder: Path, *datasets: str, **options: Any) -> EvalConfig:
    for name in datasets:
        write_json(folder / f"{name}.json", [ROW, ROW])
    given: dict[str, Any] = {"models": [str(MODEL)], "k": 1, "gpus": "none", "workers": 2, "output_dir": str(folder / "out")}
    return EvalConfig(datasets=[str(folder / f"{name}.json") for name in datasets], **(given | options))


def evaluated(config: EvalConfig) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what the terminal showed, report.json)."""
    shown = io.StringIO()
    code = evaluate_all(config, Console(file=shown, width=300))
    report = Path(config.output_dir) / "report.json"
    return code, shown.getvalue(), read_json(report) if report.is_file() else {}


def tries(config: EvalConfig, dataset: str) -> int:
    return len((Path(config.output_dir) / "tiny" / dataset / "tries").read_text())


@pytest.mark.slow
def test_every_job_is_run_once_and_reported(tmp_path: Path, stubs: list) -> None:
    asked = config(tmp_path, "a", "b", "c")
    code, shown, report = evaluated(asked)
    assert code == 0 and report["failed"] == {} and "Failed" not in shown
    assert [(row["dataset"], row["n"], row["coverage"]) for row in report["results"]] == [(name, 2, 1.0) for name in "abc"]
    assert [tries(asked, name) for name in "abc"] == [1, 1, 1] and len(stubs) == 3
    assert [job["dataset"] for job in report["jobs"]] == ["a", "b", "c"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {".lock", "tiny", "report.json", "report.md", "report.html", "results.csv"}


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "code"), [("dies", 9), ("crashes", 1)])
def test_a_worker_that_always_dies_is_started_once_more_and_reported_and_the_others_are_not_touched(
    tmp_path: Path, stubs: list, dataset: str, code: int
) -> None:
    asked = config(tmp_path, "a", dataset, "b")
    exit_code, shown, report = evaluated(asked)
    assert exit_code == 1 and tries(asked, dataset) == 2 and tries(asked, "a") == tries(asked, "b") == 1
    assert [row["dataset"] for row in report["results"]] == ["a", "b"] and all(row["avg_at_k"] == 1 for row in report["results"])
    ((folder, reason),) = report["failed"].items()
    assert folder.endswith(f"tiny/{dataset}") and f"ended with exit code {code}" in reason and "worker.log" in reason
    assert ("last words" if dataset == "dies" else "RuntimeError: a bug") in reason
    assert f"Failed: {folder}: {reason}" in shown.replace("\n", "")


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path, stubs: list, caplog: pytest.LogCaptureFixture) -> None:
    asked = config(tmp_path, "dies_once")
    code, _, report = evaluated(asked)
    assert code == 0 and tries(asked, "dies_once") == 2 and report["results"][0]["coverage"] == 1
    assert "died (exit 9); started once more" in caplog.text


def test_a_users_mistake_is_not_tried_again_and_reaches_the_terminal(tmp_path: Path, stubs: list) -> None:
    asked = config(tmp_path, "a", "mistake")
    code, shown, report = evaluated(asked)
    assert code == 1 and tries(asked, "mistake") == 1 and len(report["results"]) == 1
    assert "Unknown option of MemoryAgent 'chunks'. Did you mean 'chunk_size'?" in shown and "Error: Unknown" not in shown


def test_brackets_in_a_reason_are_text(tmp_path: Path, stubs: list) -> None:
    code, shown, _ = evaluated(config(tmp_path, "brackets"))
    assert code == 1 and "got ['a'] and [bold] at [/models/x]" in shown


def test_brackets_in_a_name_are_text(tmp_path: Path, stubs: list) -> None:
    asked = config(tmp_path, "a", models=[f"run[/1]={MODEL}", f"run[bold]={MODEL}"])
    code, shown, _ = evaluated(asked)
    assert code == 0 and "run[/1]" in shown and "run[bold]" in shown


def test_a_refused_model_does_not_cost_the_others_their_report(tmp_path: Path, stubs: list) -> None:
    asked = config(tmp_path, "a", models=[f"refused={MODEL}"])
    assert evaluated(asked)[0] == 0
    code, shown, report = evaluated(replace(asked, models=[f"new={MODEL}", f"refused={MODEL}"], env_options='{"reward": "boxed_f1"}'))
    assert code == 1 and "made under other conditions" in shown
    assert [Path(folder).parts[-2:] for folder in report["failed"]] == [("refused", "a")] and "new" in [
        r["model"] for r in report["results"]
    ]


def test_old_numbers_of_a_refused_job_do_not_pass_for_new_ones(tmp_path: Path, stubs: list) -> None:
    asked = config(tmp_path, "a", models=[f"refused={MODEL}"])
    assert evaluated(asked)[0] == 0
    code, _, report = evaluated(replace(asked, env_options='{"reward": "boxed_f1"}'))
    assert code == 1 and len(report["failed"]) == 1
    assert report["results"] == []


@pytest.mark.slow
def test_what_else_than_the_model_differs_is_noted(tmp_path: Path, stubs: list) -> None:
    code, shown, report = evaluated(config(tmp_path, "a", models=[f"one={MODEL}", f"two={MODEL}"]))
    assert code == 0 and report["notes"] == [] and "Note:" not in shown


def test_what_a_dead_worker_had_done_is_in_the_report(tmp_path: Path, stubs: list) -> None:
    code, _, report = evaluated(config(tmp_path, "half"))
    assert code == 1 and report["results"][0]["n"] == 2 and len(report["failed"]) == 1


def test_a_job_whose_attempts_were_lost_is_not_complete(tmp_path: Path, stubs: list) -> None:
    code, _, report = evaluated(config(tmp_path, "a", "lost"))
    assert [row["coverage"] for row in report["results"]] == [1, 0]
    assert code == 1


def test_the_markdown_report_names_the_jobs_that_failed(tmp_path: Path, stubs: list) -> None:
    evaluated(config(tmp_path, "a", "dies"))
    assert "dies" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_when_all_jobs_fail_the_report_says_so_and_has_no_numbers(tmp_path: Path, stubs: list) -> None:
    code, shown, report = evaluated(config(tmp_path, "dies", "mistake"))
    assert code == 1 and len(report["failed"]) == 2 and shown.count("Failed:") == 2
    assert [row["coverage"] for row in report["results"]] in ([], [0])


@pytest.mark.slow
def test_at_most_as_many_workers_run_as_there_are_places(tmp_path: Path, stubs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    start = orchestrator._start

    def counted(job: Job, place: str, mode: str) -> subprocess.Popen[bytes]:
        nonlocal most
        process = start(job, place, mode)
        most = max(most, sum(p.poll() is None for p in stubs))
        return process

    monkeypatch.setattr(orchestrator, "_start", counted)
    assert evaluated(config(tmp_path, *(f"slow{n}" for n in range(5)), workers=2))[0] == 0
    assert most == 2 and len(stubs) == 5


@pytest.mark.slow
def test_the_longest_job_is_started_first(tmp_path: Path, stubs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    start = orchestrator._start
    monkeypatch.setattr(orchestrator, "_start", lambda job, *rest: order.append(job.dataset) or start(job, *rest))
    asked = config(tmp_path, "short", "long", "middle", workers=1)
    write_json(tmp_path / "long.json", [ROW] * 50)
    write_json(tmp_path / "middle.json", [ROW] * 20)
    evaluated(asked)
    assert order == ["long", "middle", "short"]


@pytest.mark.slow
def test_each_gpu_has_one_worker_that_sees_only_it(tmp_path: Path, stubs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str]] = []
    popen = orchestrator.subprocess.Popen

    def start(command: list[str], env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
        seen.append((env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], env["OMP_WAIT_POLICY"]))
        return popen(command, env=env, **options)

    monkeypatch.setattr(orchestrator.subprocess, "Popen", start)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 6)
    evaluated(config(tmp_path, "slow1", "slow2", "slow3", gpus="3, 5", threads=4))
    assert {place for place, _, _ in seen} == {"3", "5"} and {rest for _, *rest in map(list, seen) for rest in [tuple(rest)]} == {
        ("4", "PASSIVE")
    }
    seen.clear()
    evaluated(config(tmp_path, "a", gpus="none"))
    assert [place for place, _, _ in seen] == ["-1"], "a CPU worker takes no GPU"


@pytest.mark.parametrize("gpus", ["a", "0;1", "-1", "0,,1", "1.5"])
def test_gpus_that_are_no_numbers_are_refused(tmp_path: Path, gpus: str) -> None:
    with pytest.raises(ConfigError, match="--gpus"):
        evaluated(config(tmp_path, "a", gpus=gpus))


def test_stopping_the_orchestrator_stops_its_workers(tmp_path: Path, stubs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(orchestrator, "_show", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluated(config(tmp_path, "waits"))
    assert stubs[0].wait(10) == -signal.SIGTERM


def test_nothing_to_evaluate_says_what_ships_with_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--models models/tiny --datasets datas/tiny/eval.json"):
        evaluated(EvalConfig())
    assert not list(tmp_path.iterdir())


# Real workers


PLUGIN = """
import os
from pathlib import Path
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.envs.longcontext import LongcontextEnv

load, kinds = LongcontextEnv.load, []  # an agent is not shown the set's name: it is taken from the env

def named(env):
    kinds.append(env.data_path.stem)
    return load(env)

LongcontextEnv.load = named

@AGENT_REGISTRY.register("mortal")
class Mortal(MemoryAgent):
    "Dies as the data set's name says."
    async def run(self, view, model):
        kind = kinds[-1]
        marker = Path(__file__).with_name("died")
        if kind == "always" or (kind == "once" and not marker.exists()):
            marker.touch()
            os._exit(9)
        if kind == "mistake":
            raise ConfigError("chunk_size 0: must be at least 1 token.")
        await super().run(view, model)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forgotten_parts")
def test_deaths_and_mistakes_of_real_workers_are_told_and_leave_the_rest_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    rows = read_json(DATA / "eval.json")[:3]
    for name in ("always", "once", "mistake", "fine"):
        write_json(tmp_path / f"{name}.json", rows)
    asked = EvalConfig(
        models=[f"base={MODEL}"], datasets=[str(tmp_path / f"{n}.json") for n in ("always", "once", "mistake", "fine")], k=1, gpus="none",
        workers=2, threads=1, output_dir=str(tmp_path / "out"), plugins=[str(tmp_path / "plugin.py")], agent="mortal", chunk_size=16,
        max_generate_length=16,
    )  # fmt: skip
    code, shown, report = evaluated(asked)
    assert code == 1
    assert {Path(folder).name for folder in report["failed"]} == {"always", "mistake"}
    reasons = {Path(folder).name: reason for folder, reason in report["failed"].items()}
    assert "ended with exit code 9, 2 times over" in reasons["always"]
    assert reasons["mistake"].startswith("chunk_size 0: must be at least 1 token. (")
    assert "chunk_size 0: must be at least 1 token." in shown and "Traceback" not in shown
    assert {row["dataset"]: row["coverage"] for row in report["results"] if row["coverage"]} == {"once": 1.0, "fine": 1.0}
    greedy = {row["dataset"]: row["greedy"] for row in report["results"]}
    assert greedy["once"] == greedy["fine"], "the same questions, whatever happened on the way"


ORCHESTRATED = """
import io, json, sys
from rich.console import Console
from memfactory.evaluation.config import EvalConfig
from memfactory.evaluation.orchestrator import evaluate_all
def evaluation(out, workers):
    models = [sys.argv[1]]
    datasets = [sys.argv[2] + "/first.json", sys.argv[2] + "/second.json"]
    config = EvalConfig(models=models, datasets=datasets, k=3, workers=workers, threads=1, gpus="none", output_dir=out, engine_slots=3)
    return evaluate_all(config, Console(file=io.StringIO()))
"""

KILLED_WHOLE = (
    ORCHESTRATED
    + """
import os, random, signal, time
from pathlib import Path
work, rng = Path(sys.argv[2]), random.Random(11)
def lines(out):
    return sum(path.read_bytes().count(b"\\n") for path in Path(out).glob("*/*/attempts.jsonl"))
def workers(out):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "memfactory.evaluation.worker" in command and out in command:
            found.append(int(path.parent.name))
    return found
def start(out, workers):
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            os._exit(evaluation(out, workers))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(77)
    return child
killed = str(work / "killed")
for number in range(2):
    before, child = lines(killed), start(killed, 2)
    while lines(killed) <= before + rng.randrange(12):
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "ended before it was killed"
        time.sleep(0.01)
    alone = number == 1  # last: its workers may do all that is left before they notice
    (os.kill if alone else os.killpg)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if alone:
        deadline = time.monotonic() + 10
        while workers(killed):
            assert time.monotonic() < deadline, "a worker outlived the orchestrator"
            time.sleep(0.1)
    print("killed at", lines(killed), flush=True)
final = os.waitpid(start(killed, 2), 0)[1]
print("resumed", os.waitstatus_to_exitcode(final), flush=True)
whole = os.waitpid(start(str(work / "whole"), 1), 0)[1]
print("whole", os.waitstatus_to_exitcode(whole), flush=True)
"""
)


def timeless(attempt: dict) -> dict:
    """A ledger's attempt without the clock's part of it; calls and tokens stay."""
    del attempt["finished"]
    for stages in attempt["cost"].values():
        for stage, (calls, prompt, completion, _seconds) in stages.items():
            stages[stage] = [calls, prompt, completion]
    return attempt


def without_times(folder: Path) -> tuple[dict, dict]:
    """(report.json without the places, {attempt's key: attempt without its time}) of an evaluation."""
    report = read_json(folder / "report.json")
    report["jobs"] = [{k: v for k, v in job.items() if k != "folder"} for job in report["jobs"]]
    for row in report["cost"]:
        assert row.pop("seconds") > 0
    attempts: dict = {}
    for path in folder.glob("*/*/attempts.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            attempt = timeless(json.loads(line))
            key = (path.parent.name, attempt["example"], attempt["kind"], attempt["number"])
            assert key not in attempts, "made twice"
            attempts[key] = attempt
    return report, attempts


@pytest.mark.slow
def test_an_evaluation_killed_twice_reports_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    rows = read_json(DATA / "eval.json")
    write_json(tmp_path / "first.json", rows[:12])
    write_json(tmp_path / "second.json", rows[12:20])
    command = [sys.executable, "-c", KILLED_WHOLE, str(MODEL), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-2:] == ["resumed 0", "whole 0"], result.stdout
    killed, whole = without_times(tmp_path / "killed"), without_times(tmp_path / "whole")
    assert killed[0] == whole[0] and killed[0]["failed"] == {}
    assert killed[1] == whole[1] and len(whole[1]) == 20 * 4
    for name in ("report.md", "results.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("first", "second"):
        place = Path("tiny") / name / "examples.txt"
        assert (tmp_path / "killed" / place).read_text() == (tmp_path / "whole" / place).read_text()


KILLED_JOBS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from memfactory.evaluation.jobs import Job, run_job
model, data, work, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
rng = random.Random(5)
def start(folder):
    child = os.fork()
    if child == 0:
        try:
            run_job(Job("tiny", model, "facts", data, str(folder), k=3, slots=4, threads=1, device="cpu"))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(77)
        os._exit(0)
    return child
def finished(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
began = time.monotonic()
assert finished(start(work / "whole")) == 0
span = time.monotonic() - began
done, path = 0, work / "killed" / "attempts.jsonl"
while done < kills:
    before = path.read_bytes().count(b"\\n") if path.exists() else 0
    child = start(work / "killed")
    # Moments are spread over the work, however slow the machine is now: a random number of lines later, and a little.
    aim, late = before + rng.randint(0, 30), time.monotonic() + 3 * span
    while (path.read_bytes().count(b"\\n") if path.exists() else 0) < aim and time.monotonic() < late:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05) * span)
    os.kill(child, signal.SIGKILL)
    assert finished(child) in (-9, 0)
    done += 1
    print(path.read_bytes().count(b"\\n") if path.exists() else 0, flush=True)
    if path.exists() and path.read_bytes().count(b"\\n") > 60 * 4 * 0.8 and done < kills:
        os.rename(work / "killed", work / f"killed{done}")  # nearly done: finish this one apart, and begin another
        assert finished(start(work / f"killed{done}")) == 0
assert finished(start(work / "killed")) == 0
"""


@pytest.mark.slow
def test_jobs_killed_at_twenty_random_moments_hold_what_an_undisturbed_one_holds(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", read_json(DATA / "eval.json")[:60])
    command = [sys.executable, "-c", KILLED_JOBS, str(MODEL), str(tmp_path / "facts.json"), str(tmp_path), "20"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = [int(line) for line in result.stdout.splitlines()]
    assert len(counts) == 20 and len(set(counts)) > 8, "the kills came at different moments"

    def held(folder: Path) -> dict:
        attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]
        keys = [(a["example"], a["kind"], a["number"]) for a in attempts]
        assert len(keys) == len(set(keys)) == 60 * 4, "every attempt once"
        return dict(zip(keys, map(timeless, attempts), strict=True))

    whole = held(tmp_path / "whole")
    for folder in tmp_path.glob("killed*"):
        assert held(folder) == whole
        assert (folder / "examples.txt").read_text() == (tmp_path / "whole" / "examples.txt").read_text()
