"""Promise: operations and facts are read from whatever a model writes; what is no answer is unreadable and nothing crashes."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.common.errors import ConfigError
from memfactory.memory.bank import WRITE_POLICIES, MemoryBank
from memfactory.memory.items import MemoryOp
from memfactory.memory.json_text import MAX_DEPTH
from memfactory.memory.operations import (
    CUT,
    LEFT_OUT,
    NO_FACT,
    NOT_A_FACT,
    NOT_AN_OBJECT,
    REPEATED,
    UNCLOSED,
    UNKNOWN_OPERATION,
    Parsed,
    ParsedFacts,
    format_operations,
    parse_facts,
    parse_operations,
    renumber,
)

ADD, UPDATE, DEL, NONE = (lambda *a, kind=kind: MemoryOp(kind, *a) for kind in ("ADD", "UPDATE", "DEL", "NONE"))

MEM0 = """{"memory": [
  {"id": "0", "text": "Alice lives in Rome", "event": "UPDATE", "old_memory": "Alice lives in Paris"},
  {"id": "1", "text": "Alice has a dog", "event": "DELETE"},
  {"id": "2", "text": "Alice drinks tea", "event": "NONE"},
  {"id": "3", "text": "Alice paints", "event": "ADD"}
]}"""
PUBLIC = '{"operations": [{"id": 0, "op": "UPDATE", "key": "Home", "value": "Alice lives in Rome"}, {"id": 1, "op": "DEL"}, {"id": 2, "op": "NONE"}, {"op": "ADD", "value": "Alice paints"}]}'  # fmt: skip  # noqa: E501
BARE = '[{"action": "update", "memory_id": "#0", "new_memory": "Alice lives in Rome"}, {"type": "Remove", "index": 1.0}, {"operation": "no change", "id": "[2]"}, {"op": "insert", "content": "Alice paints", "id": "new"}]'  # fmt: skip  # noqa: E501
PYTHON = PUBLIC.replace('"', "'").replace("]}", ",]}")
LINES = "city alice 0 UPDATE . pet alice 1 DEL .\ndrink alice 2 NONE .\nhobby alice new ADD ."
FACTS = ["city alice rome", "pet alice unknown", "drink alice tea", "hobby alice painting"]
SHAPES = [MEM0, PUBLIC, BARE, PYTHON]
EXPECTED = (UPDATE("0", "Alice lives in Rome"), DEL("1"), NONE("2"), ADD(None, "Alice paints"))


@pytest.mark.parametrize("text", SHAPES, ids=["mem0", "public", "bare", "python"])
@pytest.mark.parametrize(
    "frame",
    ["{}", "```json\n{}\n```", "```\n{}", "Sure, here [as asked] are {{the}} operations:\n{}\nThat's it!", "<think>hm [{{</think>\n{}"],
)
def test_each_shape_is_read_in_each_frame(text: str, frame: str) -> None:
    assert parse_operations(frame.format(text)) == Parsed(EXPECTED, Counter(), True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"event": "ADD", "memory": "Bob has a dog"}', [ADD(None, "Bob has a dog")]),
        ('{"op": "ADD", "text": "a"}\n{"op": "DEL", "id": 3}', [ADD(None, "a"), DEL("3")]),
        ('{"op": "ADD", "text": "a"}, {"op": "DEL", "id": 3}', [ADD(None, "a"), DEL("3")]),
        ('{"operations": {"op": "NO-OP", "id": 1}}', [NONE("1")]),
        ('{"Operations": [{"OP": "no_op", "ID": 1}]}', [NONE("1")]),
        ("{operations: [{id: 1, op: DEL}]}", [DEL("1")]),
        ("{“op”: “ADD”, “text”: “x y”}", [ADD(None, "x y")]),
        ('{"op": "ADD", "text": "she said "hi, there" {to} me"}', [ADD(None, 'she said "hi, there" {to} me')]),
        ('[{"op": "ADD", "text": "a "b ] c" d"}, {"op": "DEL", "id": 1}]', [ADD(None, "a"), DEL("1")]),
        ('[{"op": "ADD", "text": "a \\"}], b\\\\"}]', [ADD(None, 'a "}], b\\')]),
        ('{"note": "x"} {"op": "DEL", "id": 1}', [DEL("1")]),
        ("{'op': 'ADD', 'text': 'it\\'s Bob\\'s dog'}", [ADD(None, "it's Bob's dog")]),
        ("{'op': 'ADD', 'text': 'it's Bob's dog'}", [ADD(None, "it's Bob's dog")]),
        ('[{"op": "ADD", "text": "two\\nlines\\t x "}]', [ADD(None, "two lines x")]),
        ('[{"op": "ADD", "text": 42}, {"op": "ADD", "text": true}, {"op": "ADD"}]', [ADD(None, "42"), ADD(None, ""), ADD(None, "")]),
        ('[{"op": "ADD", "text": "\\ud83d\\ude00 \\ud800."}]', [ADD(None, "😀 \ufffd.")]),
        (
            '[{"op": "UPDATE", "text": "x"}, {"op": "DEL", "id": true}, {"op": "DEL", "id": NaN}]',
            [UPDATE(None, "x"), DEL(None), DEL("nan")],
        ),
        ('[{"op": "ADD", "text": "x", "owner": "bob"}]', [ADD(None, "x", "bob")]),
        ('[{"op": "DEL", "id": "1"}] and once more [{"op": "DEL", "id": "1"}]', [DEL("1")]),
        ('The list [] or {} is empty, so: {"memory": [{"event": "DELETE", "id": 1}]}', [DEL("1")]),
        ('{"memory": [{"event": "DELETE", "id": 1}}', [DEL("1")]),
        ('{"note": [1, "]"], "memory": [{"event": "DELETE", "id": 1}], "tags": ["{"]} {', [DEL("1")]),
    ],
)
def test_what_is_repaired_and_how_it_is_read(text: str, expected: list[MemoryOp]) -> None:
    assert parse_operations(text) == Parsed(tuple(expected), Counter(), True)


@pytest.mark.parametrize(
    "text", ['{"memory": []}', '{"operations": []}', "[]", " [ ]\n", "```json\n[]\n```", "none", "None.", "no operations"]
)
def test_an_empty_list_is_readable(text: str) -> None:
    assert parse_operations(text) == Parsed((), Counter(), True)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "null", "true", "5", "-1e999", '"ADD"', "{}", "[[]]", "[1, 2]", '["ADD"]', '{"memory": null}', '{"memory": "x"}',
        '{"operations": 3}', '{"op": null}', '{"op": "MAYBE", "id": 1}', '{"id": 1, "text": "ADD"}', '[{"text": "x"}]', "9" * 6000,
        "I would add that Alice [who paints] moved to {Rome}, and delete the old memory.", "There is nothing new: NONE", "ADD",
        "0 UPDATE it", '{"memory": [{"event": "DELETE", "id": "1}]}',
        "I see an empty list [] here.", "Alice's city is new, add it. I have 3 updates.", "[" * 5000, '{"a":' * 5000, "[{" * 3000,
        '[{"op": "ADD", "text": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}]", '{"' * 4000, "\ud800", "{'" * 3000 + "}", "\\" * 5000 + '"',
    ],
)  # fmt: skip
def test_prose_and_wrong_types_are_unreadable(text: str) -> None:
    parsed = parse_operations(text)
    assert not parsed.readable and not parsed.ops and parsed.problems


def test_a_thought_is_not_an_answer() -> None:
    assert parse_operations(f"<think>I could write {PUBLIC}") == Parsed((), Counter({UNCLOSED: 1}), False)
    assert parse_facts("<think>[]").problems == Counter({UNCLOSED: 1})
    assert parse_operations(f"<think>{MEM0} ```</think> [{{'op': 'DEL', 'id': 5}}]").ops == (DEL("5"),)


def test_a_list_of_rubbish_is_not_an_empty_list() -> None:
    """M2 of the public version: `{"operations": ["x"]}` earned the full reward."""
    assert parse_operations('{"operations": ["x", null]}') == Parsed((), Counter({NOT_AN_OBJECT: 2}), False)
    assert parse_operations('{"operations": [{"op": "MERGE", "id": 1}]}') == Parsed((), Counter({UNKNOWN_OPERATION: 1}), False)
    mixed = parse_operations('{"operations": ["x", {"id": 1}, {"op": "DEL", "id": 1}]}')
    assert mixed == Parsed((DEL("1"),), Counter({NOT_AN_OBJECT: 1, UNKNOWN_OPERATION: 1}), True)


@pytest.mark.parametrize("text", SHAPES, ids=["mem0", "public", "bare", "python"])
def test_what_was_cut_off_is_not_executed(text: str) -> None:
    for length in range(len(text)):
        parsed = parse_operations(text[:length])
        assert parsed.ops == EXPECTED[: len(parsed.ops)], text[:length]
        if parsed.problems[CUT] == 0 and parsed.readable:
            assert length >= len(text) - 2, text[:length]


def test_the_line_format_takes_its_texts_from_the_facts() -> None:
    expected = (UPDATE("0", "city alice rome"), DEL("1"), NONE("2"), ADD(None, "hobby alice painting"))
    assert parse_operations(LINES, FACTS) == Parsed(expected, Counter(), True)
    assert parse_operations(f"<think>so</think>```\n{LINES}\n```", FACTS).ops == expected
    assert (
        parse_operations("city alice #0 UPDATE .", FACTS[:1]).ops
        == parse_operations("city alice [0] UPDATE", FACTS[:1]).ops
        == expected[:1]
    )


@pytest.mark.parametrize(
    ("text", "facts", "ops", "problems"),
    [
        ("pet bob new ADD .", ["city alice rome"], [], {NO_FACT: 1, LEFT_OUT: 1}),
        ("pet bob new ADD . pet bob new ADD .", ["pet bob dog"], [ADD(None, "pet bob dog")], {NO_FACT: 1}),
        (
            "pet bob new ADD . pet bob 1 UPDATE .",
            ["pet bob dog", "pet bob cat"],
            [ADD(None, "pet bob dog"), UPDATE("1", "pet bob cat")],
            {},
        ),
        ("pet bob 1 DEL . pet bob new ADD .", ["pet bob unknown", "pet bob cat"], [DEL("1"), ADD(None, "pet bob cat")], {}),
        ("0 UPDATE . 1 DEL .", ["pet bob dog"], [DEL("1")], {NO_FACT: 1, LEFT_OUT: 1}),
        ("pet bo 0 UPDATE .", ["pet bob dog"], [], {NO_FACT: 1, LEFT_OUT: 1}),
        ("pet bob 0 UPDATE . pet pet pet . bob 1 dance .", ["pet bob dog"], [UPDATE("0", "pet bob dog")], {UNKNOWN_OPERATION: 2}),
        ("pet bob 0 NO_OP .", ["pet bob dog"], [NONE("0")], {}),
        ("pet bob new UPDATE .", ["pet bob dog"], [UPDATE(None, "pet bob dog")], {}),
        ("none .", ["pet bob dog"], [], {LEFT_OUT: 1}),
    ],
)
def test_a_line_uses_one_fact_once(text: str, facts: list[str], ops: list[MemoryOp], problems: dict[str, int]) -> None:
    parsed = parse_operations(text, facts)
    assert (parsed.ops, parsed.problems, parsed.readable) == (tuple(ops), Counter(problems), True)


def test_candidates_are_added_by_number_and_each_once() -> None:
    candidates = {"3": "Bob has a dog", "4": "Bob likes tea", "5": "Bob sings", "6": "Bob runs"}
    text = """{"operations": [{"id": 1, "op": "DEL"}, {"id": 3, "op": "ADD"}, {"id": 3, "op": "ADD"}, {"id": "3", "op": "ADD"},
               {"id": 4, "op": "UPDATE", "value": "Bob likes green tea"}, {"id": 5, "op": "DEL"}]}"""
    parsed = parse_operations(text, candidates=candidates)
    assert parsed.ops == (DEL("1"), ADD(None, "Bob has a dog"), ADD(None, "Bob likes green tea"), NONE())
    assert parsed.problems == Counter({REPEATED: 2, LEFT_OUT: 1}) and parsed.readable
    assert parse_operations("[]", candidates=candidates) == Parsed((), Counter({LEFT_OUT: 4}), True)


def test_positions_become_ids_and_what_was_not_shown_cannot_be_reached() -> None:
    ops = (UPDATE("1", "x"), DEL("2"), ADD(None, "y"), DEL("17"))
    assert renumber(ops, ["17", "42"]) == (UPDATE("42", "x"), DEL(None), ADD(None, "y"), DEL(None))
    assert renumber(ops, ["17", "42"], first=1) == (UPDATE("17", "x"), DEL("42"), ADD(None, "y"), DEL(None))


LINE = st.text().map(lambda text: " ".join(text.split()))
ID = st.integers(0, 99).map(str) | st.sampled_from(["m-1", "a7f3"])
JSON_OPS = st.lists(
    st.builds(ADD, st.none(), LINE, LINE) | st.builds(UPDATE, ID, LINE, LINE) | st.builds(DEL, ID, st.just(""), LINE) | st.builds(NONE, ID)
)
WORDS = st.lists(st.sampled_from(["city", "bob", "rome", "0", "new", "ADD", "dr.", "no"]), min_size=1, max_size=4).map(" ".join)
NUMBER = st.integers(0, 99).map(str)
LINE_OPS = st.lists(st.builds(ADD, st.none(), WORDS) | st.builds(UPDATE, NUMBER, WORDS) | st.builds(DEL, NUMBER) | st.builds(NONE, NUMBER))


@settings(max_examples=60, deadline=None)
@given(JSON_OPS)
def test_json_round_trip(ops: list[MemoryOp]) -> None:
    assert parse_operations(format_operations(ops)) == Parsed(tuple(ops), Counter(), True)


def test_a_stored_thought_mark_survives_the_round_trip() -> None:
    ops = (ADD(None, "she wrote <think> and </think>"),)
    assert parse_operations(format_operations(ops)).ops == ops


@settings(max_examples=60, deadline=None)
@given(LINE_OPS)
def test_line_round_trip(ops: list[MemoryOp]) -> None:
    facts = [op.text for op in ops if op.text]
    assert parse_operations(format_operations(ops, style="lines"), facts) == Parsed(tuple(ops), Counter(), True)


def test_lines_as_the_tiny_model_writes_them() -> None:
    ops = parse_operations(LINES, FACTS).ops
    keys = ["city alice", "pet alice", "drink alice", "hobby alice"]
    assert format_operations(ops, "lines", keys).split() == LINES.split()
    assert format_operations((), "lines") == "none ."
    with pytest.raises(ConfigError, match="'xml'.*json, lines"):
        format_operations(ops, "xml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('["Alice paints", "Bob sings"]', ["Alice paints", "Bob sings"]),
        ('```json\n{"facts": ["Alice paints", "Bob sings",]}\n```', ["Alice paints", "Bob sings"]),
        ('Here: {"memory_list": [{"key": "Art", "memory_type": "UserMemory", "value": "Alice paints", "tags": ["x", "y"]}]}',
         ["Alice paints"]),
        ('{"extracted_memories": [{"summary": "Bob sings", "reference": [0, 2]}]}', ["Bob sings"]),
        ('{"key": "Art", "value": "Alice paints"}', ["Alice paints"]),
        ("city alice rome . pet bob dog .", ["city alice rome", "pet bob dog"]),
        ("Facts:\n- Alice paints.\n2) Bob sings.\n\n* \"Eve runs\"", ["Alice paints.", "Bob sings.", "Eve runs"]),
        ("Alice said {hello} and [waved].", ["Alice said {hello} and [waved]."]),
        ('"Alice paints"', ["Alice paints"]),
        ("[]", []), ('{"facts": []}', []), ('{"memory_list": [], "summary": ""}', []), ("none .", []), ("NO_TRAIT", []), ("No facts.", []),
    ],
)  # fmt: skip
def test_facts_are_read_in_each_shape(text: str, facts: list[str]) -> None:
    parsed = parse_facts(text)
    assert (list(parsed.facts), parsed.problems, parsed.readable) == (facts, Counter(), True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "null",
        "3",
        "{}",
        'Sure: {"foo": "bar"}',
        '{"facts": null}',
        '{"facts": "x"',
        "[1, 2]",
        '{"operations": []}',
        "[" * 4000,
        ".",
    ],
)
def test_no_answer_is_not_an_empty_list_of_facts(text: str) -> None:
    parsed = parse_facts(text)
    assert not parsed.facts and not parsed.readable and parsed.problems


def test_facts_are_taken_once_and_what_is_none_is_counted() -> None:
    parsed = parse_facts('{"facts": ["a", " a ", 3, {"value": ""}, {"fact": "b"}, null]}')
    assert parsed.facts == ("a", "b") and parsed.problems == Counter({REPEATED: 1, NOT_A_FACT: 3})
    assert parse_facts('{"facts": [null]}').readable is False
    cut = parse_facts('{"memory_list": [{"value": "a", "tags": ["t"]}, {"tags": ["u", "v"], "value": "half of')
    assert cut.facts == ("a",) and cut.problems == Counter({CUT: 1}) and cut.readable
    assert parse_facts('{"memory_list": [{"tags": ["u", "v"], "value": "half of') == ParsedFacts((), Counter({CUT: 1}), False)
    assert parse_facts('["a", "half of').facts == ("a",)


def mutated(rng: random.Random, pool: list[str]) -> str:
    """A valid answer after one to four accidents: flipped characters, truncation, a splice of two, a doubled part."""
    text = rng.choice(pool)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        accident = rng.randrange(6)
        if accident == 0:
            data = bytearray(text.encode("utf-8", "replace"))
            for _ in range(min(len(data), rng.randint(1, 6))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            text = data.decode("utf-8", "surrogateescape")
        elif accident == 1:
            text = text[:at]
        elif accident == 2:
            text = text[:at] + rng.choice(pool)[rng.randrange(20) :]
        elif accident == 3:
            text = text[:to] + text[at:]
        elif accident == 4:
            text = text[:at] + rng.choice('[]{}",:\'\\`\n. <think></think> null 1e9 "id": -1 ```'.split(" ")) + text[at:]
        else:
            text = text[:at] + text[to:]
    return text


@pytest.mark.slow
def test_ten_thousand_mutated_answers_leave_every_promise_standing() -> None:
    rng = random.Random(0)
    pool = [
        *SHAPES,
        LINES,
        f"```json\n{MEM0}\n```",
        f"<think>hm</think>{PUBLIC}",
        '{"op": "ADD", "text": "x"}',
        '["a", "b"]',
        '{"memory": []}',
    ]
    start = MemoryBank.of(["Alice lives in Paris", "Alice has a dog", "Alice drinks tea", "old"]).apply([DEL("3")]).bank
    seen: Counter[str] = Counter()
    for number in range(10_000):
        text = mutated(rng, pool)
        parsed, facts = parse_operations(text, FACTS), parse_facts(text if number % 4 == 0 else "none")
        assert parsed.readable or not parsed.ops and parsed.problems
        assert facts.readable or not facts.facts and facts.problems
        assert all(written == " ".join(written.split()) for written in (*facts.facts, *(op.text for op in parsed.ops)))
        json.dumps([facts.facts, [op.text for op in parsed.ops]], ensure_ascii=False).encode("utf-8")
        applied = start.apply(parsed.ops, write_policy=WRITE_POLICIES[number % 3], capacity=4)  # type: ignore[arg-type]
        assert len(applied.applied) + len(applied.rejected) == len(parsed.ops)
        changed = [op.id for op in applied.applied if op.kind != "NONE"]
        assert len(set(changed)) == len(changed), "no operation twice"
        added = [op.text for op in applied.applied if op.kind == "ADD"]
        assert len(set(added)) == len(added)
        ids = [item.id for item in applied.bank.items(closed=True)]
        assert len(set(ids)) == len(ids) and len(applied.bank) <= 4
        assert "3" not in ids and applied.bank.get("3") is None
        seen.update(
            [f"readable {parsed.readable}", *(op.kind for op in applied.applied), *(r.reason for r in applied.rejected), *parsed.problems]
        )
    assert min(seen[key] for key in ("readable True", "readable False", "ADD", "UPDATE", "DEL", "NONE")) > 500, seen
    assert len(seen) >= 14, f"the mutations are too tame: {seen}"
