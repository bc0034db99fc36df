"""The in-process engine samples what a plain forward of the same weights would: tokens, log-probs, limits and failures.

Models are random and hard on purpose (weights of std 0.15): an error in a key, a position or a mask is then visible.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from memfactory.algorithms.logprobs import plain_head, response_logprobs
from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong
from memfactory.common.types import Completion, Sampling
from memfactory.engines.base import run, uniforms
from memfactory.engines.checked import checked_engine
from memfactory.engines.hf import HFEngine, sample, stop_ids_of
from memfactory.engines.sampling import LARGE_VOCABULARY

VOCAB, MAX_LENGTH = 64, 128
STOPS = frozenset({3, 17, 40})
KINDS = ("qwen3", "llama", "gpt2")
SLOTS = (64, 7, 5, 1)
Request = tuple[tuple[int, ...], Sampling]


def make_model(kind: str, seed: int = 0) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": MAX_LENGTH, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        if kind == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, **rest, head_dim=8, tie_word_embeddings=True))
        elif kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**sizes, **rest))
        else:
            none = {"bos_token_id": None, "eos_token_id": None}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=MAX_LENGTH, n_embd=32, n_layer=2, n_head=4, **none))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    assert plain_head(model) is not None  # tried here, and not where a test watches the model's calls
    return model.eval()


def make_requests(number: int = 16, seed: int = 1) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for n in range(number):
        length = 1 if n == 0 else 60 if n == 1 else rng.randint(1, 60)
        prompt = tuple(rng.randrange(VOCAB) for _ in range(length))
        requests.append((prompt, Sampling(rng.randint(1, 40), (0.7, 1.0, 1.3)[n % 3], stream=(seed, n))))
    return requests


def serve(engine: HFEngine, requests: list[Request], stagger: int = 0) -> list[Completion]:
    """Ask all requests on one loop; request n is posted about `n * stagger` decode steps after the first."""

    async def one(n: int, request: Request) -> Completion:
        for _ in range(n * stagger):
            await asyncio.sleep(0)
        return await engine.complete(*request)

    async def every() -> list[Completion]:
        answers = asyncio.gather(*(one(n, request) for n, request in enumerate(requests)))
        return list(await asyncio.wait_for(answers, timeout=20))  # a lost request is a failure, not a hang

    return asyncio.run(every())


@torch.no_grad()
def forward_logits(model: PreTrainedModel, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
    """Logits [number of ids, V] of a plain forward, without a cache, of the positions that predict `ids`."""
    return model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]


def forward_logprobs(model: PreTrainedModel, prompt: tuple[int, ...], ids: tuple[int, ...], temperature: float) -> Tensor:
    table = torch.log_softmax(forward_logits(model, prompt, ids).double() / temperature, dim=-1)
    return table[torch.arange(len(ids)), torch.tensor(ids)]


def worst_error(model: PreTrainedModel, requests: list[Request], outs: list[Completion]) -> float:
    """The largest difference of a log-prob to a plain forward's."""
    errors = [0.0]
    for (prompt, sampling), out in zip(requests, outs, strict=True):
        plain = forward_logprobs(model, prompt, out.ids, sampling.temperature or 1.0)
        errors.append((plain - torch.tensor(out.logprobs)).abs().max().item())
    return max(errors)


