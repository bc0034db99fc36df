"""Promise: our loss and its gradient are TRL's (`GRPOTrainer._compute_loss`, TRL 1.16) for every loss that both have, to 1e-5.

The fast tests hold our own path to numbers that TRL gave for the same batch. The slow test asks TRL itself, for every
parameter's gradient, and holds the frozen numbers to it too.
"""

from __future__ import annotations

import math
import random
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_algorithms import make_trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.algorithms import kl
from memfactory.algorithms.credit import assign_credit
from memfactory.algorithms.packing import TrainBatch, pack
from memfactory.common.registry import ADVANTAGE_REGISTRY
from memfactory.common.types import RolloutGroup, Trajectory, Turn
from memfactory.trainers.metrics import Averages

VOCABULARY, MAX_LENGTH, TEMPERATURE, ATTEMPTS = 48, 12, 0.8, 4
BUDGETS = [20, 60, 1 << 20]
"""Tokens in a micro-batch: one row each, a few rows, all rows."""
REWARDS = [0.0, 1.0, 0.25, 1.0, 0.5, 0.0, 0.0, 0.125]
"""Two groups of four."""


@dataclass(frozen=True)
class Case:
    """The same loss in TRL's words and in ours."""

    loss_type: str
    aggregation: str
    scale_rewards: str
    advantage: str
    beta: float = 0.0
    low: float = 0.2
    high: float = 0.2
    delta: float | None = None
    """TRL's two-sided clip, our dual clip; the same function while it is above 1 + high."""
    loss: str = "grpo"
    """Ours."""
    level: str = "token"
    """TRL's `importance_sampling_level`."""
    kl_gradient: str = "plain"
    """`ratio` is TRL's `use_bias_correction_kl`."""


CASES = {
    "grpo": Case("grpo", "sequence", "group", "std"),
    "grpo_kl": Case("grpo", "sequence", "group", "std", beta=0.04, low=0.1, high=0.28),
    "grpo_kl_ratio": Case("grpo", "sequence", "group", "std", beta=0.04, kl_gradient="ratio"),
    "dapo": Case("dapo", "token", "group", "std", high=0.28, loss="dapo"),
    "dapo_delta": Case("dapo", "token", "none", "mean", beta=0.05, low=0.3, high=0.1, delta=1.5, loss="dapo"),
    "dr_grpo": Case("dr_grpo", "constant", "none", "mean", high=0.28, loss="dr_grpo"),
    "dr_grpo_kl": Case("dr_grpo", "constant", "none", "mean", beta=0.04, low=0.3, loss="dr_grpo"),
    "bnpo": Case("bnpo", "token", "batch", "batch", high=0.28, loss="bnpo"),
    "gspo": Case("grpo", "sequence", "group", "std", low=0.1, high=0.15, loss="gspo", level="sequence"),
    "gspo_kl": Case("grpo", "sequence", "none", "mean", beta=0.04, low=0.3, high=0.4, delta=1.5, loss="gspo", level="sequence"),
    "cispo": Case("cispo", "token", "group", "std", low=1.0, high=0.5, loss="cispo"),
    "cispo_kl": Case("cispo", "token", "batch", "batch", beta=0.04, low=1.0, high=0.2, loss="cispo"),
    "sapo": Case("sapo", "sequence", "group", "std", loss="sapo"),
}

PLACES = {
    "model.embed_tokens.weight": (46, 25),
    "model.layers.0.self_attn.q_proj.weight": (25, 17),
    "model.layers.1.mlp.down_proj.weight": (5, 61),
}
"""Where the frozen entries of the gradient stand."""

GOLDEN: dict[str, tuple[float, float, tuple[float, ...]]] = {
    "grpo": (0.735002577, 5.62388028, (0.00862822123, 0.293945223, 0.458814859)),
    "grpo_kl": (1.08140576, 11.3144757, (1.0411948, 0.372198492, 0.470472068)),
    "grpo_kl_ratio": (0.827956915, 6.41670617, (0.00913088676, 0.340223342, 0.528511703)),
    "dapo": (1.37249231, 8.59778231, (0.081376195, 0.465070456, 0.712901175)),
    "dapo_delta": (0.503990293, 9.34457611, (0.926476181, 0.0821104422, 0.0220426619)),
    "dr_grpo": (0.155319333, 0.971275276, (0.0157564767, 0.0464532971, 0.0723819807)),
    "dr_grpo_kl": (0.289630383, 3.36702068, (0.317408681, 0.0745640397, 0.0785094649)),
    "bnpo": (0.845355153, 5.28635097, (0.0857576281, 0.252830893, 0.393952817)),
    "gspo": (0.0835571736, 0.787074876, (0.0286688339, 0.00045860227, -0.000549620949)),
    "gspo_kl": (0.35442856, 9.28686948, (0.960569918, 0.0753166005, 0.00952209998)),
    "cispo": (-0.398489147, 2.57685429, (0.0680599064, 0.00293259625, 0.0191796031)),
    "cispo_kl": (0.0279082321, 8.16920685, (0.814720273, 0.0664794147, 0.0235087145)),
    "sapo": (-0.289714575, 8.22517868, (0.107460983, -0.0610171743, -0.0177129004)),
}
"""{case: (loss, norm of the whole gradient, its entries at PLACES)}, as `by_trl` gave them with TRL 1.16.0, torch 2.13.0 and
transformers 5.23.0 on a CPU; the seeds are in `make_model` and `make_turns`."""

