"""What is asked for becomes jobs, or one clear message; a job is made once, goes on where it was, and is told by every script alike."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from memfactory.cli import main
from memfactory.common.errors import ConfigError, MissingFileError, UserError
from memfactory.common.files import read_json, write_json
from memfactory.common.types import Messages
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.evaluation import jobs as jobs_module
from memfactory.evaluation.config import EvalConfig, _name, jobs_of, slug
from memfactory.evaluation.jobs import Job, agent_of, check_names, load_scores, run_job
from memfactory.evaluation.ledger import read_attempts
from memfactory.evaluation.orchestrator import evaluate_all
from memfactory.evaluation.report import result_row
from memfactory.evaluation.worker import main as worker

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny" / "eval.json"

pytestmark = pytest.mark.usefixtures("forgotten_parts")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)


def config(**options: Any) -> EvalConfig:
    return EvalConfig(**({"models": [str(MODEL)], "datasets": [str(DATA)]} | options))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("Error:") == 1, shown
    return shown


# From options to jobs


def test_models_times_data_sets_are_jobs_in_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("one.json", "two.jsonl"):
        shutil.copy(DATA, tmp_path / name)
    asked = config(
        models=[str(MODEL), f"again={MODEL}"], datasets=["one.json", "two.jsonl", "three=one.json"], output_dir="out", seed=7, k=2
    )
    jobs, missing = jobs_of(asked)
    assert missing == [] and len({job.folder for job in jobs}) == 6
    assert [(job.model_name, job.dataset) for job in jobs] == [(m, d) for m in ("tiny", "again") for d in ("one", "two", "three")]
    assert jobs[-1].folder == str(Path("out") / "again" / "three") and jobs[-1].data_path == "one.json"
    assert {(job.seed, job.k, job.model, job.engine) for job in jobs} == {(7, 2, str(MODEL), "hf")}


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b/eval_50.json", "eval_50"), ("x/v1.2", "v1.2"), ("output/run/last", "run-last"),
     ("output/run/checkpoint-000010/", "run-checkpoint-000010"),
     ("Qwen/Qwen3-4B", "Qwen3-4B"), ("t.parquet", "t"), ("models/Qwen3-1.7B", "Qwen3-1.7B")],
)  # fmt: skip
def test_a_path_has_the_name_a_reader_expects(path: str, name: str) -> None:
    assert _name(path) == name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": [str(MODEL), f"tiny={MODEL}"]}, ConfigError, "Two are called tiny; name them apart: NAME=PATH"),
        ({"datasets": [str(DATA), str(DATA)]}, ConfigError, "Two are called eval"),
        ({"datasets": ["absent.json"]}, MissingFileError, "--datasets absent: no such file absent.json.*memfactory data fetch"),
        ({"datasets": ["x=absent.json"]}, MissingFileError, "--datasets x: no such file absent.json"),
        ({"models": ["models/absent"]}, MissingFileError, "--models: no model at 'models/absent'"),
        ({"models": ["./absent"]}, MissingFileError, "no model at './absent'"),
        ({"agent_options": "{"}, ConfigError, "--agent_options '{' is not JSON"),
        ({"env_options": "[1]"}, ConfigError, "--env_options must be a mapping"),
        ({"roles": '"policy"'}, ConfigError, "--roles must be a mapping"),
    ],
)
def test_what_cannot_be_a_job_is_one_message(options: dict, error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message):
        jobs_of(config(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vlm"}, "Unknown engine 'vlm'"),
        ({"k": -1}, "must be at least 0"),
        ({"limit": -1}, "must be at least 0"),
        ({"temperature": 0.0}, "sampled attempts need one above 0; --k 0 is greedy only"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**options)
    assert config(k=0, temperature=0.0).k == 0


def test_lengths_are_short_for_agent_options_and_the_options_win() -> None:
    (job,), _ = jobs_of(config(chunk_size=7, max_generate_length=5, agent_options='{"chunk_size": 9, "max_chunk_number": 2}'))
    assert job.agent_options == {"chunk_size": 9, "max_generate_length": 5, "max_chunk_number": 2}
    (job,), _ = jobs_of(config())
    assert job.agent_options == {}


def test_models_behind_an_api_are_names_and_not_paths(tmp_path: Path) -> None:
    jobs, _ = jobs_of(config(engine="api", models=["gpt-x", "small=api:owner/model:7b"], tokenizer=str(MODEL)))
    assert [(job.model_name, job.model) for job in jobs] == [("gpt-x", "api:gpt-x"), ("small", "api:owner/model:7b")]
    (job,), missing = jobs_of(config(engine="api", models=[]))
    assert (job.model_name, job.model, missing) == ("LLM_MODEL", "api:", [])
    assert all(part not in Path(job.folder).name for part in ":/ ")


@pytest.mark.parametrize("names", [("模型一", "模型二"), ("a b", "a-b"), ("x/y", "x-y")])
def test_different_names_have_different_folders(names: tuple[str, str]) -> None:
    assert slug(names[0]) != slug(names[1])


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "lr=1e-6")
    (job,), _ = jobs_of(config(models=["lr=1e-6"]))
    assert job.model == "lr=1e-6"


def test_the_working_directory_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODEL, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    (job,), _ = jobs_of(config(models=["."], output_dir="out"))
    assert job.model_name == "run" and len(Path(job.folder).parts) == 3


def test_a_bare_evaluation_lists_every_published_thing_that_is_missing_and_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval"]) == 2
    captured = capsys.readouterr()
    for text in (
        "Qwen3-1.7B (models/Qwen3-1.7B). Get it: hf download Qwen/Qwen3-1.7B --local-dir models/Qwen3-1.7B",
        "Qwen3-4B-Instruct", "MemoryAgent1.7B (output/MemoryAgent1.7B/last). Get it: bash examples/RunMemoryAgent1.7B.sh", "MemoryAgent4B",
        "eval_50 (datas/eval_50.json). Get it: memfactory data fetch eval_50", "eval_100", "eval_fwe_16384",
    ):  # fmt: skip
        assert text in captured.out
    assert captured.out.count("Not here:") == 7 and "Nothing to evaluate" in captured.err and "models/tiny" in captured.err


def test_a_bare_evaluation_takes_what_is_here(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(MODEL, tmp_path / "models" / "Qwen3-1.7B")
    (tmp_path / "datas").mkdir()
    shutil.copy(DATA, tmp_path / "datas" / "eval_100.json")
    (job,), missing = jobs_of(EvalConfig())
    assert (job.model_name, job.dataset, job.folder) == ("Qwen3-1.7B", "eval_100", "output/evaluation/Qwen3-1.7B/eval_100")
    assert len(missing) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x"], "Did you mean '--models'?"),
        (["--k", "many"], "--k"),
        (["--models", "absent", "--datasets", str(DATA)], "no model at 'absent'"),
        (["--models", str(MODEL), "--datasets", "absent.json"], "no such file absent.json"),
        (["--import", "absent.py"], "--import absent.py: no such file"),
    ],
)
def test_a_mistake_in_an_evaluation_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    assert message in error_of(capsys)
    assert not Path("output").exists()


# The agent of a checkpoint


def checkpoint(folder: Path, about: dict | None) -> str:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", {})
    if about is not None:
        write_json(folder / "memfactory.json", about)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"agent": "memagen"}, "Unknown agent 'memagen'. Did you mean 'memagent'"),
        ({"agent_options": '{"chunk_sise": 9}'}, "Unknown option of MemoryAgent 'chunk_sise'. Did you mean 'chunk_size'"),
        ({"agent_options": '{"module": "nobody"}'}, "Unknown module 'nobody'"),
        ({"agent_options": '{"chunk_size": 0}'}, "chunk_size 0: must be at least 1"),
        ({"roles": '{"anwser": "policy"}'}, "Unknown stage of --roles 'anwser'. Did you mean 'answer'"),
        ({"roles": '{"answer": "refrence"}'}, "Unknown role of the stage answer 'refrence'"),
        ({"roles": '{"answer": "reference"}'}, "which model it is with --reference"),
        ({"env": "longcontxt"}, "Unknown env 'longcontxt'. Did you mean 'longcontext'"),
        ({"env_options": '{"rewrd": "auto"}'}, "Unknown option of LongcontextEnv 'rewrd'. Did you mean 'reward'"),
        ({"env_options": '{"reward": "boxed_me"}'}, "Unknown scorer 'boxed_me'. Did you mean 'boxed_em'"),
        ({"env": "memory_bank", "env_options": '{"weights": {"outcom": 1}}'}, "weights names outcom"),
        ({"datasets": [], "tasks": [f"locomo={DATA}"], "task_options": '{"x": 1}'}, "Unknown option of"),
    ],
)
def test_an_unknown_name_is_an_error_before_a_worker_starts(
    options: dict, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    with pytest.raises(UserError, match=re.escape(says)):
        evaluate_all(config(output_dir=str(tmp_path / "out"), gpus="none", **options), Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_names_of_a_jobs_own_parts_are_known_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from memfactory.agents.memory_agent import MemoryAgent\nfrom memfactory.common.registry import AGENT_REGISTRY\n"
        "@AGENT_REGISTRY.register('own_reader')\nclass Own(MemoryAgent): 'Reads.'\n"
    )
    check_names(jobs_of(config(agent="own_reader", plugins=[str(tmp_path / "own.py")]))[0])


def test_a_checkpoints_options_hold_under_the_flags(tmp_path: Path) -> None:
    about = {"agent": "memagent", "agent_options": {"chunk_size": 16, "max_generate_length": 32}}
    path = checkpoint(tmp_path / "m", about)
    given = {"dataset": "d", "data_path": "d.json", "folder": "f"}
    name, options = agent_of(Job("m", path, **given))
    assert name == "memagent" and (options["chunk_size"], options["max_generate_length"]) == (16, 32)
    flagged = agent_of(Job("m", path, agent_options={"chunk_size": 8}, **given))[1]
    assert (flagged["chunk_size"], flagged["max_generate_length"]) == (8, 32)
    assert agent_of(Job("m", checkpoint(tmp_path / "plain", None), **given)) == ("memagent", {})
    other = checkpoint(tmp_path / "other", {"agent": "another", "agent_options": {"x": 1}})
    assert agent_of(Job("m", other, agent="memagent", **given)) == ("memagent", {}), "another agent's options are not this one's"
    with pytest.raises(UserError, match="Unknown agent 'another'"):
        agent_of(Job("m", other, **given))


def test_the_flag_for_a_turns_length_reaches_a_trained_checkpoints_module(tmp_path: Path) -> None:
    module = {"type": "recurrent_memory_module", "max_memory_tokens": 2, "max_answer_tokens": 2, "prompt_order": "memory_first"}
    about = {"agent": "memagent", "agent_options": {"chunk_size": 16, "max_generate_length": 2, "module": module}}
    (job,), _ = jobs_of(config(models=[checkpoint(tmp_path / "m", about)], max_generate_length=64))
    name, options = agent_of(job)
    agent = jobs_module.build_agent(name, None, "cpu", options)  # type: ignore[arg-type]
    assert agent.module.options.max_answer_tokens == 64


def test_one_option_of_a_slot_leaves_the_checkpoints_others(tmp_path: Path) -> None:
    module = {"type": "recurrent_memory_module", "max_memory_tokens": 2, "max_answer_tokens": 2, "prompt_order": "chunk_first"}
    path = checkpoint(tmp_path / "m", {"agent": "memagent", "agent_options": {"module": module}})
    (job,), _ = jobs_of(config(models=[path], agent_options='{"module": {"max_answer_tokens": 9}}'))
    name, options = agent_of(job)
    described = jobs_module.build_agent(name, None, "cpu", options).describe()["module"]  # type: ignore[arg-type]
    assert (described["max_answer_tokens"], described["prompt_order"]) == (9, "chunk_first")


# One job


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Messages, str], str]], ScriptedChat]:
    """`scripted(answer)`: every job is answered by this function, without a model."""

    def use(answer: Callable[[Messages, str], str]) -> ScriptedChat:
        chat = ScriptedChat(answer)
        monkeypatch.setattr(jobs_module, "models_of", lambda job, agent, device: Models({"policy": chat}))
        return chat

    return use


def job(folder: Path, **options: Any) -> Job:
    given: dict[str, Any] = {"model": str(MODEL), "dataset": "eval", "data_path": str(DATA), "k": 1, "limit": 4, "device": "cpu"}
    return Job(**({"model_name": "tiny", "folder": str(folder)} | given | options))


def remembers(messages: Messages, stage: str) -> str:
    """Keeps all it reads and answers with its length, so that answers differ."""
    return f"\\boxed{{{len(messages[0]['content'])}}}" if stage == "answer" else messages[0]["content"].split("<section>")[1]


def test_a_job_leaves_its_ledger_and_what_it_was(tmp_path: Path, scripted: Callable) -> None:
    chat = scripted(remembers)
    scores = run_job(job(tmp_path / "a"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "attempts.jsonl", "fingerprint.json", "job.json", "examples.json", "examples.txt",
    }  # fmt: skip
    asked = read_json(tmp_path / "a" / "job.json")
    assert asked["examples"] == scores.examples == [f"eval/{n}" for n in range(4)] and asked["k"] == 1
    assert (tmp_path / "a" / "examples.txt").read_text(encoding="utf-8").count("Question: ") == 4
    assert load_scores(tmp_path / "a") == scores and len(chat.asked) > 8


def test_a_finished_job_loads_no_model(tmp_path: Path, scripted: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(remembers)
    first = run_job(job(tmp_path / "a"))
    monkeypatch.setattr(jobs_module, "models_of", lambda *_: pytest.fail("a model was loaded"))
    assert run_job(job(tmp_path / "a")) == first


def test_a_job_that_needs_more_attempts_makes_only_those(tmp_path: Path, scripted: Callable) -> None:
    scripted(remembers)
    run_job(job(tmp_path / "a", limit=2))
    grown = run_job(job(tmp_path / "a", k=2, limit=3))
    fresh = run_job(job(tmp_path / "b", k=2, limit=3))
    assert len(read_attempts(tmp_path / "a")) == 9 and (grown.sampled, grown.greedy) == (fresh.sampled, fresh.greedy)
    less = run_job(job(tmp_path / "a", limit=1))
    assert less.examples == ["eval/0"] and less.sampled == [fresh.sampled[0][:1]] and len(read_attempts(tmp_path / "a")) == 9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1}, "decoding.seed: 0 -> 1"),
        ({"temperature": 0.5}, "decoding.temperature: 1.0 -> 0.5"),
        ({"agent_options": {"chunk_size": 8}}, "agent.chunk_size: 16 -> 8"),
        ({"env_options": {"reward": "boxed_f1"}}, "env.reward: 'auto' -> 'boxed_f1'"),
        ({"roles": {"memory": "policy"}}, "decoding.roles.memory: None -> 'policy'"),
        ({"data_path": "other.json"}, "data.examples: 160 -> 1"),
    ],
)
def test_a_job_under_other_conditions_is_refused(tmp_path: Path, scripted: Callable, options: dict, says: str) -> None:
    write_json(tmp_path / "other.json", read_json(DATA)[:1])
    scripted(remembers)
    run_job(job(tmp_path / "a", k=0, limit=1))
    before = read_json(tmp_path / "a" / "job.json")
    with pytest.raises(ConfigError) as error:
        run_job(job(tmp_path / "a", k=0, limit=1, **options))
    assert says in str(error.value)
    assert read_json(tmp_path / "a" / "job.json") == before, "what the folder says of its attempts stays true"


def test_other_weights_are_refused_by_their_hash(tmp_path: Path, scripted: Callable) -> None:
    scripted(remembers)
    run_job(job(tmp_path / "a", k=0, limit=1))
    with pytest.raises(ConfigError, match=r"model: '[0-9a-f]{16}' -> '[0-9a-f]{16}'"):
        run_job(job(tmp_path / "a", k=0, limit=1, model=str(ROOT / "models" / "tiny-mild")))


def test_greedy_only_is_not_reported_as_sampled(tmp_path: Path, scripted: Callable) -> None:
    scripted(remembers)
    row = result_row("tiny", run_job(job(tmp_path / "a", k=0)))
    assert row["k"] == 0 and row["avg_at_k"] is None


def test_an_api_model_without_the_engine_says_which_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluate it with --engine api"):
        run_job(job(tmp_path / "a", model="api:gpt-x"))


def test_the_role_reference_needs_its_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say which model it is with --reference"):
        run_job(job(tmp_path / "a", limit=1, roles={"answer": "reference"}))


def test_a_reference_answers_its_stage(tmp_path: Path) -> None:
    own = run_job(job(tmp_path / "a", limit=2))
    same = run_job(job(tmp_path / "b", limit=2, roles={"answer": "reference"}, reference=str(MODEL)))
    assert same.greedy == own.greedy and same.sampled == own.sampled


# The scripts


def summarized(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """`evaluation/summarize_results.py FOLDER` in this process: (exit code, what it printed)."""
    spec = importlib.util.spec_from_file_location("summarize_results", ROOT / "evaluation" / "summarize_results.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["summarize_results.py", *(words or (str(folder),))])
    code = script.guarded(script.main)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_summary_is_computed_from_the_ledgers_also_of_unfinished_jobs(
    tmp_path: Path, scripted: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(lambda m, s: "\\boxed{dog}")
    for model in ("base", "trained"):
        run_job(job(tmp_path / "out" / model / "eval", model_name=model))
    ledger = tmp_path / "out" / "trained" / "eval" / "attempts.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-2]))
    code, shown = summarized(tmp_path / "out", monkeypatch, capsys)
    assert code == 0 and "trained on eval: 75.0% scored, the rest counts as wrong" in shown and "base on eval" not in shown
    text = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert text.strip() == shown.strip() and "| model | eval | average |" in text and "avg@1" in text
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "out" / "summary.csv").read_text(encoding="utf-8").splitlines())}
    assert set(rows) == {"base", "trained"} and rows["trained"]["coverage"] == "0.75" and rows["base"]["coverage"] == "1.0"
    assert float(rows["base"]["avg_at_k"]) == pytest.approx(load_scores(tmp_path / "out" / "base" / "eval").avg_at_k.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("absent",), "absent holds no evaluation.*evaluate_orchestrator.py"), (("--out", "x"), "Usage"), (("a", "b"), "Usage")],
)
def test_a_summary_of_nothing_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, shown = summarized(tmp_path, monkeypatch, capsys, *words)
    assert code == 2 and re.search(message, " ".join(shown.split())) and "Traceback" not in shown


def script(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, *([str(ROOT / "evaluation" / name)] if name.endswith(".py") else ["-m", name]), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_scripts_and_the_command_are_one_and_the_same(tmp_path: Path) -> None:
    options = ["--models", f"tiny={MODEL}", "--datasets", str(DATA), "--limit", "4", "--k", "2", "--gpus", "none", "--threads", "1"]
    first = script("evaluate_orchestrator.py", *options, "--output_dir", "a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    second = script("memfactory.cli", "eval", *options, "--output_dir", "b", cwd=tmp_path)
    assert second.returncode == 0, second.stderr[-2000:]
    assert first.stdout.replace("Look at a/", "Look at b/") == second.stdout
    reports = [read_json(tmp_path / folder / "report.json") for folder in "ab"]
    assert reports[0]["results"] == reports[1]["results"] and reports[0]["results"][0]["coverage"] == 1
    again = script("evaluate_worker.py", str(tmp_path / "a" / "tiny" / "eval" / "asked.json"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    summary = script("summarize_results.py", "a", cwd=tmp_path)
    assert summary.returncode == 0 and "| tiny |" in summary.stdout and (tmp_path / "a" / "summary.csv").is_file()


@pytest.mark.parametrize(
    ("words", "says"), [([], "one job file, got []"), (["a", "b"], "one job file"), (["absent.json"], "No such file: absent.json")]
)
def test_a_worker_started_wrongly_is_one_message(words: list[str], says: str, caplog: pytest.LogCaptureFixture) -> None:
    assert worker(words) == 2
    assert [says in record.getMessage() for record in caplog.records if record.getMessage().startswith("Error: ")] == [True]


def test_scores_of_a_folder_that_is_none_say_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is no evaluated data set: it has no job.json"):
        load_scores(tmp_path)