@contextmanager
def calls_of(module: torch.nn.Module, watch: Callable[[dict], None]) -> Iterator[None]:
    """`watch` the keyword arguments of a module's calls; it may raise."""
    handle = module.register_forward_pre_hook(lambda _module, _args, kwargs: watch(kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def decodes_of(model: PreTrainedModel, watch: Callable[[dict], None]) -> AbstractContextManager[None]:
    """`watch` the decode steps alone: they bring a mask, a prefill does not."""
    return calls_of(model.base_model, lambda kwargs: watch(kwargs) if "attention_mask" in kwargs else None)


def prefills_of(model: PreTrainedModel, watch: Callable[[dict], None]) -> AbstractContextManager[None]:
    """`watch` the prefills alone."""
    return calls_of(model.base_model, lambda kwargs: None if "attention_mask" in kwargs else watch(kwargs))


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {kind: make_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def runs(models: dict[str, PreTrainedModel]) -> dict[tuple[str, int], list[Completion]]:
    """The same requests under different numbers of slots: all at once for 64, else arriving one after the other."""
    requests = make_requests()
    return {
        (kind, slots): serve(HFEngine(model, STOPS, slots), requests, stagger=0 if slots in (64, 1) else 3)
        for kind, model in models.items()
        for slots in SLOTS
    }


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_a_plain_forward(models: dict, runs: dict, kind: str, slots: int) -> None:
    outs = runs[kind, slots]
    assert sum(len(out.ids) for out in outs) > 100
    assert worst_error(models[kind], make_requests(), outs) < 1e-5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_the_training_forward(models: dict, runs: dict, kind: str, temperature: float) -> None:
    samples = [
        Sample(prompt, out.ids, out.logprobs, 1.0, trajectory=n, group=n)
        for n, ((prompt, sampling), out) in enumerate(zip(make_requests(), runs[kind, 5], strict=True))
        if sampling.temperature == temperature
    ]
    compared = 0
    for micro in TrainBatch(samples).micro_batches(200):
        logprobs, _ = response_logprobs(models[kind], micro, temperature)
        torch.testing.assert_close(logprobs.detach(), micro.old, atol=1e-5, rtol=0)
        compared += len(logprobs)
    assert compared == sum(len(s.response_ids) for s in samples) > 20


@pytest.mark.parametrize("slots", SLOTS[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_do_not_depend_on_the_batch_up_to_ties(models: dict, runs: dict, kind: str, slots: int) -> None:
    equal = 0
    for (prompt, sampling), wide, narrow in zip(make_requests(), runs[kind, 64], runs[kind, slots], strict=True):
        if wide.ids == narrow.ids:
            equal += 1
            continue
        at = next(n for n, (a, b) in enumerate(zip(wide.ids, narrow.ids, strict=False)) if a != b)
        logits = forward_logits(models[kind], prompt, wide.ids[: at + 1])[at].double() / sampling.temperature
        edges, uniform = logits.softmax(-1).cumsum(-1), uniforms(sampling.stream, at + 1)[at]
        assert (edges - uniform).abs().min() < 1e-5, f"the tokens differ at {at}, and not for a tie"
    assert equal >= 14, "ties within 1e-5 are rarer than this"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_token_ends_the_answer_and_is_kept_only_if_sampled(runs: dict, kind: str) -> None:
    outs, requests = runs[kind, 7], make_requests()
    for out, (_, sampling) in zip(outs, requests, strict=True):
        stops = [at for at, token in enumerate(out.ids) if token in STOPS]
        assert stops == ([len(out.ids) - 1] if out.finish == "stop" else [])
        assert len(out.ids) == len(out.logprobs) == (len(out.ids) if out.finish == "stop" else sampling.max_tokens)
    assert {out.finish for out in outs} == {"stop", "length"}


def test_every_stop_id_stops(models: dict) -> None:
    prompt, sampling = (5, 9), Sampling(12, stream=(4,))
    (free,) = serve(HFEngine(models["qwen3"], frozenset()), [(prompt, sampling)])
    assert free.finish == "length"
    for at, token in enumerate(free.ids):
        (out,) = serve(HFEngine(models["qwen3"], frozenset({token, VOCAB + 1})), [(prompt, sampling)])
        first = free.ids.index(token)
        assert out.finish == "stop" and out.ids == free.ids[: first + 1], f"token {at}"


def test_stop_ids_are_the_union_of_all_that_are_named() -> None:
    model = make_model("llama")
    model.config.eos_token_id, model.generation_config.eos_token_id = 3, [17, 40]
    assert stop_ids_of(model, 9) == {3, 9, 17, 40}
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    assert stop_ids_of(model, None) == frozenset()


def test_a_poisoned_generation_config_changes_nothing(runs: dict) -> None:
    model = make_model("qwen3")
    poison = model.generation_config
    poison.do_sample, poison.top_k, poison.temperature, poison.repetition_penalty = True, 1, 0.1, 5.0
    poison.eos_token_id, poison.max_new_tokens = list(range(VOCAB)), 2
    assert serve(HFEngine(model, STOPS, 64), make_requests()) == runs["qwen3", 64]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_argmax_of_plain_forwards(models: dict, kind: str) -> None:
    requests = [(prompt, replace(sampling, temperature=0.0)) for prompt, sampling in make_requests(6)]
    outs = serve(HFEngine(models[kind], STOPS, 3), requests, stagger=2)
    for (prompt, _), out in zip(requests, outs, strict=True):
        assert out.ids == tuple(forward_logits(models[kind], prompt, out.ids).argmax(-1).tolist())
    assert worst_error(models[kind], requests, outs) < 1e-5, "greedy log-probs are reported at temperature 1"


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_sample_draws_from_the_softmax(temperature: float) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    number = 20_000
    draws = torch.tensor(uniforms((7,), number))
    token, logprob = sample(logits.expand(number, -1), draws, torch.full((number,), temperature))
    table = torch.log_softmax(logits.double() / temperature, dim=-1)
    expected = table.exp().numpy() * number
    assert chisquare(np.bincount(token.numpy(), minlength=30), expected * (number / expected.sum())).pvalue > 1e-3
    torch.testing.assert_close(logprob.double(), table[token], atol=1e-6, rtol=0)


def test_top_p_draws_from_the_renormalised_nucleus_only() -> None:
    logits = torch.tensor([0.08, 0.5, 0.02, 0.3, 0.1]).log()
    number = 20_000
    draws = torch.tensor(uniforms((8,), number))
    token, logprob = sample(logits.expand(number, -1), draws, torch.ones(number), torch.full((number,), 0.85))
    counts = np.bincount(token.numpy(), minlength=5)
    assert counts[0] == counts[2] == 0
    assert chisquare(counts[[1, 3, 4]], np.array([5, 3, 1]) / 9 * number).pvalue > 1e-3
    torch.testing.assert_close(logprob, logits[token], atol=1e-6, rtol=0)  # of the distribution before top-p


def test_a_row_without_top_p_is_untouched_by_a_neighbour_with_it() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3)).expand(2000, -1)
    draws, ones = torch.tensor(uniforms((9,), 2000)), torch.ones(2000)
    alone, _ = sample(logits, draws, ones)
    mixed, _ = sample(logits, draws, ones, torch.where(torch.arange(2000) % 2 == 0, 1.0, 0.3))
    assert torch.equal(alone[::2], mixed[::2])
    assert not torch.equal(alone[1::2], mixed[1::2])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("top_p", [None, 0.4])
def test_the_edges_of_the_uniform_give_possible_tokens(uniform: float, top_p: float | None) -> None:
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(5)) * 3
    logits[:, [0, 1, 38, 39]] = -torch.inf
    nucleus = None if top_p is None else torch.full((200,), top_p)
    token, logprob = sample(logits, torch.full((200,), uniform, dtype=torch.float64), torch.ones(200), nucleus)
    assert ((token >= 2) & (token < 38)).all()
    assert torch.isfinite(logprob).all()


@pytest.mark.parametrize("vocabulary", [40, LARGE_VOCABULARY + 5])
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.0, None), (1e-45, None), (1e-38, None), (1e-8, None), (1.0, 0.0), (1.0, 1e-45), (0.7, -1.0), (30.0, 0.0)]
)
def test_the_coldest_and_the_narrowest_sampling_is_the_most_likely_token(vocabulary: int, temperature: float, top_p: float | None) -> None:
    logits = 40 * torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(6))
    nucleus = None if top_p is None else torch.full((20,), top_p)
    token, logprob = sample(logits, torch.full((20,), 0.999, dtype=torch.float64), torch.full((20,), temperature), nucleus)
    assert torch.equal(token, logits.argmax(-1)) and torch.isfinite(logprob).all()


