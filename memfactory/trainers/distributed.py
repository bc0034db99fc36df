"""Several processes (ranks) that train one model: who works on what, one denominator, one gradient. Knows no loss and no agent.

A step is the same step on any number of ranks: its groups are dealt out whole, every random stream is named by what it is for,
and the weights of an update's tokens are computed over all ranks' samples before the first backward pass. What is left to do is
to sum the gradients. They are summed here, once per update, after every rank's own micro-batches, and not by a
`DistributedDataParallel` wrapper: that averages, wants as many passes on every rank, and would stand between the engine and the
weights it samples from. `sharding.py` is the same for a model that no rank holds whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from memfactory.algorithms.packing import MicroBatch, Sample, TrainBatch
from memfactory.common.errors import ConfigError, InfrastructureError, in_one_line
from memfactory.engines.base import event_loop

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

T = TypeVar("T")

PATIENCE = timedelta(hours=4)
"""How long a rank waits for the others: one may have the longest texts of a step. A rank that dies is noticed at once."""

_BUCKET = 1 << 24
"""Numbers of a gradient that are sent together."""

_LOST = ("connection closed", "connection reset", "broken pipe", "connection refused", "timed out", "nccl", "remote process exited")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together; alone unless started by `accelerate launch` or `torchrun`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: torch.device) -> Ranks:
        """Meet the others, if the environment says that there are any (WORLD_SIZE)."""
        size = world_size()
        if size == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            # The device is a thread's own, and the engine has a thread of its own.
            event_loop().call_soon_threadsafe(torch.cuda.set_device, device)
        if not dist.is_initialized():
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"WORLD_SIZE is {size}, but the {size} processes could not meet: {in_one_line(error, 200)}. "
                    "Start them with `accelerate launch` (docs/scaling.md), or unset WORLD_SIZE to train in one."
                ) from error
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """True on the one that writes, prints and pushes weights."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank. All must call it; small values only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            dist.barrier()

    def same(self, what: str, value: Any) -> None:
        """All ranks must have the same value here; else an error that shows what each has."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            listed = "; ".join(f"rank {at}: {other}" for at, other in enumerate(values))
            raise ConfigError(f"The processes differ in {what} ({listed}). All machines need the same files, folders and options.")

    def end(self) -> None:
        """Part from the others; nothing may be sent after it."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def device_of(name: str) -> torch.device:
    """The device that --device names; one that is not here is an error that says what is. Of several processes each has its own GPU."""
    on_gpu = torch.cuda.is_available()
    if name.partition(":")[0] not in ("auto", "cpu", "cuda") or (name.startswith("cuda") and not on_gpu):
        known = "cpu, cuda, cuda:N" if on_gpu else "cpu (this torch sees no GPU)"
        raise ConfigError(f"--device {name}: not usable here. Known: auto, {known}.")
    if name == "cpu" or not on_gpu or world_size() == 1:
        return torch.device(name if name != "auto" else "cuda" if on_gpu else "cpu")
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if name not in ("auto", "cuda"):
        raise ConfigError(f"--device {name}: each of the {world_size()} processes takes a GPU of its own. Leave --device out.")
    if local >= here:
        raise ConfigError(f"Process {local} of this machine has no GPU: it has {here}. Start as many processes as there are GPUs.")
    return torch.device(f"cuda:{local}")


def explained(error: RuntimeError, ranks: Ranks) -> Exception | None:
    """What a failed exchange means, in words; None if the error is of another kind."""
    if ranks.size == 1 or isinstance(error, InfrastructureError):
        return None
    text = str(error).lower()
    if not isinstance(error, dist.DistError) and not any(sign in text for sign in _LOST):
        return None
    return InfrastructureError(
        f"Rank {ranks.rank} of {ranks.size} lost the others: a process has ended, was killed (memory?), or its machine cannot be reached. "
        f"What ended it stands above, or in that machine's log. --resume True goes on from the last checkpoint. ({in_one_line(error, 200)})"
    )


