"""Where time goes, how much of the hardware is used, and what is said when memory ends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig

from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import InfrastructureError, OutOfMemory, UserError
from memfactory.common.files import read_jsonl, write_json
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers.health import Clock, Flops, advice, asked_for, memory_explained, peak_flops, peak_of, with_mfu
from memfactory.trainers.mem_grpo_trainer import MemTrainer

SHAPES = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
}
"""Of Qwen3; heads of 128, 151,936 tokens, tied embeddings."""


def flops_of(shape: str) -> Flops:
    with torch.device("meta"):
        config = Qwen3Config(vocab_size=151936, head_dim=128, tie_word_embeddings=True, **SHAPES[shape])
        found = Flops.of(Qwen3ForCausalLM(config))
    assert found is not None
    return found


# Model FLOPs


@pytest.mark.parametrize(("shape", "separate", "shared"), [("1.7B", 4.04e15, 1.95e15), ("4B", 10.07e15, 4.66e15)])
def test_flops_of_a_group_are_those_worked_out_by_hand(shape: str, separate: float, shared: float) -> None:
    """16 attempts of 6 turns, each 2,500 tokens of prompt and 1,500 of response; shared: the 16 prompts of a turn are one."""
    flops = flops_of(shape)
    assert flops.of_rows([[(2500, 1500)]] * 96) == pytest.approx(separate, rel=0.002)
    assert flops.of_rows([[(2500, 1500)] * 16] * 6) == pytest.approx(shared, rel=0.04)


def test_blocks_and_heads_have_the_published_sizes() -> None:
    small, large = flops_of("1.7B"), flops_of("4B")
    assert [round(f / 6e9, 3) for f in (small.body, small.head, large.body, large.head)] == [1.409, 0.311, 3.633, 0.389]


def test_a_batch_counts_tokens_not_padding_and_a_shared_prompt_once() -> None:
    flops = Flops(body=10.0, head=1.0, attention=0.0)
    turns = [Sample((1, 2, 3), (4,) * n, (0.0,) * n, 1.0, n, 0) for n in (1, 2)] + [Sample((9,), (4,), (0.0,), 1.0, 3, 1)]
    apart = sum(flops.of_batch(m) for m in TrainBatch(turns).micro_batches(100))
    together = sum(flops.of_batch(m) for m in TrainBatch(turns).micro_batches(100, "sdpa4d"))
    assert apart == 10 * (4 + 5 + 2) + 4
    assert together == 10 * (5 + 2) + 4, "of two turns one is the other's beginning: their tokens are computed once, three are trained"
    pairs = [Flops(0.0, 0.0, attention=1.0).of_batch(m) for m in TrainBatch(turns[:2]).micro_batches(100, "sdpa4d")]
    assert pairs == [5**2 / 2]


def test_frozen_weights_cost_two_thirds_and_experts_are_not_guessed(tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> None:
    model = tiny_qwen3()
    before = Flops.of(model)
    model.requires_grad_(False)
    after = Flops.of(model)
    assert before is not None and after is not None and after.body == pytest.approx(before.body * 2 / 3)
    model.config = Qwen3MoeConfig(num_experts=4)
    assert Flops.of(model) is None


def test_cards_are_known_by_their_names() -> None:
    names = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA H20": 148}
    names |= {"NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA GeForce RTX 4090": 165.2, "NVIDIA A10G": 70, "NVIDIA GB200": 2500}
    assert {name: peak_of(name) for name in names} == {name: value * 1e12 for name, value in names.items()}
    assert peak_of("Quadro K620") is None


def test_the_share_of_the_peak() -> None:
    metrics = {"update_flops": 4e15, "update_seconds": 10.0}
    assert with_mfu(dict(metrics), 989e12, 1)["update_mfu"] == pytest.approx(4e14 / 989e12)
    assert with_mfu(dict(metrics), 989e12, 4)["update_mfu"] == pytest.approx(1e14 / 989e12)
    assert with_mfu(dict(metrics), None, 1) == {"update_seconds": 10.0}
    measured = peak_flops(torch.device("cpu"), bf16=False)
    assert measured is not None and 1e8 < measured < 1e14 and measured == peak_flops(torch.device("cpu"), bf16=False)


# Time


def test_an_inner_part_takes_its_time_from_the_outer(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr("memfactory.trainers.health.time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = Clock()
    clock.start()
    with clock.part("outer"):
        now[0] += 2
        with clock.part("inner"):
            now[0] += 5
        now[0] += 1
    now[0] += 2
    assert clock.shares() == {"time/outer": pytest.approx(0.3), "time/inner": pytest.approx(0.5)}
    assert clock.shares() == {}


# A trainer's steps


@pytest.fixture
def grpo(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM], monkeypatch: Any) -> Any:
    """`grpo(**options)`: a trainer of a random model whose reward is the length of the answer."""
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
    write_json(tmp_path / "facts.json", synth_facts(3, seed=3, chunks=(1,)))

    class LengthEnv(LongcontextEnv):
        def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> dict[str, torch.Tensor]:
            return {"default": torch.tensor([float(len(text)) for text in predictions["answer"]])}

    def make(**options: Any) -> MemTrainer:
        settings: dict[str, Any] = {
            "model_name_or_path": "none", "data_path": str(tmp_path / "facts.json"), "output_dir": str(tmp_path / "run"), "device": "cpu",
            "batch_size": 2, "num_generations": 4, "chunk_size": 16, "max_generate_length": 4, "max_steps": 2, "beta": 0.01,
            "old_logprobs": "frozen", "num_minibatches": 2,
        }  # fmt: skip
        env = LengthEnv(str(tmp_path / "facts.json"))
        model = tiny_qwen3(seed=3, initializer_range=0.12)
        return MemTrainer(TrainConfig(**(settings | options)), model, tiny_tokenizer, env=env, eval_envs={"facts": env})

    return make


def test_every_part_of_a_run_is_timed_and_nothing_else(grpo: Any, tmp_path: Path) -> None:
    grpo(eval_steps=1, eval_samples=1, eval_k=0, save_steps=1).train()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    parts = {key for row in rows for key in row if key.startswith("time/")}
    known = "weights rollout reward exchange old_logprobs ref_logprobs forward_backward optimizer evaluation save".split()
    assert parts == {f"time/{name}" for name in known}
    for row in rows:
        assert sum(row[key] for key in parts if key in row) == pytest.approx(1, abs=0.05)
        assert 0 < row["update_mfu"] < 1


def test_a_step_can_be_made_outside_a_run(grpo: Any) -> None:
    """As the benchmarks do, which time single steps."""
    trainer = grpo()
    assert trainer._timed_step()["rollout_tokens"] > 0 and trainer.step == 1


@pytest.mark.slow
def test_a_profiled_step_leaves_a_trace_and_a_table(grpo: Any, tmp_path: Path) -> None:
    grpo(profile_steps=1, batch_size=1, num_generations=2, max_generate_length=2, max_steps=1).train()
    folder = tmp_path / "run" / "trace"
    assert sorted(path.name for path in folder.iterdir()) == ["step_1.json.gz", "step_1.txt"]
    names = {event.get("name") for event in json.loads(gzip.decompress((folder / "step_1.json.gz").read_bytes()))["traceEvents"]}
    assert {"rollout", "forward_backward", "optimizer", "aten::mm"} <= names
    assert "Self CPU" in (folder / "step_1.txt").read_text()


# When memory ends


def full(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("agent.rollout", r"in the rollout when 2.50 GiB .*\(1\) --engine_slots 4 \(now 8 in use\).*--max_generate_length 2 \(now 4\)"),
        ("policy.backward", r"in the forward backward .*\(1\) --gradient_checkpointing True.*--tokens_per_micro_batch 8192 \(now 16384\)"),
        ("policy.with_logprobs", r"in the old logprobs .*--tokens_per_micro_batch.*--beta 0"),
        ("optimizers", r"in the optimizer .*--parallel fsdp2"),
        ("evaluate", r"in the evaluation .*--engine_slots 4"),
    ],
)
def test_memory_that_ends_is_said_with_what_to_lower(grpo: Any, monkeypatch: Any, where: str, said: str) -> None:
    trainer = grpo(eval_steps=1)
    if where == "optimizers":
        monkeypatch.setattr(trainer.optimizers[0], "step", full)
    elif "." in where:
        part, name = where.split(".")
        monkeypatch.setattr(getattr(trainer, part), name, full)
    else:
        monkeypatch.setattr(trainer, where, full)
    with pytest.raises(OutOfMemory, match=said) as caught:
        trainer.train()
    assert isinstance(caught.value, UserError) and "--resume True" in str(caught.value)


def test_a_machines_memory_ends_in_other_words() -> None:
    config, clock, cpu = TrainConfig(), Clock(), torch.device("cpu")
    words = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes."
    )
    with pytest.raises(OutOfMemory, match="when 1.00 GiB more"), memory_explained(clock, config, cpu), clock.part("forward_backward"):
        raise RuntimeError(words)
    with pytest.raises(OutOfMemory, match="in the rollout"), memory_explained(clock, config, cpu), clock.part("rollout"):
        raise MemoryError
    for other in (RuntimeError("shapes differ"), InfrastructureError("the server is out of memory")):
        with pytest.raises(type(other), match=str(other)), memory_explained(clock, config, cpu), clock.part("rollout"):
            raise other
    assert asked_for(RuntimeError("Tried to allocate 512.00 MiB.")) == 0.5 and asked_for(RuntimeError("?")) is None


def test_the_first_advice_is_one_that_helps() -> None:
    checkpointed = TrainConfig(gradient_checkpointing=True, tokens_per_micro_batch=4096, max_prompt_length=5500, max_generate_length=1500)
    assert "a turn may hold 7000 and goes alone" in advice("forward_backward", checkpointed, None, "full")
    long = TrainConfig(gradient_checkpointing=True, tokens_per_micro_batch=8000, max_prompt_length=5500, max_generate_length=1500)
    assert "(1) --tokens_per_micro_batch 7000 (now 8000)" in advice("forward_backward", long, 1.0, "full")
