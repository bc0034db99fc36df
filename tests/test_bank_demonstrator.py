"""The careless keeper plays the agent's own prompts, and what it writes is what the agent's parser reads."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from memfactory.common.bank_prompts import numbered_lines
from memfactory.data.generators.bank_demonstrator import CAREFUL, CARELESS, BankHabits, bank_demonstrations, near, play_bank
from memfactory.data.generators.dialog_world import Statement
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.data.generators.world import words
from memfactory.judges.exact import answer_em
from memfactory.memory.operations import parse_facts, parse_operations

PERFECT = BankHabits(extract=1.0, chatter=0.0, right=1.0, answer=1.0)


def test_the_stream_is_seeded_and_its_words_are_the_tiny_worlds() -> None:
    one, again = (list(itertools.islice(bank_demonstrations(3, CARELESS), 300)) for _ in range(2))
    assert one == again and one != list(itertools.islice(bank_demonstrations(4, CARELESS), 300))
    known = set(words())
    assert not {word for row in one if row["stage"] != "echo" for word in row["response"].split()} - known
    assert set(Counter(row["stage"] for row in one)) == {"extraction", "update", "answer", "echo"}


def test_everything_written_can_be_read_by_the_agents_parser() -> None:
    for row in itertools.islice(bank_demonstrations(1, CARELESS), 600):
        if row["stage"] == "extraction":
            assert parse_facts(row["response"]).readable
        if row["stage"] == "update":
            text = row["messages"][0]["content"]
            facts = [part.strip() for part in text.split("<facts>\n")[1].split("\n</facts>")[0].split(" .") if part.strip()]
            parsed = parse_operations(row["response"], facts)
            assert parsed.readable and len(parsed.ops) == len(facts) and not parsed.problems


def test_perfect_habits_answer_what_can_be_seen_and_careless_ones_less() -> None:
    def right(habits: BankHabits) -> float:
        marks = []
        for number, dialogue in enumerate(synth_dialog(40, seed=8, rendering="triples", sessions=(2,))):
            rows = [row for row in play_bank(random.Random(number), dialogue, habits) if row["stage"] == "answer"]
            marks += [answer_em(row["response"], question["answers"]) for row, question in zip(rows, dialogue["questions"], strict=True)]
        return sum(marks) / len(marks)

    # Not 1: a second operation for one fact (a change that makes two items one) has no place in a line a fact.
    assert right(PERFECT) > 0.97 > right(CAREFUL) > right(CARELESS) + 0.05


def test_near_keeps_the_order_and_prefers_shared_words() -> None:
    bank = {
        n: Statement("plain", relation, person, ("x",)) for n, (relation, person) in enumerate([("pet", "a"), ("city", "b"), ("city", "a")])
    }
    assert list(near(bank, {"city", "a"}, 2)) == [0, 2] and list(near(bank, {"city", "a"}, 1)) == [2]


def test_numbers_stand_behind_the_key() -> None:
    assert numbered_lines(["city alice paris", "pet bob and cat ."]) == "city alice 0 paris . pet bob 1 and cat ."
    assert numbered_lines([]) == "none"
