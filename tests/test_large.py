"""Training large models keeps its promises through a whole trainer: bitwise resume, tensors that stay, exports that load."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.algorithms.lora import adapter_weights, without_adapters
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.common.files import write_json
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers.checkpoint import load_state
from memfactory.trainers.held import held_by
from memfactory.trainers.mem_grpo_trainer import MemTrainer
from memfactory.trainers.metrics import Averages

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
    write_json(tmp_path / "facts.json", synth_facts(3, seed=3, chunks=(2,)))
    base = tiny_qwen3(seed=3, initializer_range=0.12, hidden_size=64, intermediate_size=128)

    def make(**options: Any) -> MemTrainer:
        settings: dict[str, Any] = {
            "data_path": str(tmp_path / "facts.json"), "output_dir": str(tmp_path / "run"), "batch_size": 1, "num_generations": 4,
            "chunk_size": 16, "max_generate_length": 4, "lr": 1e-3, "warmup_updates": 0, "max_steps": 2, "device": "cpu",
            "save_steps": 1, "save_total_limit": 9,
        }  # fmt: skip
        config = TrainConfig(**(settings | options))
        return MemTrainer(config, deepcopy(base), tiny_tokenizer, env=HashEnv(str(config.data_path)))

    return make


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(one: Any, other: Any) -> bool:
    """Bitwise equality of nested containers with tensors in them."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pytest.param("split", marks=pytest.mark.slow), "split 8bit", "lora"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(scheme: str, trainer_of: Callable[..., MemTrainer], tmp_path: Path) -> None:
    options = SCHEMES[scheme] | {"beta": 0.1}
    whole = trainer_of(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    trainer_of(max_steps=1, **options).train()
    resumed = trainer_of(resume=True, **options)
    resumed.train()
    assert resumed.updates == whole.updates == 2
    assert equal(tensors(resumed.model), tensors(whole.model))
    assert equal(*([optimizer.state_dict() for optimizer in trainer.optimizers] for trainer in (whole, resumed)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sampler_and_update_share_tensors_that_never_move_or_change_type(scheme: str, trainer_of: Callable[..., MemTrainer]) -> None:
    trainer = trainer_of(**SCHEMES[scheme])
    before = {name: (p.data_ptr(), p.dtype) for name, p in trainer.model.named_parameters()}
    start = tensors(trainer.model)
    trainer.training_step()
    assert {name: (p.data_ptr(), p.dtype) for name, p in trainer.model.named_parameters()} == before
    assert not equal(start, tensors(trainer.model))
    assert trainer.models.chats["policy"].engine.model is trainer.model  # type: ignore[attr-defined]
    wanted = torch.float32 if scheme == "lora" else torch.bfloat16
    assert {dtype for _, dtype in before.values()} == {wanted}


def test_a_split_checkpoint_is_a_bf16_folder_and_its_residuals_are_in_the_state(trainer_of: Callable[..., MemTrainer]) -> None:
    trainer = trainer_of(master_weights="split", max_steps=1)
    folder = trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == torch.bfloat16 and equal(loaded.state_dict(), trainer.model.state_dict())
    kept = load_state(folder)["optimizers"][0]["state"]
    assert any(bool(state["residual"].any()) for state in kept)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks transformers 5.23 by an old name
def test_a_lora_checkpoint_is_the_merged_model_and_peft_loads_the_adapter_beside_it(
    trainer_of: Callable[..., MemTrainer], tmp_path: Path
) -> None:
    from peft import PeftModel

    trainer = trainer_of(**SCHEMES["lora"], max_steps=1)
    with without_adapters(trainer.model):
        trainer.model.save_pretrained(tmp_path / "frozen", state_dict=start_of(trainer.model))
    folder = trainer.train()
    ids = torch.arange(1, 40)[None]
    expected = trainer.model.eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(ids).logits, expected, atol=2e-5, rtol=1e-5)
    frozen = AutoModelForCausalLM.from_pretrained(tmp_path / "frozen")
    assert not torch.allclose(frozen(ids).logits, expected, atol=1e-3), "the adapters do something"
    beside = PeftModel.from_pretrained(frozen, folder / "adapter").eval()
    assert torch.equal(beside(ids).logits, expected)


def start_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The frozen weights under the names of the model without adapters."""
    return {name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if ".lora_" not in name}


def test_lora_trains_the_adapters_alone_and_the_reference_needs_no_copy(trainer_of: Callable[..., MemTrainer]) -> None:
    trainer = trainer_of(**SCHEMES["lora"], beta=0.1)
    frozen = {name: value.clone() for name, value in start_of(trainer.model).items()}
    assert trainer.reference is not None and trainer.reference.resident is None
    trainer.training_step()
    trainer.step = 1
    metrics = trainer.training_step()
    assert equal(start_of(trainer.model), frozen) and metrics["kl"] > 0
    assert {p.dtype for p in adapter_weights(trainer.model).values()} == {torch.float32}


@pytest.mark.parametrize("scheme", ["split", "lora"])
def test_trap_22_gradient_checkpointing_changes_no_gradient_and_adapters_get_theirs(
    scheme: str, trainer_of: Callable[..., MemTrainer]
) -> None:
    found = []
    for recompute in (False, True):
        trainer = trainer_of(**SCHEMES[scheme], gradient_checkpointing=recompute)
        rollout = trainer._rollout()
        trainer.policy.backward(rollout.data, Averages(), measure_mismatch=True)
        found.append({name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad})
    plain, checked = found
    assert all(torch.allclose(plain[name], checked[name], atol=1e-6) for name in plain)
    moved = [name for name, gradient in checked.items() if gradient.any()]
    assert moved and (scheme == "split" or all("lora_B" in name for name in moved)), "lora_A moves once lora_B is not zero"


def test_trap_21_dropout_of_adapters_is_refused_where_a_policy_samples(trainer_of: Callable[..., MemTrainer]) -> None:
    with pytest.raises(ConfigError, match="--lora_dropout 0.1"):
        trainer_of(lora_r=4, lora_dropout=0.1)


def test_unknown_targets_are_refused(trainer_of: Callable[..., MemTrainer]) -> None:
    with pytest.raises(ConfigError, match="--lora_targets w_proj"):
        trainer_of(lora_r=4, lora_targets=["w_proj"])
    trainer = trainer_of(lora_r=4, lora_targets=["q_proj", "v_proj"])
    assert {name.split(".")[-4] for name in adapter_weights(trainer.model)} == {"q_proj", "v_proj"}


def test_weights_held_otherwise_are_refused_on_resume(trainer_of: Callable[..., MemTrainer]) -> None:
    trainer_of(max_steps=1).train()
    for changed in ({"master_weights": "split"}, {"lora_r": 4}, {"moments": "8bit"}):
        with pytest.raises(ConfigError, match="with other options"):
            trainer_of(resume=True, **changed).train()


def test_what_the_device_decides_is_refused_on_resume_too(trainer_of: Callable[..., MemTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_of(max_steps=1).train()
    plain = held_by(TrainConfig(), False, 0)
    monkeypatch.setattr("memfactory.trainers.held.held_by", lambda *_: replace(plain, master_weights="split"))
    with pytest.raises(ConfigError, match="master_weights: 'fp32' -> 'split'"):
        trainer_of(resume=True).train()
