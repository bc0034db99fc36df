"""Recorded decode steps, fused decoding and shared beginnings sample what the plain engine samples.

A CPU has no CUDA graphs: `Recording` stands for one. It keeps the operations of a step with the very tensors they ran on and
runs those again, so whatever is not in a tensor at a fixed address is frozen, as in a real graph, and a read by the host is an error.
"""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import KINDS, MAX_LENGTH, STOPS, VOCAB, Request, make_model, make_requests, prefills_of, serve, worst_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache, PreTrainedModel

from memfactory.common.errors import ConfigError, UserError
from memfactory.common.types import Completion, Sampling
from memfactory.engines import decode_ops
from memfactory.engines.forward import CLOSE, DecodeForward
from memfactory.engines.fused import build_decoder
from memfactory.engines.graphs import CAPTURE_AFTER, GraphedSteps, Step, row_bucket
from memfactory.engines.hf import HFEngine
from memfactory.engines.prefill import SHARED, Family, families, prefill
from memfactory.engines.sampling import sample, sample_in_blocks
from memfactory.engines.slot_cache import SlotCache, key_values, slots_that_fit

pytestmark = pytest.mark.slow  # stand-ins on the CPU for what only runs on a GPU


class Recording(TorchDispatchMode):
    """The operations of a step, run again on the same tensors by `replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), "the host reads the device"
        out = func(*args, **(kwargs or {}))
        outs = [o for o in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(o, Tensor)]
        self.operations.append((func, args, kwargs or {}, outs))
        return out

    def replay(self) -> None:
        now: dict[int, Tensor] = {}
        for func, args, kwargs, outs in self.operations:
            args, kwargs = tree_map_only(Tensor, lambda t, now=now: now.get(id(t), t), (args, kwargs))
            new = func(*args, **kwargs)
            news = [o for o in (new if isinstance(new, (tuple, list)) else [new]) if isinstance(o, Tensor)]
            now |= {id(old): fresh for old, fresh in zip(outs, news, strict=True)}


class Recorder:
    """Records without leaving a trace of having run the step, as a GPU does."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made = 0
        self.fail_at = fail_at

    def record(self, step: Step) -> Step:
        if self.made == self.fail_at:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.made += 1
        recording = Recording()
        with recording:
            step()
        return recording.replay


