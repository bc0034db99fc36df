"""What MemTrainer and MemSFTTrainer promise: bitwise resume, honest log-probs, a constant reference, no update without a signal.

All on a tiny random Qwen3 over a few questions of `synth_facts`, with rewards that are functions of the answers' text.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.algorithms.logprobs import response_logprobs
from memfactory.algorithms.tree_attention import attending
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, DataError, UserError
from memfactory.common.files import read_jsonl, write_json, write_jsonl
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.engines.load import load_model
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.base import BaseTrainer
from memfactory.trainers.mem_grpo_trainer import MemTrainer, Rollout
from memfactory.trainers.mem_sft_trainer import MemSFTTrainer

Base = tuple[PreTrainedModel, PreTrainedTokenizerBase]
TIMES = ("seconds", "per_second", "cpu_seconds_total", "peak_memory_gb", "mfu")
"""What differs between two runs of the same computation: keys that end so, and those of time's parts."""


class HashEnv(LongcontextEnv):
    """Pays 0, 0.25, ... 1 by a hash of the answer's text: attempts differ even from a random model."""

    def compute_reward(
        self, predictions: dict[str, list[str]], ground_truths: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        return {"default": torch.tensor([crc32(text.encode()) % 5 / 4 for text in predictions["answer"]])}


class ConstantEnv(HashEnv):
    """Pays everyone the same; what would tell the attempts apart is a component, logged and not paid."""

    def compute_reward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        values = super().compute_reward(*args, **kwargs)["default"]
        return {"default": torch.full_like(values, 0.3), "default/hash": values}


class BrokenJudgeEnv(HashEnv):
    """Cannot score the first attempt of each group."""

    def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> dict[str, torch.Tensor]:
        rewards = super().compute_reward(predictions, ground_truths, num_generations, **kwargs)
        rewards["default"][::num_generations] = math.nan
        return rewards


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> Path:
    """`base/`, a random model that ends some of its turns by itself, and `facts.json`, five questions of two chunks."""
    made = tmp_path_factory.mktemp("trainer")
    tiny_qwen3(seed=3, initializer_range=0.12).save_pretrained(made / "base")
    tiny_tokenizer.save_pretrained(made / "base")
    write_json(made / "facts.json", synth_facts(5, seed=3, chunks=(2,)))
    return made


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    """The random model and its tokenizer as loaded; a trainer gets a copy."""
    return load_model(str(folder / "base"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than a run of these; the one test of them undoes this."""
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)


def made(
    base: Base, folder: Path, env: type[LongcontextEnv] = HashEnv, model: Qwen3ForCausalLM | None = None, **options: Any
) -> MemTrainer:
    """A trainer as a new process would make it: of `base`, if no model is given."""
    torch.manual_seed(random.randrange(1 << 30))  # nothing may depend on what the process did before
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder / "base"), "data_path": str(folder / "facts.json"),
        "batch_size": 2, "num_generations": 4, "chunk_size": 16, "max_generate_length": 4, "lr": 1e-3, "warmup_updates": 0,
        "max_steps": 1, "device": "cpu", "save_steps": 100,
    }  # fmt: skip
    config = TrainConfig(**(settings | options))
    return MemTrainer(config, model or deepcopy(base[0]), base[1], env=env(config.data_path))


@pytest.fixture
def grpo(base: Base, folder: Path, tmp_path: Path) -> Callable[..., MemTrainer]:
    """`grpo(env=HashEnv, model=None, **options)`: a trainer whose run is in `tmp_path / "run"`."""
    return partial(made, base, folder, output_dir=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def trained(base: Base, folder: Path) -> Path:
    """The folder of a finished run of `grpo()`: copy it to `tmp_path / "run"` to go on from it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
        made(base, folder, output_dir=str(folder / "trained")).train()
    return folder / "trained"


def rollouts_of(trainer: MemTrainer) -> list[Rollout]:
    """A list that the trainer's rollouts will be added to."""
    seen: list[Rollout] = []
    original = trainer._rollout

    def spy() -> Rollout:
        seen.append(original())
        return seen[-1]

    trainer._rollout = spy  # type: ignore[method-assign]
    return seen


def stop_after(trainer: BaseTrainer, step: int) -> None:
    """Make the trainer stop as by Ctrl-C once `step` steps are done."""
    original = trainer.training_step

    def step_or_stop() -> dict[str, Any]:
        if trainer.step == step:
            raise KeyboardInterrupt
        return original()

    trainer.training_step = step_or_stop  # type: ignore[method-assign]


def token_ids(rollout: Rollout) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    return [[(turn.prompt_ids, turn.response_ids) for turn in t.turns] for group in rollout.groups for t in group.trajectories]


def weights_of(trainer: BaseTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Bitwise equality of nested containers with tensors in them."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def metrics_of(trainer: BaseTrainer) -> list[dict[str, Any]]:
    rows = read_jsonl(trainer.output_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.endswith(TIMES) and not key.startswith("time/")} for row in rows]


# Resume


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr_schedule": "linear", "num_minibatches": 2, "beta": 0.01, "old_logprobs": "frozen"},
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow),
    ],
    ids=["adamw", "muon"],
)
def test_four_steps_equal_two_and_a_resumed_two(grpo: Callable[..., MemTrainer], tmp_path: Path, options: dict[str, Any]) -> None:
    options = options | {"max_steps": 4, "save_steps": 2}  # the third step holds the border of two epochs
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    expected = rollouts_of(whole)
    whole.train()
    stopped = grpo(**options)
    stop_after(stopped, 3)  # a step past the checkpoint: its line in metrics.jsonl must not count twice
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = grpo(**options, resume=True)
    seen = rollouts_of(resumed)
    resumed.train()
    assert [token_ids(rollout) for rollout in seen] == [token_ids(rollout) for rollout in expected[2:]]
    assert same(weights_of(resumed), weights_of(whole))
    assert same([o.state_dict() for o in resumed.optimizers], [o.state_dict() for o in whole.optimizers])
    assert metrics_of(resumed) == metrics_of(whole) and [row["step"] for row in metrics_of(whole)] == [1, 2, 3, 4]
    assert (resumed.step, resumed.updates) == (4, whole.updates)


