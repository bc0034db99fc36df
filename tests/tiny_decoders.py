"""Tiny random models of every decoder class that transformers has, with windows that short texts pass and weights that make mistakes show.

`python tests/tiny_decoders.py --write docs/models.md` asks `memfactory doctor`'s comparison about each, judges its verdict by a script
of its own, and writes the table.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB, WINDOW, ORIGINAL, LARGE = 99, 24, 32, 4_000_000

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2,
    "n_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_head_dim": 24,
    "max_position_embeddings": 256, "n_positions": 256, "max_sequence_length": 256, "embedding_size": 64, "word_embed_proj_dim": 64,
    "sliding_window": WINDOW, "attention_window_size": WINDOW, "local_attention_window": WINDOW, "window_size": WINDOW,
    "attention_chunk_size": WINDOW, "max_window_layers": 1, "first_k_dense_replace": 1, "decoder_layers": 2, "encoder_layers": 2,
    "decoder_ffn_dim": 96, "encoder_ffn_dim": 96, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "attention_head_size": 16,
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "expand": 2, "time_step_rank": 8,
    "mamba_dt_rank": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "num_attention_groups": 2, "lru_width": 64, "index_topk": 64, "index_n_heads": 2, "index_head_dim": 16, "num_nextn_predict_layers": 0,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0, "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 96, "n_shared_experts": 1, "num_shared_experts": 1, "kv_channels": 16, "attention_hidden_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_loras": 1,
}  # fmt: skip
"""What a configuration is given of these, where it has an option of the name."""

HEAVY = (
    "vision_config",
    "audio_config",
    "speech_config",
    "image_config",
    "vq_config",
    "encoder_config",
    "perceiver_config",
    "qformer_config",
)


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "original_max_position_embeddings": ORIGINAL, "rope_theta": 1e4} | more}


LONG = {"original_max_position_embeddings": ORIGINAL, "sliding_window": None}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 with windows": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": WINDOW}),
    "llama yarn": ("llama", rope("yarn", factor=4.0)),
    "llama dynamic": ("llama", rope("dynamic", factor=4.0)),
    "llama3 rope": ("llama", rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    "phi3 longrope": ("phi3", LONG | rope("longrope", short_factor=[1.0] * 8, long_factor=[3.0] * 8)),
    "llama longrope": ("llama", rope("longrope", factor=8.0, short_factor=[1.0] * 8, long_factor=[3.0] * 8)),
    "gpt2 with dropout": ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "opt with dropout": ("opt", {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3}),
    "mixtral with jitter": ("mixtral", {"router_jitter_noise": 0.3, "sliding_window": None}),
    "falcon alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "gemma2 soft caps": ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "granite scaled": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "cohere scaled": ("cohere", {"logit_scale": 0.25}),
    "gemma3 composite": (
        "gemma3",
        {
            "text_config": {
                **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}, "num_hidden_layers": 2,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": WINDOW, "max_position_embeddings": 256,
                            "layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1},
        },
    ),
    "llama eager": ("llama", {"attn_implementation": "eager"}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True, "sliding_window": None}),
}  # fmt: skip


def sized(config: type, changes: dict[str, Any]) -> Any:
    """A configuration of a class, small; what its own checks refuse is tried with fewer options."""
    whole = config().to_dict()
    known = set(whole) | set(getattr(config, "attribute_map", {}))
    options = {name: value for name, value in SIZES.items() if name in known and not isinstance(whole.get(name), (list, dict))}
    for name, value in whole.items():
        if isinstance(value, dict) and name in getattr(config, "sub_configs", {}):
            part = config.sub_configs[name]  # type: ignore[attr-defined]
            own = part if isinstance(part, type) and part.__name__ != "AutoConfig" else CONFIG_MAPPING[value["model_type"]]
            options[name] = sized(own, {}).to_dict() if name not in HEAVY else {}
    for name in ("layer_types", "layers_block_type", "block_types", "hybrid_override_pattern"):
        if isinstance(whole.get(name), list) and name in inspect.signature(config.__init__).parameters:
            options[name] = (
                whole[name][:2] if len(set(whole[name][:2])) > 1 or len(set(whole[name])) == 1 else list(dict.fromkeys(whole[name]))[:2]
            )
    return config(**(options | changes))


def tiny(config: Any, seed: int = 0) -> PreTrainedModel:
    """A random model of a configuration in eval mode; its matrices are large enough that a mistake shows."""
    how = getattr(config, "attn_implementation", None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        kind = kind[0] if isinstance(kind, (tuple, list)) else kind
        with torch.device("meta"):
            if sum(parameter.numel() for parameter in kind._from_config(config).parameters()) > LARGE:
                raise ValueError("its sizes are not all known here")
        model: PreTrainedModel = kind._from_config(config, **({"attn_implementation": how} if how else {}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "conv" not in name:
                    parameter.copy_(torch.randn_like(parameter) * min(0.3, 1.2 / parameter.shape[-1] ** 0.5))
    return model.float().eval()


def decoders() -> Iterator[tuple[str, Any]]:
    """(name, how to make its configuration) of every class of the causal LM mapping, then the variants."""
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        yield config.model_type, lambda config=config: sized(config, {})
    for name, (kind, changes) in VARIANTS.items():
        yield name, lambda kind=kind, changes=changes: sized(type(AutoConfig.for_model(kind)), changes)


# The judge: it shares no code with the comparison that it judges


def plain(model: PreTrainedModel, prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probs of a continuation by the model's own forward, alone, in eval mode."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), -1)[torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1), torch.tensor(ids)]


def texts(seed: int, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randint(3, VOCAB, (110,), generator=draw).tolist()
    found = [tuple(torch.randint(3, VOCAB, (length,), generator=draw).tolist()) for length in lengths]
    return [*found, (*shared, 5, 6), (*shared, 9), (*shared[:100], 7, 8, 9)]


def judged_engine(model: PreTrainedModel, engine: Any) -> float:
    """How far sampled log-probs are from the plain forward's, in batches of mixed lengths, for whatever the engine accepts."""
    from memfactory.common.errors import PromptTooLong
    from memfactory.common.types import Sampling

    prompts = texts(3, (2, 17, 21, 30, 45, 61, 100))

    async def every() -> list[Any]:
        asked = [engine.complete(prompt, Sampling(10, 1.0, stream=(7, n))) for n, prompt in enumerate(prompts)]
        return await asyncio.gather(*asked, return_exceptions=True)

    worst = 0.0
    for prompt, out in zip(prompts, asyncio.run(every()), strict=True):
        if isinstance(out, PromptTooLong):
            continue
        if isinstance(out, BaseException):
            raise out
        worst = max(worst, float((plain(model, prompt, out.ids) - torch.tensor(out.logprobs)).abs().max()))
    return worst


