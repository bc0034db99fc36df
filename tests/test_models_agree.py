"""Whatever is sampled and whatever is trained is the model's own forward, or it is refused: judged apart from the comparison at start."""

from __future__ import annotations

import io
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_decoders import asked, decoders, judged_engine, tiny
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.algorithms.logprobs import as_sampled, plain_head, without_dropout
from memfactory.common.errors import ConfigError, PromptTooLong
from memfactory.common.files import read_json, write_json
from memfactory.common.types import Sampling
from memfactory.engines import probe
from memfactory.engines.base import run
from memfactory.engines.checked import checked_engine
from memfactory.engines.probe import Case, Verdict, boundaries, prompts_for
from memfactory.trainers.agreement import agreeing_update
from memfactory.trainers.doctor import DoctorConfig, doctor

MAKERS = dict(decoders())
FAST = ("gemma3 composite", "phi3 longrope")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_SEEN", {})


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MAKERS])
@pytest.mark.filterwarnings("ignore")
def test_every_decoder_is_itself_or_refused(name: str) -> None:
    try:
        model = tiny(MAKERS[name]())
        plain = model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits
    except Exception as error:  # noqa: BLE001 - a class whose sizes are not known here, or that needs a package
        pytest.skip(f"not built: {error}")
    if getattr(model.config, "is_encoder_decoder", False) or not plain.isfinite().all():
        pytest.skip("no decoder, or no numbers")
    row = asked(name, model)
    assert row.wrong is None or row.wrong < 2e-3
    if name == "phi3 longrope":  # what a row is depends on its neighbours there
        assert "up to 32 tokens" in row.sampled and row.trained.startswith("turn by turn")
    elif name in FAST:
        assert row.sampled.startswith("as it is") and row.wrong is not None


def test_the_comparison_is_cheap_and_draws_from_no_global_state(tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> None:
    model = tiny_qwen3()
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), [p.clone() for p in model.parameters()])  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    checked_engine(model, frozenset())
    agreeing_update(model, "paths", 4096, "auto", False)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2]) and all(map(torch.equal, model.parameters(), before[3]))
    assert [module.training for module in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    calls: list[int] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    checked_engine(model, frozenset())
    agreeing_update(model, "paths", 4096, "auto", False)
    assert not calls, "asked once in a process"


def test_an_engine_that_is_off_is_refused_with_the_figure(
    tiny_qwen3: Callable[..., Qwen3ForCausalLM], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_qwen3(initializer_range=0.2, sliding_window=8, use_sliding_window=True, max_window_layers=0)
    monkeypatch.setattr("memfactory.engines.forward.windows", lambda model: [("full_attention", None)])  # what the engine did of old
    engine = checked_engine(model, frozenset())
    assert engine.max_length == 8 and "is sampled up to 8 tokens" in caplog.text and "off by" in caplog.text
    with pytest.raises(PromptTooLong, match="does not fit the 8 tokens up to which its forward was compared"):
        run(engine.complete(tuple(range(1, 12)), Sampling(2)))
    monkeypatch.setattr("memfactory.engines.checked.boundaries", lambda config: [])
    probe._SEEN.clear()
    with pytest.raises(ConfigError, match=r"would not sample from Qwen3ForCausalLM as it is.*off by \d.*--engine vllm"):
        checked_engine(model, frozenset())


def test_what_lies_past_the_comparison_is_refused_turn_by_turn(
    tiny_qwen3: Callable[..., Qwen3ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window too long to be passed at start: what fits it is sampled, what does not is an error that names the length."""
    monkeypatch.setattr(probe, "LONGEST", 60)
    model = tiny_qwen3(sliding_window=100, use_sliding_window=True, max_window_layers=0)
    engine = checked_engine(model, frozenset())
    assert engine.max_length == 100
    assert len(run(engine.complete(tuple(range(1, 90)), Sampling(4))).ids) == 4
    with pytest.raises(PromptTooLong, match="100 tokens up to which"):
        run(engine.complete(tuple(range(1, 120)), Sampling(4)))
    assert math.isinf(prompts_for(tiny_qwen3()).covered) is False and prompts_for(tiny_qwen3()).covered == 512


def test_a_difference_that_is_no_number_is_no_agreement() -> None:
    odd, fine = Case("a", float("nan"), 1e-3), Case("b", 1e-6, 1e-3)
    assert not odd.agrees and fine.agrees
    assert not Verdict((fine, odd), 9).agrees and Verdict((fine, odd), 9).worst is odd


def test_boundaries_are_those_that_change_what_is_computed() -> None:
    assert boundaries(MAKERS["phi3 longrope"]()) == [(32, "original_max_position_embeddings")]
    assert boundaries(MAKERS["llama yarn"]()) == []
    assert (24, "sliding_window") in boundaries(MAKERS["gemma3 composite"]())


def test_the_update_draws_nothing_by_chance_with_and_without_checkpointing() -> None:
    model = tiny(MAKERS["opt with dropout"]()).train()
    ids = torch.arange(3, 40)[None]
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            without_dropout(model)
        with as_sampled(model):
            once, again = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
            assert torch.equal(once, again)
            recomputing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) and m.training]
            assert bool(recomputing) == checkpointing
    assert model.training


def test_the_doctor_says_what_is_well_and_what_is_not(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def said(path: Path) -> tuple[int, str]:
        out = io.StringIO()
        code = doctor([str(path)], DoctorConfig(device="cpu"), Console(file=out, width=200))
        return code, out.getvalue()

    tiny_qwen3().save_pretrained(tmp_path / "well")
    tiny_tokenizer.save_pretrained(tmp_path / "well")
    code, text = said(tmp_path / "well")
    assert code == 0 and "no " not in [line[:3] for line in text.splitlines()]
    for what in ("loads", "template", "stop tokens", "engine = forward", "engine = generate", "update = forward", "head", "memory"):
        assert f"ok  {what}" in text
    shutil.copytree(tmp_path / "well", tmp_path / "endless")
    for file, name in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id")):
        write_json(tmp_path / "endless" / file, read_json(tmp_path / "endless" / file) | {name: 7})
    about = read_json(tmp_path / "endless" / "tokenizer_config.json")
    write_json(tmp_path / "endless" / "tokenizer_config.json", about | {"eos_token": "<|endoftext|>"})
    code, text = said(tmp_path / "endless")
    assert code == 1 and "no  stop tokens" in text and "the template ends a turn with" in text
    (tmp_path / "well" / "model.safetensors").unlink()
    assert said(tmp_path / "well")[0] == 1


def test_the_judge_can_find_a_fault(tiny_qwen3: Callable[..., Qwen3ForCausalLM], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(MAKERS["gemma3_text"]())
    assert plain_head(model) is not None
    assert judged_engine(model, checked_engine(model, frozenset())) < 1e-4
    unseeing = checked_engine(model, frozenset())
    unseeing._forward._windows = [("full_attention", None)]
    assert judged_engine(model, unseeing) > 1e-2
