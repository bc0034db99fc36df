"""How a run is doing: where a step's time goes, how much of the hardware it uses, and what to do when memory ends. Knows no loss.

Model FLOPs are those of the plain computation, 2 for a multiplication with its addition: 6 for each weight and token (forward 2,
backward 4; 4 for a frozen weight), the head only where a token is trained, attention over what a token may see. What gradient
checkpointing computes again is not counted, nor padding; a prompt that several turns share in a row is counted once.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memfactory.algorithms.packing import MicroBatch
from memfactory.common.config import TrainConfig
from memfactory.common.errors import MemFactoryError, OutOfMemory
from memfactory.trainers.memory_plan import GIB, lengths, slots_wanted

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel


PEAKS = {
    "GB300": 2500, "B300": 2500, "GB200": 2500, "B200": 2250, "B100": 1800, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100 NVL": 835,
    "H100": 989, "H800 PCIe": 756, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10G": 70, "A10": 125,
    "L40S": 362, "L40": 181, "L20": 119.5, "L4": 121, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 209.5, "RTX 4090": 165.2,
    "RTX 3090": 71, "MI355X": 2516, "MI325X": 1307, "MI300X": 1307, "MI250X": 383,
}  # fmt: skip
"""TFLOP/s of bf16 matrix products with fp32 sums, dense, as the makers print them, by what a device's name holds."""


class Clock:
    """Seconds by part of a step. Parts may lie in each other: an inner one's time is its own alone."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self._stack: list[str] = []
        self._since = self._began = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failed: str | None = None
        """The innermost part that an error came out of last."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time as `name`."""
        self._switch()
        self.failed = self.failed if self._stack else None
        self._stack.append(name)
        done = False
        try:
            with torch.profiler.record_function(name):
                yield
            done = True
        finally:
            if not done:
                self.failed = self.failed or name
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        if self._on_gpu and self._stack:
            torch.cuda.synchronize()  # what was asked of the GPU in a part is that part's
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def start(self) -> None:
        """Count from now on."""
        self.seconds.clear()
        self._began = time.perf_counter()

    def shares(self) -> dict[str, float]:
        """`{"time/PART": its share of the seconds since the start}`; counting starts anew."""
        whole = time.perf_counter() - self._began
        shares = {f"time/{name}": seconds / max(whole, 1e-9) for name, seconds in self.seconds.items()}
        self.start()
        return shares


@dataclass(frozen=True, slots=True)
class Flops:
    """What a pass over a model computes, from its weights' shapes."""

    body: float
    """FLOPs of one token, forward and backward, in all that is neither embedding nor head."""
    head: float
    """The same of a trained position in the head."""
    attention: float
    """The same of one pair of a token and one that it sees, over all layers."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Flops | None:
        """Of a decoder; None for mixtures of experts, whose tokens meet some weights only, and where layers are not alike."""
        text = model.config.get_text_config()
        try:
            sizes = [getattr(text, name, None) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim")]
        except RuntimeError:  # transformers' own, of a size that each layer has for itself
            return None
        width, heads, layers, dim = sizes
        if not (isinstance(width, int) and isinstance(heads, int) and isinstance(layers, int) and heads):
            return None
        if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
            return None
        embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        head = model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        outside = embeddings | {id(weight)}
        body = sum((6 if p.requires_grad else 4) * p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in outside)
        pair = 3 * 2 * 2 * layers * heads * (dim or width // heads)
        return cls(body, 0.0 if weight is None else (6 if weight.requires_grad else 4) * weight.numel(), pair)

    def of_rows(self, rows: list[list[tuple[int, int]]]) -> float:
        """Of rows of turns, each (tokens of the prompt, of the response); the turns of a row share their prompt."""
        total = 0.0
        for row in rows:
            prompt = row[0][0]
            total += self.body * prompt + self.attention * prompt**2 / 2
            for _, response in row:
                total += (self.body + self.head) * response + self.attention * response * (prompt + response / 2)
        return total

    def of_batch(self, micro: MicroBatch) -> float:
        """Of a micro-batch, each of its tokens as often as it is computed."""
        if micro.tree is None:
            return self.of_rows([[(len(sample.prompt_ids), len(sample.response_ids))] for sample in micro.samples])
        positions, ends = micro.tree.positions, micro.tree.ends
        # Padding stands alone, at position 0 and seen by itself; a turn has two tokens at least.
        there = (positions > 0) | (ends > torch.arange(1, ends.shape[1] + 1, device=ends.device))
        tokens = int(there.sum())
        return self.body * tokens + self.head * len(micro.targets) + self.attention * (int(positions[there].sum()) + tokens / 2)


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """FLOP/s that the device can do in matrix products of this type: from the table, on a CPU measured once; None if unknown."""
    if device.type == "cuda":
        return peak_of(torch.cuda.get_device_name(device)) if bf16 else None
    return _measured(torch.bfloat16 if bf16 else torch.float32, torch.get_num_threads())


def peak_of(name: str) -> float | None:
    """FLOP/s in bf16 of the GPU of this name; None if it is not in the table."""
    found = [known for known in PEAKS if known.lower() in name.lower()]
    return PEAKS[max(found, key=len)] * 1e12 if found else None


@cache
def _measured(dtype: torch.dtype, threads: int, size: int = 512) -> float:
    """The best of some products of square matrices, on this process's threads: 20 milliseconds on one core."""
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# When memory ends

_SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


@contextmanager
def memory_explained(clock: Clock, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """An allocation that fails inside the block becomes `OutOfMemory`, which says what was being done and which option to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if isinstance(error, MemFactoryError) or not of_memory and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        raise OutOfMemory(advice(clock.failed or "update", config, asked_for(error), state_of(device))) from error


def asked_for(error: BaseException) -> float | None:
    """GiB of the allocation that failed, if the error says so."""
    found = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMG]iB)?", str(error), re.IGNORECASE)
    units = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    return float(found[1].rstrip(".")) * units[(found[2] or "bytes").lower()] / GIB if found else None


def state_of(device: torch.device) -> str:
    """The numbers of the moment."""
    if device.type != "cuda":
        return "this machine's memory is full"
    free, total = torch.cuda.mem_get_info(device)
    held, kept = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return (
        f"{torch.cuda.get_device_name(device)}: {total / GIB:.1f} GiB, {free / GIB:.1f} free; "
        f"{held / GIB:.1f} in use here and {(kept - held) / GIB:.1f} kept by PyTorch"
    )


def advice(part: str, config: TrainConfig, asked: float | None, state: str) -> str:
    """What failed, and what to change, the most useful first."""
    tips = {"rollout": _rollout_tips, "evaluation": _rollout_tips, "optimizer": _optimizer_tips}.get(part, _update_tips)(config)
    wanted = "" if asked is None else f" when {asked:.2f} GiB more were asked for"
    listed = "; ".join(f"({number}) {tip}" for number, tip in enumerate(tips, 1))
    return f"Out of memory in the {part.replace('_', ' ')}{wanted} ({state}). Try in this order: {listed}. --resume True goes on."


def _rollout_tips(config: TrainConfig) -> list[str]:
    slots = slots_wanted(config)
    return [
        f"--engine_slots {max(1, slots // 2)} (now {slots} in use): half the key-value cache, which grows with slots x longest turn; "
        "no sample changes",
        *_shorter(config),
        "a smaller model, or rollouts elsewhere with --rollout_servers",
    ]


def _update_tips(config: TrainConfig) -> list[str]:
    budget, longest = config.tokens_per_micro_batch, sum(lengths(config))
    tips = [] if config.gradient_checkpointing else ["--gradient_checkpointing True: an eighth of the activations, a third more time"]
    if budget > longest:
        tips.append(
            f"--tokens_per_micro_batch {max(longest, budget // 2)} (now {budget}): activations and logits grow with it; no gradient changes"
        )
    else:
        tips.append(f"--tokens_per_micro_batch is {budget}, a turn may hold {longest} and goes alone: lowering it does not help")
    tips += _shorter(config)
    tips += _without_reference(config)
    if not config.lora_r:
        tips.append("--lora_r 32: gradients of adapters alone")
    return [*tips, "more GPUs with --parallel fsdp2 (docs/scaling.md)"]


def _optimizer_tips(config: TrainConfig) -> list[str]:
    smaller = [] if config.moments == "8bit" else ["--moments 8bit: a quarter of what the moments, made at the first update, take"]
    smaller += [] if config.offload_optimizer else ["--offload_optimizer True: the moments on the CPU"]
    return [
        *(smaller if not config.lora_r else []),
        "more GPUs with --parallel fsdp2 share the moments (docs/scaling.md)",
        *_without_reference(config),
        f"--engine_slots {max(1, config.engine_slots // 2)} (now {config.engine_slots}), if the rollout left memory in pieces",
        "a smaller model",
    ]


def _without_reference(config: TrainConfig) -> list[str]:
    if config.beta <= 0 or config.reference in ("cpu", "lora"):
        return []
    return ["--reference cpu: it is streamed from there, or --beta 0: none is held"]


def _shorter(config: TrainConfig) -> list[str]:
    length = config.max_generate_length
    return [f"--max_generate_length {length // 2} (now {length}), or shorter chunks: another task for the policy"] if length else []


def with_mfu(metrics: dict[str, Any], peak: float | None, ranks: int) -> dict[str, Any]:
    """The metrics with `update_mfu`, the share of the peak that the update's model FLOPs are, instead of their number."""
    flops = metrics.pop("update_flops", 0.0)
    if peak and flops:
        metrics["update_mfu"] = flops / (metrics["update_seconds"] * peak * ranks)
    return metrics
