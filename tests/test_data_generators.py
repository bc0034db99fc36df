"""Promise: generated data sets have the public schemas and the asked length, repeat byte for byte, and show no gold but `evidence`."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from helpers_algorithms import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memfactory.common.errors import ConfigError, UnknownNameError
from memfactory.data.audit import audit, golds
from memfactory.data.generators.fitting import SLACK, fit, scattered
from memfactory.data.generators.niah import ANSWER_TOKENS, VARIANTS, niah
from memfactory.data.generators.prose import prose
from memfactory.data.generators.ruler import CWE_ANSWER_TOKENS, FWE_ANSWER_TOKENS, VT_ANSWER_TOKENS, cwe, fwe, vt
from memfactory.data.generators.synth_hop import synth_hop
from memfactory.data.generators.words import ADJECTIVES, NOUNS, key_stream, with_articles, word_stream

Rows = list[dict[str, Any]]


def count(text: str) -> int:
    """A counter that is quick and not proportional to characters: words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def ruler(name: str, number: int, seed: int = 0, tokens: int = 2000, **options: Any) -> Rows:
    task, _, variant = name.partition(" ")
    options |= {"variant": variant} if variant else {}
    return list({"niah": niah, "vt": vt, "cwe": cwe, "fwe": fwe}[task](number, count=count, seed=seed, tokens=tokens, **options))


RESERVE = {"niah": ANSWER_TOKENS, "vt": VT_ANSWER_TOKENS, "cwe": CWE_ANSWER_TOKENS, "fwe": FWE_ANSWER_TOKENS}
RULER = [*(f"niah {variant}" for variant in VARIANTS), "vt", "cwe", "fwe"]

# All of RULER's tasks


@pytest.mark.parametrize("name", RULER)
def test_records_have_rulers_schema_and_unique_numbers(name: str) -> None:
    rows = ruler(name, 5)
    assert [set(row) for row in rows] == [{"index", "input", "context", "outputs", "answer_prefix", "length"}] * 5
    assert [row["index"] for row in rows] == list(range(5))
    for row in rows:
        assert all(isinstance(row[key], str) and row[key] for key in ("input", "context", "answer_prefix"))
        assert row["outputs"] and all(isinstance(output, str) for output in row["outputs"])
        assert row["context"] not in row["input"] and row["answer_prefix"].startswith(" ")
        assert len({*row["outputs"]}) == len(row["outputs"])


@pytest.mark.parametrize("name", RULER)
def test_a_record_depends_on_the_seed_and_its_number_alone(name: str) -> None:
    rows = ruler(name, 6, seed=3, tokens=700)
    assert ruler(name, 2, seed=3, tokens=700) == rows[:2]
    assert all(a["context"] != b["context"] for a, b in zip(rows, ruler(name, 6, seed=4, tokens=700), strict=True))
    assert len({row["context"] for row in rows}) == 6


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize("tokens", [700, 4100])
def test_the_budget_is_kept_and_nearly_used(name: str, tokens: int) -> None:
    for row in ruler(name, 3, tokens=tokens):
        assert row["length"] == count(row["context"]) + count(row["input"]) + RESERVE[name.split()[0]] <= tokens
        # One unit of the haystack is at most 60 of these tokens (three numbered words of `cwe`: 9; one decoy of uuids: 48).
        assert row["length"] > tokens * (1 - SLACK) - 60


def test_the_budget_counts_tokens_of_the_tokenizer_that_is_handed_in() -> None:
    tokenizer = tiny_tokenizer()

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    for row in niah(2, count=tokens, tokens=3000, variant="multikey_3"):
        assert 2800 < tokens(row["context"]) + tokens(row["input"]) + ANSWER_TOKENS == row["length"] <= 3000


@pytest.mark.slow
@pytest.mark.parametrize("name", RULER)
def test_a_rule_answers_from_the_text_and_nobody_without_it(name: str) -> None:
    checks = audit(name.split()[0], ruler(name, 40, tokens=1200))
    assert checks.oracle == 1.0
    assert checks.guess <= 0.06 and checks.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["niah single_1", "niah multikey_2", "niah multivalue", "vt"])
def test_needles_are_anywhere(name: str) -> None:
    p = audit(name.split()[0], ruler(name, 250, seed=1, tokens=500)).gold_p
    assert p is not None and p > 0.01


