"""From turns to tensors: which tokens are trained, with what weight, in micro-batches under a token budget.

One denominator is computed for a whole optimizer update before its first backward pass and is divided into the weights,
so the gradient is the same for any micro-batch size. Rows are padded on the right under causal
attention: what is past a row's end cannot reach it, and no mask is needed. Or turns that begin alike share what they begin with:
their tokens stand in a prefix tree, computed once each, at the positions and with the sight they would have alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memfactory.algorithms.credit import Credit
from memfactory.algorithms.prefix_tree import PrefixTree, blocks, grow
from memfactory.algorithms.tree_rows import SDPA4D_WIDTH, TreeRows, tree_rows
from memfactory.common.errors import ConfigError
from memfactory.common.types import RolloutGroup

AGGREGATIONS = ("token", "sequence", "trajectory", "prompt", "constant")
TRUNCATED = ("train", "mask", "penalize")

PACKINGS = ("rows", "tree")


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
    sampler_logprobs: tuple[float, ...] | None = None
    """Log-probs of the engine that sampled, in nats, if `old_logprobs` were computed anew since."""

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
    tree: TreeRows | None = None
    """How the tokens see each other, if rows are prefix trees of several turns."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same batch with its tensors on `device`."""
        tensors = {name: getattr(self, name) for name in ("ids", "rows", "cols", "targets", "old", "ref", "advantages", "weights", "tree")}
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

    def micro_batches(self, token_budget: int, backend: str | None = None) -> Iterator[MicroBatch]:
        """Rows of similar length together, each batch at most `token_budget` padded tokens (a longer row goes alone).

        `backend`: None gives each turn a row of its own. Otherwise rows are prefix trees that attend in that way
        (`tree_attention.py`), of which only sdpa4d takes several rows, and short ones.
        """
        sequences, weights = [(*s.prompt_ids, *s.response_ids) for s in self.samples], self.token_weights()
        if backend is None:
            rows = [[at] for at in range(len(sequences))]
        else:
            width = min(token_budget, SDPA4D_WIDTH) if backend == "sdpa4d" else token_budget
            rows = blocks(sequences, [len(s.response_ids) for s in self.samples], width)
        trees = [grow([sequences[at] for at in row]) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: (-len(trees[row].ids), row))
        while order:
            number = max(1, token_budget // len(trees[order[0]].ids)) if backend in (None, "sdpa4d") else 1
            chosen, order = order[:number], order[number:]
            yield _tensors([trees[row] for row in chosen], [[(self.samples[n], weights[n]) for n in rows[row]] for row in chosen], backend)


def _tensors(trees: list[PrefixTree], rows_of: list[list[tuple[Sample, float]]], backend: str | None) -> MicroBatch:
    """One micro-batch from the tree of each row and its turns with the weight of their tokens, in the order of the tree's `nodes`."""
    rows, cols, targets, old, ref, advantages, weight = [], [], [], [], [], [], []  # type: ignore[var-annotated]
    for row, (tree, members) in enumerate(zip(trees, rows_of, strict=True)):
        for nodes, (sample, share) in zip(tree.nodes, members, strict=True):
            length = len(sample.response_ids)
            rows += [row] * length
            cols += nodes[len(sample.prompt_ids) - 1 : -1]
            targets += sample.response_ids
            old += sample.old_logprobs
            ref += sample.ref_logprobs or ()
            advantages += [sample.advantage] * length
            weight += [share] * length
    samples = [sample for members in rows_of for sample, _ in members]
    ids, tree_or_none = tree_rows(trees, backend)
    has_ref = samples[0].ref_logprobs is not None
    return MicroBatch(
        ids, torch.tensor(rows), torch.tensor(cols), torch.tensor(targets), torch.tensor(old, dtype=torch.float32),
        torch.tensor(ref, dtype=torch.float32) if has_ref else None,
        torch.tensor(advantages, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32), samples, tree_or_none,
    )  # fmt: skip


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
