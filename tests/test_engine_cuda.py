"""What only a GPU can show of the engine: real graphs, real kernels, memory that comes back. Needs torch, transformers and pytest alone."""

from __future__ import annotations

import asyncio
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from memfactory.common.types import Completion, Sampling
from memfactory.engines import decode_ops
from memfactory.engines.fused import flash_attend, not_here
from memfactory.engines.hf import HFEngine

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 64, "vocab_size": 9216}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
REQUESTS = [
    (tuple((7 * n + 3 * at) % 9000 for at in range(1 + 37 * n % 190)), Sampling(20 + 9 * n % 70, (0.7, 1.0, 0.0)[n % 3], stream=(n,)))
    for n in range(40)
]


def make_model(dtype: torch.dtype) -> PreTrainedModel:
    """Weights that are hard on purpose: an error in a key, a position or a mask is then visible."""
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, **HEADS, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None)
    model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().to("cuda", dtype)  # type: ignore[arg-type,call-overload]


@pytest.fixture(scope="module")
def exact() -> PreTrainedModel:
    return make_model(torch.float32)


def serve(engine: HFEngine) -> list[Completion]:
    async def every() -> list[Completion]:
        return list(await asyncio.gather(*(engine.complete(*request) for request in REQUESTS)))

    return asyncio.run(every())


@torch.no_grad()
def worst_error(model: PreTrainedModel, outs: list[Completion]) -> tuple[float, float]:
    """(largest, mean) difference of a log-prob to a plain forward's."""
    errors = []
    for (prompt, sampling), out in zip(REQUESTS, outs, strict=True):
        ids = torch.tensor([prompt + out.ids], device="cuda")
        table = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float() / (sampling.temperature or 1.0), -1)
        at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        errors.append((table[at, ids[0, at + 1]].cpu() - torch.tensor(out.logprobs)).abs())
    every = torch.cat(errors)
    return every.max().item(), every.mean().item()


@pytest.mark.parametrize("attention", ["model", "sdpa", pytest.param("triton", marks=needs_triton)])
def test_graphs_sample_what_eager_steps_do(exact: PreTrainedModel, attention: str) -> None:
    stops = frozenset(range(0, 9216, 40))
    outs = []
    for graphs in ("on", "off"):
        engine = HFEngine(exact, stops, 12, graphs=graphs, decode_attention=attention, longest=300)
        outs.append(serve(engine))
        assert (engine.graphs is not None and engine.graphs.replays > 30) == (graphs == "on")
    assert [out.ids for out in outs[0]] == [out.ids for out in outs[1]]
    largest, _ = worst_error(exact, outs[0])
    assert largest < 1e-3


def test_bf16_is_close_to_the_training_forward_and_the_fused_decoder_stays_in_use() -> None:
    model = make_model(torch.bfloat16)
    engine = HFEngine(model, frozenset(), 16, bf16=True)
    _, mean = worst_error(model, serve(engine))
    assert mean < 0.05
    assert engine._forward.fused is not None and engine.graphs is not None and engine.graphs.recorder is not None


def test_the_memory_comes_back(exact: PreTrainedModel) -> None:
    engine = HFEngine(exact, frozenset(), 16)
    serve(engine)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        serve(engine)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() - before < 1 << 20


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(16, 8, 128), (32, 8, 128), (8, 8, 64)])
def test_kernels_compute_what_their_twins_do(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    from memfactory.engines import decode_kernels as kernels

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    near = {"atol": 2e-4 if dtype == torch.float32 else 3e-2, "rtol": 1e-4 if dtype == torch.float32 else 2e-2}
    rows, length = 9, 700
    keys, values = random(12, kv_heads, length, dim)[:rows], random(12, kv_heads, length, dim)[:rows]
    lengths = torch.tensor([1, 2, 63, 64, 65, 300, 511, 640, 700], device="cuda")
    q = random(rows, heads, dim)
    want = decode_ops.attend(q.float(), keys.float(), values.float(), lengths, dim**-0.5).to(dtype)
    for splits in (None, 1, 2, 7, 16):
        torch.testing.assert_close(kernels.attend(q, keys, values, lengths, dim**-0.5, splits=splits), want, **near)
    if dtype == torch.bfloat16 and not not_here("flash", True):
        torch.testing.assert_close(flash_attend(q, keys, values, lengths, dim**-0.5), want, **near)
    norm = SimpleNamespace(weight=random(1000), variance_epsilon=1e-6)
    x, delta = random(rows, 1000), random(rows, 1000)
    for residual in (None, x):
        for got, twin in zip(kernels.add_norm(residual, delta, norm), decode_ops.add_norm(residual, delta, norm), strict=True):
            torch.testing.assert_close(got, twin, **near)
    torch.testing.assert_close(kernels.silu_mul(x, delta), decode_ops.silu_mul(x, delta), **near)
    norms = tuple(SimpleNamespace(weight=random(dim), variance_epsilon=1e-6) for _ in range(2))
    angles = torch.randn(rows, dim // 2, device="cuda").repeat(1, 2)
    k, v, positions = random(rows, kv_heads, dim), random(rows, kv_heads, dim), lengths - 1
    for some in (None, norms):
        caches = [(keys.clone(), values.clone()) for _ in range(2)]
        turned = [
            ops.turn_and_store(q, k, v, some, angles.cos().to(dtype), angles.sin().to(dtype), *cache, positions)
            for ops, cache in zip((kernels, decode_ops), caches, strict=True)
        ]
        torch.testing.assert_close(turned[0], turned[1], **near)
        for got, twin in zip(*caches, strict=True):
            torch.testing.assert_close(got, twin, **near)
