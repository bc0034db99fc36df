"""The command line and the examples: a mistake is one message and exit code 2, and what the examples promise happens."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memfactory.cli import explain, guarded, main
from memfactory.common.config import TrainConfig
from memfactory.common.errors import DataError
from memfactory.common.files import read_json, read_jsonl, write_json
from memfactory.common.registry import REGISTRIES
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.engines.load import load_model
from memfactory.trainers.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny" / "train.json"
CUSTOM = ROOT / "examples" / "custom_components.py"


pytestmark = pytest.mark.usefixtures("forgotten_parts")


def train(tmp_path: Path, **options: Any) -> list[str]:
    """Arguments of the smallest training run; an option given as None is left out."""
    if not (tmp_path / "facts.json").exists():
        write_json(tmp_path / "facts.json", synth_facts(2, chunks=(1,)))
    settings: dict[str, Any] = {
        "model_name_or_path": MODEL, "data_path": tmp_path / "facts.json", "output_dir": tmp_path / "run", "batch_size": 2,
        "num_generations": 2, "chunk_size": 16, "max_generate_length": 4, "max_steps": 1, "device": "cpu",
    }  # fmt: skip
    chosen = {name: value for name, value in (settings | options).items() if value is not None}
    return ["train", *(part for name, value in chosen.items() for part in (f"--{name}", str(value)))]


def run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A subprocess with this interpreter as PYTHON, one thread and no network."""
    here = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SWANLAB")} | here | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=230, stdin=subprocess.DEVNULL)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one message on stderr."""
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("Error:") == 1, shown
    return shown


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "memfactory train" in shown and "memfactory list" in shown


def test_help_of_train_explains_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--num_generations" in shown and "Attempts per example (G)" in shown


def test_list_shows_every_part_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for registry in REGISTRIES:
        assert registry.kind in shown
        assert not [name for name in registry if name not in shown]
    for option in ("chunk_size=5000", "module=recurrent_memory_module", "max_memory_tokens=1024", "reward='auto'", "two_hop=0.35"):
        assert option in shown


@pytest.mark.parametrize("flag", ["--import", "--plugins"])
def test_list_shows_ones_own_parts(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "appender" not in capsys.readouterr().out
    assert main(["list", flag, str(CUSTOM)]) == 0
    shown = capsys.readouterr().out
    assert "appender" in shown and "notes=append_module" in shown and "thrifty" in shown and "Write notes on each section" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'?"),
        (["list", "--imports", "x.py"], "Unknown flag of memfactory list '--imports'. Did you mean '--import'?"),
        (["list", "--import", "absent.py"], "--import absent.py: no such file"),
        (["train", "absent.yaml"], "No such configuration file: absent.yaml"),
        (["train", "--lern_rate", "1"], "Unknown flag '--lern_rate'"),
        (["train", "--trainer", "mem_grop"], "Unknown trainer 'mem_grop'. Did you mean 'mem_grpo'?"),
        (["train", "--roles", "{x"], "--roles '{x' is not JSON"),
        (["train"], "--data_path is required"),
    ],
)
def test_a_mistake_in_the_command_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "models/absent"}, "No model at 'models/absent'"),
        ({"model_name_or_path": None}, "--model_name_or_path is required"),
        ({"data_path": "absent.json"}, "No such file: absent.json. datas/tiny/train.json ships with the project"),
        ({"eval_data_path": "dev=absent.json"}, "No such file: absent.json"),
        ({"agent_type": "memagnet"}, "Unknown agent 'memagnet'. Did you mean 'memagent'?"),
        ({"env_type": "long"}, "Unknown env 'long'"),
        ({"loss": "grop"}, "Unknown loss 'grop'. Did you mean 'grpo'?"),
        ({"advantage": "meen"}, "Unknown advantage 'meen'. Did you mean 'mean'?"),
        ({"optimizer": "sgd"}, "Unknown optimizer 'sgd'. Known: adamw, muon"),
        ({"agent_options": '{"chunk": 3}'}, "Unknown option of MemoryAgent 'chunk'. Did you mean"),
        ({"env_options": '{"reward": "boxed"}'}, "'boxed'"),
        ({"roles": '{"memory": "policies"}'}, "Unknown role of the stage memory 'policies'. Did you mean 'policy'?"),
        ({"train_update": "True"}, "MemoryAgent has no stage 'update'"),
    ],
)
def test_what_cannot_work_is_one_message_and_leaves_nothing(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(tmp_path, **options)) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["aggregation", "truncated", "credit", "lr_schedule"])
def test_a_wrong_choice_is_refused_before_anything_is_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(tmp_path, **{name: "wrong"})) == 2
    assert "wrong" in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_broken_data_names_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = synth_facts(2, chunks=(1,))
    write_json(tmp_path / "facts.json", [rows[0], {**rows[1], "answers": []}])
    assert main(train(tmp_path)) == 2
    message = error_of(capsys)
    assert "facts.json, record 1" in message and "`answers`" in message


