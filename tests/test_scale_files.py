"""The files of examples/scale start what they say: every flag is one of ours, every key one of accelerate's, every script expands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memfactory.cli import slots_of
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.files import read_jsonl

ROOT = Path(__file__).parents[1]
SCALE = ROOT / "examples" / "scale"
CONFIGS = sorted(SCALE.glob("*.yaml"))
SCRIPTS = sorted(SCALE.glob("*.sh"))


def expanded(script: str, *flags: str, **environment: str) -> list[list[str]]:
    """The commands that a script would run, as words."""
    known = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), "DRY_RUN": "1"}
    done = subprocess.run(["bash", str(SCALE / script), *flags], env=known | environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def trained_with(words: list[str]) -> TrainConfig:
    return read_config(words[words.index("examples/train_mem_grpo.py") + 1 :], slots_of)


def test_all_files_are_looked_at() -> None:
    assert {path.name for path in SCALE.iterdir()} == {path.name for path in (*CONFIGS, *SCRIPTS)} and len(CONFIGS) == 3


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_its_files(path: Path) -> None:
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(path))
    assert config.num_processes == 8 * config.num_machines
    assert str(config.distributed_type).endswith("FSDP") == (path.name == "fsdp2.yaml")
    if path.name == "fsdp2.yaml":
        assert config.fsdp_config == {"fsdp_version": 2}


def test_every_machine_of_a_slurm_job_gets_its_number_and_the_first_ones_address() -> None:
    node = {"SLURM_NNODES": "3", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "12007", "FIRST_NODE": "n01"}
    (words,) = expanded("slurm.sh", "--num_generations", "8", "--wandb_name", "a b", MODEL_PATH="models/a model", **node)
    assert words[:3] == ["exec", "accelerate", "launch"]
    given = dict(zip(words[3:], words[4:], strict=False))
    assert (given["--num_machines"], given["--num_processes"], given["--main_process_ip"]) == ("3", "12", "n01")
    assert (given["--machine_rank"], given["--main_process_port"]) == ("$SLURM_NODEID", "29507")
    config = trained_with(words)
    assert (config.num_generations, config.model_name_or_path, config.wandb_name) == (8, "models/a model", "a b")
    assert config.resume and config.examples_per_step >= 12


def test_the_trainer_is_given_the_servers_that_are_started() -> None:
    *servers, trainer = expanded("servers.sh", "--epoch", "2", SERVER_GPUS="0 1", TRAINER_GPUS="2,3,4", PORT="9000")
    assert {word for words in servers for word in words if word.startswith("CUDA")} == {"CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"}
    ports = sorted(words[words.index("--port") + 1] for words in servers)
    config = trained_with(trainer)
    assert config.rollout_servers == [f"http://127.0.0.1:{port}" for port in ports] == ["http://127.0.0.1:9000", "http://127.0.0.1:9001"]
    assert config.epoch == 2 and trainer[trainer.index("--num_processes") + 1] == "3"
    assert all({"VLLM_SERVER_DEV_MODE=1", "processed_logprobs", "--generation-config"} <= set(words) for words in servers)


def test_files_that_are_named_are_there() -> None:
    texts = [path.read_text() for path in (*CONFIGS, *SCRIPTS, ROOT / "docs" / "scaling.md")]
    named = {name for text in texts for name in re.findall(r"(?:examples|docs|tests|memfactory)/[\w./]+\.(?:py|sh|yaml|md)", text)}
    assert len(named) > 6 and not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.slow
def test_two_processes_start_and_train_by_accelerates_file(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(SCALE / "fsdp2.yaml"), "--num_processes", "2",
        "--main_process_port", "0", "examples/train_mem_grpo.py", "--model_name_or_path", "models/tiny",
        "--data_path", "datas/tiny/train.json", "--output_dir", str(tmp_path / "run"), "--batch_size", "4", "--num_generations", "4",
        "--chunk_size", "16", "--max_generate_length", "8", "--max_steps", "1", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes train together, each with a shard" in done.stderr and done.stderr.count("One step: 4 x 1") == 1
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(row["reward_values"]) == 16 and (tmp_path / "run" / "last" / "model.safetensors").is_file()