ADVANTAGES: dict[str, list[float]] = {
    "group": [-1.09119856, 0.848710001, -0.606221437, 0.848710001, 1.45213032, -0.660059214, -0.660059214, -0.132011846],
    "none": [-0.5625, 0.4375, -0.3125, 0.4375, 0.34375, -0.15625, -0.15625, -0.03125],
    "batch": [-1.30752146, 1.0169611, -0.726400793, 1.0169611, 0.799040914, -0.363200396, -0.363200396, -0.0726400837],
}
"""What TRL 1.16.0 made of REWARDS: scale_rewards group is our `std`, none is our `mean`, batch is our `batch`."""


@dataclass(frozen=True)
class Result:
    """What one side computed."""

    loss: float
    grads: dict[str, Tensor]
    advantages: list[float]

    def frozen(self) -> tuple[float, float, tuple[float, ...]]:
        norm = torch.stack([grad.double().norm() for grad in self.grads.values()]).norm()
        return self.loss, float(norm), tuple(float(self.grads[name][place]) for name, place in PLACES.items())


@pytest.fixture(autouse=True)
def unbounded_k3(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL bounds k3 nowhere, MemAgent and verl at 10: the bound has its own golden numbers in test_kl.py."""
    monkeypatch.setattr(kl, "K3_BOUND", math.inf)


@pytest.fixture
def make_model(tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> Callable[[], Qwen3ForCausalLM]:
    """A tiny Qwen3 whose weights depend on their names only, not on how a version of transformers draws them."""

    def make() -> Qwen3ForCausalLM:
        model = tiny_qwen3(vocab_size=VOCABULARY, pad_token_id=None, eos_token_id=None)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
                parameter.copy_(0.2 * noise + (1.0 if parameter.ndim == 1 else 0.0))
        return model

    return make


def make_turns() -> tuple[list[Turn], list[tuple[float, ...]]]:
    """Eight turns of ragged length, two prompts of four attempts, and the reference's log-probs."""
    rng = random.Random(16)
    turns, references = [], []
    for at in range(len(REWARDS)):
        if at % ATTEMPTS == 0:
            prompt = tuple(rng.randrange(8, VOCABULARY) for _ in range(3 + 4 * (at // ATTEMPTS)))
        response = tuple(rng.randrange(8, VOCABULARY) for _ in range(rng.randint(1, MAX_LENGTH)))
        old, reference = (tuple(rng.uniform(-5, -3) for _ in response) for _ in range(2))
        turns.append(Turn("answer", prompt, response, old, "", "stop", trainable=True))
        references.append(reference)
    return turns, references


def by_us(model: Qwen3ForCausalLM, case: Case, budget: int) -> Result:
    """Credit, packing, micro-batches, log-probs, loss and backward pass as the trainer runs them."""
    turns, references = make_turns()
    groups = [
        RolloutGroup([Trajectory(turns=[turn]) for turn in turns[at : at + ATTEMPTS]], str(at)) for at in range(0, len(turns), ATTEMPTS)
    ]
    credit = assign_credit(groups, {"default": torch.tensor(REWARDS)}, ADVANTAGE_REGISTRY.get(case.advantage))
    batch: TrainBatch = pack(groups, credit, case.aggregation, max_length=MAX_LENGTH)
    if case.beta:
        batch = replace(batch, samples=[replace(s, ref_logprobs=r) for s, r in zip(batch.samples, references, strict=True)])
    trainer = make_trainer(
        model, aggregation=case.aggregation, max_generate_length=MAX_LENGTH, beta=case.beta, temperature=TEMPERATURE,
        clip_low=case.low, clip_high=case.high, dual_clip=case.delta or 0.0, tokens_per_micro_batch=budget,
        loss=case.loss, kl_gradient=case.kl_gradient,
    )  # fmt: skip
    averages = Averages()
    trainer.policy.backward(batch, averages, measure_mismatch=False)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Result(averages.means()["loss"], grads, [s.advantage for s in batch.samples])


def by_trl(model: Qwen3ForCausalLM, case: Case, folder: Path) -> Result:
    """TRL's own scoring and `_compute_loss` of the same turns, which reach it through its `rollout_func`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        turns, references = make_turns()

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            return {
                "prompt_ids": [list(t.prompt_ids) for t in turns],
                "completion_ids": [list(t.response_ids) for t in turns],
                "logprobs": None,
            }

        words = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w2"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2")
        config = trl.GRPOConfig(
            str(folder), loss_type=case.loss_type, scale_rewards=case.scale_rewards, epsilon=case.low,
            epsilon_high=case.high + (case.loss == "cispo"), importance_sampling_level=case.level,
            delta=case.delta, temperature=TEMPERATURE, max_completion_length=MAX_LENGTH, num_generations=ATTEMPTS,
            per_device_train_batch_size=len(turns), gradient_accumulation_steps=1, steps_per_generation=1,
            use_bias_correction_kl=case.kl_gradient == "ratio", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        )  # fmt: skip
        data = datasets.Dataset.from_list([{"prompt": "w9"}] * len(turns))
        trainer = trl.GRPOTrainer(model, lambda completions, **_: REWARDS, config, data, processing_class=tokenizer, rollout_func=rollout)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        inputs = trainer._generate_and_score_completions([{"prompt": "w9"}] * len(turns))
        inputs["old_per_token_logps"] = padded([t.logprobs for t in turns])
        inputs["ref_per_token_logps"] = padded(references)
        trainer.beta = case.beta  # only now: TRL would load a reference model, and the reference's log-probs are given
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Result(float(loss.detach()), grads, inputs["advantages"].tolist())


def padded(rows: list[tuple[float, ...]]) -> Tensor:
    """Rows [8] of unlike length as one tensor, padded on the right with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def assert_close(found: Result, expected: Result) -> None:
    """Equal to 1e-5 of the scale: the loss, the advantages, and every entry of the gradient of every parameter."""
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
    assert found.advantages == pytest.approx(expected.advantages, rel=1e-5, abs=1e-6)
    assert found.grads.keys() == expected.grads.keys()
    scale = max(float(grad.abs().max()) for grad in expected.grads.values())
    for name, grad in expected.grads.items():
        assert float((found.grads[name] - grad).abs().max()) <= 1e-5 * scale, name


def assert_frozen(found: Result, name: str) -> None:
    """Equal to the frozen numbers of a case, to 1e-5 of their scale."""
    (loss, norm, entries), expected = found.frozen(), GOLDEN[name]
    assert (loss, norm) == pytest.approx(expected[:2], rel=1e-5, abs=1e-6)  # a loss is a sum of terms of order 1 that cancel
    assert entries == pytest.approx(expected[2], rel=1e-5, abs=1e-5 * max(expected[2]))
    assert found.advantages == pytest.approx(ADVANTAGES[CASES[name].scale_rewards], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_frozen_numbers_of_trl(make_model: Callable[[], Qwen3ForCausalLM], name: str, budget: int) -> None:
    assert_frozen(by_us(make_model(), CASES[name], budget), name)


@pytest.mark.slow
def test_the_shared_batch_has_what_could_differ(make_model: Callable[[], Qwen3ForCausalLM]) -> None:
    lengths = [len(turn.response_ids) for turn in make_turns()[0]]
    assert len(set(lengths)) > 4 and max(lengths) <= MAX_LENGTH and len({len(turn.prompt_ids) for turn in make_turns()[0]}) == 2
    clipping: list[dict[str, Any]] = [{"high": 0.1}, {"low": 0.1}, {"beta": 0.01}, {"delta": 2.0}]
    matters = {"gspo": [{"low": -0.08}, {"high": -0.12}, {"beta": 0.01}, {"loss": "grpo"}], "sapo": [{"beta": 0.01}]}
    matters["cispo"] = [{"high": 0.1}, {"low": -0.5}, {"beta": 0.01}]
    for name, case in CASES.items():
        for changed in matters.get(case.loss, clipping):
            new = {key: value if key in ("delta", "loss") else getattr(case, key) + value for key, value in changed.items()}
            other = by_us(make_model(), replace(case, **new), 1 << 20)
            assert abs(other.loss - GOLDEN[name][0]) > 1e-4, f"{name}: {new} changes nothing, so the batch does not test it"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_agree_with_trl_itself(make_model: Callable[[], Qwen3ForCausalLM], name: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs = by_trl(make_model(), case, tmp_path)
    assert_frozen(theirs, name)
    for budget in BUDGETS:
        assert_close(by_us(make_model(), case, budget), theirs)