@pytest.mark.parametrize("vocabulary", [40, LARGE_VOCABULARY + 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
def test_numbers_that_are_not_finite_give_no_logprob_and_a_token_that_exists(vocabulary: int, bad: float, temperature: float) -> None:
    logits = torch.zeros(3, vocabulary)
    logits[1, 7], logits[2] = bad, bad
    token, logprob = sample(logits, torch.full((3,), 0.99, dtype=torch.float64), torch.full((3,), temperature))
    assert ((token >= 0) & (token < vocabulary)).all() and logprob.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    "wrong", [{"temperature": v} for v in (-0.1, math.inf, math.nan)] + [{"top_p": v} for v in (0.0, -1.0, 1.01, math.inf, math.nan)]
)
def test_sampling_that_means_nothing_is_refused_in_words(wrong: dict[str, float]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} {value}: must be"):
        Sampling(8, **wrong)


def test_a_model_whose_numbers_break_fails_the_request_and_no_other() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = math.nan
    broken, whole = _outcomes(HFEngine(model, STOPS, 4), [((7, 5, 8), Sampling(4)), ((7, 6, 8), Sampling(4))])
    assert isinstance(broken, InfrastructureError) and "After 0 sampled tokens the model's numbers are not finite" in str(broken)
    assert isinstance(whole, Completion) and all(map(math.isfinite, whole.logprobs))


def test_the_engine_samples_from_the_nucleus_only(models: dict) -> None:
    model, top_p = models["llama"], 0.5
    requests = [(prompt, Sampling(20, stream=(6, n), top_p=top_p)) for n, (prompt, _) in enumerate(make_requests(5))]
    outs = serve(HFEngine(model, STOPS, 5), [*requests, ((1, 2), Sampling(20, stream=(6, 9)))])
    for (prompt, _), out in zip(requests, outs, strict=False):
        probabilities = forward_logits(model, prompt, out.ids).softmax(-1)
        own = probabilities.gather(-1, torch.tensor(out.ids)[:, None])
        above = torch.where(probabilities > own, probabilities, 0.0).sum(-1)
        assert (above < top_p + 1e-5).all(), "more than top_p of the probability is above a sampled token"
    assert worst_error(model, requests, outs[:-1]) < 1e-5


def test_new_weights_are_used_at_once() -> None:
    model, requests = make_model("qwen3"), make_requests(6)
    engine = HFEngine(model, STOPS, 5)
    before = serve(engine, requests)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    engine.weights_changed()
    after = serve(engine, requests)
    assert worst_error(model, requests, after) < 1e-5
    assert worst_error(model, requests, before) > 1e-2


def test_new_weights_while_sampling_are_an_error(models: dict) -> None:
    engine = HFEngine(models["qwen3"], frozenset(), 5)

    async def update_midway() -> Completion:
        request = asyncio.ensure_future(engine.complete((1, 2, 3), Sampling(20)))
        for _ in range(4):
            await asyncio.sleep(0)
            with pytest.raises(InfrastructureError, match="between rollouts"):
                engine.weights_changed()
        return await request

    assert len(asyncio.run(update_midway()).ids) == 20
    engine.weights_changed()


@pytest.mark.parametrize("length", [0, MAX_LENGTH, MAX_LENGTH + 5])
def test_a_prompt_without_room_is_refused(models: dict, length: int) -> None:
    with pytest.raises(PromptTooLong, match=f"prompt of {length} tokens.*{MAX_LENGTH}"):
        serve(HFEngine(models["gpt2"], STOPS), [((1,) * length, Sampling(5))])


@pytest.mark.parametrize("kind", KINDS)
def test_max_tokens_is_cut_to_the_room_left(models: dict, kind: str) -> None:
    requests = [((7,) * (MAX_LENGTH - room), Sampling(50, stream=(room,))) for room in (1, 4)] + [((9,), Sampling(500, stream=(0,)))]
    outs = serve(HFEngine(models[kind], frozenset(), 3), requests)
    assert [len(out.ids) for out in outs] == [1, 4, MAX_LENGTH - 1]
    assert {out.finish for out in outs} == {"length"}
    assert worst_error(models[kind], requests, outs) < 1e-5


def _outcomes(engine: HFEngine, requests: list[Request]) -> list[Completion | BaseException | None]:
    """What each caller got within a second; None for one that still waits."""

    async def every() -> list[Completion | BaseException | None]:
        tasks = [asyncio.ensure_future(engine.complete(*request)) for request in requests]
        await asyncio.wait(tasks, timeout=1.0)
        return [(t.exception() or t.result()) if t.done() else None for t in tasks]

    return asyncio.run(every())


def test_a_failing_decode_reaches_every_caller_and_the_engine_lives_on(runs: dict) -> None:
    model, requests, steps = make_model("qwen3"), make_requests(), []

    def fail_later(kwargs: dict) -> None:
        steps.append(kwargs)
        if len(steps) == 3:
            raise RuntimeError("out of memory")

    engine = HFEngine(model, STOPS, 5)
    with decodes_of(model, fail_later):
        outcomes = _outcomes(engine, [(p, replace(s, max_tokens=40)) for p, s in requests])
    failed = [str(outcome) for outcome in outcomes if not isinstance(outcome, Completion)]
    assert failed == ["out of memory"] * len(failed) and len(failed) > 5
    assert [o.ids for o in serve(engine, requests)] == [o.ids for o in runs["qwen3", 5]]


def test_a_failing_prefill_reaches_every_caller() -> None:
    model = make_model("qwen3")

    def fail(kwargs: dict) -> None:
        raise RuntimeError("out of memory")

    with calls_of(model.base_model, fail):
        outcomes = _outcomes(HFEngine(model, STOPS, 3), make_requests(5))
    assert [str(outcome) for outcome in outcomes] == ["out of memory"] * 5


def test_the_engine_works_again_after_a_failing_prefill(runs: dict) -> None:
    model, requests = make_model("qwen3"), make_requests()

    def fail(kwargs: dict) -> None:
        raise RuntimeError("out of memory")

    engine = HFEngine(model, STOPS, 5)
    with calls_of(model.base_model, fail):
        _outcomes(engine, requests[:1])
    assert [out.ids for out in serve(engine, requests)] == [out.ids for out in runs["qwen3", 5]]


def _serve_and_cancel(engine: HFEngine, requests: list[Request], cancelled: int, after: int) -> list[Completion]:
    """Cancel one request after some steps; the others' completions."""

    async def every() -> list[Completion]:
        tasks = [asyncio.ensure_future(engine.complete(*request)) for request in requests]
        for _ in range(after):
            await asyncio.sleep(0)
        tasks[cancelled].cancel()
        outs = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outs.pop(cancelled), asyncio.CancelledError)
        return list(outs)  # type: ignore[arg-type]

    return asyncio.run(every())


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_cancelled_request_frees_its_row(models: dict, after: int) -> None:
    requests = [(prompt, replace(sampling, max_tokens=15)) for prompt, sampling in make_requests(6)]
    requests[1] = (requests[1][0], Sampling(60))
    widths: list[int] = []
    engine = HFEngine(models["qwen3"], frozenset(), 2)
    with decodes_of(models["qwen3"], lambda kwargs: widths.append(len(kwargs["input_ids"]))):
        outs = _serve_and_cancel(engine, requests, cancelled=1, after=after)
    rest = requests[:1] + requests[2:]
    assert [len(out.ids) for out in outs] == [15] * 5
    assert worst_error(models["qwen3"], rest, outs) < 1e-5
    assert len(widths) < 15 * 3 + after + 5, "the freed row was not used for others"