def dealt(names: Sequence[str], sizes: Sequence[float], ranks: int) -> list[list[int]]:
    """Which of a step's examples each rank takes: equally many to one, and of these the sizes balanced, largest first.

    Examples of one name stay together: an example that occurs twice gets further attempts, numbered where it is rolled out.
    """
    units: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        units.setdefault(name, []).append(at)
    if len(units) < ranks:
        raise ConfigError(
            f"A step has {len(units)} different examples and there are {ranks} processes: some would idle. "
            f"Raise --batch_size (examples of a step, over all processes), or start at most {len(units)} processes."
        )
    most = -(-len(names) // ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for unit in sorted(units.values(), key=lambda unit: (-sum(sizes[at] for at in unit), unit[0])):
        free = [rank for rank in range(ranks) if len(shares[rank]) + len(unit) <= most]
        # Where the unit fits nowhere, with the fewest: a rank must not have much more than its part.
        free = free or [rank for rank in range(ranks) if len(shares[rank]) == min(map(len, shares))]
        rank = min(free, key=lambda rank: (loads[rank], len(shares[rank]), rank))
        shares[rank] += unit
        loads[rank] += sum(sizes[at] for at in unit)
    return [sorted(share) for share in shares]


def renumbered(data: TrainBatch, places: Sequence[int], num_generations: int) -> TrainBatch:
    """A rank's samples with the numbers that their groups and attempts have in the whole step (`places`: the rank's groups)."""

    def in_step(sample: Sample) -> Sample:
        group = places[sample.group]
        return replace(sample, group=group, trajectory=group * num_generations + sample.trajectory % num_generations)

    return replace(data, samples=[in_step(sample) for sample in data.samples])


class SharedBatch:
    """A step's samples, each with the rank that rolled it out, and what all need to know of the others': owners and lengths."""

    def __init__(self, data: TrainBatch, ranks: Ranks) -> None:
        self.data, self.ranks = data, ranks
        if ranks.size > 1:
            everyone = ranks.gather([_outline(sample) for sample in data.samples])
            self._mine = {id(outline): sample for outline, sample in zip(everyone[ranks.rank], data.samples, strict=True)}
            # In the order of one process that has them all: what is drawn by number is then the same.
            self._all = replace(data, samples=sorted((o for each in everyone for o in each), key=lambda outline: outline.trajectory))

    def minibatches(self, number: int, rng: Random) -> Iterator[TrainBatch]:
        """This rank's part of each optimizer update, possibly empty, weighted as in one process with all the samples."""
        if self.ranks.size == 1:
            yield from self.data.minibatches(number, rng) if self.data.samples else []
            return
        for part in self._all.minibatches(number, rng) if self._all.samples else []:
            weighted = zip(part.samples, part.token_weights(), strict=True)
            mine = [(self._mine[id(outline)], weight) for outline, weight in weighted if id(outline) in self._mine]
            yield replace(part, samples=[sample for sample, _ in mine], weights=tuple(weight for _, weight in mine))


def _outline(sample: Sample) -> Sample:
    """What decides a sample's place and weight, small to send: its ids are a range as long as they are."""
    length: Any = range(len(sample.response_ids))
    return Sample((), length, (), 0.0, sample.trajectory, sample.group)


class Replicated:
    """Every rank holds the whole model and optimizer; with one rank nothing is sent."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.copy_from_first()

    @property
    def sampler(self) -> PreTrainedModel:
        """The module that the engine samples from: here the trained one."""
        return self.model

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside the block `sampler` holds the current weights. All ranks must enter it."""
        yield

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(model, *arguments)` with the model's weights in reach."""
        return function(self.model, *arguments)

    def passes(self, micros: Iterable[MicroBatch]) -> Iterator[MicroBatch | None]:
        """The micro-batches of one update; None asks for a pass that contributes nothing, where all ranks must make equally many."""
        return iter(micros)

    @torch.no_grad()
    def copy_from_first(self) -> None:
        """Give every rank the first one's weights."""
        if self.ranks.size > 1:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                dist.broadcast(tensor.data, 0)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Sum every gradient over the ranks, in fp32. A rank without one counts as 0; what nobody has stays None."""
        if self.ranks.size == 1:
            return
        trained = [p for p in self.model.parameters() if p.requires_grad]
        has = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        chosen = [p for p, anyone in zip(trained, has.tolist(), strict=True) if anyone]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        for bucket in _buckets([p.grad for p in chosen if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1).float() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take up a checkpoint's weights."""
        self.model.load_state_dict(weights)

    def state_of(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state as one process would have it. All ranks must ask."""
        return optimizer.state_dict()

    def load_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take up what `state_of` returned, on any number of ranks."""
        optimizer.load_state_dict(state)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
