"""Promise: `synth_hop` has MemAgent's schema, needs both gold documents and nothing else, and cannot be guessed from its form."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.common.errors import ConfigError
from memfactory.data.audit import audit
from memfactory.data.documents import join_documents, permuted, split_documents
from memfactory.data.generators.hop_world import FACTS, RELATIONS, World, read_facts
from memfactory.data.generators.synth_hop import BLOCK, BRIDGES, HARD, SAME, TARGETS, WHICH, synth_hop


def count(text: str) -> int:
    """Words and marks: nearly the tokens of a real tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def test_hop_records_have_the_evaluation_schema() -> None:
    for index, row in enumerate(synth_hop(12, docs=14)):
        assert set(row) == {"context", "input", "answers", "num_docs", "index", "evidence"}
        assert row["index"] == index and row["num_docs"] == 14 and len(row["answers"]) == 1
        documents = split_documents(row["context"])
        assert len(documents) == 14 and row["context"] == join_documents(documents)
        assert row["context"].startswith("Document 1:\n") and "\n\nDocument 14:\n" in row["context"]
        assert len({document.partition("\n")[0] for document in documents}) == 14
        assert len({*row["evidence"]}) == 2 and {*row["evidence"]} <= {*range(1, 15)}


def test_hop_records_depend_on_the_seed_and_their_number_alone() -> None:
    rows = list(synth_hop(25, seed=5, docs=12))
    assert list(synth_hop(7, seed=5, docs=12)) == rows[:7]
    assert all(a["input"] != b["input"] for a, b in zip(rows, synth_hop(25, seed=6, docs=12), strict=True))


def test_more_documents_ask_the_same_question_about_the_same_gold_documents() -> None:
    for short, long in zip(synth_hop(10, docs=10), synth_hop(10, docs=30), strict=True):
        assert (short["input"], short["answers"]) == (long["input"], long["answers"])
        texts = split_documents(long["context"])
        assert {*split_documents(short["context"])} <= {*texts} and len(texts) == 30
        assert [split_documents(short["context"])[n - 1] for n in short["evidence"]] == [texts[n - 1] for n in long["evidence"]]


def test_hop_questions_need_the_text_and_can_be_answered_from_two_documents() -> None:
    rows = list(synth_hop(300, seed=2, docs=10))
    checks = audit("synth_hop", rows)
    assert checks.oracle == 1.0 and checks.problems() == []
    assert checks.chance == pytest.approx(0.2, abs=0.02)  # four in ten are comparisons, guessed right every other time
    assert checks.guess_p is not None and checks.guess_p > 0.01


def test_both_gold_documents_are_needed() -> None:
    """With a gold document replaced by a filler, the rule that answers every question answers none."""
    for row in synth_hop(30, seed=3, docs=11):
        filler = next(number for number in range(1, 12) if number not in row["evidence"])
        for at in (0, 1):
            evidence = list(row["evidence"])
            evidence[at] = filler
            assert audit("synth_hop", [row | {"evidence": evidence}]).oracle == 0.0


@pytest.mark.slow
def test_gold_documents_are_anywhere() -> None:
    p = audit("synth_hop", list(synth_hop(400, seed=4, docs=10))).gold_p
    assert p is not None and p > 0.01


def test_no_bridge_answer_is_in_its_question_and_comparisons_are_balanced() -> None:
    kinds: Counter[str] = Counter()
    for row in synth_hop(200, seed=7, docs=10):
        (answer,) = row["answers"]
        side = [half for half in (" or ", ", ") if f"{half}{answer}" in row["input"]]
        kinds[answer if answer in ("yes", "no") else "second" if " or " in side else "first" if side else "bridge"] += 1
        if not side:
            assert answer.lower() not in row["input"].lower()
    assert kinds == {kind: 20 * BLOCK.count(kind) for kind in BLOCK}


def test_gold_answers_are_never_in_the_first_document_of_a_bridge() -> None:
    for row in synth_hop(60, seed=8, docs=10):
        first, second = (split_documents(row["context"])[number - 1] for number in row["evidence"])
        (answer,) = row["answers"]
        if answer not in ("yes", "no") and answer not in row["input"]:
            assert answer in second and answer not in first


def test_hard_documents_are_of_the_gold_kinds_and_half_share_a_value() -> None:
    def kinds_and_values(text: str) -> tuple[str, set[str]]:
        facts = read_facts(text)
        kind = next(kind for kind, relations in RELATIONS.items() if set(relations) == set(facts))
        return kind, {value for value in facts.values() if not value.isdigit()}

    for row in synth_hop(20, seed=9, docs=2 + HARD):
        documents = split_documents(row["context"])
        gold = [kinds_and_values(documents[number - 1]) for number in row["evidence"]]
        others = [kinds_and_values(text) for at, text in enumerate(documents, 1) if at not in row["evidence"]]
        assert {kind for kind, _ in others} == {kind for kind, _ in gold}
        assert sum(bool(values & (gold[0][1] | gold[1][1])) for _, values in others) == HARD // 2


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(list(RELATIONS)))
@settings(max_examples=100, deadline=None)
def test_a_document_states_each_fact_once_and_has_the_length_of_wikipedias(seed: int, kind: str) -> None:
    world = World(random.Random(seed))
    entity = world.entity(kind)
    text = world.document(entity)
    assert read_facts(text) == entity.facts
    assert text.startswith(f"{entity.name}\n") and 4 <= len(re.findall(r"\.(?= |$)", text)) <= 7
    assert 90 <= count(text) <= 150


def test_every_form_of_question_is_about_a_relation_that_documents_state() -> None:
    stated = {(kind, relation) for kind, relations in RELATIONS.items() for relation in relations}
    assert {*BRIDGES, *TARGETS, *SAME, *WHICH} <= stated and {relation for _, relation in stated} == set(FACTS)
    assert all(RELATIONS[kind][relation] in RELATIONS for kind, relation in BRIDGES)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(ConfigError, match="docs=9: synth_hop needs at least 10"):
        synth_hop(1, docs=9)


# Documents


@given(texts=st.lists(st.text(alphabet="ab \nDocument1:2", min_size=1, max_size=20), min_size=1, max_size=5))
def test_documents_come_apart_as_they_were_joined(texts: list[str]) -> None:
    joined = join_documents(texts)
    if joined.count("\n\nDocument ") == len(texts) - 1:
        assert split_documents(joined) == texts


def test_permuted_tells_where_each_document_went() -> None:
    ordered, numbers = permuted("abcdefgh", random.Random(3))
    assert [ordered[number - 1] for number in numbers] == list("abcdefgh") and ordered != list("abcdefgh")