@pytest.mark.parametrize("name", RULER)
def test_too_few_tokens_are_refused_with_the_number_that_is_missing(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"with tokens=60: its shortest text takes \d+ tokens, but -?\d+ are left.*at least \d+ tokens more"
    ):
        ruler(name, 1, tokens=60)


# One by one


@pytest.mark.parametrize(
    ("variant", "keys", "asked", "outputs", "key", "value"),
    [
        ("single_1", 1, 1, 1, "word", "number"),
        ("single_2", 1, 1, 1, "word", "number"),
        ("single_3", 1, 1, 1, "word", "uuid"),
        ("multikey_1", 4, 1, 1, "word", "number"),
        ("multikey_2", None, 1, 1, "word", "number"),
        ("multikey_3", None, 1, 1, "uuid", "uuid"),
        ("multivalue", 1, 1, 4, "word", "number"),
        ("multiquery", 4, 4, 4, "word", "number"),
    ],
)
def test_variants_differ_as_published(variant: str, keys: int | None, asked: int, outputs: int, key: str, value: str) -> None:
    forms = {"word": r"[a-z]+-[a-z]+", "number": r"\d{7}", "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"}
    for row in ruler(f"niah {variant}", 5):
        kind = f"{value}s"
        needles = re.findall(rf"One of the special magic {kind} for (\S+) is: (\S+)\.", row["context"])
        assert needles and all(re.fullmatch(forms[key], k) and re.fullmatch(forms[value], v) for k, v in needles)
        assert len({v for _, v in needles}) == len(needles)
        found = {k for k, _ in needles}
        assert len(found) == keys if keys else len(found) == len(needles) > 20
        wanted = {k for k in found if re.search(rf"\b{k}\b", row["input"])}
        assert len(wanted) == asked and len(row["outputs"]) == outputs
        assert {v for k, v in needles if k in wanted} == set(row["outputs"])
        assert f"{kind} for" in row["answer_prefix"] if outputs > 1 else f"{value} for" in row["answer_prefix"]


def test_haystacks_are_noise_prose_or_decoys() -> None:
    noise, essay = (ruler(f"niah {name}", 1)[0]["context"] for name in ("single_1", "single_2"))
    assert noise.count("The grass is green.") > 20 and "\n" in noise
    assert "\n" not in essay and len({*essay.split(". ")}) == len(essay.split(". ")) > 40
    assert not re.search(r"\d", re.sub(r"\d{7}", "", essay))


def test_variables_of_other_chains_are_not_asked_for() -> None:
    for row in ruler("vt", 10, chains=3, hops=2):
        lines = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", row["context"])
        assert len(lines) == 9 and len(row["outputs"]) == 3
        value = re.search(r"value (\d{5})", row["input"])
        assert value and (row["outputs"][0], value[1]) in lines
        names = [name for name, _ in lines]
        assert [names.index(name) for name in row["outputs"]] == sorted(names.index(name) for name in row["outputs"])
    assert audit("vt", ruler("vt", 30, chains=3, hops=2)).oracle == 1.0


@pytest.mark.parametrize(("tokens", "often", "seldom"), [(2000, 6, 1), (4096, 30, 3)])
def test_common_words_come_as_often_as_published(tokens: int, often: int, seldom: int) -> None:
    (row,) = ruler("cwe", 1, tokens=tokens)
    words = re.findall(r"(\d+)\. (\S+)", row["context"])
    counts = Counter(word for _, word in words)
    assert [int(number) for number, _ in words] == list(range(1, len(words) + 1))
    assert {counts[word] for word in row["outputs"]} == {often} and len(row["outputs"]) == 10
    assert {n for word, n in counts.items() if word not in row["outputs"]} == {seldom}


def test_no_common_word_is_part_of_another_word_of_the_list() -> None:
    """A score that looks for substrings must not pay for another word."""
    for row in ruler("cwe", 20, tokens=3000):
        words = set(re.findall(r"\d+\. (\S+)", row["context"]))
        assert [(common, word) for common in row["outputs"] for word in words if common != word and common in word] == []


def test_frequencies_of_coded_words_are_a_zeta_distribution() -> None:
    (row,) = ruler("fwe", 1, tokens=8000)
    counts = Counter(row["context"].split())
    ranked = [word for word, _ in counts.most_common(4)]
    assert ranked == ["...", *row["outputs"]]
    assert [counts[word] / counts["..."] for word in ranked] == pytest.approx([1, 1 / 4, 1 / 9, 1 / 16], abs=0.002)
    assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...") and len(counts) <= 8000 // 50


