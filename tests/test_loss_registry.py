"""Promise: every loss by name is its paper's formula, brings its paper's defaults, refuses what it cannot mean, and sees turns whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_algorithms import make_samples, make_trainer, tiny_qwen3
from torch import Tensor

from memfactory.algorithms.losses import TokenLoss, gspo, options_of
from memfactory.algorithms.objective import check_objective, configured_loss, loss_defaults
from memfactory.algorithms.packing import AGGREGATIONS, TrainBatch
from memfactory.algorithms.ratios import segments_of
from memfactory.cli import defaults_of, list_parts
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import ConfigError, UserError
from memfactory.common.registry import LOSS_REGISTRY
from memfactory.trainers.mem_grpo_trainer import MemTrainer
from memfactory.trainers.metrics import Averages

DOCS = Path(__file__).resolve().parent.parent / "docs" / "losses.md"
LOSSES = sorted(LOSS_REGISTRY)
LENGTHS = [3, 1, 4, 2, 5]
LOW, HIGH, DUAL = 0.15, 0.3, 2.0


def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fifteen tokens of five turns: log-probs, old ones, advantages of either sign and so far off that every clip is met, turns."""
    rng = np.random.default_rng(3)
    number = sum(LENGTHS)
    logprobs, old = (torch.tensor(rng.uniform(-3, -0.1, number)) for _ in range(2))
    advantages = torch.tensor(np.repeat([0.7, -0.4, -1.0, 0.3, -0.8], LENGTHS))
    return logprobs.requires_grad_(), old, advantages, segments_of(LENGTHS)


def by_hand(name: str, p: np.ndarray, old: np.ndarray, A: np.ndarray) -> np.ndarray:
    """Each token's loss by the formula of the paper, in float64 numpy."""
    ratio = np.exp(p - old)
    if name == "gspo":
        turn = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        ratio = np.array([np.exp(np.mean((p - old)[turn == at])) for at in turn])
    if name == "cispo":
        return -np.minimum(np.maximum(ratio, 1 - LOW), 1 + HIGH) * A * p
    if name == "sapo":
        tau = np.where(A > 0, 1.0, 1.05)
        return -A * 4 / tau / (1 + np.exp(-tau * (ratio - 1)))
    gain = np.minimum(ratio * A, np.clip(ratio, 1 - LOW, 1 + HIGH) * A)
    return -np.where(A < 0, np.maximum(gain, DUAL * A), gain)