def test_brackets_in_a_message_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise DataError("got ['a', 'b'] and [bold]x[/bold]")

    assert guarded(command) == 2
    assert "got ['a', 'b'] and [bold]x[/bold]" in error_of(capsys)


def test_ctrl_c_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    assert guarded(command) == 130
    assert "--resume True" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(command)


@pytest.mark.slow
def test_train_leaves_a_checkpoint_and_refuses_a_second_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
    whole: dict[str, Any] = {"chunk_size": 64, "max_generate_length": 24, "num_generations": 8}  # some answers are right: it learns
    assert main(train(tmp_path, **whole)) == 0
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-000001"]
    capsys.readouterr()
    assert main(train(tmp_path, **whole)) == 2
    assert "--resume True" in error_of(capsys)
    assert main(train(tmp_path, resume=True, max_steps=2, **whole)) == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_ones_own_parts_train_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
    lengths = {"chunk_size": None, "max_generate_length": None}
    arguments = train(tmp_path, agent_type="appender", env_type="thrifty", **lengths)
    assert main([*arguments, "--import", str(CUSTOM)]) == 0
    about = read_json(tmp_path / "run" / "last" / "memfactory.json")
    assert (about["agent"], about["env"]) == ("appender", "thrifty")


# The examples, as a user starts them


@pytest.mark.slow
def test_the_command_is_installed(tmp_path: Path) -> None:
    result = run([str(Path(sys.executable).with_name("memfactory")), "list"], tmp_path)
    assert result.returncode == 0 and "memagent" in result.stdout, result.stderr
    wrong = run([sys.executable, "-m", "memfactory.cli", "trian"], tmp_path)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


