"""A checkpoint whose weights, shapes or vocabulary are not its configuration's is one error that names the tensors, in every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.build import build_agent, open_models
from memfactory.algorithms.lora import LoraOptions, adapter_weights, add_lora, load_adapter_weights
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.common.files import read_json, write_json
from memfactory.engines.load import check_unloaded, load_causal_lm, load_model
from memfactory.trainers.checkpoint import load_weights
from memfactory.trainers.mem_sft_trainer import MemSFTTrainer

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_qwen3().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def changed(whole: Path, folder: Path, change: Callable[[Weights], object]) -> str:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(whole, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _nan(weights: Weights) -> None:
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    weights["model.norm.weight"][0] = float("-inf")


EMBED = "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Weights], object], str]] = {
    "missing": (lambda w: w.pop(Q), f"1 missing: {Q}"),
    "many missing": (lambda w: [w.pop(n) for n in list(w) if ".layers.1." in n], r"11 missing: model.layers.1\S+, .* and 7 more"),
    "unexpected": (lambda w: w.update({Q.replace("weight", "bias"): torch.zeros(32)}), "1 of no part of the model: .*q_proj.bias"),
    "shape": (lambda w: w.update({Q: torch.zeros(16, 32)}), rf"1 of another shape: {Q} \(16x32 there, 32x32 in the model\)"),
    "resized": (lambda w: w.update({EMBED: w[EMBED][:-1].clone()}), "another shape: .*embed_tokens"),
    "numbers": (_nan, r"2 not finite \(NaN or infinite\): model.layers.0.mlp.up_proj.weight, model.norm.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(damage: str, whole: Path, tmp_path: Path) -> None:
    change, said = DAMAGES[damage]
    path = changed(whole, tmp_path / "damaged", change)
    with pytest.raises(ConfigError, match=said):
        load_causal_lm(path)
    with pytest.raises(ConfigError, match=said):
        load_weights(Path(path))  # what --resume reads


def test_what_is_no_weight_is_no_false_alarm(whole: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.rotary_emb.inv_freq": torch.ones(4)}
    path = changed(whole, tmp_path / "old", lambda w: w.update(extra))
    weights, _ = load_model(path)
    assert weights.config.tie_word_embeddings and torch.equal(weights.lm_head.weight, weights.model.embed_tokens.weight)
    with_head = changed(whole, tmp_path / "head", lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    load_model(with_head)
    large = changed(whole, tmp_path / "large", lambda w: w["model.norm.weight"].fill_(3e38))  # its sum is infinite, it is not
    load_model(large)


def test_every_way_to_a_model_refuses_it(whole: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    path = changed(whole, tmp_path / "damaged", _nan)
    agent = build_agent("memagent", tiny_tokenizer, "cpu", {})
    (tmp_path / "turns.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "response": "b"}\n')
    where = {"data_path": str(tmp_path / "turns.jsonl"), "output_dir": str(tmp_path / "o")}
    config = TrainConfig(trainer="mem_sft", model_name_or_path=path, **where)
    ways: list[Callable[[], object]] = [
        lambda: load_model(path), lambda: open_models(path, agent), lambda: MemSFTTrainer(config),
        lambda: open_models(str(whole), agent, roles={"answer": "reference"}, reference=path),
        lambda: check_unloaded(path, tiny_tokenizer),  # before vLLM opens it
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(ConfigError, match="model.norm.weight"):
            way()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(whole: Path, tmp_path: Path) -> None:
    path = changed(whole, tmp_path / "grown", lambda w: None)
    config = read_json(tmp_path / "grown" / "tokenizer.json")
    rows = read_json(tmp_path / "grown" / "config.json")["vocab_size"]
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    config["added_tokens"].append({"id": rows, "content": "<new>", "special": True} | flags)
    write_json(tmp_path / "grown" / "tokenizer.json", config)
    with pytest.raises(ConfigError, match=f"has {rows + 1} tokens and the model embeds {rows}. The first beyond it: '<new>'"):
        load_model(path)


def test_a_folder_of_adapters_is_refused_in_words(whole: Path, tmp_path: Path) -> None:
    path = changed(whole, tmp_path / "adapter", lambda w: None)
    write_json(tmp_path / "adapter" / "adapter_config.json", {})
    with pytest.raises(ConfigError, match="holds adapters of another model.*Merge them first"):
        load_causal_lm(path)


def test_damaged_adapters_are_named(tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> None:
    model = tiny_qwen3()
    add_lora(model, LoraOptions(2, 4))
    weights = {name: value.clone() for name, value in adapter_weights(model).items()}
    name = next(iter(weights))
    for bad in (torch.full_like(weights[name], float("nan")), weights[name][:1], None):
        damaged = {n: v for n, v in weights.items() if n != name} | ({} if bad is None else {name: bad})
        with pytest.raises(ConfigError, match=name):
            load_adapter_weights(model, damaged)
    load_adapter_weights(model, weights)