def bound(name: str, **options: Any) -> Any:
    known = {"clip_low": LOW, "clip_high": HIGH, "dual_clip": DUAL} | options
    return configured_loss(
        TrainConfig(loss=name, max_generate_length=9, **{k: v for k, v in known.items() if k in options_of(LOSS_REGISTRY.get(name))})
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_formula_of_its_paper(name: str) -> None:
    logprobs, old, advantages, segments = tokens()
    found = bound(name)(logprobs, old, advantages, segments)
    expected = by_hand(name, logprobs.detach().numpy(), old.numpy(), advantages.numpy())
    np.testing.assert_allclose(found.loss.detach().numpy(), expected, rtol=1e-12)
    assert not found.ratio.requires_grad and found.ratio.shape == found.clipped.shape == found.loss.shape


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_every_loss_is_its_papers(name: str) -> None:
    """All are `-A w grad logprob` with a weight w: what is detached and what is not is the whole difference between them."""
    logprobs, old, advantages, segments = tokens()
    found = bound(name)(logprobs, old, advantages, segments)
    (gradient,) = torch.autograd.grad(found.loss.sum(), logprobs)
    ratio = torch.exp(logprobs.detach() - old)
    weight = torch.where(found.clipped, 0.0, found.ratio)
    if name == "cispo":
        weight = ratio.clamp(1 - LOW, 1 + HIGH)
        assert bool(found.clipped.any()) and bool((gradient != 0).all()), "no token is lost"
    if name == "sapo":
        tau = torch.tensor(np.where(advantages > 0, 1.0, 1.05))
        gate = torch.sigmoid(tau * (ratio - 1))
        weight = 4 * gate * (1 - gate) * ratio
    torch.testing.assert_close(gradient, -advantages * weight, rtol=1e-10, atol=1e-12)


def test_the_token_form_of_gspo_has_the_gradient_of_its_sequence_form() -> None:
    logprobs, old, advantages, segments = tokens()
    weights = torch.tensor(np.repeat([1 / (5 * n) for n in LENGTHS], LENGTHS))
    token = gspo(logprobs, old, advantages, segments, clip_low=LOW, clip_high=HIGH)
    (ours,) = torch.autograd.grad((token.loss * weights).sum(), logprobs)
    total = 0.0
    for at in range(len(LENGTHS)):
        here = segments == at
        s, advantage = torch.exp((logprobs - old)[here].mean()), advantages[here][0]
        total = total - torch.minimum(s * advantage, s.clamp(1 - LOW, 1 + HIGH) * advantage) / len(LENGTHS)
    (theirs,) = torch.autograd.grad(total, logprobs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_absurd_ratios_stay_finite(name: str) -> None:
    logprobs = torch.tensor([999.0, -1001.0, -1.0, -1.0], requires_grad=True)
    for sign in (1.0, -1.0):
        token = bound(name)(logprobs, torch.full((4,), -1.0), torch.full((4,), sign), torch.tensor([0, 1, 2, 2]))
        (gradient,) = torch.autograd.grad(token.loss.sum(), logprobs)
        assert bool(token.loss.isfinite().all() & gradient.isfinite().all())


# A turn is never cut


@pytest.mark.parametrize("backend", [None, "sdpa4d", "paths"])
@pytest.mark.parametrize("budget", [1, 9, 20, 45, 1 << 20])
def test_a_micro_batch_holds_whole_turns_in_their_order(budget: int, backend: str | None) -> None:
    samples = make_samples(5, [0, 0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1, 1])
    samples += [type(s)(s.prompt_ids, s.response_ids[::-1], s.old_logprobs, -s.advantage, 9, 2) for s in samples[:3]]
    seen = []
    for micro in TrainBatch(samples).micro_batches(budget, backend):
        lengths = [len(s.response_ids) for s in micro.samples]
        segments = segments_of(lengths)
        assert len(segments) == len(micro.targets) == sum(lengths)
        for at, sample in enumerate(micro.samples):
            assert tuple(micro.targets[segments == at].tolist()) == sample.response_ids
            torch.testing.assert_close(micro.old[segments == at], torch.tensor(sample.old_logprobs))
        seen += micro.samples
    assert sorted(map(id, seen)) == sorted(map(id, samples))


@pytest.mark.parametrize("name", ["gspo", "cispo"])
def test_gradient_is_the_same_for_any_micro_batches_and_shared_rows(name: str) -> None:
    model, samples = tiny_qwen3(), make_samples(5, [0, 0, 1, 2, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1, 1, 2])
    samples = [type(s)((7, 8, 9), s.response_ids, s.old_logprobs, s.advantage, s.trajectory, s.group) for s in samples]
    found = []
    for budget, share in ((1 << 20, False), (12, False), (40, True)):
        model.zero_grad(set_to_none=True)
        trainer = make_trainer(
            model,
            **{**loss_defaults(name), "clip_low": 0.5, "clip_high": 2.0},
            loss=name,
            tokens_per_micro_batch=budget,
            share_prompts=share,
        )
        trainer.policy.backward(TrainBatch(samples, trainer.config.aggregation), Averages(), measure_mismatch=False)
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for other in found[1:]:
        for key, gradient in found[0].items():
            torch.testing.assert_close(other[key], gradient, atol=1e-6, rtol=1e-5)
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3


# Configuration


def test_a_loss_brings_its_papers_defaults_and_a_flag_wins(tmp_path: Path) -> None:
    def read(*flags: str) -> TrainConfig:
        return read_config(list(flags), None, defaults_of)

    assert read() == TrainConfig(), "the default loss has the options' own defaults"
    dapo, dr = read("--loss", "dapo"), read("--loss", "dr_grpo", "--max_generate_length", "64")
    assert (dapo.aggregation, dapo.clip_low, dapo.clip_high, dapo.dual_clip) == ("token", 0.2, 0.28, 0.0)
    assert (dr.aggregation, dr.clip_high, dr.dual_clip) == ("constant", 0.2, 0.0)
    given = read("--loss", "gspo", "--clip_high", "0.01", "--aggregation", "trajectory")
    assert (given.aggregation, given.clip_low, given.clip_high) == ("trajectory", 3e-4, 0.01)
    (tmp_path / "run.yaml").write_text("loss: cispo\nclip_high: 2.0\n")
    from_file = read(str(tmp_path / "run.yaml"), "--clip_low", "0.9")
    assert (from_file.aggregation, from_file.clip_low, from_file.clip_high) == ("token", 0.9, 2.0)
    assert MemTrainer.configured({"loss": "gspo", "clip_high": 0.01, "aggregation": "trajectory"}) == given
    with pytest.raises(ConfigError, match="aggregation constant divides by the most tokens"):
        read("--loss", "dr_grpo")


def test_a_loss_that_runs_with_other_values_than_its_own_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        configured_loss(TrainConfig(loss="gspo"))
        assert "gspo runs with other values than its own: clip_low 0.2 (0.0003)" in caplog.text
        caplog.clear()
        configured_loss(MemTrainer.configured({"loss": "gspo"}))
        configured_loss(TrainConfig())
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "gpso"}, "Unknown loss 'gpso'. Did you mean 'gspo'"),
        ({"loss": "cispo", "dual_clip": 2.0}, "--dual_clip 2.0: the loss 'cispo' takes none"),
        ({"loss": "sapo", "clip_high": 0.5}, "--clip_high 0.5: the loss 'sapo' takes none. It has: tau_negative, tau_positive"),
        ({"loss": "sapo", "loss_options": '{"tau_negativ": 2}'}, "option of the loss 'sapo' 'tau_negativ'. Did you mean 'tau_negative'"),
        ({"loss_options": '{"clip_low": 0.1}'}, "--loss_options clip_low: it has a flag, --clip_low"),
        ({"clip_low": 1.5}, "--clip_low 1.5: must be at least 0 and at most 1"),
        ({"clip_high": -0.1}, "--clip_high -0.1: must be at least 0"),
        ({"dual_clip": 0.9}, "--dual_clip 0.9: above 1"),
        ({"kl": "k4"}, "Unknown kl 'k4'"),
        ({"kl_gradient": "straight"}, "Unknown kl_gradient 'straight'. Did you mean 'straight_through'"),
        ({"kl": "k1", "beta": 0.1}, "--kl k1 --kl_gradient plain: its gradient is 0 on average"),
        ({"tis": "tokens", "old_logprobs": "frozen"}, "Unknown tis 'tokens'. Did you mean 'token'"),
        ({"tis_cap": 0.0}, "--tis_cap 0.0"),
        ({"advantage": "rloo"}, "Unknown advantage 'rloo'"),
    ],
)
def test_what_cannot_be_optimised_is_one_message_before_anything_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_objective(TrainConfig(**options))