def judged_update(model: PreTrainedModel, longest: int = 1 << 30) -> float:
    """How far the log-probs that the update differentiates are from the plain forward's, through the trainer's own class."""
    from memfactory.algorithms.logprobs import without_dropout
    from memfactory.algorithms.packing import Sample, TrainBatch
    from memfactory.common.config import TrainConfig
    from memfactory.trainers.metrics import Averages
    from memfactory.trainers.policy_update import PolicyUpdate

    prompts = [prompt for prompt in texts(5, (2, 17, 21, 30, 45, 61, 100)) if len(prompt) + 6 <= longest]
    samples = [
        Sample(prompt, prompt[::-1][:6], tuple(plain(model, prompt, prompt[::-1][:6]).tolist()), 1.0, n, 0)
        for n, prompt in enumerate(prompts)
    ]
    without_dropout(model)
    update = PolicyUpdate(model, TrainConfig(old_logprobs="sampler"), torch.device("cpu"), False)
    seen: list[torch.Tensor] = []
    scored = update._scored

    def watched(holder: Any, micro: Any) -> Any:
        values, entropy = scored(holder, micro)
        seen.append((values.detach() - micro.old).abs().max())
        return values, entropy

    update._scored = watched  # type: ignore[method-assign]
    update.backward(TrainBatch(samples), Averages(), False)
    model.zero_grad()
    return float(max(seen))


