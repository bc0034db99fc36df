"""Promise: a sampler that is not the trainer is measured, and corrected exactly once; an engine of its own follows the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_algorithms import make_samples, make_trainer, tiny_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.algorithms.ratios import mismatch, segments_of, truncated_weights
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, UserError
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Sampling
from memfactory.engines.hf import HFEngine
from memfactory.engines.load import load_model
from memfactory.engines.weights import checkpoint_weights, save_weights
from memfactory.trainers.correction import log_mismatch
from memfactory.trainers.mem_grpo_trainer import MemTrainer
from memfactory.trainers.metrics import Averages

ROOT = Path(__file__).resolve().parent.parent
CAP = 1.5


class NoisyEngine(HFEngine):
    """The hf engine over a copy of the weights that it keeps until it is told, whose log-probs are off by a known amount each."""

    def __init__(self, model_path: str, stop_ids: frozenset[int], *, noise: float = 0.5) -> None:
        super().__init__(load_model(model_path)[0].eval(), stop_ids)
        self.noise, self.source, self.renewed = noise, None, 0

    def follow(self, model: Any) -> None:
        self.source = model
        self.weights_changed()

    def weights_changed(self) -> None:
        super().weights_changed()
        self.renewed += 1
        self.model.load_state_dict(self.source.state_dict())

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        completion = await super().complete(prompt_ids, sampling)
        return replace(
            completion,
            logprobs=tuple(p + self.off(at, token) for at, (p, token) in enumerate(zip(completion.logprobs, completion.ids, strict=True))),
        )

    def off(self, at: int, token: int) -> float:
        return self.noise * math.sin(7 * at + token)


@pytest.fixture
def noisy(forgotten_parts: None) -> None:
    ENGINE_REGISTRY.register("noisy")(NoisyEngine)


def trainer_with(folder: Path, **options: Any) -> MemTrainer:
    given = {
        "model_name_or_path": str(ROOT / "models" / "tiny"), "data_path": str(ROOT / "datas" / "tiny" / "train.json"), "device": "cpu",
        "output_dir": str(folder), "engine": "noisy", "num_generations": 4, "batch_size": 2, "max_generate_length": 8, "tis_cap": CAP,
        "chunk_size": 64, "warmup_updates": 0, "lr": 1e-3, "bf16": False,
    } | options  # fmt: skip
    return MemTrainer(MemTrainer.configured(given))


# The formula


def test_weights_are_the_formula() -> None:
    old, sampler = torch.tensor([-1.0, -2.0, -0.5, -3.0]), torch.tensor([-1.2, -1.0, -2.5, -3.0])
    segments = torch.tensor([0, 0, 1, 1])
    token = truncated_weights(old, sampler, segments, "token", 2.0)
    assert token.tolist() == pytest.approx([math.exp(0.2), math.exp(-1), 2.0, 1.0])
    assert truncated_weights(old, sampler, segments, "token", 100.0)[2] == pytest.approx(math.exp(2))
    assert truncated_weights(old, sampler, segments, "sequence", 2.0).tolist() == pytest.approx([math.exp(-0.8)] * 2 + [2.0] * 2)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99), level=st.sampled_from(["token", "sequence"]),
    cap=st.floats(0.1, 5),
)  # fmt: skip
def test_weights_are_positive_capped_and_of_each_turn_alone(lengths: list[int], seed: int, level: str, cap: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, sampler = (-3 * torch.rand(sum(lengths), generator=generator) for _ in range(2))
    found = truncated_weights(old, sampler, segments_of(lengths), level, cap)
    assert bool((found > 0).all()) and float(found.max()) <= cap * (1 + 1e-6)
    for whole, p, q in zip(found.split(lengths), old.split(lengths), sampler.split(lengths), strict=True):
        torch.testing.assert_close(truncated_weights(p, q, segments_of([len(p)]), level, cap), whole, rtol=1e-4, atol=1e-6)


def test_mismatch_is_the_formula_and_nothing_where_there_is_none() -> None:
    trainer, sampler = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.3, -1.5, -0.5])
    off, w = [0.3, -0.5, 0.0], [math.exp(0.3), math.exp(-0.5), 1.0]
    expected = {"mean": 0.8 / 3, "max": 0.5, "kl": (sum(w) - sum(off) - 3) / 3, "ess": sum(w) ** 2 / (3 * sum(x * x for x in w))}
    assert mismatch(trainer, sampler) == pytest.approx(expected, rel=1e-6)
    assert mismatch(trainer, trainer) == {"mean": 0, "max": 0, "kl": 0, "ess": 1}


def test_a_sampler_with_other_weights_is_said(caplog: pytest.LogCaptureFixture) -> None:
    near, far = torch.linspace(-3, -0.1, 20), torch.linspace(-0.1, -6, 20)
    log_mismatch(Averages(), near, near + 0.1)
    assert not caplog.text
    log_mismatch(Averages(), near, far)
    assert "The sampler's log-probs are not the trainer's: effective sample size 0." in caplog.text


# The configuration


@pytest.mark.parametrize(
    ("given", "old", "tis"),
    [
        ({}, "sampler", "none"),
        ({"old_logprobs": "frozen"}, "frozen", "none"),
        ({"tis": "sequence"}, "frozen", "sequence"),
        ({"engine": "vllm"}, "frozen", "token"),
        ({"engine": "vllm", "tis": "none"}, "sampler", "none"),
        ({"engine": "vllm", "old_logprobs": "sampler"}, "sampler", "none"),
        ({"engine": "vllm", "old_logprobs": "recompute"}, "recompute", "token"),
    ],
)
def test_the_mismatch_is_corrected_once_unless_said_otherwise(given: dict[str, Any], old: str, tis: str) -> None:
    config = TrainConfig(**given)
    assert (config.old_logprobs, config.tis) == (old, tis)
    assert replace(config) == config == TrainConfig(**config.to_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tis": "token", "old_logprobs": "sampler"}, "--tis token --old_logprobs sampler corrects twice"),
        ({"engine": "vllm", "tis": "none", "old_logprobs": "frozen"}, "leaves the sampler's own rounding uncorrected"),
        ({"old_logprobs": "frosen"}, "Unknown old_logprobs 'frosen'. Did you mean 'frozen'"),
    ],
)
def test_corrected_twice_or_never_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "api"}, "--engine api cannot train: it takes no new weights. Use hf, noisy, vllm."),
        ({"engine": "vlm"}, "Unknown engine 'vlm'. Did you mean 'vllm'"),
        ({"engine_options": '{"noize": 1}'}, "option of the engine 'noisy' 'noize'. Did you mean 'noise'"),
        ({"engine": "hf", "engine_options": '{"slots": 1}'}, "hf has --engine_slots"),
    ],
)
def test_an_engine_that_cannot_train_is_refused_at_once(noisy: None, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer_with(tmp_path, **given)


# In a step


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_is_the_weighted_one(level: str) -> None:
    model, samples = tiny_qwen3(), make_samples(3, [0, 0, 1, 2, 2], [0, 0, 0, 1, 1], ref=True)
    trainer = make_trainer(model, tis=level, tis_cap=CAP, beta=0.1, tokens_per_micro_batch=20)
    averages = Averages()
    trainer.policy.backward(TrainBatch(samples), averages, measure_mismatch=False)  # one update a step: the old log-probs are its own
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    fresh = trainer.policy.with_logprobs(samples, model, "old_logprobs")
    model.zero_grad(set_to_none=True)
    total, tokens, seen = torch.zeros(()), sum(len(s.response_ids) for s in samples), []
    for sample, ours in zip(samples, fresh, strict=True):
        off = torch.tensor(ours.old_logprobs) - torch.tensor(sample.old_logprobs)
        weight = torch.exp(off.sum().expand(len(off)) if level == "sequence" else off).clamp(max=CAP)
        seen.append(weight)
        logits = model(input_ids=torch.tensor([sample.prompt_ids + sample.response_ids])).logits[0, len(sample.prompt_ids) - 1 : -1]
        p = logits.log_softmax(-1).gather(-1, torch.tensor(sample.response_ids)[:, None])[:, 0]
        d = torch.tensor(sample.ref_logprobs) - p
        total = total + (-weight * torch.exp(p - p.detach()) * sample.advantage + 0.1 * (torch.exp(d) - d - 1)).sum() / tokens
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)
    weights = torch.cat(seen)
    assert 0 < float((weights < CAP).float().mean()) < 1, "some are truncated and some are not"
    metrics = averages.means()
    assert metrics["tis_weight"] == pytest.approx(float(weights.mean()), rel=1e-4)
    assert metrics["tis_truncated"] == pytest.approx(float((weights >= CAP).float().mean()), abs=1e-6)


def test_noise_of_an_engine_is_measured_and_weighed(noisy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_with(tmp_path)
    engine: Any = trainer.models.chats["policy"].engine  # type: ignore[union-attr]
    assert (trainer.config.old_logprobs, trainer.config.tis) == ("frozen", "token")
    trained: list[Sample] = []
    backward = trainer.policy.backward

    def noted(part: TrainBatch, *rest: Any, **named: Any) -> None:
        trained.extend(trainer.policy.recomputed(part, Averages()).samples)  # which the one update of a step need not be given
        backward(part, *rest, **named)

    monkeypatch.setattr(trainer.policy, "backward", noted)
    steps = []
    while not trained:
        steps.append(trainer.training_step())
    assert engine.renewed == 1 + len(steps)
    noise = [[engine.off(at, token) for at, token in enumerate(s.response_ids)] for s in trained]
    for sample, off in zip(trained, noise, strict=True):
        weights = truncated_weights(
            *map(torch.tensor, (sample.old_logprobs, sample.sampler_logprobs)), torch.zeros(len(off), dtype=torch.int64), "token", CAP
        )
        assert weights.tolist() == pytest.approx([min(math.exp(-x), CAP) for x in off], abs=2e-5)
    measured = steps[-1]
    assert 0.1 < measured["logprob_mismatch"] < 0.5 >= measured["logprob_mismatch_max"] - 1e-4
    assert 0.5 < measured["mismatch_ess"] < 0.97 and 0 < measured["tis_truncated"] < 1
    assert measured["ratio"] == pytest.approx(1.0, abs=1e-5), "the ratio is to the trainer's own log-probs"


@pytest.mark.slow
def test_an_engine_has_the_weights_of_the_moment_also_after_a_resume(noisy: None, tmp_path: Path) -> None:
    first = trainer_with(tmp_path)
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    assert_equal(held_by(first), before)
    while not first.updates:
        first.training_step()
    assert_equal(held_by(first), first.model.state_dict())
    folder = first.save()
    again = trainer_with(tmp_path, resume=True)
    assert_equal(held_by(again), before)
    again._restore(folder)
    assert_equal(held_by(again), first.model.state_dict())
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(before[name], first.model.state_dict()[name])


def held_by(trainer: MemTrainer) -> dict[str, torch.Tensor]:
    engine: Any = trainer.models.chats["policy"].engine  # type: ignore[union-attr]
    return engine.model.state_dict()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# The weights


class Adapted(torch.nn.Module):
    """peft's LoRA layer, as far as it is looked at."""

    def __init__(self, base: torch.nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer, self.merged, self.active_adapters = base, False, ["default"]
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(rank, base.out_features, bias=False)})

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        return 2.0 * self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 2.0 * self.lora_B["default"](self.lora_A["default"](x))


def test_weights_are_a_checkpoints_with_adapters_merged_and_nothing_changed(tmp_path: Path) -> None:
    model = tiny_qwen3(tie_word_embeddings=True)
    assert {name for name, _ in checkpoint_weights(model)} == set(model.state_dict()) - {"lm_head.weight"}
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        parent, _, leaf = name.rpartition(".")
        owner = model.model.layers[1].get_submodule(parent)
        setattr(owner, leaf, Adapted(getattr(owner, leaf)))
    ids = torch.tensor([[3, 5, 8, 13, 21]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_weights(model, tmp_path / "merged")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    merged = type(model).from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_wrapped_models_names_are_the_checkpoints() -> None:
    inner = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})})
    assert [name for name, _ in checkpoint_weights(torch.nn.ModuleDict({"base_model": inner}))] == ["model.weight", "model.bias"]


def test_vllm_over_several_gpus_is_refused_for_training() -> None:
    from memfactory.engines.vllm import VLLMEngine

    engine = VLLMEngine.__new__(VLLMEngine)
    engine._llm = type("L", (), {"vllm_config": type("C", (), {"parallel_config": type("P", (), {"world_size": 2})})})  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="on one GPU only"):
        engine.follow(torch.nn.Linear(1, 1))
