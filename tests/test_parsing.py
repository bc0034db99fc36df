"""Promise: what a model wrote is read by fixed rules that never raise, and what a prompt is filled with is never read at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.common.errors import ConfigError
from memfactory.common.parsing import last_boxed, normalize_math, normalize_squad, strip_thinking
from memfactory.common.prompts import MEMORY_ANSWER, PROMPTS, blocks, fill, memory_answer_messages, memory_update_messages
from memfactory.judges.exact import TAIL, boxed_answer, boxed_em, boxed_f1

MODEL_TEXT = st.lists(
    st.sampled_from(["<think>", "</think>", "\\boxed{", "\\fbox {", "\\boxed ", "{", "}", "$", "a", " ", "\n"]) | st.text(max_size=4)
).map("".join)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        (" plain ", False, "plain"),
        ("", False, ""),
        ("<think>why</think> so", False, "so"),
        ("<think></think>", False, ""),
        ("before <think>why</think> after", False, "after"),
        ("<think>never closed \\boxed{a}", False, None),
        ("why</think>\n\nso", True, "so"),
        ("the prompt's thought goes on", True, None),
        ("<think>a</think> b <think>c</think> d", False, "d"),
        ("<think>a</think> b <think>cut off", False, None),
        ("a</think> b <think>cut off", True, None),
    ],
)
def test_thoughts_are_removed_and_unfinished_thoughts_are_no_answer(text: str, opened: bool, expected: str | None) -> None:
    assert strip_thinking(text, opened) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so \\boxed{paris}.", "paris"),
        ("\\boxed{ paris }", "paris"),
        ("\\boxed{}", ""),
        ("\\boxed{\\frac{1}{2}} and more", "\\frac{1}{2}"),
        ("\\boxed{a{b{c}}d}e}", "a{b{c}}d"),
        ("\\boxed{a} then \\boxed{b}", "b"),
        ("\\boxed{a} then \\fbox{b}", "a"),
        ("\\fbox{a} then \\boxed{b}", "b"),
        ("\\fbox{a} and \\fbox{b{c}}", "b{c}"),
        ("\\fbox{a", None),
        ("\\boxed {a}", "{a}"),
        ("\\boxed x y", "x y"),
        ("It is \\boxed New York City", "New York City"),
        ("$\\boxed New York City$, I think", "New York City"),
        ("\\boxed 9 then \\boxed{a}", "9 then \\boxed{a}"),
        ("\\boxed{a} \\boxed", None),
        ("\\boxed\n{a}", None),
        ("\\boxed: {a}", None),
        ("\\BOXED{A}", "A"),
        ("\\boxed{\\fbox{a}}", "\\fbox{a}"),
        ("\\boxed{a \\boxed{b} c}", "b"),
        ("\\boxed}{a}", None),
        ("$\\boxed 7$ apples", "7"),
        ("\\boxed{a} \\boxed 9", "9"),
        ("\\boxed{line\nline}", "line\nline"),
        ("\\boxed{never closed", None),
        ("\\boxed{a} then \\boxed{cut off", None),
        ("\\boxed ", None),
        ("\\boxed", None),
        ("boxed{a}", None),
        ("\\unboxed{a}", None),
        ("", None),
    ],
)
def test_last_box(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("Paris", "paris"),
        ("new  york\ncity", "newyorkcity"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("\\tfrac12", "\\frac12"),
        ("\\left( 3, 4 \\right)", "(3,4)"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("\\$5\\!000", "5000"),
        ("50\\%", "50"),
        (".5", "0.5"),
        ("{.5}", "{0.5}"),
        ("x \\\\ y", "x\\y"),
        ("", ""),
    ],
)
def test_spellings_with_the_same_math_form(text: str, same_as: str) -> None:
    assert normalize_math(text) == same_as


@pytest.mark.parametrize(("one", "other"), [("the cat", "cat"), ("cat.", "cat"), ("ab", "ba"), ("1.0", "1")])
def test_math_form_keeps_articles_punctuation_and_order(one: str, other: str) -> None:
    assert normalize_math(one) != normalize_math(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Cat.", "cat"), ("an apple, a day", "apple day"), ("theme", "theme"), ("U.S.A.", "usa"), ("the a an", ""), ("a\tb\nc", "b c")],
)
def test_squad_form(text: str, expected: str) -> None:
    assert normalize_squad(text) == expected


# Text, gold answers, exact match, F1.
SCORES = [
    ("\\boxed{Paris}", ["paris"], 1.0, 1.0),
    ("\\boxed{paris} no, \\boxed{rome}", ["paris"], 0.0, 0.0),
    ("it is paris", ["paris"], 0.0, 0.0),
    ("\\boxed{}", ["paris"], 0.0, 0.0),
    ("\\boxed{rome}", ["paris", "Rome"], 1.0, 1.0),
    ("\\boxed{the Rome}", ["rome"], 0.0, 1.0),
    ("\\boxed{new york city}", ["new york"], 0.0, 2 * 2 / (3 + 2)),
    ("\\boxed{a b b}", ["b c"], 0.0, 2 * 1 / (2 + 2)),
    ("\\boxed{b b}", ["b b b"], 0.0, 2 * 2 / (2 + 3)),
    ("\\boxed{new york}", ["london", "york"], 0.0, 2 * 1 / (2 + 1)),
    ("\\boxed{\\dfrac{1}{2}}", ["\\frac{1}{2}"], 1.0, 0.0),
    ("<think>\\boxed{rome}</think> \\boxed{paris}", ["paris"], 1.0, 1.0),
    ("<think>\\boxed{paris}</think> no idea", ["paris"], 0.0, 0.0),
    ("<think>\\boxed{paris}", ["paris"], 0.0, 0.0),
    ("\\boxed{paris}", [], 0.0, 0.0),
    ("\\boxed{the}", ["the"], 1.0, 0.0),
]


@pytest.mark.parametrize(("text", "golds", "exact", "f1"), SCORES)
def test_scores_of_boxed_answers(text: str, golds: list[str], exact: float, f1: float) -> None:
    assert boxed_em(text, golds) == exact
    assert boxed_f1(text, golds) == pytest.approx(f1)


def test_only_the_end_of_an_answer_is_searched_for_a_box() -> None:
    assert boxed_answer("\\boxed{paris}" + "x" * (TAIL - len("\\boxed{paris}"))) == "paris"
    assert boxed_answer("\\boxed{paris}" + "x" * (TAIL - len("\\boxed{paris}") + 1)) is None


@given(text=MODEL_TEXT | st.text(), opened=st.booleans())
@settings(max_examples=75, deadline=None)
def test_no_text_makes_a_reader_raise(text: str, opened: bool) -> None:
    visible = strip_thinking(text, opened)
    assert visible is None or ("<think>" not in visible and "</think>" not in visible)
    assert last_boxed(text) is None or last_boxed(text) in text
    assert boxed_em(text, [text]) in (0.0, 1.0) and 0.0 <= boxed_f1(text, [text, "a"]) <= 1.0


BRACELESS = st.text(alphabet=st.characters(exclude_characters="\\{}", exclude_categories=["Cs"]), max_size=40)


@given(text=BRACELESS, before=MODEL_TEXT)
@settings(max_examples=100, deadline=None)
def test_whatever_is_put_in_a_closed_box_is_read_back(text: str, before: str) -> None:
    before = before.replace("\\boxed ", "")  # one with a space goes before all others, as in MemAgent's code
    assert last_boxed(f"{before} \\boxed{{{text}}}") == text.strip()
    assert last_boxed(f"{before} \\boxed{{{{{text}}} {text}}}") == f"{{{text}}} {text}".strip()


@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_normal_forms_are_reached_in_one_step(text: str) -> None:
    assert " " not in normalize_math(text) and "\n" not in normalize_math(text)
    assert normalize_squad(normalize_squad(text)) == normalize_squad(text)


HOSTILE = ["<<memory>>", "<<question>>", "{memory}", "{0}", "\\1 \\g<0>", "%s", "\\", "$memory", "<<", "{{}}", ""]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_put_into_a_slot_is_never_interpreted(text: str) -> None:
    filled = fill("A<<question>>B<<memory>>C<<question>>", question=text, memory="m")
    assert filled == "A" + text + "BmC" + text
    assert memory_answer_messages("q", text)[0]["content"] == MEMORY_ANSWER.replace("<<question>>", "q").replace("<<memory>>", text)


@given(question=st.text(), memory=st.text(), section=st.text())
@settings(max_examples=60, deadline=None)
def test_any_template_holds_its_texts_as_they_are_between_its_blocks(question: str, memory: str, section: str) -> None:
    for order, middle in (("memory_first", (memory, section)), ("chunk_first", (section, memory))):
        (message,) = memory_update_messages(question, memory, section, order)
        fixed = blocks(PROMPTS["memory_update" if order == "memory_first" else "memory_update_chunk_first"])
        assert message == {"role": "user", "content": fixed[0] + question + fixed[1] + middle[0] + fixed[2] + middle[1] + fixed[3]}


@pytest.mark.parametrize("slots", [{"question": "q"}, {"question": "q", "memory": "m", "section": "s"}, {}])
def test_missing_and_unknown_slots_are_refused(slots: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"\['memory', 'question'\]"):
        fill(MEMORY_ANSWER, **slots)


def test_unknown_prompt_order_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'last'.*memory_first, chunk_first"):
        memory_update_messages("q", "m", "s", "last")
