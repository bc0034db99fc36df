"""Promise: the audit passes sound data and sees each kind of broken data: guessable, unanswerable, with evidence in known places."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.data.audit import Audit, audit, chance_score, guess_score, uniform_p
from memfactory.data.generators.ruler import fwe, vt
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.data.generators.synth_hop import synth_hop
from memfactory.data.solvers import SOLVERS

Rows = list[dict[str, Any]]


def hop(**changes: Any) -> Rows:
    return [row | changes for row in synth_hop(100, seed=1, docs=10)]


def questions(number: int, answer: Callable[[random.Random], str], form: str = "Which is earlier, The {a} or The {b}?") -> Rows:
    rng = random.Random(0)
    rows = []
    for index in range(number):
        a, b = (f"Name{rng.randrange(10**6)}" for _ in range(2))
        rows.append({"context": "text", "input": form.format(a=a, b=b), "answers": [answer(rng).format(a=a, b=b)], "index": index})
    return rows


def test_sound_data_has_no_problems() -> None:
    checks = audit("synth_hop", hop())
    assert checks.problems() == [] and checks.oracle == 1.0
    assert audit("synth_facts", synth_facts(150)).problems() == []


def test_an_answer_that_is_always_the_same_is_guessed() -> None:
    checks = audit("synth_hop", hop(answers=["Paris"]))
    assert checks.guess == 1.0 and checks.oracle == 0.0
    assert any("answered from the text" in problem for problem in checks.problems())


@pytest.mark.parametrize(
    ("answer", "guess"),
    [
        (lambda rng: "The {a}", 1.0),
        (lambda rng: "The {b}", 1.0),
        (lambda rng: rng.choice(["The {a}"] * 4 + ["The {b}"]), 0.8),
        (lambda rng: rng.choice(["The {a}", "The {b}"]), 0.5),
    ],
    ids=["first", "second", "first in four of five", "either"],
)
def test_the_side_of_a_choice_is_guessed_where_it_leaks(answer: Callable[[random.Random], str], guess: float) -> None:
    rows = questions(400, answer)
    assert guess_score(rows) == pytest.approx(guess, abs=0.07) and chance_score(rows) == 0.5
    problems = audit("one of my own", rows).problems()
    assert bool(problems) is (guess > 0.6)
    assert not problems or "of the answers are guessed" in problems[0]


def test_yes_and_no_out_of_balance_are_guessed() -> None:
    rows = questions(400, lambda rng: rng.choice(["yes", "yes", "yes", "no"]), "Are The {a} and The {b} alike?")
    checks = audit("one of my own", rows)
    assert checks.guess > 0.65 and checks.chance == 0.5 and checks.problems()
    assert checks.oracle is None and checks.gold_p is None  # no rule is known for it


def test_the_form_of_a_question_that_gives_its_answer_away_is_used() -> None:
    rows = [
        {"context": "t", "input": f"Where is {n}?" if n % 4 < 2 else f"Who is {n}?", "answers": ["town" if n % 4 < 2 else "king"]}
        for n in range(80)
    ]
    assert guess_score(rows) == 1.0 and chance_score(rows) == 0.5


def test_a_guess_never_sees_its_own_answer() -> None:
    rows = [{"context": "t", "input": "What?", "answers": [f"answer {n}"]} for n in range(60)]
    assert guess_score(rows) == 0.0


def test_evidence_in_one_place_is_seen() -> None:
    rows = hop()
    places = [(1, 10)] * 100
    assert uniform_p(places) is not None and uniform_p(places) < 1e-9  # type: ignore[operator]
    checks = audit("synth_hop", [row | {"evidence": [2, 3]} for row in rows])
    assert checks.gold_p is not None and checks.gold_p < 1e-9
    assert any("spread evenly" in problem for problem in checks.problems())


@given(size=st.integers(3, 60), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_uniform_places_pass_whatever_the_number_of_documents(size: int, seed: int) -> None:
    rng = random.Random(seed)
    p = uniform_p([(rng.randrange(size), size) for _ in range(600)])
    assert p is not None and p > 1e-5
    skewed = uniform_p([(min(rng.randrange(size), rng.randrange(size)), size) for _ in range(600)])
    assert skewed is not None and skewed < 1e-4


def test_few_places_are_not_judged() -> None:
    assert uniform_p([(0, 10)] * 49) is None and uniform_p([(0, 10)] * 50) is not None


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("family", "rows", "broken"),
    [
        ("vt", lambda: list(vt(6, count=count, tokens=400)), lambda row: row["context"].replace("VAR", "VER", 1)),
        ("fwe", lambda: list(fwe(6, count=count, tokens=900)), lambda row: row["context"].replace(row["outputs"][0], row["outputs"][1])),
    ],
)
def test_a_damaged_text_is_not_answered(family: str, rows: Callable[[], Rows], broken: Callable[[dict[str, Any]], str]) -> None:
    made = rows()
    assert audit(family, made).oracle == 1.0
    assert audit(family, [row | {"context": broken(row)} for row in made]).oracle == 0.0


def test_a_tie_is_no_answer() -> None:
    row = {"context": "a a b b c c d d ...", "input": "?", "outputs": ["a", "b", "c"]}
    assert SOLVERS["fwe"](row).answers == []


def test_an_extra_value_for_an_asked_key_is_not_right() -> None:
    needle = "One of the special magic numbers for {} is: {}."
    row = {
        "input": "What is the special magic number for old-cat mentioned in the text?",
        "context": "\n".join([needle.format("old-cat", 1234567), needle.format("cold-cat", 7654321)]),
        "outputs": ["1234567"],
    }
    assert audit("niah", [row] * 2).oracle == 1.0
    row["context"] += "\n" + needle.format("old-cat", 1111111)
    assert audit("niah", [row] * 2).oracle == 0.0


def test_problems_are_told_in_numbers() -> None:
    bad = Audit(guess=0.9, chance=0.5, guess_p=1e-20, oracle=0.25, gold_p=1e-5)
    text = " ".join(bad.problems())
    assert all(number in text for number in ("90.0%", "50.0%", "1e-20", "25.0%", "1e-05")) and len(bad.problems()) == 3
    assert Audit(guess=0.9, chance=None, guess_p=None, oracle=None, gold_p=None).problems() == []
