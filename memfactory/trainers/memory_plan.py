"""How much memory a training run will want, before anything is loaded: arithmetic on the model's configuration.

An estimate of what is allocated at the two peaks, the rollout (the engine's cache) and the update (gradients, activations,
logits of the trained positions), beside what stays. Allocator overhead is not in it. Knows no device but its size.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from memfactory.algorithms.chunked_logprobs import GPU_TILE
from memfactory.algorithms.logprobs import is_chunked
from memfactory.common.config import TrainConfig
from memfactory.engines.load import load_config
from memfactory.engines.slot_cache import cache_bytes_per_token
from memfactory.trainers.base import required_model

log = logging.getLogger(__name__)

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """GiB by what they are for."""

    resident: dict[str, float]
    """Held during the whole run."""
    rollout: dict[str, float]
    update: dict[str, float]

    @property
    def peak(self) -> float:
        """GiB at the higher of the two peaks."""
        return sum(self.resident.values()) + max(sum(self.rollout.values()), sum(self.update.values()))

    def __str__(self) -> str:
        def listed(parts: dict[str, float]) -> str:
            return " + ".join(f"{name} {gib:.1f}" for name, gib in parts.items() if gib >= 0.05) or "next to nothing"

        either = f"the larger of rollout ({listed(self.rollout)}) and update ({listed(self.update)})"
        return f"{self.peak:.1f} GiB = {listed(self.resident)} + {either}"


def plan_memory(config: TrainConfig, bf16: bool) -> MemoryPlan:
    """The plan for a run of `mem_grpo`; `bf16`: arithmetic in bf16 over fp32 weights, as on a GPU."""
    model = load_config(required_model(config))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(model).parameters())
    text = model.get_text_config()
    wide = 2 if bf16 else 4
    prompt = config.max_prompt_length or (config.chunk_size or 5000) + (config.max_generate_length or 1024) + 512
    sampled = config.max_generate_length or 1024
    slots = min(config.engine_slots, config.examples_per_step * config.num_generations)
    # While the cache grows, one of its two buffers stands beside its smaller predecessor.
    cache = 1.4 * cache_bytes_per_token(text, wide) * (prompt + sampled) * slots
    tokens = max(config.tokens_per_micro_batch, prompt + sampled)  # a longer row goes alone
    # Rough counts of what autograd keeps per token and layer: the layer's input, or with it the results inside the layer too.
    kept = text.hidden_size * wide * text.num_hidden_layers * (1 if config.gradient_checkpointing else 14)
    inside = text.hidden_size * wide * 24 if config.gradient_checkpointing else 0
    trained = tokens * sampled // (prompt + sampled)
    moments = 8 if config.optimizer == "adamw" else 6
    return MemoryPlan(
        resident={"weights (fp32)": parameters * 4 / GIB, f"{config.optimizer}'s moments (fp32)": parameters * moments / GIB}
        | ({"reference": parameters * wide / GIB} if config.beta > 0 or "reference" in config.mapping("roles").values() else {}),
        rollout={"key-value cache": cache / GIB},
        update={
            "gradients (fp32)": parameters * 4 / GIB,
            "activations": tokens * (kept + inside) / GIB,
            "logits": _logit_bytes(config, trained, text.vocab_size, text.hidden_size) / GIB,
        },
    )


def _logit_bytes(config: TrainConfig, tokens: int, vocabulary: int, hidden: int) -> int:
    """Three copies of the logits, or two tiles of them; with tiles the gradients of hidden states and head count for something."""
    if not is_chunked(config.logprob_chunks, tokens * vocabulary):
        return tokens * vocabulary * 4 * 3
    return 2 * math.prod(GPU_TILE) * 4 + (tokens + vocabulary) * hidden * 4


def report_memory(config: TrainConfig, device: torch.device) -> None:
    """Say what a run will need and whether the device has it; a run that cannot fit is warned of, not stopped."""
    on_gpu = device.type == "cuda"
    plan = plan_memory(config, on_gpu if config.bf16 is None else config.bf16)
    log.info("Memory expected: %s.", plan)
    if on_gpu:
        name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0] / GIB
    else:
        name, free = "This machine's memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if plan.peak <= free:
        log.info("%s: %.0f GiB, enough.", name, free)
        return
    log.warning(
        "%s: %.0f GiB, NOT enough. What helps: --engine_slots (now %d) and --tokens_per_micro_batch (now %d) lower, "
        "--gradient_checkpointing True, --beta 0 (no reference), shorter --max_generate_length, a smaller model.",
        name, free, config.engine_slots, config.tokens_per_micro_batch,
    )  # fmt: skip
