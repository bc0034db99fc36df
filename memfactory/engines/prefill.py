"""Keys and values of whole prompts: equal ones once, and a long beginning that several share once too. Knows no slot and no sampling.

Rows are padded on the right and no mask is given: causal attention with the default positions, which torch runs through its own
FlashAttention-2 kernel on a GPU, installed package or not. What padding writes lies past a row's end, where nothing looks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from memfactory.engines.slot_cache import key_values

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

Ids = tuple[int, ...]

SHARED = 64
"""Fewest tokens that prompts must have in common to compute them once: two forwards cost more for less (docs/performance.md)."""

SHARED_PART = 0.4
"""Least part of the prompts' tokens that sharing must save: the rest is then computed against a mask, which is slower per token."""


@dataclass(frozen=True, slots=True)
class Family:
    """Prompts by number, and how many of their first tokens they have in common and are computed once; 0: nothing is shared."""

    members: tuple[int, ...]
    common: int


def families(prompts: Sequence[Ids], least: int = SHARED) -> list[Family]:
    """The prompts in families whose members share a beginning, wherever that saves enough; all others in one family without."""
    order = sorted(range(len(prompts)), key=lambda at: prompts[at])
    found: list[Family] = []
    for at in order:
        last = found[-1] if found else None
        common = len(os.path.commonprefix([prompts[last.members[0]][: last.common], prompts[at]])) if last else 0
        # A member more may shorten what is shared: only if that saves more in all.
        if last and common >= least and common * len(last.members) >= last.common * (len(last.members) - 1):
            found[-1] = Family((*last.members, at), common)
        else:
            found.append(Family((at,), len(prompts[at])))
    kept = [family for family in found if _saved(family, prompts) >= SHARED_PART]
    shared = {at for family in kept for at in family.members}
    alone = tuple(at for at in range(len(prompts)) if at not in shared)
    return [*kept, *([Family(alone, 0)] if alone else [])]


def _saved(family: Family, prompts: Sequence[Ids]) -> float:
    """The part of a family's tokens that sharing saves."""
    return family.common * (len(family.members) - 1) / max(1, sum(len(prompts[at]) for at in family.members))


def prefill(
    model: PreTrainedModel, prompts: Sequence[Ids], share: bool = True, budget: int = 1 << 30
) -> Iterator[tuple[DynamicCache, tuple[int, ...]]]:
    """Caches [rows, heads, width, dim] a layer, each with the numbers of the prompts that its rows are. All prompts differ.

    `share`: compute long common beginnings once. `budget`: most tokens in a cache, where it can be kept to; what does not fit
    comes in a cache of its own, so take each before asking for the next.
    """
    for family in families(prompts) if share else [Family(tuple(range(len(prompts))), 0)]:
        common = family.common
        once = _plain(model, [prompts[family.members[0]][:common]]) if common else None
        for members in _slices(family.members, prompts, budget):
            rest = [prompts[at][common:] for at in members]
            yield (_plain(model, rest) if once is None else _continued(model, once, rest)), members


def _slices(members: tuple[int, ...], prompts: Sequence[Ids], budget: int) -> Iterator[tuple[int, ...]]:
    """Consecutive members whose padded rows hold at most `budget` tokens; at least one each."""
    start = width = 0
    for at, member in enumerate(members):
        width = max(width, len(prompts[member]))
        if at > start and width * (at + 1 - start) > budget:
            yield members[start:at]
            start, width = at, len(prompts[member])
    yield members[start:]


def _plain(model: PreTrainedModel, prompts: list[Ids]) -> DynamicCache:
    cache = DynamicCache()
    model.base_model(input_ids=_padded(prompts).to(model.device), past_key_values=cache, use_cache=True)
    return cache


def _continued(model: PreTrainedModel, once: DynamicCache, rest: list[Ids]) -> DynamicCache:
    """What follows a beginning [1 row], each row after a copy of its keys and values."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(key_values(once)):
        cache.update(keys.expand(len(rest), -1, -1, -1), values.expand(len(rest), -1, -1, -1), layer)
    model.base_model(input_ids=_padded(rest).to(model.device), past_key_values=cache, use_cache=True)
    return cache


def _padded(prompts: list[Ids]) -> Tensor:
    """Token ids [rows, longest]. Where there is nothing to prefill one dummy token keeps the shapes; nothing sees its key."""
    ids = torch.zeros(len(prompts), max(1, *map(len, prompts)), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
    return ids
