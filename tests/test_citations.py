"""Promise: the last bracket group of an answer is read strictly, once, in range; what cannot be read is not the same as citing nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.memory.citations import NO_GROUP, NOT_NUMBERS, OUT_OF_RANGE, REPEATED, UNCLOSED, Citations, parse_citations

MODEL_TEXT = st.lists(
    st.sampled_from(["[", "]", "[0, 2]", "[NO_CITE]", "0", "7", ",", "-", " ", "\n", "<think>", "</think>"]) | st.text(max_size=4)
).map("".join)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("You like tea. [0, 2]", (0, 2)),
        ("[1] says tea, [3] says coffee. [3,1]", (3, 1)),
        ("Tea. [4]\n", (4,)),
        ("Tea [ 0 , 1 ] as you said.", (0, 1)),
        ("[[2, 0]]", (2, 0)),
        ("[00, 01]", (0, 1)),
        ("Hello. [NO_CITE]", ()),
        ("Hello. [ no_cite ]", ()),
        ("[0] at first, but no: [NO_CITE]", ()),
        ("<think>[0, 1]</think> Tea. [2]", (2,)),
    ],
)
def test_what_is_cited(text: str, ids: tuple[int, ...]) -> None:
    assert parse_citations(text, 5) == Citations(ids)


@pytest.mark.parametrize(
    ("text", "ids", "problems"),
    [
        ("[1, 1, 1, 1, 1, 1, 1, 1]", (1,), {REPEATED: 7}),
        ("[2, 02]", (2,), {REPEATED: 1}),
        ("[5, 0, -1]", (0,), {OUT_OF_RANGE: 2}),
        ("[99]", (), {OUT_OF_RANGE: 1}),
        ("[-0]", (), {OUT_OF_RANGE: 1}),
        ("[" + "9" * 5000 + ", 3]", (3,), {OUT_OF_RANGE: 1}),
        ("[" + "0" * 5000 + ", 3]", (0, 3), {}),
    ],
)
def test_repeats_and_numbers_out_of_range_are_left_out_and_counted(text: str, ids: tuple[int, ...], problems: dict[str, int]) -> None:
    assert parse_citations(text, 5) == Citations(ids, Counter(problems))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", NO_GROUP),
        ("Tea, as you said (0, 2).", NO_GROUP),
        ("Tea. [0, 2", NO_GROUP),
        ("Tea. []", NOT_NUMBERS),
        ("Tea. [0; 2]", NOT_NUMBERS),
        ("Tea. [0, two]", NOT_NUMBERS),
        ("Tea. [0-2]", NOT_NUMBERS),
        ("Tea. [0, NO_CITE]", NOT_NUMBERS),
        ("Tea. [\u0660]", NOT_NUMBERS),
        ("Tea. [0, 2] [see above]", NOT_NUMBERS),
        ("<think>maybe [0, 2]", UNCLOSED),
    ],
)
def test_what_cannot_be_read_says_nothing_of_any_memory(text: str, problem: str) -> None:
    assert parse_citations(text, 5) == Citations((), Counter({problem: 1}), readable=False)


@settings(max_examples=80, deadline=None)
@given(MODEL_TEXT, st.integers(0, 12))
def test_any_text_is_read_without_an_error_into_numbers_that_were_shown(text: str, shown: int) -> None:
    found = parse_citations(text, shown)
    assert len(set(found.ids)) == len(found.ids) and all(0 <= at < shown for at in found.ids)
    assert found.readable or (not found.ids and sum(found.problems.values()) == 1)


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="abc [0]\n,").filter(lambda t: "<" not in t), st.lists(st.integers(0, 15), min_size=1), st.integers(1, 12))
def test_a_group_at_the_end_is_all_that_counts(before: str, cited: list[int], shown: int) -> None:
    found = parse_citations(f"{before} [{', '.join(map(str, cited))}] end", shown)
    assert list(found.ids) == list(dict.fromkeys(at for at in cited if at < shown)) and found.readable
    assert len(found.ids) + sum(found.problems.values()) == len(cited), "everything is cited or counted"
    assert found.problems[OUT_OF_RANGE] == sum(at >= shown for at in cited)