def graphed(model: PreTrainedModel, slots: int, **more: Any) -> HFEngine:
    return HFEngine(model, more.pop("stops", STOPS), slots, recorder=more.pop("recorder", None) or Recorder(), **more)


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {kind: make_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def plain(models: dict[str, PreTrainedModel]) -> dict[str, list[Completion]]:
    return {kind: serve(HFEngine(model, STOPS, 64), make_requests(10)) for kind, model in models.items()}


def same(left: list[Completion], right: list[Completion]) -> bool:
    """Equal tokens and ends, and log-probs to rounding."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0)
    return [(a.ids, a.finish) for a in left] == [(b.ids, b.finish) for b in right]


# Graphs


@pytest.mark.parametrize(
    ("kind", "slots", "attention"), [("gpt2", 7, "model"), ("qwen3", 7, "sdpa"), ("llama", 3, "sdpa"), ("qwen3", 64, "model")]
)
def test_recorded_steps_sample_what_eager_ones_do(models: dict, plain: dict, kind: str, slots: int, attention: str) -> None:
    engine = graphed(models[kind], slots, decode_attention=attention)
    assert same(serve(engine, make_requests(10), stagger=0 if slots == 64 else 3), plain[kind])
    assert engine.graphs is not None and engine.graphs.replays > 5, "the recordings were hardly used"


@pytest.mark.slow
def test_holes_and_moved_rows_do_not_disturb_a_recording(models: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []
    monkeypatch.setattr(SlotCache, "move", lambda self, *args, move=SlotCache.move: (moves.append(args), move(self, *args)))
    requests = [(prompt, replace(sampling, max_tokens=6 if n % 3 else 60)) for n, (prompt, sampling) in enumerate(make_requests(12))]
    alone = [out for request in requests for out in serve(HFEngine(models["llama"], frozenset(), 1), [request])]
    outs = serve(graphed(models["llama"], 12, stops=frozenset()), requests)
    assert same(outs, alone) and moves
    assert worst_error(models["llama"], requests, outs) < 1e-5


def test_a_longer_row_than_any_known_waits_for_a_new_cache(models: dict) -> None:
    short = [((5 + n, 9), Sampling(30, stream=(n,))) for n in range(4)]
    long = [((7,) * 80, Sampling(40, stream=(9,)))]
    engine = graphed(models["qwen3"], 4, stops=frozenset(), longest=10)
    lengths: list[int] = []

    async def every() -> list[Completion]:
        first = [asyncio.ensure_future(engine.complete(*request)) for request in short]
        for _ in range(8):
            await asyncio.sleep(0)
            lengths.append(0 if engine._cache is None else engine._cache.length)
        second = asyncio.ensure_future(engine.complete(*long[0]))
        while not second.done():
            await asyncio.sleep(0)
            lengths.append(0 if engine._cache is None else engine._cache.length)
        return [*await asyncio.gather(*first), await second]

    outs = asyncio.run(every())
    assert set(lengths) == {0, 64, 128}, "made once for the short rows and once for the long one"
    assert worst_error(models["qwen3"], short + long, outs) < 1e-5


def test_longer_streams_than_any_known_are_drawn_right(models: dict) -> None:
    requests = [((5, 9), Sampling(20, stream=(0,))), ((5, 8), Sampling(45, stream=(1,)))]
    outs = serve(graphed(models["qwen3"], 2, stops=frozenset()), requests, stagger=10)
    assert same(outs, serve(HFEngine(models["qwen3"], frozenset(), 2), requests))


def test_a_cancelled_request_leaves_the_others_alone(models: dict) -> None:
    requests = [(prompt, replace(sampling, max_tokens=25)) for prompt, sampling in make_requests(6)]
    engine = graphed(models["qwen3"], 3, stops=frozenset())

    async def every() -> list[Completion]:
        tasks = [asyncio.ensure_future(engine.complete(*request)) for request in requests]
        for _ in range(12):
            await asyncio.sleep(0)
        tasks[1].cancel()
        outs = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outs.pop(1), asyncio.CancelledError)
        return list(outs)  # type: ignore[arg-type]

    outs = asyncio.run(every())
    assert worst_error(models["qwen3"], requests[:1] + requests[2:], outs) < 1e-5


@pytest.mark.parametrize("fail_at", [0, 1])
def test_what_cannot_be_recorded_is_run_as_it_is_with_one_word_of_why(models: dict, plain: dict, caplog: Any, fail_at: int) -> None:
    engine = graphed(models["qwen3"], 7, recorder=Recorder(fail_at))
    for _ in range(2):
        assert same(serve(engine, make_requests(10), stagger=3), plain["qwen3"])
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "not permitted when stream is capturing" in said[0] and "more" not in said[0]


def test_top_p_beside_recordings(models: dict) -> None:
    requests = [(prompt, replace(sampling, top_p=0.6 if n == 2 else 1.0)) for n, (prompt, sampling) in enumerate(make_requests(5))]
    assert same(serve(graphed(models["llama"], 5), requests), serve(HFEngine(models["llama"], STOPS, 5), requests))


def test_a_shape_is_recorded_only_when_it_comes_back() -> None:
    steps, recorder = GraphedSteps(Recorder()), Recorder()
    steps.recorder, count = recorder, torch.zeros(1)
    for _ in range(CAPTURE_AFTER):
        steps.run("often", lambda: count.add_(1), lambda: lambda: None)  # type: ignore[arg-type,return-value]
    assert recorder.made == 0
    steps.run("often", lambda: None, lambda: lambda: None)
    steps.run("once", lambda: None, lambda: lambda: None)
    assert recorder.made == 1 and list(steps.recorded) == ["often"]


@given(rows=st.integers(1, 400), most=st.integers(1, 400))
def test_buckets_hold_what_they_are_for(rows: int, most: int) -> None:
    rows = min(rows, most)
    bucket = row_bucket(rows, most)
    assert rows <= bucket <= most and bucket <= max(2 * rows, 8 + rows + 24)
    assert row_bucket(bucket, most) == bucket


def test_options_are_checked(models: dict) -> None:
    with pytest.raises(UserError, match="engine_graphs.*sometimes"):
        HFEngine(models["gpt2"], STOPS, graphs="sometimes")
    with pytest.raises(ConfigError, match="need a GPU"):
        HFEngine(models["gpt2"], STOPS, graphs="on")
    with pytest.raises(UserError, match="decode_attention.*fast"):
        HFEngine(models["gpt2"], STOPS, decode_attention="fast")
    for attention, why in (("flash", "needs a GPU"), ("triton", "needs a GPU")):
        with pytest.raises(ConfigError, match=why):
            HFEngine(models["qwen3"], STOPS, decode_attention=attention)
    with pytest.raises(ConfigError, match="architecture 'gpt2'"):
        HFEngine(models["gpt2"], STOPS, decode_attention="sdpa")
    with pytest.raises(ConfigError, match="type that is computed in"):
        HFEngine(models["qwen3"], STOPS, bf16=True, decode_attention="sdpa")


def test_the_cache_is_freed_before_the_update(models: dict) -> None:
    engine = graphed(models["qwen3"], 7)
    seen: list[weakref.ref] = []

    async def watched() -> None:
        request = asyncio.ensure_future(engine.complete((1, 2, 3), Sampling(20)))
        while not request.done():
            await asyncio.sleep(0)
            if engine._cache is not None and engine._cache.keys is not None and not seen:
                assert engine._state is not None
                seen.extend(weakref.ref(t) for t in (engine._cache.keys, engine._cache.values, engine._state.uniforms))

    asyncio.run(watched())
    gc.collect()
    assert len(seen) == 3 and all(ref() is None for ref in seen)
    assert engine.graphs is not None and not engine.graphs.recorded, "a recording holds the tensors it was made on"
    engine.weights_changed()


def test_slots_fill_the_free_memory_and_leave_room_for_the_prefill() -> None:
    config = make_model("qwen3").config
    config.update(
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16, "vocab_size": 151936}
    )
    config.update({"num_key_value_heads": 8, "head_dim": 128})
    free, length = 75 * 10**9, 3400
    slots = slots_that_fit(config, length, free, 16384)
    cache = slots * length * 114_688  # bytes a token of Qwen3-1.7B: trainer arithmetic
    assert 0.85 * free < cache < free - 16384 * 114_688, slots
    assert slots_that_fit(config, length, free, 16384, by_model=True) < slots
    assert slots_that_fit(config, length, 10**9, 16384) == 1


# The fused decoder


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_fused_decoding_gives_the_models_own_logits(kind: str, dtype: torch.dtype, bound: float) -> None:
    model = make_model(kind).to(dtype)  # type: ignore[arg-type]
    caches, logits = [SlotCache(5), SlotCache(5)], []
    prompts = torch.randint(VOCAB, (5, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 7, 20, 3, 12])
    for cache, attention in zip(caches, ("model", "sdpa"), strict=True):
        prefilled = DynamicCache()
        with torch.inference_mode():
            model.base_model(input_ids=prompts, past_key_values=prefilled, use_cache=True)
            cache.adopt(prefilled)
            cache.reserve(64)
            cache.insert(prefilled, torch.arange(5), torch.arange(5))
        logits.append(DecodeForward(model, attention=attention).logits(prompts[:, 0], positions, cache, 32))
    off = (logits[0] - logits[1]).norm() / (logits[0] - logits[0].mean(-1, keepdim=True)).norm()
    assert off < bound and off < CLOSE[dtype]
    for a, b in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0.05)


def test_a_wrong_kernel_is_found_and_not_used(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model = make_model("qwen3")
    forward = DecodeForward(model, attention="sdpa")
    assert forward.fused is not None
    forward._checked = False  # as on a GPU
    one_too_many = lambda q, keys, values, lengths, scale: decode_ops.attend(q, keys, values, lengths + 1, scale)  # noqa: E731
    monkeypatch.setattr(forward.fused, "_attend", one_too_many)
    cache = SlotCache(2)
    prefilled = DynamicCache()
    with torch.inference_mode():
        model.base_model(input_ids=torch.ones(2, 8, dtype=torch.int64), past_key_values=prefilled, use_cache=True)
        cache.adopt(prefilled)
        cache.reserve(64)
        cache.insert(prefilled, torch.arange(2), torch.arange(2))
        forward.check(torch.tensor([3, 4]), torch.tensor([5, 6]), cache, 64)
    assert forward.fused is None and "is off by" in caplog.text


def test_auto_is_the_models_own_forward_on_a_cpu(models: dict) -> None:
    assert build_decoder(models["qwen3"], "auto", False) == (None, "on a CPU")


# Sampling in blocks


@pytest.mark.parametrize("vocabulary", [128, 1000, 8192])
def test_blocks_draw_the_same_tokens(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(500, vocabulary, generator=generator)
    logits[:, ::7] = -torch.inf
    logits[:, -200:] = -torch.inf if vocabulary > 200 else logits[:, -200:]
    draws = torch.rand(500, dtype=torch.float64, generator=generator)
    draws[:4] = torch.tensor([0.0, 1 - 2**-53, 1 - 2**-53, 0.0])
    temperature = torch.tensor([1.0, 0.7, 1.3, 0.0, 1.0]).repeat(100)
    token, logprob = sample_in_blocks(logits, draws, temperature)
    table = torch.log_softmax(logits.double() / torch.where(temperature == 0, 1.0, temperature)[:, None], -1)
    edges = table.exp().cumsum(-1)
    expected = torch.searchsorted(edges, (draws * edges[:, -1])[:, None], right=True)[:, 0]
    expected = torch.where(temperature == 0, table.argmax(-1), expected)
    assert (token[4:] == expected[4:]).all() and (token[3] == expected[3])
    torch.testing.assert_close(logprob.double(), table.gather(-1, token[:, None])[:, 0], atol=1e-5, rtol=0)


def test_a_large_vocabulary_takes_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr("memfactory.engines.sampling.sample_in_blocks", lambda *args: used.append(1))
    sample(torch.zeros(1, 8192), torch.zeros(1, dtype=torch.float64), torch.ones(1))
    assert used


# Shared beginnings


def prompts_with_common_beginnings(lengths: list[tuple[int, int, int]], seed: int = 0) -> list[tuple[int, ...]]:
    """`lengths`: (number, common, most after it) of each family."""
    rng = random.Random(seed)
    prompts = []
    for number, common, rest in lengths:
        start = tuple(rng.randrange(VOCAB) for _ in range(common))
        prompts += [start + tuple(rng.randrange(VOCAB) for _ in range(rng.randint(0, rest))) for _ in range(number)]
    return list(dict.fromkeys(prompts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1 << 30, 200])
def test_shared_beginnings_give_the_keys_of_whole_prompts(models: dict, kind: str, budget: int) -> None:
    model = models[kind]
    prompts = prompts_with_common_beginnings([(5, SHARED + 10, 20), (1, 0, 30), (3, SHARED, 12)])
    tokens: list[int] = []
    with torch.inference_mode():
        with prefills_of(model, lambda kwargs: tokens.append(kwargs["input_ids"].numel())):
            parts = list(prefill(model, prompts, budget=budget))
        assert sorted(at for _, members in parts for at in members) == list(range(len(prompts)))
        for cache, members in parts:
            for row, at in enumerate(members):
                alone = DynamicCache()
                model.base_model(input_ids=torch.tensor([prompts[at]]), past_key_values=alone, use_cache=True)
                for (k, v), (k1, v1) in zip(key_values(cache), key_values(alone), strict=True):
                    torch.testing.assert_close(k[row : row + 1, :, : len(prompts[at])], k1, atol=1e-5, rtol=0)
                    torch.testing.assert_close(v[row : row + 1, :, : len(prompts[at])], v1, atol=1e-5, rtol=0)
    assert sum(tokens) < 0.6 * sum(map(len, prompts)) if budget > 1000 else all(number < 200 for number in tokens)


def test_the_engine_samples_the_same_from_shared_beginnings(models: dict) -> None:
    prompts = prompts_with_common_beginnings([(6, SHARED + 10, 20), (2, 0, 30)])
    requests: list[Request] = [(prompt, Sampling(15, stream=(n,))) for n, prompt in enumerate(prompts)]
    outs = [serve(HFEngine(models["qwen3"], STOPS, 16, share_prefixes=share), requests) for share in (True, False)]
    assert same(*outs) and worst_error(models["qwen3"], requests, outs[0]) < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), max_size=8).map(tuple), max_size=8, unique=True), st.integers(1, 4))
def test_families_part_the_prompts_and_share_what_is_common(prompts: list[tuple[int, ...]], least: int) -> None:
    found = families(prompts, least)
    assert sorted(at for family in found for at in family.members) == list(range(len(prompts)))
    for family in found:
        assert family.common == 0 or (family.common >= least and len(family.members) > 1)
        assert len({prompts[at][: family.common] for at in family.members}) == 1
        assert all(len(prompts[at]) >= family.common for at in family.members)


def test_a_stranger_does_not_shorten_what_is_shared() -> None:
    long = [(1,) * 90 + (n,) for n in range(4)]
    assert families([*long, (1,) * 60 + (0,) * 40]) == [Family((0, 1, 2, 3), 90), Family((4,), 0)]
    assert families([*long, (1,) * 80 + (2,) * 5]) == [Family((0, 1, 2, 3, 4), 80)], "a little shorter for one more pays"


def test_no_mask_in_a_prefill(models: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one torch runs its FlashAttention-2 kernel on a GPU."""
    calls: list[dict] = []
    attention: Callable = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **kwargs: (calls.append(kwargs), attention(*args, **kwargs))[1]
    )
    with torch.inference_mode():
        list(prefill(models["qwen3"], [(1, 2, 3), (4, 5)]))
    assert calls and all(call.get("attn_mask") is None and call["is_causal"] for call in calls)


assert MAX_LENGTH == 128, "the lengths above are for that"
