"""The shared prefixes of many token sequences, planned in plain Python: which tokens are computed once, and what each one sees.

Sequences that begin alike meet in a trie. Its tokens are laid out depth first, so that the tokens below a token stand
right behind it: token k is seen by q exactly if `k <= q < ends[k]`, which is all that a mask needs to know. Knows no
tensor, no model and no loss; several trees may stand in one row, since none reaches beyond its own end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Tokens = tuple[int, ...]


class Segment(NamedTuple):
    """A run of tokens [start, stop) of the layout without a branch inside."""

    start: int
    stop: int
    parent: int
    """The segment whose last token comes before this one's first; -1 at a root."""


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """N tokens, each one time, depth first. A token that two sequences share up to and including it is one token.

    Example: the sequences (7, 8, 1) and (7, 8, 2, 3) give ids [7, 8, 1, 2, 3], positions [0, 1, 2, 2, 3], ends [5, 5, 3, 5, 5],
    segments [(0, 2, -1), (2, 3, 0), (3, 5, 0)] and nodes [[0, 1, 2], [0, 1, 3, 4]]: the 8 at 1 predicts both a 1 and a 2.
    """

    ids: list[int]
    positions: list[int]
    """The place of each token in its sequences: its depth."""
    ends: list[int]
    """One past the last token below each token: those of [its own index, end) see it."""
    segments: list[Segment]
    """In the order of the layout; a parent comes before its children."""
    nodes: list[list[int]]
    """Of each sequence, in the order given, the index of each of its tokens: a response's token is predicted from the node before."""

    def paths(self) -> list[list[int]]:
        """Of each segment the indices from the root to its own end: what its tokens see, causally at the end."""
        found: list[list[int]] = []
        for start, stop, parent in self.segments:
            found.append([*(found[parent] if parent >= 0 else ()), *range(start, stop)])
        return found


def common_length(one: Tokens, other: Tokens) -> int:
    """Length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: comparing slices is much faster than tokens one by one
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def grow(sequences: Sequence[Tokens]) -> PrefixTree:
    """The tree (a forest, if nothing is common to all) of some sequences, in any order, none empty, equal ones allowed."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    nodes: list[list[int]] = [[] for _ in sequences]
    before: dict[int, int] = {}  # first token of a segment: the token before it, -1 at a root
    last: Tokens = ()
    path: list[int] = []
    # In lexicographic order a sequence shares most with the one before it, and the layout comes out depth first.
    for at in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[at]
        shared, first = common_length(last, sequence), len(ids)
        if shared < len(last):
            for node in path[shared:]:
                ends[node] = first
            before.setdefault(path[shared], path[shared - 1] if shared else -1)
            before[first] = path[shared - 1] if shared else -1
        elif not last:
            before[first] = -1
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)
        path = [*path[:shared], *range(first, len(ids))]
        nodes[at], last = path, sequence
    for node in path:
        ends[node] = len(ids)
    starts = sorted(before)
    stops = [*starts[1:], len(ids)]
    segments = [Segment(a, b, bisect_right(starts, before[a]) - 1) for a, b in zip(starts, stops, strict=True)]
    return PrefixTree(ids, positions, ends, segments, nodes)


def blocks(sequences: Sequence[Tokens], loads: Sequence[int], budget: int) -> list[list[int]]:
    """The sequences cut into blocks, each of whose trees has at most `budget` tokens and, of `loads`, at most `budget` too.

    Neighbours in a block are those that share most. A sequence over the budget is a block alone.
    """
    found: list[list[int]] = []
    size = load = 0
    last: Tokens = ()
    for at in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[at]
        new = len(sequence) - common_length(last, sequence)
        if not found or size + new > budget or load + loads[at] > budget:
            found.append([])
            size, load, new = 0, 0, len(sequence)
        found[-1].append(at)
        size, load, last = size + new, load + loads[at], sequence
    return found
