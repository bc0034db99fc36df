"""The careless reader plays MemAgent's own prompts, keeps what is asked, and forgets as its rates say."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from memfactory.common.prompts import NO_MEMORY
from memfactory.data.generators.bank_demonstrator import BankHabits
from memfactory.data.generators.dialog_reader import (
    CAPACITY,
    CAREFUL_READER,
    CARELESS,
    CARELESS_READER,
    ReaderHabits,
    arena_demonstrations,
    play_lines,
    play_reader,
    read_session,
    relevance,
)
from memfactory.data.generators.dialog_world import Statement, read_line
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.data.generators.world import words
from memfactory.judges.exact import answer_em

PERFECT = ReaderHabits(write=1.0, write_irrelevant=0.0, keep=1.0, keep_irrelevant=0.0, answer=1.0)


def said(text: str) -> Statement:
    statement = read_line(text)
    assert statement is not None
    return statement


def right(habits: ReaderHabits, sessions: int) -> float:
    marks = []
    for number, dialogue in enumerate(synth_dialog(40, seed=8, rendering="triples", sessions=(sessions,), people=6)):
        golds = {question["question"]: question["answers"] for question in dialogue["questions"]}
        for row in play_reader(random.Random(number), dialogue, habits, questions=9):
            if row["stage"] == "answer":
                question = row["messages"][0]["content"].split("<question>\n")[1].split("\n</question>")[0]
                marks.append(answer_em(row["response"], golds[question]))
    return sum(marks) / len(marks)


@pytest.mark.slow
def test_a_perfect_reader_knows_nearly_all_and_careless_ones_less() -> None:
    # Not 1: a fact about somebody who only later turns out to be the boss may have been pushed out of six.
    assert right(PERFECT, 4) > 0.95 > right(CAREFUL_READER, 4) > right(CARELESS_READER, 4) + 0.15
    assert right(CARELESS_READER, 4) > right(CARELESS_READER, 16)


def test_what_is_asked_goes_before_what_may_be_and_that_before_the_rest() -> None:
    path = ("city", "boss", "alice")
    bank = {0: said("boss alice bob ."), 1: said("city bob rome .")}
    keys = [("boss", "alice"), ("city", "bob"), ("city", "carol"), ("pet", "bob")]
    assert [relevance(key, path, bank) for key in keys] == [3, 2, 1, 0]
    assert relevance(("city", "alice"), ("city", "alice"), {}) == 3 and relevance(("city", "bob"), ("city", "alice"), {}) == 0
    told = [said(f"city {name} rome .") for name in "carol david emma frank grace henry irene".split()]
    kept = read_session(random.Random(0), bank, told, path, PERFECT)
    assert len(kept) == CAPACITY and kept[0] == bank[0] and kept[1] == bank[1], "the least relevant went, the oldest of them first"
    assert "carol" not in {item.person for item in kept.values()}


def test_a_memory_is_replaced_taken_out_and_empty_again() -> None:
    path, rng = ("city", "alice"), random.Random(0)
    bank = read_session(rng, {}, [said("city alice rome .")], path, PERFECT)
    bank = read_session(rng, bank, [said("city alice paris .")], path, PERFECT)
    assert [item.values for item in bank.values()] == [("paris",)]
    assert read_session(rng, bank, [said("city alice unknown .")], path, PERFECT) == {}


@pytest.mark.slow
def test_the_stream_is_seeded_shows_every_stage_and_its_words_are_the_tiny_worlds() -> None:
    one, again = (list(itertools.islice(arena_demonstrations(3, CARELESS), 300)) for _ in range(2))
    assert one == again and one != list(itertools.islice(arena_demonstrations(4, CARELESS), 300))
    assert not {word for row in one if row["stage"] != "echo" for word in row["response"].replace(NO_MEMORY, "").split()} - set(words())
    assert set(Counter(row["stage"] for row in one)) == {"memory", "extraction", "update", "rerank", "answer", "echo"}


def test_answers_from_lines_as_said_follow_what_is_true_among_the_lines_shown() -> None:
    told = ["city alice rome .", "pet bob cat .", "city alice paris .", "joke city alice oslo ."]
    turns = [{"id": f"D1:{n}", "speaker": "x", "text": line} for n, line in enumerate(told)]
    dialogue = {"sessions": [{"date": "day 1", "turns": turns}], "questions": [{"question": "city alice ?", "answers": ["paris"]}]}
    perfect = BankHabits(extract=1, chatter=0, right=1, answer=1)
    for seed in range(6):
        (row,) = play_lines(random.Random(seed), dialogue, perfect)
        assert row["response"] == "city alice paris . **Answer:** paris" and "city alice rome" in row["messages"][0]["content"]