@pytest.mark.parametrize("alpha", [1.5, 3.5])
def test_the_three_words_never_tie(alpha: float) -> None:
    assert audit("fwe", ruler("fwe", 10, tokens=900, alpha=alpha)).oracle == 1.0


def test_order_differs_from_record_to_record() -> None:
    """RULER shuffles every item with one seed: the third word of every text had the same rank."""
    patterns = set()
    for row in ruler("fwe", 10):
        ranks = {word: at for at, word in enumerate(["...", *row["outputs"]])}
        patterns.add(tuple(ranks.get(word, 4) for word in row["context"].split()[:60]))
    assert len(patterns) == 10


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vt", {"chains": 0}, "chains=0"),
        ("cwe", {"common_times": 2, "uncommon_times": 2}, "common_times=2"),
        ("fwe", {"alpha": 1.0}, "alpha=1.0"),
    ],
)
def test_options_that_make_no_task_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ruler(name, 1, **options)


def test_an_unknown_variant_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"'singel_1'. Did you mean 'single_1'\? Known: .*multiquery"):
        ruler("niah singel_1", 1)


# Parts


@given(per_unit=st.integers(1, 60), fixed=st.integers(0, 50), budget=st.integers(111, 5000), bend=st.floats(0, 0.4))
@settings(max_examples=80, deadline=None)
def test_fitting_finds_the_longest_text_in_few_tries(per_unit: int, fixed: int, budget: int, bend: float) -> None:
    tries: list[int] = []

    def size(text: str) -> int:
        units = len(text)
        tries.append(units)
        return fixed + int(per_unit * units ** (1 + bend))

    fitted = fit(lambda units: "x" * units, size, budget)
    assert fitted.tokens == fixed + int(per_unit * fitted.units ** (1 + bend)) <= budget
    longer = fixed + int(per_unit * (fitted.units + 1) ** (1 + bend))
    assert longer > budget or budget - fitted.tokens <= SLACK * budget
    assert len(tries) <= 24


def test_sets_of_places_are_alike() -> None:
    counts = Counter("".join(scattered("ab", "...", random.Random(seed))) for seed in range(3000))
    assert len(counts) == 10 and all(text.index("a") < text.index("b") for text in counts)
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_words_are_many_and_streams_do_not_repeat() -> None:
    assert len({*ADJECTIVES}) == len(ADJECTIVES) >= 300 and len({*NOUNS}) == len(NOUNS) >= 1000
    assert not {*ADJECTIVES} & {*NOUNS} and all(re.fullmatch("[a-z]+", word) for word in (*ADJECTIVES, *NOUNS))

    def first(stream: Iterator[str], number: int) -> list[str]:
        return list(islice(stream, number))

    words = first(word_stream(random.Random(0)), 3000)
    assert len({*words}) == 3000 and {*ADJECTIVES, *NOUNS} < {*words}
    assert len({*first(key_stream(random.Random(0)), 3000)}) == 3000
    assert with_articles("a able cat and a cat, A odd uncle") == "an able cat and a cat, An odd uncle"
    sentences = first(prose(random.Random(0)), 300)
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,']+\.", text) and 10 <= len(text.split()) <= 27 for text in sentences)


# Bytes

GOLDEN = {
    "synth_hop": lambda: synth_hop(3, seed=1, docs=12),
    "vt": lambda: ruler("vt", 3, seed=1),
    "cwe": lambda: ruler("cwe", 3, seed=1),
    "fwe": lambda: ruler("fwe", 3, seed=1),
    "niah": lambda: [row for variant in VARIANTS for row in ruler(f"niah {variant}", 1, seed=1)],
}
HASHES = {
    "synth_hop": "3aad484a880d",
    "vt": "cc1e9da1b0a1",
    "cwe": "c4f7c10e5eb3",
    "fwe": "9a622ca965af",
    "niah": "fe9df49a8f21",
}
"""Of the records as JSON. A change here is a change of every data set that anyone has built: say so in CHANGELOG.md."""


@pytest.mark.parametrize("name", GOLDEN)
def test_records_are_the_same_bytes_on_every_machine(name: str) -> None:
    text = json.dumps(list(GOLDEN[name]()), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == HASHES[name]


def test_golds_are_the_first_answer_or_all_outputs() -> None:
    assert golds({"answers": ["a", "b"]}) == ["a"] and golds({"outputs": ["a", "b"]}) == ["a", "b"]