def test_a_cancelled_long_row_does_not_damage_its_neighbour(models: dict) -> None:
    short = [((5 + n, 9, 11), Sampling(40, stream=(n,))) for n in range(3)]
    outs = _serve_and_cancel(HFEngine(models["llama"], frozenset(), 4), [((7,) * 60, Sampling(60)), *short], cancelled=0, after=3)
    assert worst_error(models["llama"], short, outs) < 1e-5


def test_a_row_may_stay_empty_for_longer_than_the_cache(models: dict) -> None:
    engine = HFEngine(models["llama"], frozenset(), 4)

    async def caller(n: int) -> list[Completion]:
        return [await engine.complete((5 + n, 9), Sampling(20, stream=(n, turn))) for turn in range(5)]

    async def every() -> list[list[Completion]]:
        callers = [asyncio.ensure_future(caller(n)) for n in range(3)]
        await asyncio.sleep(0)
        await engine.complete((1, 2), Sampling(1))
        return list(await asyncio.gather(*callers))

    outs = asyncio.run(every())
    assert all(len(out.ids) == 20 for some in outs for out in some)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_train_mode_and_checkpointing_change_nothing(runs: dict, kind: str, training: bool) -> None:
    model = make_model(kind)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # renamed in transformers 5
    enable()
    model.train(training)
    outs = serve(HFEngine(model, STOPS, 64), make_requests())
    assert outs == runs[kind, 64]
    assert all(module.training is training for module in model.modules())