def test_a_longer_run_may_be_asked_for_on_resume(grpo: Callable[..., MemTrainer], tmp_path: Path) -> None:
    grpo(max_steps=1).train()
    longer = grpo(max_steps=2, resume=True)
    last = longer.train()
    whole = grpo(max_steps=2, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert last.name == "checkpoint-000002"
    assert same(weights_of(longer), weights_of(whole))


def test_resuming_a_finished_run_changes_nothing(grpo: Callable[..., MemTrainer]) -> None:
    last = grpo(max_steps=2).train()
    before = {path: path.read_bytes() for path in last.rglob("*") if path.is_file()}
    again = grpo(max_steps=2, resume=True)
    assert again.train() == last
    assert {path: path.read_bytes() for path in last.rglob("*") if path.is_file()} == before
    assert len(metrics_of(again)) == 2


def test_an_output_dir_with_a_checkpoint_is_refused_and_left_alone(grpo: Callable[..., MemTrainer], tmp_path: Path) -> None:
    grpo().train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=r"--resume True.*nothing was touched"):
        grpo()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"num_generations": 5}, {"seed": 1}, {"chunk_size": 8}], ids=str)
def test_resume_with_other_options_is_refused(
    grpo: Callable[..., MemTrainer], trained: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    with pytest.raises(ConfigError, match="trained with other options"):
        grpo(**change, resume=True, max_steps=2).train()


# Log-probs


def test_a_single_update_has_ratio_one_and_clips_nothing(grpo: Callable[..., MemTrainer]) -> None:
    metrics = grpo().training_step()
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["clip_fraction"] == 0
    assert metrics["logprob_mismatch"] < 1e-5


@pytest.mark.parametrize("old", ["sampler", "frozen"])
def test_a_second_pass_meets_the_old_logprobs_of_the_rollout(grpo: Callable[..., MemTrainer], old: str) -> None:
    metrics = grpo(num_iterations=2, lr=0.05, old_logprobs=old).training_step()
    assert abs(metrics["ratio"] - 1) > 1e-3 and metrics["ratio_max"] > 1.05
    assert metrics["clip_fraction"] > 0


def test_recomputed_logprobs_make_every_ratio_one(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(num_iterations=2, num_minibatches=2, lr=0.05, old_logprobs="recompute")
    before = weights_of(trainer)
    metrics = trainer.training_step()
    assert trainer.updates == 4 and not same(before, weights_of(trainer))
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize(("old", "iterations", "passes"), [("sampler", 2, 0), ("frozen", 1, 0), ("frozen", 2, 1), ("recompute", 2, 0)])
def test_old_logprobs_take_a_pass_only_where_the_weights_have_moved_on(
    grpo: Callable[..., MemTrainer], old: str, iterations: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = grpo(num_iterations=iterations, old_logprobs=old)
    asked, real = [], trainer.policy.with_logprobs
    monkeypatch.setattr(trainer.policy, "with_logprobs", lambda *args: (asked.append(args[2]), real(*args))[1])
    metrics = trainer.training_step()
    assert asked == ["old_logprobs"] * passes
    assert metrics["logprob_mismatch"] < 1e-5  # measured whichever way they came


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_are_those_of_a_forward_pass(grpo: Callable[..., MemTrainer], temperature: float) -> None:
    sampled, frozen = (
        grpo(old_logprobs=old, temperature=temperature, num_iterations=2)._rollout().data.samples for old in ("sampler", "frozen")
    )
    assert sampled and [s.response_ids for s in sampled] == [s.response_ids for s in frozen]
    for one, other in zip(sampled, frozen, strict=True):
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-5)


def test_the_reference_stays_the_base_model(grpo: Callable[..., MemTrainer], base: Base) -> None:
    trainer = grpo(beta=0.1)
    assert trainer.reference is not None and trainer.reference.resident is not None
    for step in range(3):
        rollout = trainer._rollout()
        for micro in rollout.data.micro_batches(trainer.config.tokens_per_micro_batch, trainer.policy.backend):
            with torch.no_grad(), attending(base[0], trainer.policy.backend):
                assert micro.ref is not None and torch.equal(response_logprobs(base[0].eval(), micro)[0], micro.ref)
        trainer.training_step()
        trainer.step = step + 1
    assert same(trainer.reference.resident.state_dict(), base[0].state_dict()) and not same(weights_of(trainer), base[0].state_dict())


def test_kl_is_zero_before_the_first_update_and_positive_after_it(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(beta=0.1, max_steps=2, lr=0.01)
    trainer.train()
    first, second = metrics_of(trainer)
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert second["kl"] > 1e-6


def test_without_beta_there_is_no_reference_and_no_kl(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo()
    assert trainer.reference is None
    assert "kl" not in trainer.training_step()


def test_dropout_in_a_config_does_not_part_trainer_and_sampler(
    grpo: Callable[..., MemTrainer], tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> None:
    metrics = grpo(model=tiny_qwen3(seed=3, initializer_range=0.12, attention_dropout=0.5)).training_step()
    assert metrics["logprob_mismatch"] < 1e-5


# No signal, no update


def test_a_batch_without_variance_changes_nothing_and_is_counted(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(ConstantEnv, beta=0.1, max_steps=2)
    before = weights_of(trainer)
    with pytest.raises(UserError, match=r"Ended at step 2 without any update.*got the same reward \(the last mean was 0.300\)"):
        trainer.train()
    assert same(weights_of(trainer), before) and trainer.updates == 0 and ckpt.checkpoints(trainer.output_dir) == []
    for row in metrics_of(trainer):
        assert row["informative"] == 0 and row["zero_variance_groups"] == 2 and row["reward"] == pytest.approx(0.3)
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_components_with_a_slash_are_logged_and_not_paid(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(ConstantEnv)
    rollout = trainer._rollout()
    assert len(set(rollout.rewards["default/hash"].tolist())) > 1, "the component must differ, or this shows nothing"
    assert rollout.data.samples == []
    assert rollout.metrics["reward/default/hash"] == pytest.approx(float(rollout.rewards["default/hash"].mean()))


def test_unscorable_attempts_are_counted_and_not_trained(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(BrokenJudgeEnv)
    rollout = trainer._rollout()
    trained = {sample.trajectory for sample in rollout.data.samples}
    assert rollout.metrics["unscorable"] == 2
    assert trained and not trained & {0, 4}
    assert len(rollout.metrics["reward_values"]) == 6
    assert math.isfinite(rollout.metrics["reward"])
    metrics = trainer.training_step()
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))


def test_an_unscorable_attempt_is_left_out_of_its_groups_baseline(grpo: Callable[..., MemTrainer]) -> None:
    rollout = grpo(BrokenJudgeEnv)._rollout()
    rewards = rollout.rewards["default"].reshape(2, 4)
    for sample in rollout.data.samples:
        others = rewards[sample.group, 1:]
        expected = float(rewards.flatten()[sample.trajectory] - others.mean())
        assert sample.advantage == pytest.approx(expected, abs=1e-6)


def test_a_non_finite_gradient_is_skipped_and_counted(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(max_steps=2)
    before = weights_of(trainer)
    handle = trainer.model.get_input_embeddings().weight.register_hook(lambda grad: grad * math.nan)
    trainer.training_step()
    assert same(weights_of(trainer), before)
    assert (trainer.updates, trainer.skipped_updates) == (0, 1)
    handle.remove()
    trainer.training_step()
    assert not same(weights_of(trainer), before)
    assert (trainer.updates, trainer.skipped_updates) == (1, 1)


@pytest.mark.slow
def test_a_non_finite_gradient_leaves_metrics_that_any_reader_takes(
    grpo: Callable[..., MemTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the curves are drawn too
    trainer = grpo(max_steps=2)  # one of which learns: a run without any update would be an error
    trainer.model.get_input_embeddings().weight.register_hook(lambda grad: grad * (math.nan if trainer.step == 0 else 1.0))
    trainer.train()

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    line, _ = (trainer.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row["skipped_updates"] == 1 and row["grad_norm"] is None
    assert (trainer.output_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_every_step_draws_anew(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(ConstantEnv, max_steps=2)
    examples = trainer.examples_of(0)
    trainer.examples_of = lambda step: examples  # type: ignore[method-assign]
    seen = rollouts_of(trainer)
    with pytest.raises(UserError, match="without any update"):
        trainer.train()
    first, second = ([ids for _, ids in (turn for turns in token_ids(rollout) for turn in turns)] for rollout in seen)
    assert trainer.updates == 0 and first != second, "the same questions and weights, but other random numbers"


# Stopping, data order, memory


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, 1), (0.0, 0)])
def test_cpu_minutes_stop_the_run_and_a_checkpoint_is_left(grpo: Callable[..., MemTrainer], minutes: float, steps: int) -> None:
    trainer = grpo(max_steps=50, max_cpu_minutes=minutes)
    last = trainer.train()
    assert trainer.step == steps
    assert last == trainer.output_dir / f"checkpoint-{steps:06d}"
    assert ckpt.load_state(last)["step"] == steps
    assert (trainer.output_dir / "last").resolve() == last.resolve()


def test_a_budget_of_sampled_tokens_ends_the_run_and_its_schedule(grpo: Callable[..., MemTrainer]) -> None:
    """The learning rate falls with the tokens spent, whatever number of steps they make; a resumed run goes on with what is left."""
    options = {"max_rollout_tokens": 400, "max_steps": None, "lr_schedule": "linear", "warmup_updates": 1, "lr": 1e-3}
    trainer = grpo(**options)
    trainer.train()
    rows = read_jsonl(trainer.output_dir / "metrics.jsonl")
    spent = [sum(row["rollout_tokens"] for row in rows[:at]) for at in range(len(rows) + 1)]
    assert spent[-2] < 400 <= spent[-1] == trainer.rollout_tokens and len(rows) > 2
    rates = [row["lr"] for row in rows]
    assert rates[0] == pytest.approx(5e-4) and rates[1:] == pytest.approx(
        [1e-3 * (1 - spent[at] / 400) for at in range(1, len(rows))], rel=1e-3
    )
    with pytest.raises(ConfigError, match="max_rollout_tokens"):
        grpo(**{**options, "max_rollout_tokens": 800}, output_dir=str(trainer.output_dir), resume=True).train()


def test_every_epoch_covers_the_data_once_in_an_order_of_its_own(grpo: Callable[..., MemTrainer]) -> None:
    trainer, again, other = grpo(), grpo(), grpo(seed=1)

    def order(of: MemTrainer) -> list[str]:
        return [example["example_id"] for step in range(5) for example in of.examples_of(step)]

    first, second = order(trainer)[:5], order(trainer)[5:]  # five questions, two a step: step 3 holds the border
    everything = {example["example_id"] for example in trainer.env.examples}
    assert set(first) == everything and set(second) == everything
    assert first != second
    assert order(again) == order(trainer) and order(other) != order(trainer)


def test_epochs_are_counted_in_whole_rollout_batches(grpo: Callable[..., MemTrainer]) -> None:
    assert grpo(max_steps=None, epoch=2).total_steps == 5
    assert grpo(max_steps=None, epoch=2, gradient_accumulation_steps=2).total_steps == 2
    assert grpo(max_steps=3, epoch=2).total_steps == 3


def test_gradient_checkpointing_gives_the_same_weights(grpo: Callable[..., MemTrainer]) -> None:
    plain, frugal = grpo(lr=1e-2), grpo(lr=1e-2, gradient_checkpointing=True)
    start = weights_of(plain)
    plain.training_step()
    frugal.training_step()
    assert not same(weights_of(plain), start)
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(frugal)[name], tensor, rtol=0, atol=1e-6)


def test_what_is_trained_is_what_was_sampled(grpo: Callable[..., MemTrainer]) -> None:
    rollout = grpo(max_generate_length=8)._rollout()
    trajectories = [t for group in rollout.groups for t in group.trajectories]
    assert rollout.data.samples
    for sample in rollout.data.samples:
        turns = [(t.prompt_ids, t.response_ids, t.logprobs) for t in trajectories[sample.trajectory].turns]
        assert (sample.prompt_ids, sample.response_ids, sample.old_logprobs) in turns


def test_a_truncated_response_is_trained_without_an_end_token(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(max_generate_length=3)
    rollout = trainer._rollout()
    finish = {t.response_ids: t.finish for group in rollout.groups for tr in group.trajectories for t in tr.turns}
    kinds = set()
    for micro in rollout.data.micro_batches(1 << 20):
        for row, sample in enumerate(micro.samples):
            targets = micro.targets[micro.rows == row].tolist()
            kinds.add(finish[sample.response_ids])
            assert targets == list(sample.response_ids)
            assert (trainer.tokenizer.eos_token_id in targets) == (finish[sample.response_ids] == "stop")
    assert "length" in kinds


# Metrics


def test_metrics_have_the_promised_keys(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(beta=0.01, max_generate_length=3)
    trainer.train()
    (row,) = read_jsonl(trainer.output_dir / "metrics.jsonl")
    promised = (
        "step reward reward_std reward_values informative zero_variance_groups unscorable errors kl entropy clip_fraction ratio loss "
        "grad_norm lr length/memory length/answer count/truncated_memory count/truncated_answer rollout_tokens_per_second "
        "update_tokens_per_second peak_memory_gb logprob_mismatch seconds cpu_seconds_total updates skipped_updates"
    )
    assert set(promised.split()) <= set(row)
    assert len(row["reward_values"]) == 8 and row["reward"] == pytest.approx(sum(row["reward_values"]) / 8, abs=1e-4)
    assert 0 < row["length/memory"] <= 3 and row["rollout_tokens_per_second"] > 0 and row["peak_memory_gb"] > 0


def test_truncations_are_not_mentioned_when_there_are_none(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(max_generate_length=3)
    trainer.models.chats["policy"].engine.stop_ids = frozenset(range(len(trainer.tokenizer)))  # type: ignore[attr-defined]
    metrics = trainer.training_step()
    assert metrics["length/memory"] == 1
    assert not [key for key in metrics if "truncated" in key]


# Supervised


@pytest.fixture
def sft(folder: Path, tmp_path: Path) -> Callable[..., MemSFTTrainer]:
    """`sft(**options)`: a supervised trainer over eight turns that answer a question with its second word."""
    names = "alice bob carol david emma frank grace henry".split()
    rows = [{"messages": [{"role": "user", "content": f"city {name} ?"}], "response": f"{name} ."} for name in names]
    write_jsonl(tmp_path / "turns.jsonl", rows)

    def make(**options: Any) -> MemSFTTrainer:
        torch.manual_seed(random.randrange(1 << 30))
        settings: dict[str, Any] = {
            "trainer": "mem_sft", "model_name_or_path": str(folder / "base"), "data_path": str(tmp_path / "turns.jsonl"),
            "output_dir": str(tmp_path / "sft"), "batch_size": 4, "lr": 3e-3, "warmup_updates": 0, "device": "cpu", "save_steps": 100,
        }  # fmt: skip
        return MemSFTTrainer(TrainConfig(**(settings | options)))

    return make


@pytest.mark.slow
def test_supervised_loss_falls(sft: Callable[..., MemSFTTrainer]) -> None:
    trainer = sft(max_steps=40, optimizer="muon")
    trainer.train()
    losses = [row["loss"] for row in metrics_of(trainer)]
    assert losses[-1] < 0.5 * losses[0]


def test_supervised_training_trains_the_response_and_its_end_only(sft: Callable[..., MemSFTTrainer]) -> None:
    trainer = sft()
    sample = trainer._sample(trainer.rows[0], 0)
    assert trainer.tokenizer.decode(list(sample.response_ids)) == "alice .<|im_end|>"
    with torch.no_grad():
        logits = trainer.model(torch.tensor([sample.prompt_ids + sample.response_ids])).logits[0].log_softmax(-1)
    start = len(sample.prompt_ids)
    by_hand = -sum(logits[start + at - 1, token] for at, token in enumerate(sample.response_ids)) / len(sample.response_ids)
    trainer.rows = trainer.rows[:1]  # the batch is this row four times
    assert trainer.training_step()["loss"] == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.slow
def test_supervised_resume_is_bitwise(sft: Callable[..., MemSFTTrainer], tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "batch_size": 3, "lr_schedule": "cosine"}
    whole = sft(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    stopped = sft(**options)
    stop_after(stopped, 5)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = sft(**options, resume=True)
    resumed.train()
    assert same(weights_of(resumed), weights_of(whole))
    assert same([o.state_dict() for o in resumed.optimizers], [o.state_dict() for o in whole.optimizers])
    assert metrics_of(resumed) == metrics_of(whole)


def broken_rows() -> Iterator[Any]:
    """A good turn and a second line that is none, and the line that the message should name."""
    good = '{"messages": [{"role": "user", "content": "city ?"}], "response": "paris"}\n'
    yield pytest.param(good + '{"messages": [], "answer": "paris"}\n', 2, id="no response")
    yield pytest.param(good + '{"messages": "city ?", "response": "paris"}\n', 2, id="messages is a text")
    yield pytest.param(good + '{"messages": [\n', 2, id="torn")
    yield pytest.param(good + '\n{"messages": []}\n', 3, id="after a blank line")
    yield pytest.param(good + '["city ?", "paris"]\n', 2, id="a list")


@pytest.mark.parametrize(("text", "line"), broken_rows())
def test_a_malformed_turn_names_its_line(sft: Callable[..., MemSFTTrainer], tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "broken.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"broken\.jsonl, line {line}\b"):
        sft(data_path=str(tmp_path / "broken.jsonl"))


def test_an_empty_file_of_turns_is_one_clear_error(sft: Callable[..., MemSFTTrainer], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.jsonl"):
        sft(data_path=str(tmp_path / "empty.jsonl"), max_steps=1).train()


# What a first review found


def test_an_attempt_lost_to_a_server_is_in_no_reward_metric(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo()
    original = trainer.agent.rollout

    def lose_the_first(*args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        groups[0].trajectories[0].error = "server is gone"
        return groups

    trainer.agent.rollout = lose_the_first  # type: ignore[method-assign]
    metrics = trainer.training_step()
    assert (metrics["errors"], metrics["unscorable"], len(metrics["reward_values"])) == (1, 1, 7)


def test_an_example_that_occurs_twice_in_a_step_gets_other_attempts(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(batch_size=6)  # of five questions
    rollouts = rollouts_of(trainer)
    trainer.training_step()
    groups: dict[str, list[Any]] = {}
    for group in rollouts[0].groups:
        groups.setdefault(group.example_id, []).append([turn.response_ids for t in group.trajectories for turn in t.turns])
    (twice,) = [found for found in groups.values() if len(found) == 2]
    assert twice[0] != twice[1]


def test_an_env_is_given_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model_name_or_path=str(folder / "base"), data_path=str(folder / "facts.json"), output_dir=str(tmp_path / "run"), device="cpu"
    )
    assert MemTrainer(config).env.tokenizer is not None


def test_a_reward_that_no_turn_can_have_is_refused(grpo: Callable[..., MemTrainer]) -> None:
    class Misspelt(HashEnv):
        def compute_reward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            return {"anwser": super().compute_reward(*args, **kwargs)["default"]}

    with pytest.raises(UserError, match="Did you mean 'answer'"):
        grpo(Misspelt).training_step()


@pytest.mark.parametrize("score", [math.nan, None])
def test_no_score_is_never_the_best(grpo: Callable[..., MemTrainer], score: float | None) -> None:
    trainer = grpo()
    assert trainer._save_if_best(score) is None
    assert not (trainer.output_dir / "best").exists()


def test_a_schedule_ends_with_the_run_though_steps_had_nothing_to_learn(grpo: Callable[..., MemTrainer]) -> None:
    trainer = grpo(lr_schedule="linear", max_steps=4, lr=1.0)
    trainer.step, trainer.updates = 3, 1  # two of three steps were empty
    assert trainer.optimizer_update()[1] == pytest.approx(0.25)


def test_the_loss_is_that_of_an_update_not_of_a_step(grpo: Callable[..., MemTrainer]) -> None:
    one, two = (grpo(num_minibatches=number, lr=0.0, batch_size=4).training_step() for number in (1, 2))
    assert abs(two["loss"] - one["loss"]) < 0.5 * abs(one["loss"]) + 0.1
    assert (one["lr"], two["lr"]) == (0.0, 0.0)


@pytest.mark.parametrize("old", ["sampler", "frozen", "recompute"])
def test_the_distance_of_sampler_and_trainer_is_logged_in_every_mode(grpo: Callable[..., MemTrainer], old: str) -> None:
    metrics = grpo(old_logprobs=old, num_minibatches=2).training_step()
    assert 0 < metrics["logprob_mismatch"] <= metrics["logprob_mismatch_max"] < 1e-5


def test_a_group_of_one_is_refused(grpo: Callable[..., MemTrainer]) -> None:
    with pytest.raises(ConfigError, match="num_generations"):
        grpo(num_generations=1)


def test_changed_data_is_noticed_on_resume(grpo: Callable[..., MemTrainer], folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "facts.json"
    copy.write_bytes((folder / "facts.json").read_bytes())
    grpo(data_path=str(copy)).train()
    write_json(copy, synth_facts(5, seed=4, chunks=(2,)))
    with pytest.raises(ConfigError, match=r"content of .*facts\.json"):
        grpo(data_path=str(copy), resume=True, max_steps=2).train()


@pytest.mark.parametrize("device", ["gpu", "tpu:0"])
def test_an_unknown_device_is_one_clear_error(grpo: Callable[..., MemTrainer], device: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        grpo(device=device)
