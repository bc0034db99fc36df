"""Rollouts on a list of servers: what was sampled comes over whole, work spreads, weights arrive, and what fails is somebody's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from openai_server import Handler, says
from token_server import TokenServer, token_server
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong
from memfactory.common.files import read_jsonl, write_json
from memfactory.common.types import Sampling
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.engines.base import run, seed_of
from memfactory.engines.hf import HFEngine, stop_ids_of
from memfactory.engines.servers import ServerPool
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.trainers.mem_grpo_trainer import MemTrainer


@pytest.fixture
def model(tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> Qwen3ForCausalLM:
    return tiny_qwen3(seed=3, initializer_range=0.12)


@pytest.fixture
def stops(model: Qwen3ForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    return stop_ids_of(model, tiny_tokenizer.eos_token_id)


@pytest.fixture
def two(model: Qwen3ForCausalLM, stops: frozenset[int]) -> Iterator[list[TokenServer]]:
    """Two servers of the same model."""
    with ExitStack() as open_:
        yield [open_.enter_context(token_server(deepcopy(model), stops)) for _ in range(2)]


@pytest.fixture
def pool(two: list[TokenServer], stops: frozenset[int]) -> Iterator[ServerPool]:
    made = ServerPool([two[0].url, two[1].url.removesuffix("/v1") + "/"], stops, max_retries=0)
    yield made
    made.close()


def ask(engine: Any, number: int = 1, **options: Any) -> list[Any]:
    """Completions of `number` prompts, each with a stream of its own, asked together."""

    async def every() -> list[Any]:
        prompts = [(5, 9, 7 + at) for at in range(number)]
        return list(await asyncio.gather(*(engine.complete(p, Sampling(6, stream=(1, n), **options)) for n, p in enumerate(prompts))))

    return run(every())


def test_what_a_server_samples_is_what_the_engine_would(pool: ServerPool, model: Qwen3ForCausalLM, stops: frozenset[int]) -> None:
    here = HFEngine(model, stops)
    for at, out in enumerate(ask(pool, 6)):
        expected = run(here.complete((5, 9, 7 + at), Sampling(6, stream=(seed_of((1, at)),))))
        assert out.ids == expected.ids and out.finish == expected.finish
        assert out.logprobs == pytest.approx(expected.logprobs, abs=1e-6)


def test_requests_go_to_the_least_busy_in_turn(pool: ServerPool, two: list[TokenServer]) -> None:
    ask(pool, 8)
    assert [server.asked for server in two] == [4, 4]
    pool.servers[0].busy = 5
    ask(pool, 4)
    assert [server.asked for server in two] == [4, 8]


def test_processes_begin_at_different_servers(two: list[TokenServer], stops: frozenset[int]) -> None:
    for first in range(2):
        pool = ServerPool([server.url for server in two], stops, first=first)
        ask(pool)
        pool.close()
    assert [server.asked for server in two] == [1, 1]


def test_a_server_that_fails_is_left_to_rest(pool: ServerPool, two: list[TokenServer], caplog: pytest.LogCaptureFixture) -> None:
    two[0].server.always = says({"error": {"message": "engine died"}}, 500)
    assert len(ask(pool, 4)) == 4
    assert two[1].asked == 4 and "failed, another is asked" in caplog.text
    before = two[0].asked
    ask(pool, 2)
    assert two[0].asked == before, "it is not asked again at once"
    two[1].server.always = two[0].server.always
    with pytest.raises(InfrastructureError, match="engine died"):
        ask(pool)


def test_replies_that_are_no_responses_are_refused(pool: ServerPool, two: list[TokenServer]) -> None:
    good = two[0].answer

    def with_changes(**changes: Any) -> Callable[[Handler, dict[str, Any]], None]:
        choice = {"index": 0, "text": "a", "finish_reason": "stop", "token_ids": [3], "logprobs": {"token_logprobs": [-1.0]}} | changes
        return says({"id": "x", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]})

    for changes, kind, said in (
        ({"token_ids": None}, ConfigError, "return_token_ids"),
        ({"logprobs": None}, ConfigError, "vLLM 0.10.2"),
        ({"token_ids": [3, 4]}, InfrastructureError, "2 tokens, 1 log-probs"),
        ({"finish_reason": "abort"}, InfrastructureError, "'abort'"),
    ):
        for server in two:
            server.server.always = with_changes(**changes)
        with pytest.raises(kind, match=said):
            ask(pool)
    for server in two:
        server.server.always = says({"error": {"message": "This model's maximum context length is 512 tokens"}}, 400)
    with pytest.raises(PromptTooLong):
        ask(pool)
    assert good


def test_addresses_that_do_not_answer_are_told_before_training(stops: frozenset[int]) -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        ServerPool(["http://127.0.0.1:9"], stops, max_retries=0)
    with pytest.raises(ConfigError, match="write http://HOST:PORT"):
        ServerPool(["node7:8000"], stops)
    with pytest.raises(ConfigError, match="at least one"):
        ServerPool([], stops)


def test_a_server_that_takes_no_weights_is_told_how_to_start(pool: ServerPool, two: list[TokenServer], tmp_path: Path) -> None:
    for server in two:
        server.server.always = says({"detail": "Not Found"}, 404)
    with pytest.raises(ConfigError, match="VLLM_SERVER_DEV_MODE=1"):
        pool.load(tmp_path)


class LengthEnv(LongcontextEnv):
    def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"default": torch.tensor([float(len(text)) for text in predictions["answer"]])}


@pytest.fixture
def trained(
    two: list[TokenServer],
    model: Qwen3ForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., MemTrainer]:
    """`trained(**options)`: a trainer after two steps that were sampled on two servers."""
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)

    def make(**options: Any) -> MemTrainer:
        write_json(tmp_path / "facts.json", synth_facts(3, seed=3, chunks=(1,)))
        config = TrainConfig(
            data_path=str(tmp_path / "facts.json"), output_dir=str(tmp_path / "run"), device="cpu", batch_size=2, num_generations=4,
            chunk_size=16, max_generate_length=4, max_steps=2, lr=1e-2, warmup_updates=0, rollout_servers=[server.url for server in two],
            eval_steps=2, eval_samples=1, eval_k=0, **options,
        )  # fmt: skip
        env = LengthEnv(config.data_path)
        trainer = MemTrainer(config, model, tiny_tokenizer, env=env, eval_envs={"facts": env})
        trainer.train()
        trainer.models.close()
        return trainer

    return make


@pytest.mark.slow
def test_adapters_reach_the_servers_merged(two: list[TokenServer], trained: Callable[..., MemTrainer], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in two[0].model.state_dict().items()}
    trained(lora_r=4)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(row["logprob_mismatch"] < 1e-5 for row in rows) and rows[1]["grad_norm"] > 0
    served = two[0].model.state_dict()
    assert served.keys() == before.keys() and any(not torch.equal(value, before[name]) for name, value in served.items())


@pytest.mark.slow
def test_a_run_samples_on_the_servers_from_the_newest_weights(
    two: list[TokenServer], trained: Callable[..., MemTrainer], tmp_path: Path
) -> None:
    trainer = trained()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(row["logprob_mismatch"] < 1e-5 for row in rows), "each step was sampled from the weights that it trains"
    assert all(server.asked > 0 and len(server.loaded) == 3 for server in two), "the start's, and after each update"
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in two[0].model.state_dict().items())
    assert rows[1]["grad_norm"] > 0 and "eval/facts/greedy" in rows[1]
