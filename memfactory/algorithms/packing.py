"""From turns to tensors: which tokens are trained, with what weight, in micro-batches under a token budget.

One denominator is computed for a whole optimizer update before its first backward pass and is divided into the weights,
so the gradient is the same for any micro-batch size. Rows are padded on the right under causal
attention: what is past a row's end cannot reach it, and no mask is needed. Short turns with equal prompts may share a row, which holds
the prompt once; each response then sees the prompt and itself, at the positions it would have alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memfactory.algorithms.credit import Credit
from memfactory.common.errors import ConfigError
from memfactory.common.types import RolloutGroup

AGGREGATIONS = ("token", "sequence", "trajectory", "prompt", "constant")
TRUNCATED = ("train", "mask", "penalize")

SHARED_WIDTH = 512
"""No shared row is longer: its mask has one number per pair of tokens, and no fast attention kernel takes one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn to train on.

    Example: Sample(prompt_ids=(5, 9), response_ids=(31, 7), old_logprobs=(-0.2, -1.3), advantage=0.5, trajectory=3, group=0)
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    """Log-probs of the behaviour policy in nats, frozen for the whole rollout batch."""
    advantage: float
    trajectory: int
    group: int
    stage: str = ""
    ref_logprobs: tuple[float, ...] | None = None
    """Log-probs of the reference in nats, if there is a KL term."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """R rows of width W, of which N tokens are trained: those of `samples`, in order."""

    ids: Tensor
    """[R, W] int64, padded on the right with 0."""
    rows: Tensor
    """[N] row of each trained token."""
    cols: Tensor
    """[N] column of the position that predicts it: one before the token's own."""
    targets: Tensor
    """[N] the sampled token."""
    old: Tensor
    """[N] float32, its log-prob under the behaviour policy."""
    ref: Tensor | None
    """[N] float32, its log-prob under the reference."""
    advantages: Tensor
    """[N] float32."""
    weights: Tensor
    """[N] float32; those of one optimizer update are computed together (`TrainBatch.token_weights`)."""
    samples: list[Sample]
    """The samples, row by row."""
    positions: Tensor | None = None
    """[R, W] each token's position in its turn, if a row holds several turns."""
    hidden: Tensor | None = None
    """[R, 1, W, W] bool: the columns that a token may not see, if a row holds several turns."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same batch with its tensors on `device`."""
        tensors = {
            name: getattr(self, name)
            for name in ("ids", "rows", "cols", "targets", "old", "ref", "advantages", "weights", "positions", "hidden")
        }
        return replace(self, **{name: None if t is None else t.to(device) for name, t in tensors.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What the loss sees of one rollout batch, or of one optimizer update's share of it."""

    samples: list[Sample]
    aggregation: str = "token"
    max_length: int | None = None
    """Most tokens that a response may have; only `constant` uses it, and needs it."""
    weights: tuple[float, ...] | None = None
    """The weight of each sample's tokens, where samples of other processes count too; None: as `aggregation` says of these."""

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(f"Unknown aggregation {self.aggregation!r}. Known: {', '.join(AGGREGATIONS)}.")
        if self.aggregation == "constant" and (self.max_length is None or self.max_length < 1):
            raise ConfigError(f"aggregation constant divides by the most tokens of a response, and max_length is {self.max_length!r}.")

    def token_weights(self) -> list[float]:
        """The weight of each token of each sample.

        Four means, whose tokens together weigh 1. token: all tokens alike (DAPO). sequence: all turns alike, then their
        tokens (GRPO). trajectory: all attempts alike, then their tokens. prompt: all groups alike, then their tokens.
        One sum: constant, where every token weighs 1 / (turns x max_length) and no length is divided by (Dr. GRPO, arXiv
        2503.20783); the tokens together weigh mean length / max_length.
        """
        if self.weights is not None:
            return list(self.weights)
        lengths = [len(s.response_ids) for s in self.samples]
        if self.aggregation == "constant" and self.max_length is not None:
            return [1 / (len(lengths) * self.max_length) for _ in lengths]
        if self.aggregation == "token":
            return [1 / max(sum(lengths), 1)] * len(lengths)
        unit = {
            "sequence": list(range(len(lengths))),
            "trajectory": [s.trajectory for s in self.samples],
            "prompt": [s.group for s in self.samples],
        }[self.aggregation]
        tokens: Counter[int] = Counter()
        for key, length in zip(unit, lengths, strict=True):
            tokens[key] += length
        return [1 / (len(tokens) * tokens[key]) for key in unit]

    def minibatches(self, number: int, rng: random.Random) -> list[TrainBatch]:
        """Split by trajectory, in random order, into at most `number` parts, one optimizer update each; none is empty."""
        keys = list(dict.fromkeys(s.trajectory for s in self.samples))
        rng.shuffle(keys)
        number = min(number, len(keys))
        part_of = {key: at * number // len(keys) for at, key in enumerate(keys)}
        parts: list[list[Sample]] = [[] for _ in range(number)]
        for sample in self.samples:
            parts[part_of[sample.trajectory]].append(sample)
        return [replace(self, samples=part) for part in parts]

    def micro_batches(self, token_budget: int, share_prompts: bool = False) -> Iterator[MicroBatch]:
        """Rows of similar length together, each batch at most `token_budget` padded tokens (a longer row goes alone).

        `share_prompts`: turns with equal prompts share rows of at most SHARED_WIDTH tokens.
        """
        weights = self.token_weights()
        rows = self._shared_rows(min(token_budget, SHARED_WIDTH)) if share_prompts else [[at] for at in range(len(self.samples))]
        lengths = [self._length(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda at: (-lengths[at], at))
        at = 0
        while at < len(order):
            chosen = order[at : at + max(1, token_budget // lengths[order[at]])]
            yield _tensors([[(self.samples[n], weights[n]) for n in rows[row]] for row in chosen], lengths[order[at]])
            at += len(chosen)

    def _length(self, row: list[int]) -> int:
        return len(self.samples[row[0]].prompt_ids) + sum(len(self.samples[at].response_ids) for at in row)

    def _shared_rows(self, width: int) -> list[list[int]]:
        """Samples with equal prompts together, as many as `width` tokens hold."""
        rows: list[list[int]] = []
        last: dict[tuple[int, ...], list[int]] = {}
        for at, sample in enumerate(self.samples):
            row = last.get(sample.prompt_ids)
            if row is None or self._length([*row, at]) > width:
                row = last[sample.prompt_ids] = []
                rows.append(row)
            row.append(at)
        return rows


def _tensors(rows_of: list[list[tuple[Sample, float]]], width: int) -> MicroBatch:
    """One micro-batch of rows that hold (sample, weight of its tokens)."""
    ids, positions, turn = (torch.zeros(len(rows_of), width, dtype=torch.int64) for _ in range(3))
    rows, cols, targets, old, ref, advantages, weight = [], [], [], [], [], [], []  # type: ignore[var-annotated]
    for row, members in enumerate(rows_of):
        prompt = members[0][0].prompt_ids
        start = end = len(prompt)
        ids[row, :start] = torch.tensor(prompt)
        positions[row, :start] = torch.arange(start)
        for number, (sample, share) in enumerate(members):
            length = len(sample.response_ids)
            ids[row, end : end + length] = torch.tensor(sample.response_ids)
            positions[row, end : end + length] = torch.arange(start, start + length)
            turn[row, end : end + length] = number + 1
            rows += [row] * length
            cols += [start - 1, *range(end, end + length - 1)]
            targets += sample.response_ids
            old += sample.old_logprobs
            ref += sample.ref_logprobs or ()
            advantages += [sample.advantage] * length
            weight += [share] * length
            end += length
    samples = [sample for members in rows_of for sample, _ in members]
    shared = len(samples) > len(rows_of)
    has_ref = samples[0].ref_logprobs is not None
    return MicroBatch(
        ids, torch.tensor(rows), torch.tensor(cols), torch.tensor(targets), torch.tensor(old, dtype=torch.float32),
        torch.tensor(ref, dtype=torch.float32) if has_ref else None,
        torch.tensor(advantages, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32), samples,
        positions if shared else None, _hidden(turn) if shared else None,
    )  # fmt: skip


def _hidden(turn: Tensor) -> Tensor:
    """[R, 1, W, W] from the turn of each token [R, W] (0: the prompt): what comes later, and other turns' responses."""
    later = torch.ones(turn.shape[1], turn.shape[1], dtype=torch.bool).triu(1)
    other = (turn[:, None, :] != turn[:, :, None]) & (turn[:, None, :] != 0)
    return (later | other)[:, None]


def pack(
    groups: list[RolloutGroup],
    credit: Credit,
    aggregation: str = "token",
    truncated: str = "train",
    truncated_penalty: float = 0.5,
    max_length: int | None = None,
) -> TrainBatch:
    """The turns that `credit` pays. Groups without variance are not among them; an attempt at its group's mean is.

    `truncated` says what a response cut off at its length limit gets: `train` (its advantage; no end token is ever
    added), `mask` (not trained, but it stays in its group's baseline) or `penalize` (advantage minus the penalty).
    `max_length` is the most tokens of a response, for the aggregation `constant`.
    """
    if truncated not in TRUNCATED:
        raise ConfigError(f"Unknown policy for truncated responses {truncated!r}. Known: {', '.join(TRUNCATED)}.")
    samples: list[Sample] = []
    trajectories = [(g, t) for g, group in enumerate(groups) for t in group.trajectories]
    for number, (group, trajectory) in enumerate(trajectories):
        for turn, advantage in zip(trajectory.turns, credit.advantages[number], strict=True):
            if advantage is None or not turn.response_ids:
                continue
            if turn.finish == "length":
                if truncated == "mask":
                    continue
                advantage -= truncated_penalty if truncated == "penalize" else 0.0
            samples.append(Sample(turn.prompt_ids, turn.response_ids, turn.logprobs, advantage, number, group, turn.stage))
    return TrainBatch(samples, aggregation, max_length)