def test_options_of_a_loss_reach_it() -> None:
    logprobs, old, advantages, segments = tokens()
    plain, other = (bound("sapo", **o)(logprobs, old, advantages, segments).loss for o in ({}, {}))
    assert torch.equal(plain, other)
    config = TrainConfig(loss="sapo", loss_options='{"tau_negative": 3.0}')
    changed = configured_loss(config)(logprobs, old, advantages, segments).loss
    assert torch.equal(changed != plain, advantages < 0)


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)


def test_a_loss_of_ones_own_is_under_ten_lines_and_trains(tmp_path: Path, forgotten_parts: None) -> None:
    code = next(text for text in snippets() if "LOSS_REGISTRY.register" in text)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]) < 10
    (tmp_path / "my_loss.py").write_text(code)
    flags = ["--import", str(tmp_path / "my_loss.py"), "--loss", "reinforce"]
    assert read_config(flags, None, defaults_of).aggregation == "trajectory"
    list_parts(flags[:2])
    config = MemTrainer.configured({"loss": "reinforce", "loss_options": '{"floor": 0.5}'})
    check_objective(config)
    token = configured_loss(config)(*tokens())
    assert isinstance(token, TokenLoss)
    logprobs, _, advantages, _ = tokens()
    torch.testing.assert_close(token.loss, -torch.where(advantages.abs() >= 0.5, advantages, 0.0) * logprobs)
    trainer = make_trainer(tiny_qwen3(), loss="reinforce", aggregation="trajectory")
    averages = Averages()
    trainer.policy.backward(TrainBatch(make_samples(3, [0, 1, 1], [0, 0, 0]), "trajectory"), averages, measure_mismatch=False)
    assert averages.means()["loss"] != 0


def test_a_loss_or_advantage_with_other_arguments_is_refused_at_once(forgotten_parts: None) -> None:
    @LOSS_REGISTRY.register("short")
    def short(logprobs: Tensor, old: Tensor, advantages: Tensor) -> TokenLoss:
        raise AssertionError

    with pytest.raises(ConfigError, match=r"The loss 'short' must take \(logprobs, old, advantages, segments\)"):
        check_objective(TrainConfig(loss="short"))


def test_the_page_names_every_loss_kl_and_aggregation() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name in (*LOSSES, "k1", "k2", "k3", *AGGREGATIONS, "leave_one_out", "batch"):
        assert f"`{name}`" in page, name
