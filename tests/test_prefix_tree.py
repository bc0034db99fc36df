"""Promise: every sequence's path through the tree spells its tokens, what is common stands there once, and blocks keep their budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.algorithms.prefix_tree import Segment, blocks, common_length, grow

Tokens = tuple[int, ...]

sequences_of = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=14)
"""Three tokens only: much is common, some are equal, some begin others."""


def prefixes(sequences: list[Tokens]) -> set[Tokens]:
    """What a tree of the sequences holds: one node for each beginning of any of them."""
    return {s[:end] for s in sequences for end in range(1, len(s) + 1)}


@given(sequences=sequences_of)
@settings(max_examples=60, deadline=None)
def test_paths_spell_the_sequences_at_positions_that_restart(sequences: list[Tokens]) -> None:
    tree = grow(sequences)
    assert len(tree.ids) == len(prefixes(sequences))
    for sequence, nodes in zip(sequences, tree.nodes, strict=True):
        assert tuple(tree.ids[node] for node in nodes) == sequence
        assert [tree.positions[node] for node in nodes] == list(range(len(sequence)))


@given(sequences=sequences_of)
@settings(max_examples=60, deadline=None)
def test_a_token_is_seen_exactly_by_itself_and_those_below_it(sequences: list[Tokens]) -> None:
    tree = grow(sequences)
    below = {(key, query) for nodes in tree.nodes for at, query in enumerate(nodes) for key in nodes[: at + 1]}
    size = len(tree.ids)
    assert {(key, query) for key in range(size) for query in range(key, size) if query < tree.ends[key]} == below


@given(sequences=sequences_of)
@settings(max_examples=60, deadline=None)
def test_segments_cover_the_layout_and_their_paths_are_those_of_the_sequences(sequences: list[Tokens]) -> None:
    tree = grow(sequences)
    assert [at for segment in tree.segments for at in range(segment.start, segment.stop)] == list(range(len(tree.ids)))
    paths = tree.paths()
    for nodes in tree.nodes:
        ending = next(n for n, segment in enumerate(tree.segments) if segment.start <= nodes[-1] < segment.stop)
        assert paths[ending][: len(nodes)] == nodes  # a sequence may end inside a segment that another goes on through
    for path, (start, stop, parent) in zip(paths, tree.segments, strict=True):
        assert path[len(path) - (stop - start) :] == list(range(start, stop)) and parent < start
        assert tree.positions[start] == len(path) - (stop - start)
    # No longer than need be: a segment that is its parent's only child would have been one with it.
    children = [segment.parent for segment in tree.segments if segment.parent >= 0]
    assert all(children.count(parent) > 1 for parent in children)


def test_the_example_of_the_docstring() -> None:
    tree = grow([(7, 8, 1), (7, 8, 2, 3)])
    assert (tree.ids, tree.positions, tree.ends) == ([7, 8, 1, 2, 3], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
    assert tree.segments == [Segment(0, 2, -1), Segment(2, 3, 0), Segment(3, 5, 0)]
    assert tree.nodes == [[0, 1, 2], [0, 1, 3, 4]]  # the 8 at 1 predicts a 1 and a 2


@given(one=st.lists(st.integers(0, 1), max_size=40), other=st.lists(st.integers(0, 1), max_size=40), same=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_the_common_length_is_that_of_a_plain_count(one: list[int], other: list[int], same: int) -> None:
    first, second = tuple([5] * same + one), tuple([5] * same + other)
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_length(first, second) == expected


@given(sequences=sequences_of, budget=st.integers(1, 30), load=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_each_sequence_once_within_the_budget(sequences: list[Tokens], budget: int, load: int) -> None:
    loads = [(at * load) % 4 for at in range(len(sequences))]
    found = blocks(sequences, loads, budget)
    assert sorted(at for block in found for at in block) == list(range(len(sequences)))
    for block in found:
        within = len(grow([sequences[at] for at in block]).ids) <= budget and sum(loads[at] for at in block) <= budget
        assert within or len(block) == 1


def test_a_group_with_a_long_common_beginning_costs_it_once_a_block() -> None:
    sequences = [(*range(100), 1000 + at) for at in range(8)]
    assert [len(block) for block in blocks(sequences, [1] * 8, 200)] == [8]
    assert [len(block) for block in blocks(sequences, [1] * 8, 104)] == [4, 4]
    assert [len(block) for block in blocks(sequences, [30] * 8, 120)] == [4, 4]
    assert [len(block) for block in blocks(sequences, [1] * 8, 50)] == [1] * 8
    with pytest.raises(IndexError):
        blocks(sequences, [1], 200)
