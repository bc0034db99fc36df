"""Code written for the public version is refused with a pointer to the porting page, and the page's ported example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memfactory import BaseAgent, BaseModule, LongcontextEnv
from memfactory.common.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "porting.md"


def test_a_module_that_returns_samples_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Old\.rollout is in the style of the public MemFactory \(it takes batch_data\).*docs/porting\.md"
    ):

        class Old(BaseModule):
            def rollout(self, model, batch_data, **kwargs):  # type: ignore[no-untyped-def,override]
                return None


def test_a_module_that_only_reads_reward_fn_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads reward_fn"):

        class Old(BaseModule):
            def rollout(self, model, batch, **kwargs):  # type: ignore[no-untyped-def,override]
                return kwargs.get("reward_fn")


def test_an_agent_that_takes_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="An agent is `initial`, `events`, `write` and `read`"):

        class Old(BaseAgent):
            def inference(self, batch_data, **kwargs):  # type: ignore[no-untyped-def,override]
                return []


def test_an_env_that_scores_lists_is_refused() -> None:
    with pytest.raises(ConfigError, match="compute_reward is in the style.*it takes questions"):

        class Old(LongcontextEnv):
            def compute_reward(self, predictions, ground_truths, questions, **kwargs):  # type: ignore[no-untyped-def,override]
                return []


@pytest.mark.parametrize(
    ("module", "name"),
    [("memfactory.modules.base", "Samples"), ("memfactory.trainers.mem_grpo_trainer", "MemGRPOTrainer"),
     ("memfactory.trainers.mem_grpo_trainer", "MemGRPOArguments")],
)  # fmt: skip
def test_an_old_import_says_what_became_of_it(module: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a name of the public MemFactory.*docs/porting.md"):
        exec(f"from {module} import {name}")
    with pytest.raises(ImportError):
        exec(f"from {module} import NoSuchName")


def test_the_new_style_is_not_refused() -> None:
    class New(BaseModule):
        async def act(self, model, question):  # type: ignore[no-untyped-def,override]
            return question

    assert New(None)


@pytest.mark.usefixtures("forgotten_parts")
@pytest.mark.slow
def test_the_ported_example_of_the_page_rolls_out(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    new = next(block for block in blocks if "async def" in block)
    part = tmp_path / "ported.py"
    part.write_text(new, encoding="utf-8")
    command = [
        sys.executable, "-m", "memfactory.cli", "train", "--import", str(part), "--agent_type", "my_reader", "--model_name_or_path",
        "models/tiny", "--data_path", "datas/tiny/train.json", "--output_dir", str(tmp_path / "out"), "--chunk_size", "16",
        "--max_generate_length", "8", "--batch_size", "2", "--num_generations", "2", "--max_steps", "1", "--device", "cpu",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_page_names_every_flag_of_the_public_launchers() -> None:
    flags = """model_name_or_path data_path output_dir lr beta gradient_accumulation_steps num_generations chunk_size max_chunk_number
    max_prompt_length max_generate_length save_steps batch_size env_type agent_type epoch wandb_name train_extraction train_update"""
    text = PAGE.read_text(encoding="utf-8")
    assert not [flag for flag in flags.split() if f"--{flag}" not in text]
