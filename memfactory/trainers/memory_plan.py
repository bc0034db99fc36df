"""How much memory a training run will want, before anything is loaded: arithmetic on the model's configuration.

An estimate of what is allocated at the two peaks, the rollout (the engine's cache) and the update (gradients, activations,
logits of the trained positions), beside what stays. Allocator overhead is not in it. Knows no device but its size.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field

import torch

from memfactory.algorithms.chunked_logprobs import GPU_TILE
from memfactory.algorithms.eight_bit import BLOCK
from memfactory.algorithms.logprobs import is_chunked
from memfactory.common.config import TrainConfig
from memfactory.trainers.held import Held, held_by
from memfactory.trainers.model_shapes import Shape, shape_of
from memfactory.trainers.setup import required_model

log = logging.getLogger(__name__)

GIB = 2**30

GROWTH = 1.4
"""While the cache grows, one of its two buffers stands beside its smaller predecessor."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """GiB by what they are for."""

    resident: dict[str, float]
    """Held during the whole run."""
    rollout: dict[str, float]
    update: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)
    """On the CPU instead."""
    slot: float = 0.0
    """Of one slot of the cache, in `rollout`."""

    @property
    def peak(self) -> float:
        """GiB at the higher of the two peaks."""
        return self.stays + max(sum(self.rollout.values()), sum(self.update.values()))

    @property
    def stays(self) -> float:
        """GiB held during the whole run."""
        return sum(self.resident.values())

    def slots_in(self, gib: float) -> int:
        """How many slots such a device has room for, beside all else that a rollout needs."""
        others = sum(size for name, size in self.rollout.items() if name != CACHE)
        return max(0, int((gib - self.stays - others) / self.slot)) if self.slot else 0

    def __str__(self) -> str:
        def listed(parts: dict[str, float]) -> str:
            return " + ".join(f"{name} {gib:.1f}" for name, gib in parts.items() if gib >= 0.05) or "next to nothing"

        either = f"the larger of rollout ({listed(self.rollout)}) and update ({listed(self.update)})"
        return f"{self.peak:.1f} GiB = {listed(self.resident)} + {either}"


CACHE = "key-value cache"


def bytes_per_parameter(held: Held, optimizer: str = "adamw") -> dict[str, float]:
    """Bytes for each parameter that is trained, by what they are for, wherever they are."""
    split, lora = held.master_weights == "split", held.master_weights == "lora"
    weights = {"weights (bf16)": 2.0, "residual (int16)": 2.0} if split else {"adapters (fp32)" if lora else "weights (fp32)": 4.0}
    eight = 2 * (1 + 4 / BLOCK)  # a scale for each block
    moments = (8.0 if optimizer == "adamw" else 6.0) if held.moments == "fp32" else eight
    gradients = 2.0 if held.gradients == "bf16" else 4.0
    kind = "fp32" if held.moments == "fp32" else "8-bit"
    return weights | {f"{optimizer}'s moments ({kind})": moments, f"gradients ({held.gradients})": gradients}


def plan_memory(config: TrainConfig, bf16: bool, on_gpu: bool = False, shape: Shape | None = None, gpus: int | None = None) -> MemoryPlan:
    """The plan for a run of `mem_grpo`; `bf16`: arithmetic in bf16. `on_gpu` decides the defaults that a configuration leaves open.

    `gpus`: on so many, each with a process; the plan is one's. None: as many as there are processes, each as if it were alone.
    """
    shape = shape or shape_of(required_model(config))
    held = held_by(config, on_gpu, shape.parameters, gpus)
    lora = held.master_weights == "lora"
    trained = shape.adapters(config.lora_r, tuple(config.lora_targets)) if lora else shape.parameters
    resident = {name: trained * size for name, size in bytes_per_parameter(held, config.optimizer).items()}
    update = {name: resident.pop(name) for name in list(resident) if name.startswith("gradients")}
    wide = 2 if bf16 else 4
    if lora:
        resident = {f"weights, frozen ({'bf16' if bf16 else 'fp32'})": shape.parameters * wide} | resident
    host: dict[str, float] = {}
    if held.offload_optimizer:
        host = {name: resident.pop(name) for name in list(resident) if "moments" in name or "residual" in name}
    if config.beta > 0 or "reference" in config.mapping("roles").values():
        copied = shape.parameters * wide
        (host if held.reference == "cpu" else resident)["reference"] = 0.0 if held.reference == "lora" else copied
    # Under bf16 arithmetic every fp32 weight has a bf16 copy while a pass over the model lasts.
    casts = {"weights in bf16": shape.parameters * 2.0} if bf16 and held.master_weights == "fp32" else {}
    prompt, sampled = lengths(config)
    slot = GROWTH * shape.cache_bytes(wide) * (prompt + sampled)
    tokens = max(config.tokens_per_micro_batch, prompt + sampled)  # a longer row goes alone
    update |= {"activations": tokens * _kept(config, shape, wide, casts), "logits": _logits(config, shape, tokens, wide, lora)} | casts
    rollout = {CACHE: slot * slots_wanted(config, gpus or 1)} | casts
    if config.rollout_servers:  # they sample: nothing is decoded here
        rollout = {}
    if gpus and gpus > 1 and config.parallel == "fsdp2":  # weights and moments in shards; a whole copy samples, or is written
        resident = {name: size if name == "reference" else size / gpus for name, size in resident.items()}
        rollout["weights, whole"] = shape.parameters * 4.0
    return MemoryPlan(_in_gib(resident), _in_gib(rollout), _in_gib(update), _in_gib(host), slot / GIB)


def lengths(config: TrainConfig) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response, as far as the flags say."""
    sampled = config.max_generate_length or 1024
    return config.max_prompt_length or (config.chunk_size or 5000) + sampled + 512, sampled


