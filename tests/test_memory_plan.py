"""The memory plan adds up, moves the way its flags push it, and a warning comes before a model is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memfactory.common.config import TrainConfig
from memfactory.trainers import memory_plan
from memfactory.trainers.memory_plan import GIB, plan_memory, report_memory

QWEN3_1_7B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def plan(folder: Path, **options: Any) -> memory_plan.MemoryPlan:
    (folder / "config.json").write_text(json.dumps(QWEN3_1_7B), encoding="utf-8")
    flags: dict[str, Any] = {"chunk_size": 2500, "max_prompt_length": 6000, "max_generate_length": 2500, "num_generations": 16}
    return plan_memory(TrainConfig(model_name_or_path=str(folder), gradient_accumulation_steps=24, **(flags | options)), bf16=True)


def test_the_parts_of_qwen3_1_7b_are_those_of_its_1_72_billion_parameters(tmp_path: Path) -> None:
    made = plan(tmp_path, beta=0.001, engine_slots=10)
    parameters = 1_720_574_976
    assert made.resident["weights (fp32)"] * GIB == pytest.approx(4 * parameters)
    assert made.resident["adamw's moments (fp32)"] * GIB == pytest.approx(8 * parameters)
    assert made.resident["reference"] * GIB == pytest.approx(2 * parameters)
    assert made.rollout["key-value cache"] * GIB == pytest.approx(1.4 * 114_688 * 8500 * 10)  # 28 layers x 8 heads x 128 x (k, v) x 2 bytes
    assert made.peak == pytest.approx(sum(made.resident.values()) + max(sum(made.rollout.values()), sum(made.update.values())))


def test_what_the_warning_advises_does_help(tmp_path: Path) -> None:
    base = plan(tmp_path, beta=0.001)
    assert plan(tmp_path, beta=0.001, engine_slots=16).rollout["key-value cache"] < base.rollout["key-value cache"]
    assert plan(tmp_path, beta=0.001, gradient_checkpointing=True).update["activations"] < base.update["activations"]
    assert plan(tmp_path, beta=0.001, tokens_per_micro_batch=9000).update["logits"] < base.update["logits"]
    assert "reference" not in plan(tmp_path, beta=0.0).resident


def test_chunked_logprobs_are_planned_smaller_than_dense_ones(tmp_path: Path) -> None:
    dense, auto = (plan(tmp_path, logprob_chunks=chunks).update["logits"] for chunks in ("dense", "auto"))
    trained = 16384 * 2500 // 8500
    assert dense * GIB == pytest.approx(12 * trained * 151_936)
    assert auto * GIB == pytest.approx(2 * 4 * 4096 * 8192 + 4 * 2048 * (trained + 151_936))


def test_a_cache_is_not_planned_for_more_attempts_than_there_are(tmp_path: Path) -> None:
    few = plan(tmp_path, num_generations=2)
    assert few.rollout["key-value cache"] < plan(tmp_path).rollout["key-value cache"]


@pytest.mark.parametrize(("pages", "says"), [(1, "NOT enough"), (1 << 30, "enough.")])
def test_a_run_that_cannot_fit_is_told_so(pages: int, says: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    sizes = SimpleNamespace(sysconf={"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    monkeypatch.setattr(memory_plan, "os", sizes)
    root = Path(__file__).resolve().parent.parent
    report_memory(TrainConfig(model_name_or_path=str(root / "models/tiny")), torch.device("cpu"))
    assert "Memory expected" in caplog.text and says in caplog.text
    assert ("--engine_slots" in caplog.text) == (pages == 1)
