"""The update as the trainer makes it, its operations a second, and the memory of a whole step at a launcher's settings."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import torch
from gpu_decode import peak_gb, random_model, reset_peak, sync
from gpu_figures import Figures
from gpu_shapes import SHAPES, Shape, Work, card_of, launcher
from transformers import PreTrainedModel

from memfactory.algorithms.logprobs import without_dropout
from memfactory.algorithms.optim import build_optimizers, clip_and_step
from memfactory.algorithms.packing import Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.types import Sampling
from memfactory.engines.hf import HFEngine
from memfactory.trainers.held import HeldModel
from memfactory.trainers.metrics import Averages
from memfactory.trainers.policy_update import PolicyUpdate
from memfactory.trainers.reference import build_reference


class Training:
    """A model and what trains it, made as `BaseTrainer` makes them, without data, agent or files."""

    def __init__(self, shape: Shape, config: TrainConfig, device: str) -> None:
        self.config, self.device = config, torch.device(device)
        on_gpu = device == "cuda"
        self.model: PreTrainedModel = random_model(shape, device, torch.bfloat16 if on_gpu else torch.float32)
        self.held = HeldModel(self.model, config, on_gpu)
        enable = getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        without_dropout(self.model)
        betas = (config.adam_beta1, config.adam_beta2)
        self.optimizers = build_optimizers(self.model, config.optimizer, config.lr, config.weight_decay, betas, self.held.lean)
        self.policy = PolicyUpdate(self.model, config, self.device, on_gpu)

    def backward(self, batch: TrainBatch) -> float:
        """Seconds of the forward and backward passes."""
        sync(self.device.type)
        start = time.perf_counter()
        self.policy.backward(batch, Averages(), measure_mismatch=False)
        sync(self.device.type)
        return time.perf_counter() - start

    def step(self) -> float:
        """Seconds of the clip and the optimizer's step."""
        sync(self.device.type)
        start = time.perf_counter()
        _, taken = clip_and_step(self.model, self.optimizers, self.config.max_grad_norm)
        sync(self.device.type)
        assert taken, "the gradient was not finite"
        return time.perf_counter() - start


def settings(dry: bool, work: Work, **more: Any) -> TrainConfig:
    """The trainer's defaults for a GPU."""
    return TrainConfig(gradient_checkpointing=True, tokens_per_micro_batch=work.rows * work.row, bf16=not dry, packing="rows", **more)


def batch_of(shape: Shape, work: Work, micro_batches: int) -> TrainBatch:
    """Random turns that fill so many micro-batches to the brim."""
    rng = random.Random(0)
    ids = [tuple(rng.randrange(shape.vocab_size) for _ in range(work.row)) for _ in range(work.rows * micro_batches)]
    cut = work.row - work.trained
    old = (-11.9,) * work.trained  # about the log-prob of any word of random weights
    return TrainBatch([Sample(row[:cut], row[cut:], old, 1.0 if n % 2 else -1.0, n, 0) for n, row in enumerate(ids)])


def update(figures: Figures, work: Work, device: str, dry: bool, shape: str) -> None:
    """Operations a second of forward and backward passes over full micro-batches, and the optimizer's seconds."""
    with figures.attempt("update"):
        training = Training(SHAPES[shape], settings(dry, work), device)
        measure_update(figures, training, SHAPES[shape], work, device)


def measure_update(figures: Figures, training: Training, sizes: Shape, work: Work, device: str) -> None:
    """The figure `update`; the second optimizer step is the one that counts, since the first makes the moments."""
    training.backward(batch_of(sizes, work, 1))
    training.step()
    reset_peak(device)
    seconds = training.backward(batch_of(sizes, work, work.micro_batches)) / work.micro_batches
    lengths, trained = [work.row] * work.rows, work.rows * work.trained
    flops = sizes.update_flops(lengths, trained)
    known = card_of(torch.cuda.get_device_name()) if device == "cuda" else None
    peaks = {"limit": known[1]} if known else {}
    if product := figures.content["about"].get("flops_per_second"):
        peaks["product"] = product
    ratios = {f"mfu_of_{name}": flops / seconds / peak for name, peak in peaks.items()}
    ratios |= {f"with_recomputed_of_{name}": (flops + sizes.recomputed_flops(lengths)) / seconds / peak for name, peak in peaks.items()}
    figures.add(
        "update", tokens=sum(lengths), seconds=seconds, tokens_per_second=sum(lengths) / seconds, flops_per_second=flops / seconds,
        **ratios, optimizer_seconds=training.step(), peak_gb=peak_gb(device),
    )  # fmt: skip


def step(figures: Figures, work: Work, device: str, dry: bool, shape: str) -> None:
    """A whole step at the settings of RunMemoryAgent4B.sh: the highest memory of rollout, reference and update."""
    flags, sizes = launcher(), SHAPES[shape]
    scale = 64 if dry else 1
    chunk, longest, response = (int(flags[name]) // scale for name in ("chunk_size", "max_prompt_length", "max_generate_length"))
    slots = int(flags["engine_slots"]) // (8 if dry else 1)
    training = Training(sizes, settings(dry, work, beta=float(flags["beta"])), device)
    figures.add("settings", engine_slots=slots, turn=longest + response, **training.held.state())
    with figures.attempt("reference"):
        held = training.held.held
        reference = build_reference(held.reference, training.model, training.device, not dry)
        reset_peak(device)
        with reference.scoring() as starting:
            start = time.perf_counter()
            filled = training.policy.with_logprobs(batch_of(sizes, work, 1).samples, starting, "ref_logprobs")
        assert all(sample.ref_logprobs for sample in filled)
        figures.add("reference", kind=held.reference, seconds=time.perf_counter() - start, peak_gb=peak_gb(device))
    with figures.attempt("update"):
        measure_update(figures, replace_beta(training), sizes, work, device)
    with figures.attempt("rollout"):  # after an update: its moments are there, as in every step but the first
        reset_peak(device)
        taken = _rollout(training, sizes, slots, chunk + response, longest + response, 4 if dry else 24)
        figures.add("rollout", slots_asked=slots, slots_made=taken, peak_gb=peak_gb(device))
    with figures.attempt("update after a rollout"):
        reset_peak(device)
        training.backward(batch_of(sizes, work, 2))
        training.step()
        figures.add("update after a rollout", peak_gb=peak_gb(device))
    peaks = [figure["peak_gb"] for figure in figures.content["figures"].values() if "peak_gb" in figure]
    figures.add("whole step", peak_gb=max(peaks))


def replace_beta(training: Training) -> Training:
    """The same without the KL term, whose reference has been measured apart."""
    training.policy.config = replace(training.config, beta=0.0)
    return training


def _rollout(training: Training, sizes: Shape, slots: int, prompt: int, longest: int, new: int) -> int:
    """Decode a few tokens in every slot; the number of slots that the engine made."""
    engine = HFEngine(training.model, frozenset(), slots, training.device.type == "cuda", longest=longest)
    made: list[int] = []
    rng = random.Random(1)

    async def one(n: int) -> None:
        await engine.complete(tuple(rng.randrange(sizes.vocab_size) for _ in range(prompt)), Sampling(new, stream=(n,)))
        if engine._state is not None:
            made.append(len(engine._state.tokens))

    async def every() -> None:
        await asyncio.gather(*(one(n) for n in range(slots)))

    asyncio.run(every())
    engine.weights_changed()
    return max(made, default=slots)