def test_the_mode_is_restored_after_a_failure() -> None:
    model = make_model("gpt2").train()

    def fail(kwargs: dict) -> None:
        raise RuntimeError("broken")

    with decodes_of(model, fail):
        (outcome,) = _outcomes(HFEngine(model, STOPS), [((1, 2), Sampling(3))])
    assert isinstance(outcome, RuntimeError)
    assert model.training


def _small(**more: object) -> dict:
    return {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1} | more


def test_a_window_is_kept(models: dict) -> None:
    """Of all layers, of some, and of a part of the configuration."""
    sizes = _small(num_key_value_heads=1, hidden_size=16, max_position_embeddings=64, sliding_window=8)
    some = sizes | {"head_dim": 16, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    sight = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1}
    kinds: list[tuple[type[PreTrainedModel], Any]] = [
        (MistralForCausalLM, MistralConfig(**sizes)), (Qwen3ForCausalLM, Qwen3Config(**some, use_sliding_window=True)),
        (Gemma3ForConditionalGeneration, Gemma3Config(text_config=some, vision_config=sight)),
    ]  # fmt: skip
    for kind, config in kinds:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        rng = random.Random(0)
        requests = [(tuple(rng.randrange(5, 16) for _ in range(length)), Sampling(12)) for length in (3, 30, 6)]
        outs = serve(checked_engine(model, frozenset()), requests)
        assert worst_error(model, requests, outs) < 1e-4