PUBLISHED = {
    "RunMemoryAgent1.7B.sh": (24, 2500, 6, 6000, 2500, 250, 2),
    "RunMemoryAgent4B.sh": (24, 2500, 6, 5500, 1500, 250, 2),
    "run_MemAgent.sh": (12, 2048, 5, 4096, 3072, 1000, 5),
}
"""{launcher: gradient accumulation, chunk, chunks, prompt, response, save steps, epochs}, as published."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_launcher_trains_the_tiny_model_with_the_published_hyper_parameters(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    paths = {"MODEL_PATH": "models/tiny", "DATA_PATH": "datas/tiny/train.json", "OUTPUT_DIR": str(out)}
    result = run(["bash", str(ROOT / "examples" / name), "--max_steps", "1"], tmp_path, **paths)
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stdout + result.stderr
    assert "Memory expected: " in said and "GiB" in said and "its 250 steps are 10 updates" in said
    model, _ = load_model(str(out / "last"))
    (row,) = read_jsonl(out / "metrics.jsonl")
    config = read_json(out / "last" / "memfactory.json")["config"]
    assert len(row["reward_values"]) == config["gradient_accumulation_steps"] * 16 and row["kl"] == pytest.approx(0, abs=1e-6)
    assert (config["lr"], config["beta"], config["num_generations"], config["batch_size"]) == (5e-6, 0.001, 16, 1)
    keys = "gradient_accumulation_steps chunk_size max_chunk_number max_prompt_length max_generate_length save_steps epoch".split()
    assert tuple(config[key] for key in keys) == PUBLISHED[name]
    assert model.config.model_type == "qwen3"


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_launcher_trains_on_a_test_set(name: str) -> None:
    flags = [line for line in (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert not [line for line in flags if "eval_" in line]


def test_training_on_the_held_out_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = train(tmp_path)
    data = arguments[arguments.index("--data_path") + 1]
    (tmp_path / "copy.json").write_bytes(Path(data).read_bytes())
    assert main([*arguments, "--eval_data_path", f"dev={tmp_path / 'copy.json'}"]) == 2
    assert "is the held-out set" in error_of(capsys)


def test_a_save_past_the_end_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    explain(TrainConfig(gradient_accumulation_steps=24, save_steps=250), steps=166, updates_per_step=1)
    assert "250 is past the end" in caplog.text and "its 250 steps are 10 updates" in caplog.text


SMALL_BANK = {"style": "lines", "near": 3, "answer_from": 8}
SMALL_RERANK = {"style": "lines", "extractor": "verbatim_extractor", "updater": "append_updater", "answerer": "answerer"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "small", "trains"),
    [
        ("run_MemR1.sh", "models/tiny-bank", SMALL_BANK, ("tiny_bank", "count/operation_ADD")),
        ("run_RMM.sh", "models/tiny-rerank", SMALL_RERANK, ("tiny_rerank", "count/kept_items")),
    ],
)
def test_a_bank_launcher_has_the_published_hyper_parameters_and_takes_a_file_of_settings(
    name: str, model: str, small: dict, trains: tuple[str, str], tmp_path: Path
) -> None:
    launcher = ["bash", str(ROOT / "examples" / name), "--max_steps", "1"]
    paths = {"MODEL_PATH": model, "DATA_PATH": "datas/tiny_bank/train.json", "OUTPUT_DIR": str(tmp_path / "published")}
    result = run([*launcher, "--agent_options", json.dumps(small), "--max_generate_length", "48"], tmp_path, **paths)
    assert result.returncode == 0, result.stderr[-3000:]
    config = read_json(tmp_path / "published" / "last" / "memfactory.json")["config"]
    sizes = [config[key] for key in ("gradient_accumulation_steps", "num_generations", "max_prompt_length", "epoch", "lr", "beta")]
    assert sizes == [12, 8, 3072, 5, 1e-6, 0.01]
    settings, counted = trains
    result = run(launcher, tmp_path, CONFIG=f"examples/configs/{settings}.yaml", OUTPUT_DIR=str(tmp_path / "tiny"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert read_json(tmp_path / "tiny" / "last" / "memfactory.json")["config"]["batch_size"] == 16
    (row,) = read_jsonl(tmp_path / "tiny" / "metrics.jsonl")
    assert 0.1 < row["reward"] < 0.9 and row[counted] > 0


@pytest.mark.slow
def test_the_launcher_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    launcher = ["bash", str(ROOT / "examples" / "RunMemoryAgent4B.sh"), "--output_dir", str(tmp_path / "out")]
    result = run(launcher, tmp_path, MODEL_PATH="models/absent", DATA_PATH="datas/tiny/train.json")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "hf download" in result.stderr and "MODEL_PATH" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_custom_components_example_trains(tmp_path: Path) -> None:
    for name in ("models", "datas"):
        (tmp_path / name).symlink_to(ROOT / name)
    result = run([sys.executable, str(CUSTOM)], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    out = tmp_path / "output" / "custom"
    assert [row["step"] for row in read_jsonl(out / "metrics.jsonl")] == [1, 2, 3]
    assert read_json(out / "last" / "memfactory.json")["agent"] == "appender"


@pytest.mark.slow
def test_the_quick_start_reports_stops_when_done_and_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    command = [
        sys.executable,
        str(ROOT / "examples" / "quickstart.py"),
        "--max_steps",
        "2",
        "--eval_samples",
        "4",
        "--output_dir",
        str(out),
    ]
    first = run(command, tmp_path, QUICKSTART_EVAL_SAMPLES="4")
    assert first.returncode == 0, first.stderr[-3000:]
    check_report(out)
    written = (out / "report.json").stat().st_mtime_ns
    again = run(command, tmp_path, QUICKSTART_EVAL_SAMPLES="4")
    assert again.returncode == 0 and "Already done" in again.stdout and (out / "report.json").stat().st_mtime_ns == written
    (out / "marker").touch()
    fresh = run([*command, "--fresh"], tmp_path, QUICKSTART_EVAL_SAMPLES="4")
    assert fresh.returncode == 0 and not (out / "marker").exists()
    assert (out / "report.json").stat().st_mtime_ns > written
    assert len(read_jsonl(out / "metrics.jsonl")) == 2


def check_report(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    datasets = {row["dataset"] for row in report["results"]}
    assert report["minutes"] >= 0 and len(datasets) == 3
    assert {(row["dataset"], row["model"]) for row in report["results"]} == {(d, m) for d in datasets for m in ("base", "trained")}
    assert {(row["dataset"], row["metric"]) for row in report["paired"]} == {(d, m) for d in datasets for m in ("sampled", "greedy")}
    for row in report["results"]:
        assert row["coverage"] == 1 and {"n", "k", "avg_at_k", "se", "greedy"} <= set(row) and row["n"] == 4 and 0 <= row["avg_at_k"] <= 1
    for row in report["paired"]:
        assert row["ci_low"] <= row["diff"] <= row["ci_high"]
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "trained" in (out / "report.md").read_text(encoding="utf-8")
    assert len(list((out / "evaluation").glob("*/*/examples.txt"))) == 6 and checkpoints(out)
    assert [row["step"] for row in read_jsonl(out / "metrics.jsonl")] == [1, 2]


def test_a_slot_flag_reaches_the_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*train(tmp_path), "--module", "recurrent_memory_modul"]) == 2
    assert "Unknown module 'recurrent_memory_modul'. Did you mean 'recurrent_memory_module'?" in error_of(capsys)
