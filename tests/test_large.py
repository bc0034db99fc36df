"""Training large models keeps its promises through a whole trainer: bitwise resume, tensors that stay, exports that load."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.common.config import TrainConfig
from memfactory.common.files import write_json
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers.mem_grpo_trainer import MemTrainer

SCHEMES: dict[str, dict[str, Any]] = {
    "split": {"master_weights": "split"},
    "split 8bit": {"master_weights": "split", "moments": "8bit", "offload_optimizer": True},
    "lora": {"lora_r": 4, "lora_alpha": 8, "lr": 1e-2},
}


class HashEnv(LongcontextEnv):
    """Pays by a hash of the answer's text: attempts differ even from a random model."""

    def compute_reward(self, predictions: dict[str, list[str]], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"default": torch.tensor([crc32(text.encode()) % 5 / 4 for text in predictions["answer"]])}


@pytest.fixture
def trainer_of(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MemTrainer]:
    """`trainer_of(**options)`: a trainer on a random model of 80 k parameters; all of a test start from the same one."""
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
    write_json(tmp_path / "facts.json", synth_facts(5, seed=3, chunks=(2,)))
    base = tiny_qwen3(seed=3, initializer_range=0.12, hidden_size=64, intermediate_size=128)

    def make(**options: Any) -> MemTrainer:
        settings: dict[str, Any] = {
            "data_path": str(tmp_path / "facts.json"), "output_dir": str(tmp_path / "run"), "batch_size": 2, "num_generations": 4,
            "chunk_size": 16, "max_generate_length": 4, "lr": 1e-3, "warmup_updates": 0, "max_steps": 2, "device": "cpu",
            "save_steps": 1, "save_total_limit": 9,
        }  # fmt: skip
        config = TrainConfig(**(settings | options))
        return MemTrainer(config, deepcopy(base), tiny_tokenizer, env=HashEnv(str(config.data_path)))

    return make


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(scheme: str, trainer_of: Callable[..., MemTrainer], tmp_path: Path) -> None:
    options = SCHEMES[scheme] | {"beta": 0.1}
    whole = trainer_of(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    trainer_of(max_steps=1, **options).train()
    resumed = trainer_of(resume=True, **options)
    resumed.train()
    assert resumed.updates == whole.updates == 2
    assert same(tensors(resumed.model), tensors(whole.model))
    one, other = (
        torch.save(t.optimizers[0].state_dict(), tmp_path / name) or (tmp_path / name).read_bytes()
        for t, name in ((whole, "a.pt"), (resumed, "b.pt"))
    )
    assert len(one) == len(other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sampler_and_update_share_tensors_that_never_move_or_change_type(scheme: str, trainer_of: Callable[..., MemTrainer]) -> None:
    trainer = trainer_of(**SCHEMES[scheme])
    before = {name: (p.data_ptr(), p.dtype) for name, p in trainer.model.named_parameters()}
    start = tensors(trainer.model)
    trainer.training_step()
    assert {name: (p.data_ptr(), p.dtype) for name, p in trainer.model.named_parameters()} == before
    assert not same(start, tensors(trainer.model))
    assert trainer.models.chats["policy"].engine.model is trainer.model  # type: ignore[attr-defined]
    wanted = torch.float32 if scheme == "lora" else torch.bfloat16
    assert {dtype for _, dtype in before.values()} == {wanted}