@dataclass
class Row:
    """One model of the table."""

    name: str
    kind: str
    sampled: str
    trained: str
    wrong: float | None
    """How far the judge finds what was accepted off; None if nothing was accepted."""
    seconds: float


def asked(name: str, model: PreTrainedModel) -> Row:
    """The comparison's verdicts on a model, and the judge's."""
    from memfactory.algorithms.tree_attention import choose_backend
    from memfactory.common.errors import UserError
    from memfactory.engines.checked import checked_engine, engine_verdict
    from memfactory.trainers.agreement import update_verdict

    start, off, longest = time.perf_counter(), [], 1 << 30
    state = torch.get_rng_state()
    try:
        engine = checked_engine(model, frozenset())
        way, verdict, _ = engine_verdict(model, False, {})
        sampled = f"{way}, {verdict.worst.off:.0e}" + (
            f", to {engine.max_length} tokens" if verdict.beyond or way.startswith("up to") else ""
        )
        longest = engine.max_length
        off.append(judged_engine(model, engine))
    except UserError as error:
        sampled = f"refused: {_reason(str(error))}"
    try:
        off.append(judged_update(model, longest))
        way, verdict, _ = update_verdict(model, choose_backend(model), 16384, "auto", False)
        trained = f"{way}, {verdict.worst.off:.0e}"
    except UserError as error:
        trained = f"refused: {_reason(str(error))}"
    assert torch.equal(state, torch.get_rng_state()), "the global random state was touched"
    return Row(name, type(model).__name__, sampled, trained, max(off, default=None), time.perf_counter() - start)


def _reason(text: str) -> str:
    return (
        text.partition(" as it is. ")[2].partition(". Use --engine")[0].partition(". Nothing that")[0].replace("|", "/")[:110] or text[:110]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows, unbuilt = [], []
    for name, make in decoders():
        if arguments.only and name not in arguments.only:
            continue
        try:
            model = tiny(make())
            if getattr(model.config, "is_encoder_decoder", False):
                raise ValueError("an encoder-decoder")
            with torch.no_grad():
                logits = model(input_ids=torch.arange(3, 60)[None], use_cache=False).logits
            if not logits.isfinite().all():
                raise ValueError("its numbers are not finite")
        except Exception as error:  # noqa: BLE001 - what cannot be built so is counted
            unbuilt.append((name, f"{type(error).__name__}: {str(error)[:100]}"))
            print("UNBUILT", *unbuilt[-1], flush=True)
            continue
        try:
            row = asked(name, model)
        except Exception as error:  # noqa: BLE001 - neither a verdict nor a judgement: the worst there is
            row = Row(name, type(model).__name__, f"raised {type(error).__name__}: {error}"[:120], "", float("inf"), 0.0)
        rows.append(row)
        print(row, flush=True)
    bad = [row for row in rows if row.wrong is not None and not row.wrong < 2e-3]
    print(
        f"{len(rows)} models, {sum('refused' not in r.sampled for r in rows)} sampled, "
        f"{sum('refused' not in r.trained for r in rows)} trained, "
        f"{len(bad)} silent disagreements, {len(unbuilt)} not built: {[n for n, _ in unbuilt]}; {[r.name for r in bad]}"
    )
    if arguments.write:
        write(arguments.write, rows, len(unbuilt))
    sys.exit(bool(bad))


def write(path: Path, rows: list[Row], unbuilt: int) -> None:
    """Put the table between the page's marks."""
    begin, end = "<!-- table -->\n", "<!-- end -->"
    text = path.read_text()
    head, rest = text.split(begin)
    lines = ["| model | class | sampled by the hf engine | trained | judge |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row.name):
        wrong = "-" if row.wrong is None else f"{row.wrong:.0e}"
        lines.append(f"| {row.name} | `{row.kind}` | {row.sampled} | {row.trained} | {wrong} |")
    path.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
