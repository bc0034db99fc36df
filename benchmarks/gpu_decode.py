"""The card's own limits, decoding through our engine beside `model.generate`, and decode attention alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import torch
from gpu_figures import Figures
from gpu_shapes import SHAPES, Shape, Work, card_of
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from memfactory.common.types import Completion, Sampling
from memfactory.engines import decode_ops, fused
from memfactory.engines.hf import HFEngine


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: str) -> float:
    """GB allocated at the highest since the last reset."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0


def reset_peak(device: str) -> None:
    """Count the highest allocation from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of random weights, made on the device."""
    torch.manual_seed(0)
    was = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(Qwen3Config(**shape.options()))
    finally:
        torch.set_default_dtype(was)
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    return model.eval()


def bandwidths(figures: Figures) -> dict[str, float]:
    """Bytes/s that decoding is compared with: the data sheet's, and those that a copy reached in the part `card`, if it ran."""
    found = {}
    if torch.cuda.is_available() and (known := card_of(torch.cuda.get_device_name())):
        found["limit"] = known[0]
    copied = figures.content["about"].get("copy_bytes_per_second")
    return found | ({"copy": copied} if copied else {})


def card(figures: Figures, work: Work, device: str, dry: bool) -> None:
    """What a copy and a matrix product reach."""
    size = (1 << 22) if dry else (1 << 32)
    with figures.attempt("copy"):
        source = torch.ones(size // 4, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        seconds = timed(lambda: target.copy_(source), device, 3 if dry else 10)
        figures.add("copy", bytes_per_second=2 * size / seconds)
    with figures.attempt("matrix product"):
        n = 256 if dry else 8192
        a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
        figures.add("matrix product", flops_per_second=2 * n**3 / timed(lambda: a @ b, device, 3 if dry else 20))


def timed(call: Any, device: str, repeats: int) -> float:
    """Seconds of a call: the median of `repeats` after two more."""
    times = []
    for _ in range(repeats + 2):
        sync(device)
        start = time.perf_counter()
        call()
        sync(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def recorded_seconds(call: Any, device: str, repeats: int) -> float:
    """Seconds of a call without the host's part in it: on a GPU eight of them in a graph."""
    if device != "cuda":
        return timed(call, device, repeats)
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(8):
            call()
    return timed(graph.replay, device, repeats) / 8


def decode(figures: Figures, work: Work, device: str, dry: bool, shape: str) -> None:
    """Tokens/s by batch, of ours and of `model.generate`."""
    sizes = SHAPES[shape]
    model = random_model(sizes, device, torch.float32 if dry else torch.bfloat16)
    first = work.batches[0]
    variants: list[tuple[str, int, dict[str, Any]]] = [
        (f"ours, batch {n}", n, {"decode_attention": "sdpa"} if dry else {}) for n in work.batches
    ]
    variants.insert(1, ("generate", first, {}))
    variants += [
        (f"ours, batch {first}, no graphs", first, {"graphs": "off"}),
        (f"ours, batch {first}, transformers' forward", first, {"decode_attention": "model"}),
        (f"ours, batch {first}, sdpa attention", first, {"decode_attention": "sdpa"}),
    ]
    for name, batch, options in variants:
        with figures.attempt(name):
            reset_peak(device)
            measured = _generate(model, sizes, work, device) if name == "generate" else _ours(model, sizes, work, device, batch, options)
            figures.add(name, batch=batch, **measured, **_ratios(figures, sizes, measured), peak_gb=peak_gb(device))
        if "generate" in figures.content["figures"] and f"ours, batch {first}" in figures.content["figures"]:
            both = [figures.content["figures"][key]["tokens_per_second"] for key in (f"ours, batch {first}", "generate")]
            figures.content["over_generate"] = both[0] / both[1]
    with figures.attempt("kernels of a step"):
        figures.content["kernels"] = _profile(model, sizes, work, device)
    figures.save()


def _ratios(figures: Figures, shape: Shape, measured: dict[str, Any]) -> dict[str, float]:
    """The bandwidth that a step's bytes make, as a part of the card's."""
    moved = shape.step_bytes(measured["rows"], measured["context"]) / measured["step_seconds"]
    return {f"of_{name}": moved / bandwidth for name, bandwidth in bandwidths(figures).items()}


def _prompts(shape: Shape, batch: int, length: int) -> list[tuple[int, ...]]:
    made = torch.randint(shape.vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch))
    return [tuple(row) for row in made.tolist()]


def _ours(model: PreTrainedModel, shape: Shape, work: Work, device: str, batch: int, options: dict[str, Any]) -> dict[str, Any]:
    """The engine's own loop, all that it does between two tokens counted; the clock stands at the reading of each step."""
    engine = HFEngine(model, frozenset(), batch, **options)
    ticks: list[float] = []
    slots: list[int] = []
    collect = engine._collect

    def watched(*args: Any) -> Any:
        out = collect(*args)
        ticks.append(time.perf_counter())
        assert engine._state is not None
        slots.append(len(engine._state.tokens))
        return out

    engine._collect = watched  # type: ignore[method-assign]

    async def every() -> list[Completion]:
        requests = [(p, Sampling(work.new, stream=(n,))) for n, p in enumerate(_prompts(shape, batch, work.prompt))]
        return list(await asyncio.gather(*(engine.complete(*request) for request in requests)))

    start = time.perf_counter()
    outs = asyncio.run(every())
    assert all(len(out.ids) == work.new for out in outs)
    last = work.new - 1  # what was read after this may have been started for fewer rows
    seconds = (ticks[last] - ticks[work.skipped]) / (last - work.skipped)
    rows = min(batch, slots[0])
    used = engine._forward.fused
    return {
        "rows": rows, "tokens_per_second": rows / seconds, "step_seconds": seconds,
        "context": work.prompt + (work.skipped + last) / 2, "until_first_token": ticks[0] - start,
        "attention": "model" if used is None else used.attention,
        "replayed": 0 if engine.graphs is None else engine.graphs.replays,
    }  # fmt: skip


def _profile(model: PreTrainedModel, shape: Shape, work: Work, device: str) -> list[dict[str, Any]]:
    """The kernels that take longest in the first batch's steps; prefill is before the recording starts."""
    engine = HFEngine(model, frozenset(), work.batches[0])
    activity = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    profiler, collect, seen = torch.profiler.profile(activities=[activity]), engine._collect, [0]

    def watched(*args: Any) -> Any:
        seen[0] += 1
        if seen[0] == work.skipped:
            sync(device)
            profiler.start()
        if seen[0] == work.skipped + 8:
            sync(device)
            profiler.stop()
        return collect(*args)

    engine._collect = watched  # type: ignore[method-assign]

    async def every() -> None:
        prompts = _prompts(shape, work.batches[0], work.prompt)
        await asyncio.gather(*(engine.complete(p, Sampling(work.skipped + 12, stream=(n,))) for n, p in enumerate(prompts)))

    asyncio.run(every())
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, field))[:20]
    return [{"name": row.key[:90], "calls": row.count, "microseconds": getattr(row, field)} for row in rows]


