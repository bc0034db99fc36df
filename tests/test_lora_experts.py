"""Adapters on a mixture of experts, whose experts are one 3-D parameter: what is saved or pushed is the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memfactory.algorithms.lora import adapter_weights
from memfactory.common.config import TrainConfig
from memfactory.engines.load import load_causal_lm
from memfactory.engines.weights import save_weights
from memfactory.trainers.held import HeldModel

SIZES = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "pad_token_id": 0,
}  # fmt: skip


def moe(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj"]])
@pytest.mark.parametrize(
    "kind", ["qwen3_moe", *(pytest.param(k, marks=pytest.mark.slow) for k in ("mixtral", "gpt_oss", "granitemoe", "olmoe", "qwen2_moe"))]
)
def test_what_is_saved_is_what_was_trained(kind: str, targets: list[str], tmp_path: Path) -> None:
    model, ids = moe(kind), torch.arange(1, 25)[None]
    model.save_pretrained(tmp_path / "plain")
    before = model(ids).logits.detach()
    held = HeldModel(model, TrainConfig(lora_r=2, lora_alpha=4, lora_targets=targets), on_gpu=False)
    with torch.no_grad():
        for value in adapter_weights(model).values():
            value.normal_(std=0.3)
    trained = model(ids).logits.detach()
    assert not torch.allclose(trained, before, atol=0.1), "the adapters are used"
    if kind in ("qwen3_moe", "mixtral") and targets == ["all-linear"]:  # those whose experts peft adapts
        assert any("experts" in name for name in adapter_weights(model))
    held.save_pretrained(tmp_path / "saved")
    save_weights(model, tmp_path / "pushed")
    for name in ("saved", "pushed"):
        assert torch.allclose(load_causal_lm(str(tmp_path / name))(ids).logits, trained, atol=1e-4)
        names = load_file(tmp_path / name / "model.safetensors").keys()
        assert names == load_file(tmp_path / "plain" / "model.safetensors").keys()