def test_a_window_wider_than_the_model_is_accepted() -> None:
    model = MistralForCausalLM(MistralConfig(**_small(num_key_value_heads=1, sliding_window=64, max_position_embeddings=64))).eval()
    request = ((3, 1, 4), Sampling(50))
    outs = serve(HFEngine(model, frozenset()), [request])
    assert worst_error(model, [request], outs) < 1e-5


def test_other_architectures_are_refused_in_words() -> None:
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1))
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration is an encoder-decoder"):
        checked_engine(t5, STOPS)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 8, "state_size": 4, "n_groups": 1}
    with pytest.raises(ConfigError, match="would not sample from Mamba2ForCausalLM as it is.*does not run.*--engine vllm"):
        checked_engine(Mamba2ForCausalLM(Mamba2Config(**sizes, expand=1, chunk_size=4)), STOPS)


@pytest.mark.parametrize("bf16", [False, True])
def test_parameters_stay_where_and_what_they_are(bf16: bool) -> None:
    model = make_model("qwen3")

    def state() -> list[tuple]:
        return [(p.dtype, p.data_ptr(), p.requires_grad, p.grad is None, p.double().sum().item()) for p in model.parameters()]

    before = state()
    serve(HFEngine(model, STOPS, 5, bf16=bf16), make_requests(6))
    assert state() == before


def test_equal_prompts_are_prefilled_once(models: dict) -> None:
    model = models["qwen3"]
    prompts = [(5, 6, 7, 8)] * 6 + [(5, 6, 7, 9)] * 2 + [(1, 2)]  # the last token is not part of the prefill
    requests = [(prompt, Sampling(8, stream=(n,))) for n, prompt in enumerate(prompts)]
    rows: list[int] = []

    def count(kwargs: dict) -> None:
        if isinstance(kwargs["past_key_values"], DynamicCache):
            rows.append(len(kwargs["input_ids"]))

    with prefills_of(model, count):
        outs = serve(HFEngine(model, STOPS, 16), requests)
    assert rows == [2]
    assert len({out.ids for out in outs[:6]}) > 1, "equal prompts still have streams of their own"
    assert worst_error(model, requests, outs) < 1e-5


def test_it_works_beside_a_running_event_loop_and_twice(models: dict) -> None:
    engine, request = HFEngine(models["qwen3"], STOPS), make_requests(3)[2]

    async def notebook() -> list[Completion]:
        inside = run(engine.complete(*request))  # blocks this loop; the engine lives on another one
        beside = await asyncio.to_thread(run, engine.complete(*request))
        return [inside, beside, run(engine.complete(*request))]

    first, second, third = asyncio.run(notebook())
    assert first == second == third
    assert first == serve(engine, [request])[0]


def test_streams_are_prefixes_of_themselves_and_differ_by_name() -> None:
    assert uniforms((1, 2, 3), 50)[:20].tolist() == uniforms((1, 2, 3), 20).tolist()
    streams = [(1, 2, 3), (1, 3, 2), (1, 2), (1, 2, 4), (0, 2, 3)]
    assert len({tuple(uniforms(stream, 3)) for stream in streams}) == len(streams)