@torch.no_grad()
def _generate(model: PreTrainedModel, shape: Shape, work: Work, device: str) -> dict[str, Any]:
    """`model.generate` on the same prompts, sampling at temperature 1; the difference of two lengths, without the prefill."""
    ids = torch.tensor(_prompts(shape, work.batches[0], work.prompt), device=device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    times = {}
    for new in (work.generated[0], *work.generated):  # once to warm up
        sync(device)
        start = time.perf_counter()
        out = model.generate(ids, max_new_tokens=new, **options)  # type: ignore[operator]
        sync(device)
        times[new] = time.perf_counter() - start
        assert out.shape[1] == work.prompt + new
    few, many = work.generated
    seconds = max((times[many] - times[few]) / (many - few), 1e-9)
    return {"rows": len(ids), "tokens_per_second": len(ids) / seconds, "step_seconds": seconds, "context": work.prompt + (few + many) / 2}


def attention(figures: Figures, work: Work, device: str, dry: bool) -> None:
    """Decode attention alone, one layer: bytes/s of keys and values by kernel and setting."""
    context = work.prompt + work.new // 2
    for shape, batch in [(shape, batch) for shape in work.shapes for batch in (work.batches[0], work.batches[-1])]:
        for name, call in _attentions(SHAPES[shape], batch, context, device, variants=shape == work.shapes[0]):
            with figures.attempt(f"{shape}, batch {batch}, {name}"):
                seconds = recorded_seconds(call, device, 3 if dry else 15)
                moved = batch * context * SHAPES[shape].token_bytes / SHAPES[shape].num_hidden_layers / seconds
                ratios = {f"of_{kind}": moved / bandwidth for kind, bandwidth in bandwidths(figures).items()}
                figures.add(f"{shape}, batch {batch}, {name}", microseconds=1e6 * seconds, bytes_per_second=moved, **ratios)


def _attentions(shape: Shape, batch: int, context: int, device: str, variants: bool) -> list[tuple[str, Any]]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    length = -(-context // 64) * 64
    q = torch.randn(batch, shape.num_attention_heads, shape.head_dim, dtype=dtype, device=device)
    keys, values = (torch.randn(batch, shape.num_key_value_heads, length, shape.head_dim, dtype=dtype, device=device) for _ in range(2))
    lengths = torch.full((batch,), context, device=device)
    inputs, scale = (q, keys, values, lengths), shape.head_dim**-0.5
    calls: list[tuple[str, Any]] = [("sdpa", lambda: decode_ops.attend(*inputs, scale))]
    if not fused.not_here("flash", device == "cuda"):
        calls.append(("flash", lambda: fused.flash_attend(*inputs, scale)))
    if not fused.not_here("triton", device == "cuda"):
        from memfactory.engines import decode_kernels as kernels

        calls.append(("triton", lambda: kernels.attend(*inputs, scale)))
        for splits in (1, 2, 4, 8, 16, 32) if variants else ():
            calls.append((f"triton, {splits} splits", lambda splits=splits: kernels.attend(*inputs, scale, splits=splits)))
        for block, warps, stages in ((32, 4, 4), (64, 4, 2), (128, 4, 2), (128, 8, 3)) if variants else ():
            own = {"block": block, "warps": warps, "stages": stages}
            calls.append((f"triton, block {block}, warps {warps}, stages {stages}", lambda own=own: kernels.attend(*inputs, scale, **own)))
    return calls