def slots_wanted(config: TrainConfig, gpus: int = 1) -> int:
    """Requests that decode together on a GPU where memory does not end it; none where servers sample."""
    attempts = -(-config.examples_per_step // gpus) * config.num_generations
    return 0 if config.rollout_servers else min(config.engine_slots, attempts)


def _in_gib(parts: dict[str, float]) -> dict[str, float]:
    return {name: size / GIB for name, size in parts.items()}


def _kept(config: TrainConfig, shape: Shape, wide: int, casts: dict[str, float]) -> float:
    """Bytes of a token that autograd keeps: each layer's input and one layer's inside, or the inside of all."""
    layers, inside = shape.text.num_hidden_layers, shape.activation_bytes(wide)
    if not config.gradient_checkpointing:
        return layers * inside
    # What runs through the layers is fp32 where the weights are.
    return layers * shape.text.hidden_size * (4 if casts else wide) + inside


def _logits(config: TrainConfig, shape: Shape, tokens: int, wide: int, frozen: bool) -> float:
    """Bytes of turning the trained positions' hidden states into log-probs and back."""
    prompt, sampled = lengths(config)
    trained = tokens * sampled // (prompt + sampled)
    head = 0 if frozen else shape.head
    if not is_chunked(config.logprob_chunks, trained * shape.text.vocab_size):
        # Logits, their log-softmax and its gradient; of a bf16 head a copy in fp32 and its gradient.
        return trained * shape.text.vocab_size * 4 * 3 + (shape.head + head) * (4 if wide == 2 else 0)
    # Two tiles of the logits, and the gradients of hidden states and head.
    return 2 * math.prod(GPU_TILE) * 4 + trained * shape.text.hidden_size * 4 + head * 4


def report_memory(config: TrainConfig, device: torch.device) -> None:
    """Say what a run will need and whether the device has it; a run that cannot fit is warned of, not stopped."""
    on_gpu = device.type == "cuda"
    plan = plan_memory(config, on_gpu if config.bf16 is None else config.bf16, on_gpu)
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
        "--gradient_checkpointing True, --moments 8bit, --offload_optimizer True, --lora_r 32, --beta 0 (no reference), shorter "
        "--max_generate_length, a smaller model. `memfactory plan --model %s --gpu %.0f` compares them.",
        name, free, config.engine_slots, config.tokens_per_micro_batch, config.model_name_or_path, free,
    )  # fmt: skip
