"""Whatever a model writes, its readers raise nothing, end soon, and take time in proportion to its length."""

from __future__ import annotations

import gc
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from fuzz_outputs import GOLDS, mutated, pathological, readers, unlisted
from hypothesis import given
from hypothesis import strategies as st

from memfactory.common.errors import DataError
from memfactory.common.files import read_json
from memfactory.evaluation.html.diffs import items_of, text_parts
from memfactory.judges.llm import verdict
from memfactory.judges.published import f1_locomo_multi
from memfactory.memory.choices import parse_merges
from memfactory.memory.json_text import MAX_LENGTH, TOO_LONG, clean
from memfactory.memory.operations import parse_facts, parse_operations

MOST_SECONDS = 0.5
SLACK = 0.05
"""Seconds below which times say nothing of growth."""


def seconds(read: Callable[[str], Any], text: str) -> float:
    """CPU time of one reading: other processes do not count."""
    start = time.process_time()
    read(text)
    return time.process_time() - start


def attacked(seed: int, number: int, most: int) -> dict[str, float]:
    """{reader: its longest reading} of pathological texts; what raises, takes long or grows faster than linearly fails the test."""
    worst = dict.fromkeys(readers(), 0.0)
    for read in readers().values():
        read("warm")
    gc.collect()
    gc.disable()
    try:
        for make in pathological(seed, number, most):
            whole, quarter = make(1.0), make(0.25)
            for name, read in readers().items():
                taken = seconds(read, whole)
                if taken > SLACK and taken > 5 * (part := seconds(read, quarter)) + SLACK or taken > MOST_SECONDS:  # once may be noise
                    taken, part = (min(seconds(read, text) for _ in range(3)) for text in (whole, quarter))
                    assert taken <= MOST_SECONDS, f"{name} took {taken:.2f} s over {make.args!r}"  # type: ignore[attr-defined]
                    assert taken <= 5 * part + SLACK, f"{name}: {part:.3f} s, of four times as much {taken:.3f}, over {make.args!r}"  # type: ignore[attr-defined]
                worst[name] = max(worst[name], taken)
    finally:
        gc.enable()
    return worst


def test_every_reader_of_a_text_stands_in_the_table() -> None:
    assert unlisted() == set(), "a parser that is not attacked: add it to READ_BY_HAND in fuzz_outputs.py"


def test_mutated_outputs_are_read_without_an_exception() -> None:
    for text in mutated(0, 60):
        for read in readers().values():
            read(text)


def test_pathological_outputs_are_read_soon() -> None:
    attacked(0, 24, 6000)


SEEDS = range(int(os.environ.get("MEMFACTORY_FUZZ", "1")))
"""10 is the whole of it, 100,000 and 2,000 outputs, and takes an hour; CI takes a tenth."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_thousand_mutated_outputs(seed: int) -> None:
    for text in mutated(1 + seed, 10_000):
        for name, read in readers().items():
            taken = seconds(read, text)
            assert taken < MOST_SECONDS or seconds(read, text) < MOST_SECONDS, f"{name} took {taken:.2f} s over {text!r}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_two_hundred_pathological_outputs_up_to_a_megabyte(seed: int) -> None:
    assert attacked(1 + seed, 200, 1 << 20)


DEEP = ["[" * 200_000, '{"a":' * 200_000, "```json\n" + "[" * 100_000 + "\n```", '{"```json{```"}', '{"verdict": ' + "[" * 5000]


@pytest.mark.parametrize("text", DEEP, ids=range(len(DEEP)))
def test_what_nests_too_deep_is_unreadable(text: str, tmp_path: Any) -> None:
    assert verdict(text) is None and not parse_facts(text).readable and not parse_operations(text).readable
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    if not text.startswith('{"```'):
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(tmp_path / "file.json")


def test_an_answer_that_is_too_long_is_counted_as_such() -> None:
    fact = json.dumps({"facts": ["Alice lives in Lima " * (MAX_LENGTH // 19)]})
    assert len(fact) > MAX_LENGTH and parse_facts(fact).problems == {TOO_LONG: 1} and not parse_facts(fact).readable
    operations = json.dumps([{"event": "ADD", "text": "x" * MAX_LENGTH}])
    assert parse_operations(operations).problems == {TOO_LONG: 1} and not parse_operations(operations).readable
    assert parse_merges(f"Merge(0, {'x' * MAX_LENGTH})", 3) == ([], False)


OLD_MERGE = re.compile(r"^\W*Merge\(\s*(\d{1,9})\s*,\s*(.+?)\s*\)\W*$", re.IGNORECASE)


@given(st.text(alphabet="Mm(),)) \"'x_0.", max_size=12), st.sampled_from(["Merge(1,", "merge( 2 , ", "- Merge(0, a", "Merge(3,(b)", ""]))
def test_a_merge_is_read_as_the_pattern_that_took_cubic_time_read_it(rest: str, head: str) -> None:
    found = OLD_MERGE.match((head + rest).strip())
    wanted = [(int(found[1]), text)] if found and int(found[1]) < 9 and (text := clean(found[2].strip("\"'"))) else []
    assert parse_merges(head + rest, 9)[0] == wanted


OLD_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@given(st.lists(st.sampled_from(["```", "`", "json", " ", "\n", '{"verdict": "wrong"}', "x"]), max_size=6).map("".join))
def test_a_fenced_verdict_is_read_as_the_pattern_that_took_cubic_time_read_it(text: str) -> None:
    found = OLD_FENCE.fullmatch(text.strip())
    inner = found[1] if found else text.strip()
    assert verdict(text) == (0.0 if inner.strip() == '{"verdict": "wrong"}' else None)


@pytest.mark.parametrize("text", ["0: a" + "\n" * 150_000, "x a " * 400, "a " * 5000, "a\n" * 60_000, "0: a\n1: b\n" * 20_000])
def test_a_memory_is_compared_soon(text: str) -> None:
    other = text.replace("x", "y") + "b"
    start = time.process_time()
    items_of(text)
    parts = text_parts(text, other)
    assert time.process_time() - start < 2
    assert "".join(part for kind, part in parts if kind != "removed") == other


def test_a_reply_of_thousands_of_parts_scores_as_its_parts_do() -> None:
    assert f1_locomo_multi("Lima, x, " * 400, ["Lima, Cusco"]) == 0.5 and GOLDS
