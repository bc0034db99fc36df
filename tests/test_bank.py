"""Promise: a bank is a value; each operation of a policy is applied or rejected for a reason, and nothing else changes."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import date, datetime, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.common.errors import ConfigError, DataError
from memfactory.memory.bank import (
    DUPLICATE_ID,
    DUPLICATE_TEXT,
    FULL,
    ID_IN_USE,
    NO_TEXT,
    OLD_NEWS,
    OTHER_OWNER,
    UNKNOWN_ID,
    WRITE_POLICIES,
    MemoryBank,
    diff,
)
from memfactory.memory.dates import earlier
from memfactory.memory.items import MemoryItem, MemoryOp

ADD, UPDATE, DEL, NONE = (lambda *a, kind=kind: MemoryOp(kind, *a) for kind in ("ADD", "UPDATE", "DEL", "NONE"))

IDS = st.sampled_from(["0", "1", "2", "3", "4", "7", "x", None])
TEXTS = st.sampled_from(["", " ", "a", "b", "c", "d e"])
OPS = st.builds(MemoryOp, st.sampled_from(["ADD", "UPDATE", "DEL", "NONE"]), IDS, TEXTS, st.sampled_from(["", "", "bob"]))
POLICY_OPS = OPS.map(lambda op: replace(op, id=None) if op.kind == "ADD" else op)
EDITS = st.lists(st.tuples(st.lists(POLICY_OPS, max_size=6), st.sampled_from(WRITE_POLICIES)), max_size=4)
STARTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4).map(MemoryBank.of)


def texts(bank: MemoryBank) -> dict[str, str]:
    return {item.id: item.text for item in bank}


def edited(bank: MemoryBank, edits: list) -> MemoryBank:
    for number, (ops, policy) in enumerate(edits):
        bank = bank.apply(ops, write_policy=policy, when=f"day {number}", source=f"D{number}").bank
    return bank


def reasons(bank: MemoryBank, *ops: MemoryOp, **options: object) -> list[str | None]:
    """The outcome of each operation: None if it was applied."""
    applied = bank.apply(ops, **options)  # type: ignore[arg-type]
    assert len(applied.applied) + len(applied.rejected) == len(ops)
    rejected = {id(r.op): r.reason for r in applied.rejected}
    return [rejected.get(id(op)) for op in ops]


def test_the_four_operations() -> None:
    bank = MemoryBank.of(["paris", "tea", "dog"])
    applied = bank.apply([UPDATE("0", "rome"), DEL("1"), NONE("2"), ADD(None, "cat", "bob")], when="May 8", source="D1:3")
    assert not applied.rejected
    assert applied.applied == (UPDATE("0", "rome"), DEL("1"), NONE("2"), ADD("3", "cat", "bob"))
    assert applied.bank.items() == (
        MemoryItem("0", "rome", updated="May 8", version=2, history=("paris",), sources=("D1:3",)),
        MemoryItem("2", "dog"),
        MemoryItem("3", "cat", owner="bob", created="May 8", updated="May 8", sources=("D1:3",)),
    )
    assert [item.text for item in applied.bank.deleted] == ["tea"]
    assert texts(bank) == {"0": "paris", "1": "tea", "2": "dog"}, "the old bank is another value"


def test_update_keeps_id_creation_and_every_older_text() -> None:
    bank = MemoryBank.of([MemoryItem("m", "one", owner="bob", created="May 1", updated="May 1")])
    for day, text in enumerate(["two", "three"], 2):
        bank = bank.apply([UPDATE("m", text)], when=f"May {day}").bank
    item = bank.get("m")
    assert item is not None and (item.owner, item.created, item.updated, item.version) == ("bob", "May 1", "May 3", 3)
    assert item.history == ("one", "two") and bank.history("m") == ("one", "two", "three")
    assert bank.apply([DEL("m")]).bank.history("m") == ("one", "two", "three")
    assert bank.history("unknown") == ()


def test_an_id_is_never_given_again() -> None:
    bank = MemoryBank.of(["a", "b"]).apply([DEL("1")]).bank.apply([DEL("0")]).bank
    assert len(bank) == 0 and bank.get("1") is None
    bank = bank.apply([ADD(None, "c")]).bank
    assert texts(bank) == {"2": "c"}
    assert reasons(bank, UPDATE("1", "x"), DEL("1")) == [UNKNOWN_ID, UNKNOWN_ID]
    assert texts(MemoryBank.of([MemoryItem("41", "a"), MemoryItem("x9", "b"), "c"])) == {"41": "a", "x9": "b", "42": "c"}


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (UPDATE("9", "x"), UNKNOWN_ID),
        (UPDATE(None, "x"), UNKNOWN_ID),
        (UPDATE("", "x"), UNKNOWN_ID),
        (DEL("00"), UNKNOWN_ID),
        (DEL(None), UNKNOWN_ID),
        (UPDATE("0", ""), NO_TEXT),
        (UPDATE("0", " \n"), NO_TEXT),
        (ADD(None, ""), NO_TEXT),
        (ADD("0", "x"), ID_IN_USE),
        (UPDATE("0", "x", "eve"), OTHER_OWNER),
        (DEL("0", "", "eve"), OTHER_OWNER),
        (ADD(None, "x"), FULL),
        (NONE("9"), None),
        (NONE(None), None),
        (UPDATE("0", "x", "bob"), None),
        (DEL("0"), None),
    ],
)
def test_each_rule_of_rejection(op: MemoryOp, reason: str | None) -> None:
    bank = MemoryBank.of([MemoryItem("0", "a", owner="bob")])
    applied = bank.apply([op], capacity=1)
    assert [r.reason for r in applied.rejected] == ([reason] if reason else [])
    if reason is not None or op.kind == "NONE":
        assert applied.bank == bank


@pytest.mark.parametrize("policy", WRITE_POLICIES)
def test_the_second_change_of_an_item_in_one_list_is_rejected(policy: str) -> None:
    bank = MemoryBank.of(["a", "b", "c"])
    ops = [UPDATE("0", "x"), UPDATE("0", "y"), DEL("1"), UPDATE("1", "z"), DEL("1"), UPDATE("2", ""), UPDATE("2", "w"), NONE("0")]
    assert reasons(bank, *ops, write_policy=policy) == [None, DUPLICATE_ID, None, DUPLICATE_ID, DUPLICATE_ID, NO_TEXT, None, None]
    assert reasons(bank, ADD(None, "d"), UPDATE("3", "e"), write_policy=policy) == [None, DUPLICATE_ID]
    assert reasons(edited(bank, [([UPDATE("0", "x")], "crud")]), UPDATE("0", "y")) == [None], "another list may"


def test_the_same_candidate_is_added_once() -> None:
    """M3 of the public version: one candidate added three times was accepted."""
    bank = MemoryBank.of(["a"])
    assert reasons(bank, *[ADD(None, "b")] * 1, ADD(None, "b"), ADD(None, "b ")) == [None, DUPLICATE_TEXT, None]
    assert reasons(bank, ADD(None, "b", "bob"), ADD(None, "b", "eve"), ADD(None, "b", "bob")) == [None, None, DUPLICATE_TEXT]
    assert reasons(bank, ADD(None, "b"), ADD(None, "b", "bob"), owner="bob") == [None, DUPLICATE_TEXT]
    assert reasons(bank, ADD(None, "a")) == [None], "a stale repetition in another list is the policy's to avoid"


def test_a_full_bank_refuses_only_what_would_grow_it() -> None:
    bank = MemoryBank.of(["a", "b"])
    ops = (ADD(None, "c"), UPDATE("0", "x"), DEL("1"), ADD(None, "d"), ADD(None, "e"))
    applied = bank.apply(ops, capacity=2)
    assert [r.op for r in applied.rejected] == [ops[0], ops[4]] and {r.reason for r in applied.rejected} == {FULL}
    assert texts(applied.bank) == {"0": "x", "2": "d"}
    temporal = bank.apply([UPDATE("0", "x")], capacity=2, write_policy="temporal")
    assert texts(temporal.bank) == {"1": "b", "2": "x"} and not temporal.rejected
    assert reasons(bank, UPDATE("0", "x"), capacity=2, write_policy="add_only") == [FULL]


def test_a_full_bank_can_forget_what_was_added_longest_ago() -> None:
    bank = MemoryBank.of(["a", "b", "c"])
    ops = [UPDATE("0", "x"), ADD(None, "d"), ADD(None, "d")]
    room = bank.make_room(ops, 3)
    assert texts(room) == {"0": "a", "2": "c"}, "what is updated stays, and one text needs one place"
    assert texts(room.apply(ops, capacity=3).bank) == {"0": "x", "2": "c", "3": "d"}
    assert bank.make_room(ops, 4) == bank and bank.make_room([DEL("2"), ADD(None, "d")], 3) == bank, "no more than it must"
    assert texts(bank.make_room(ops, 3, "add_only")) == {"0": "a"}, "an UPDATE needs a place there too"
    closed = bank.make_room(ops, 3, "temporal", "today")
    assert [item.valid_until for item in closed.items(closed=True)].count("today") == 1


def test_add_only_executes_and_reports_what_it_really_did() -> None:
    bank = MemoryBank.of([MemoryItem("0", "paris", owner="bob"), "tea"])
    applied = bank.apply([UPDATE("0", "rome"), DEL("1"), UPDATE("9", "x"), ADD(None, "rome", "bob")], write_policy="add_only")
    assert applied.applied == (ADD("2", "rome", "bob"), NONE("1"))
    assert [r.reason for r in applied.rejected] == [UNKNOWN_ID, DUPLICATE_TEXT]
    assert texts(applied.bank) == {"0": "paris", "1": "tea", "2": "rome"}


def test_temporal_closes_facts_and_keeps_them_visible() -> None:
    bank = MemoryBank.of([MemoryItem("0", "paris", owner="bob", created="May 1"), "tea"])
    bank = bank.apply([UPDATE("0", "rome"), DEL("1")], write_policy="temporal", when="May 8", source="D2:1").bank
    assert bank.items() == (MemoryItem("2", "rome", "bob", "May 8", "May 8", sources=("D2:1",), replaces="0"),)
    assert [(item.text, item.valid_until) for item in bank.items(closed=True)] == [("paris", "May 8"), ("tea", "May 8"), ("rome", None)]
    assert not bank.deleted and bank.get("0") is None and bank.get("0", closed=True) is not None
    assert bank.history("2") == ("paris", "rome")
    assert reasons(bank, UPDATE("0", "x"), DEL("1"), write_policy="temporal") == [UNKNOWN_ID, UNKNOWN_ID]
    assert bank.apply([DEL("2")], write_policy="temporal").bank.items() == (), "a fact that ends at no stated time has ended too"


def test_an_unknown_write_policy_names_the_known() -> None:
    with pytest.raises(ConfigError, match="'append'.*crud, add_only, temporal"):
        MemoryBank().apply([], write_policy="append")  # type: ignore[arg-type]


def test_an_edit_shares_every_untouched_item() -> None:
    bank = MemoryBank.of([f"fact {n}" for n in range(50)])
    fork = bank.apply([UPDATE("7", "x"), DEL("8"), ADD(None, "y")]).bank
    assert all(fork.get(str(n)) is bank.get(str(n)) for n in range(50) if n not in (7, 8))
    assert bank.apply([]).bank == bank and bank.apply([NONE("1"), ADD(None, "")]).bank == bank


def test_a_bank_is_a_value() -> None:
    bank = MemoryBank.of(["a", "b"])
    assert bank == MemoryBank.of(["a", "b"]) != MemoryBank.of(["b", "a"]) and bank != ["a", "b"]
    assert hash(bank) == hash(MemoryBank.of(["a", "b"])) and MemoryBank() == MemoryBank.of([])
    assert bank != bank.apply([ADD(None, "c")]).bank.apply([DEL("2")]).bank, "what was deleted is part of it"
    assert bank != bank.apply([DEL("1")]).bank != bank.apply([DEL("1")], write_policy="temporal").bank
    assert copy.deepcopy(bank) == bank == pickle.loads(pickle.dumps(bank))
    assert [item.text for item in bank] == ["a", "b"] and str(bank) == "0: a\n1: b"
    with pytest.raises(FrozenInstanceError):
        bank._items = {}  # type: ignore[misc]


@pytest.mark.parametrize("entries", [[""], ["a", " "], [MemoryItem("", "a")], [MemoryItem("0", "a"), MemoryItem("0", "b")]])
def test_a_bank_is_not_made_of_blanks_or_equal_ids(entries: list) -> None:
    with pytest.raises(DataError, match="Not a memory bank"):
        MemoryBank.of(entries)


@settings(max_examples=75, deadline=None)
@given(STARTS, EDITS, st.lists(OPS, max_size=8), st.sampled_from(WRITE_POLICIES), st.none() | st.integers(0, 5))
def test_invariants_hold_whatever_is_asked(start: MemoryBank, edits: list, ops: list[MemoryOp], policy: str, capacity: int | None) -> None:
    bank = edited(start, edits)
    applied = bank.apply(ops, write_policy=policy, capacity=capacity, when="now")  # type: ignore[arg-type]
    assert len(applied.applied) + len(applied.rejected) == len(ops)
    after = applied.bank
    ids = [item.id for item in (*after.items(closed=True), *after.deleted)]
    assert len(set(ids)) == len(ids) and set(ids) >= {item.id for item in (*bank.items(closed=True), *bank.deleted)}
    assert all(item.text.strip() for item in after)
    assert capacity is None or len(after) <= max(capacity, len(bank))
    named = {op.id for op in ops if op.kind == "ADD"}
    assert not {item.id for item in bank.deleted} & {item.id for item in after} - named, "tombstones stay dead"
    changed = {op.id for op in applied.applied if op.kind != "NONE"}
    for item in (item for item in bank if item.id not in changed):
        now = after.get(item.id)
        assert now is item or (policy == "temporal" and now == replace(item, told=item.told + 1, sources=now.sources))
    again = bank.apply(applied.applied, write_policy=policy, capacity=capacity, when="now")  # type: ignore[arg-type]
    assert again.bank == after and not again.rejected, "the report of what was applied can be replayed"


@settings(max_examples=75, deadline=None)
@given(STARTS, EDITS, st.lists(OPS, max_size=8), st.sampled_from(WRITE_POLICIES), st.integers(0, 5))
def test_room_is_made_for_all_that_fits(start: MemoryBank, edits: list, ops: list[MemoryOp], policy: str, capacity: int) -> None:
    bank = edited(start, edits)
    room = bank.make_room(ops, capacity, policy)  # type: ignore[arg-type]
    kept, named = {item.id for item in room}, {op.id for op in ops}
    assert kept <= {item.id for item in bank} and {item.id for item in bank} & named <= kept
    refused = [r for r in room.apply(ops, write_policy=policy, capacity=capacity).rejected if r.reason == FULL]  # type: ignore[arg-type]
    assert not refused or kept <= named, "an ADD is refused only when nothing is left to forget"


@settings(max_examples=75, deadline=None)
@given(STARTS, EDITS, EDITS, EDITS)
def test_diff_leads_from_any_bank_to_any_relative(start: MemoryBank, common: list, left: list, right: list) -> None:
    root = edited(start, common)
    a, b = edited(root, left), edited(root, right)
    for old, new in ((a, b), (b, a), (root, a), (a, root)):
        result = old.apply(diff(old, new))
        assert not result.rejected
        assert list(texts(result.bank).items()) == list(texts(new).items())
    assert diff(a, a) == ()


def test_diff_revives_what_was_deleted_under_its_own_id() -> None:
    root = MemoryBank.of(["a", "b"])
    bare = root.apply([DEL("0")]).bank
    assert diff(bare, root) == (ADD("0", "a"),)
    back = bare.apply(diff(bare, root)).bank
    assert back.items()[0].history == ("a",) and back.items()[0].version == 2 and not back.deleted


@settings(max_examples=50, deadline=None)
@given(STARTS, EDITS)
def test_json_round_trip(start: MemoryBank, edits: list) -> None:
    bank = edited(start, edits)
    text = bank.to_json()
    assert "\n" not in text and MemoryBank.from_json(text) == bank
    more = [ADD(None, "new")]
    assert MemoryBank.from_json(text).apply(more).bank == bank.apply(more).bank, "ids go on alike"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 2, "items": [], "deleted": []}',
        '{"format": 1, "items": {}, "deleted": []}',
        '{"format": 1, "items": [1], "deleted": []}',
        '{"format": 1, "items": [{"id": "0"}], "deleted": []}',
        '{"format": 1, "items": [], "deleted": ["0"]}',
        '{"format": 1, "items": [], "deleted": [[]]}',
    ],
)
def test_broken_json_is_an_error_in_words(text: str) -> None:
    with pytest.raises(DataError):
        MemoryBank.from_json(text)


def test_the_public_versions_items_are_read() -> None:
    row = {
        "id": 7, "key": "Home", "value": "Alice lives in Paris", "memory_type": "UserMemory", "tags": ["home"], "confidence": 0.9,
        "created_at": "2023-05-08", "updated_at": None, "user_id": "Alice", "version": 2, "embedding": "<vector dim=4>",
    }  # fmt: skip
    item = MemoryItem.from_dict(row)
    assert item == MemoryItem("7", "Alice lives in Paris", owner="Alice", created="2023-05-08", version=2)
    assert MemoryItem.from_dict(json.loads(json.dumps(item.to_dict()))) == item


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no id and no text"),
        ({"id": "0"}, "no text"),
        ({"id": True, "text": "a"}, "'id' cannot be True"),
        ({"id": "0", "value": ["a"]}, r"'text' cannot be \['a'\]"),
        ({"id": "0", "text": "a", "version": "2"}, "'version' cannot be '2'"),
        ({"id": "0", "text": "a", "history": "b"}, "'history' cannot be 'b'"),
        ({"id": "0", "text": "a", "sources": [1]}, "'sources'"),
        (["0", "a"], "not \\['0', 'a'\\]"),
    ],
)
def test_a_broken_item_is_an_error_that_names_the_field(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MemoryItem.from_dict(row)


# Fields of any type, dates, and what is told again.


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.text(st.characters(categories=["Cs", "Cc"]), max_size=3),
    st.dates(), st.datetimes(), st.datetimes(timezones=st.just(timezone.utc)), st.lists(st.integers() | st.text(max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1), st.sampled_from([np.float64(1.5e9), np.int64(7), np.str_("x"), b"x"]),
    st.tuples(st.text(max_size=2)), st.sampled_from([np.datetime64("2023-05-08"), np.array(1.7e9), np.array([1, 2]), object()]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional={f.name: ODD for f in fields(MemoryItem)}))
def test_whatever_an_item_is_made_of_can_be_written_and_read_or_is_refused(values: dict) -> None:
    try:
        item = MemoryItem(**{"id": "0", "text": "a"} | values)
    except DataError as error:
        assert any(name in str(error) for name in values)
        return
    assert MemoryItem.from_dict(json.loads(json.dumps(item.to_dict()))) == item
    assert type(item.created) is type(item.text) is type(item.id) is str and type(item.told) is int


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1.7e9, "2023-11-14T22:13:20+00:00"), (np.float32(0), "1970-01-01T00:00:00+00:00"), (date(2023, 5, 8), "2023-05-08"),
        (datetime(2023, 5, 8, 13, 56), "2023-05-08T13:56:00"), (None, ""), ("1:56 pm on 8 May", "1:56 pm on 8 May"),
        (np.datetime64("2023-05-08"), "2023-05-08"),
    ],
)  # fmt: skip
def test_a_date_of_any_kind_becomes_text(given: object, kept: str) -> None:
    bank = MemoryBank().apply([ADD(None, "a")], when=given).bank  # type: ignore[arg-type]
    assert bank.get("0") == MemoryItem("0", "a", created=kept, updated=kept)


@pytest.mark.parametrize("bad", [True, float("nan"), 1e20, [], {}, b"2023", object()])
def test_what_is_no_date_is_refused(bad: object) -> None:
    with pytest.raises(DataError, match="give a text, a date, a datetime or seconds since 1970"):
        MemoryBank().apply([], when=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "is_earlier"),
    [
        ("8 May, 2023", "2023-05-09", True), ("2023-05-09", "8 May, 2023", False), ("2023/05/20 (Sat) 02:21", "2023年5月21日", True),
        ("1:56 pm on 8 May, 2023", "2:10 pm on 8 May, 2023", True), ("2023-05-08", "2023-05-08 10:00", False), ("May 8", "May 9", False),
        ("day 1", "day 2", False), ("5/8/2023", "2024-01-01", False), ("2023-05-08T10:00:00+02:00", "2023-05-08T08:30:00Z", True),
        ("x" * 10**6, "2023-01-01", False), ("", "2023-01-01", False),
    ],
)  # fmt: skip
def test_dates_are_compared_as_far_as_they_are_known(first: str, second: str, is_earlier: bool) -> None:
    assert earlier(first, second) is is_earlier


def test_older_news_told_later_goes_before_the_newer_and_ends_nothing() -> None:
    bank = MemoryBank()
    for when, op in [("2023-05-01", ADD(None, "lives in Paris")), ("2023-09-01", UPDATE("0", "lives in Rome")),
                     ("2023-07-01", UPDATE("1", "lives in Oslo")), ("2023-01-01", UPDATE("1", "lives in Bonn"))]:  # fmt: skip
        bank = bank.apply([op], write_policy="temporal", when=when).bank
    assert texts(bank) == {"1": "lives in Rome"}
    assert bank.history("1") == ("lives in Bonn", "lives in Paris", "lives in Oslo", "lives in Rome")
    spans = {item.text[9:]: (item.created, item.valid_until) for item in bank.items(closed=True)}
    assert spans == {
        "Bonn": ("2023-01-01", "2023-05-01"), "Paris": ("2023-05-01", "2023-07-01"), "Oslo": ("2023-07-01", "2023-09-01"),
        "Rome": ("2023-09-01", None),
    }  # fmt: skip
    assert reasons(bank, DEL("1"), write_policy="temporal", when="2023-08-01") == [OLD_NEWS]
    room = bank.make_room([ADD(None, "x")], 1, "temporal", "2023-08-01")
    assert len(room) == 0 and room.get("1", closed=True).valid_until == "2023-09-01"  # type: ignore[union-attr]


DATES = st.dates(date(2023, 1, 1), date(2023, 3, 1)).map(str)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(POLICY_OPS, max_size=3), DATES), max_size=8))
def test_no_interval_ends_before_it_begins_and_the_newest_news_stands(edits: list) -> None:
    bank = MemoryBank()
    for ops, when in edits:
        bank = bank.apply(ops, write_policy="temporal", when=when).bank
    for item in bank.items(closed=True):
        assert item.valid_until is None or item.created <= item.valid_until
        older = bank.get(item.replaces, closed=True) if item.replaces else None
        assert older is None or (older.created <= item.created and older.valid_until <= item.created)  # type: ignore[operator]


def test_what_is_told_twice_is_one_memory_with_a_count() -> None:
    bank = MemoryBank().apply([ADD(None, "a", "bob")], write_policy="temporal", when="2023-05-01", source="D1").bank
    again = bank.apply([ADD(None, "a", "bob"), ADD(None, "a", "eve")], write_policy="temporal", when="2023-06-01", source="D2").bank
    assert [(item.text, item.owner, item.told) for item in again] == [("a", "bob", 2), ("a", "eve", 1)]
    assert again.get("0").sources == ("D1", "D2")  # type: ignore[union-attr]
    assert again.apply([UPDATE("0", "a")], write_policy="temporal").bank.get("0").told == 3  # type: ignore[union-attr]
    assert reasons(again, ADD(None, "a", "bob"), write_policy="temporal", capacity=2) == [None], "it takes no place"
    assert MemoryBank.from_json(again.to_json()) == again and "told" not in bank.to_json(), "a file without a count stays as it was"
    assert len(bank.apply([ADD(None, "a", "bob")]).bank) == 2, "in training the policy pays for it"
