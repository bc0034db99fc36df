"""Promise: what an agent made of a user's bank is kept to the letter, or, if others wrote meanwhile, beside what they wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from stores_helpers import BACKENDS, EDITS, Backend, Scripted, new_user

from memfactory.common.errors import DataError, StoreError
from memfactory.memory.bank import UNKNOWN_ID, MemoryBank
from memfactory.memory.embedders import CachedEmbedder, HashedEmbedder
from memfactory.memory.items import MemoryItem, MemoryOp
from memfactory.memory.merge import CHANGED, Edit, merged
from memfactory.memory.search import Searchable, search
from memfactory.memory.stores import MemoryStore, open_store
from memfactory.memory.stores.in_memory import InMemoryStore
from memfactory.memory.stores.stored_bank import SPARE, StoredBank, stored

ALICE, BOB = "Alice lives in Paris", "Bob has a dog"


def made(bank: MemoryBank, edits: list[Any]) -> MemoryBank:
    for ops, options in edits:
        bank = bank.apply(ops, **options).bank
    return bank


def texts(bank: MemoryBank) -> list[tuple[str, str]]:
    return [(item.id, item.text) for item in bank]


def op(kind: Any, id: str | None = None, text: str = "") -> MemoryOp:
    return MemoryOp(kind, id, text)


# The function


@settings(max_examples=80, deadline=None)
@given(EDITS, EDITS)
def test_if_nobody_else_wrote_the_bank_is_what_was_made(first: list[Any], second: list[Any]) -> None:
    before = made(MemoryBank(), first)
    after = made(before, second)
    done = merged(before, before, after)
    assert done.bank == after and done.rejected == ()
    live, lived = {item.id: item.text for item in after}, {item.id: item.text for item in before}
    told = {edit.op.id: edit for edit in done.edits}
    assert len(told) == len(done.edits)
    for id in live.keys() - lived.keys():
        assert told[id].op.text == live[id]
    for id in live.keys() & lived.keys():
        again = after._items[id].told > before._items[id].told
        assert (id in told) is (live[id] != lived[id] or again) and (id not in told or told[id].old == lived[id])
        assert id not in told or (told[id].op.kind == "NONE") is (live[id] == lived[id])
    gone = lived.keys() - live.keys()
    changed = {edit.old for edit in done.edits if edit.op.kind == "UPDATE"}  # by one that took over
    assert all(told[id] == Edit(op("DEL", id), lived[id]) if id in told else lived[id] in changed for id in gone)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(EDITS, EDITS, EDITS)
def test_nothing_is_lost_when_two_write_at_once(first: list[Any], ours: list[Any], theirs: list[Any]) -> None:
    before = made(MemoryBank(), first)
    after, now = made(before, ours), made(before, theirs)
    done = merged(now, before, after)
    bank = done.bank
    assert list(bank._items)[: len(now._items)] == list(now._items), "who is here keeps the place and the id"
    refused = {rejection.op.id for rejection in done.rejected}
    forgotten = {edit.op.id for edit in done.edits if edit.op.kind == "DEL"}
    lasting = {text for item in bank for text in bank.history(item.id)}
    for item in now:  # theirs: read in what is live, or taken away as it stood when it was looked at
        assert item.text in lasting or (item.id in forgotten and before._items.get(item.id) == item)
        assert bank.get(item.id) is not None or before._items.get(item.id) == item
    for item in after:  # ours: live somewhere, or rejected in words
        old = before.get(item.id)
        if old is None or old.text != item.text:
            assert any(kept.text == item.text for kept in bank) or item.id in refused
    assert {rejection.reason for rejection in done.rejected} <= {UNKNOWN_ID, CHANGED}
    assert MemoryBank.from_json(bank.to_json()) == bank


def test_what_happens_to_each_kind_of_edit_when_others_were_first() -> None:
    before = MemoryBank.of([ALICE, BOB, "tea", "jazz"])
    after = before.apply([op("UPDATE", "0", "Alice lives in Rome"), op("DEL", "1"), op("DEL", "2"), op("UPDATE", "3", "rock"),
                          op("ADD", None, "Eve sings")], when="May 2").bank  # fmt: skip
    now = before.apply([op("UPDATE", "0", "Alice moved to Oslo"), op("UPDATE", "1", "Bob has two dogs"), op("DEL", "3"),
                        op("ADD", None, "Dave cooks")], when="May 1").bank  # fmt: skip
    done = merged(now, before, after)
    assert texts(done.bank) == [("0", "Alice lives in Rome"), ("1", "Bob has two dogs"), ("4", "Dave cooks"), ("5", "Eve sings")]
    assert done.bank.history("0") == (ALICE, "Alice moved to Oslo", "Alice lives in Rome")
    assert done.bank.get("0") == MemoryItem("0", "Alice lives in Rome", "", "", "May 2", 3, (ALICE, "Alice moved to Oslo"))
    assert [(r.op.kind, r.op.id, r.reason) for r in done.rejected] == [("DEL", "1", CHANGED), ("UPDATE", "3", UNKNOWN_ID)]
    assert done.edits == (
        Edit(op("UPDATE", "0", "Alice lives in Rome"), "Alice moved to Oslo"),
        Edit(op("DEL", "2"), "tea"),
        Edit(op("ADD", "5", "Eve sings")),
    )  # fmt: skip


def test_a_closed_fact_stays_closed_and_its_heir_names_it_under_any_id() -> None:
    before = MemoryBank.of([ALICE])
    after = before.apply([op("UPDATE", "0", "Alice lives in Rome")], write_policy="temporal", when="May 2").bank
    done = merged(before.apply([op("ADD", None, BOB)]).bank, before, after)
    assert texts(done.bank) == [("1", BOB), ("2", "Alice lives in Rome")]
    heir, old = done.bank.get("2"), done.bank.get("0", closed=True)
    assert heir is not None and heir.replaces == "0" and old is not None and old.valid_until == "May 2"
    assert done.edits == (Edit(op("UPDATE", "2", "Alice lives in Rome"), ALICE),)


def test_a_bank_that_was_built_anew_keeps_the_places_and_takes_away_what_it_left_out() -> None:
    before = MemoryBank.of([ALICE, BOB, "tea"])
    after = MemoryBank.of([MemoryItem("x", "coffee"), MemoryItem("1", "Bob has a cat"), MemoryItem("0", ALICE)])
    done = merged(before, before, after)
    assert list(done.bank._items) == ["0", "1", "2", "x"] and texts(done.bank) == [("0", ALICE), ("1", "Bob has a cat"), ("x", "coffee")]
    assert [edit.op.kind for edit in done.edits] == ["DEL", "ADD", "UPDATE"]


# The verb of a store


def params(kinds: list[Backend]) -> list[Any]:
    missing = [b.library is not None and importlib.util.find_spec(b.library) is None for b in kinds]
    return [
        pytest.param(b, id=b.label or b.name, marks=[pytest.mark.skipif(gone, reason="not installed"), *([pytest.mark.slow] * b.slow)])
        for b, gone in zip(kinds, missing, strict=True)
    ]


@pytest.fixture(scope="module", params=params(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def store(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    with backend.open(tmp_path_factory.mktemp(backend.name)) as opened:
        yield opened


@pytest.mark.slow
def test_any_store_commits_what_merged_says(store: MemoryStore, backend: Backend) -> None:
    @settings(max_examples=backend.examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(EDITS, EDITS, EDITS)
    def check(first: list[Any], ours: list[Any], theirs: list[Any]) -> None:
        user = new_user()
        for ops, options in first:
            store.apply(user, ops, **options)
        before = store.bank(user)
        after = made(before, ours)
        assert store.commit(user, before, after).bank == after
        store._banks.clear()
        assert store.bank(user) == after
        rest = made(after, theirs)
        for ops, options in first:
            store.apply(user, ops, **options)
        expected = merged(store.bank(user), after, rest)
        assert store.commit(user, after, rest) == expected
        store._banks.clear()
        assert store.bank(user) == expected.bank
        for text in ("Bob has a dog", "tea"):
            assert {item.id for item, _ in store.search(user, text, 99)} == {item.id for item in expected.bank}

    check()


def test_a_bank_that_was_read_anew_is_still_the_same(store: MemoryStore) -> None:
    user = new_user()
    store.add(user, [ALICE, BOB])
    before = MemoryBank.from_json(store.bank(user).to_json())
    after = before.apply([op("ADD", None, "tea")]).bank
    store._banks.clear()
    assert store.commit(user, before, after).bank == after == store.bank(user)
    assert store.search(user, "tea", 1)[0][0].id == "2"


def test_a_commit_that_fails_leaves_the_store_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("in_memory", embedder=Scripted())
    store.add("alice", [ALICE])
    before = store.bank("alice")

    def fails(self: Any, user: str, rows: Any) -> None:
        raise StoreError("full")

    monkeypatch.setattr(InMemoryStore, "_write", fails)
    with pytest.raises(StoreError):
        store.commit("alice", before, before.apply([op("ADD", None, BOB)]).bank)
    assert store.bank("alice") == before
    with pytest.raises(DataError):
        store.commit("", before, before)


# The bank that an agent is given


def test_a_stored_bank_is_the_bank_and_keeps_what_was_asked_of_it() -> None:
    store = open_store("in_memory")
    store.add("alice", [ALICE, BOB])
    bank = stored(store, "alice")
    assert bank == store.bank("alice") and hash(bank) == hash(store.bank("alice")) and bank.items() == store.list("alice")
    assert isinstance(bank.items(), Searchable) and not isinstance(bank.items(closed=True), Searchable)
    done = bank.apply([op("DEL", "0"), op("DEL", "7")], when="May 1")
    assert done.bank == store.bank("alice").apply([op("DEL", "0")], when="May 1").bank and isinstance(done.bank, StoredBank)
    assert not isinstance(done.bank.items(), Searchable), "no store knows what was just edited"
    again = done.bank.apply([op("DEL", "0")])
    assert [applied.rejected[0].reason for applied in bank.asked] == [UNKNOWN_ID] * 2 and bank.asked == [done, again]
    assert store.count("alice") == 2


WORDS = "paris rome oslo lima".split()
SAME = [f"city {name} {word}" for name in ("bob", "eve", "dan", "amy") for word in WORDS] * 3
"""Short sentences of one shape: many are as near to a question as the next one."""


@pytest.fixture(scope="module")
def crowded(store: MemoryStore) -> str:
    user = new_user("crowded")
    store.add(user, [*SAME, "!!!", "pet bob cat"])
    store.delete(user, "3")
    return user


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 12, SPARE, 30, 49, 50])
def test_the_store_finds_what_exact_search_finds_also_among_equals(store: MemoryStore, crowded: str, k: int) -> None:
    items = stored(store, crowded).items()
    assert isinstance(items, Searchable)
    queries = ["city bob ?", "rome ?", "city amy lima", "pet ?", "nothing like it", "", "?!"]
    for query, found in zip(queries, items.nearest(queries, k), strict=True):
        expected = {item.id for item, _ in search(query, items, store.embedder, k)}
        assert {item.id for item in found} == expected and len(found) == len(expected), (query, k)


def test_what_others_wrote_meanwhile_is_not_found_in_an_older_bank() -> None:
    store = open_store("in_memory", embedder=CachedEmbedder(HashedEmbedder(dim=64)))
    store.add("alice", ["tea is hot", "tea is green", "jazz"])
    items = stored(store, "alice").items()
    store.delete("alice", "0")
    store.add("alice", ["tea", "tea time"])
    assert isinstance(items, Searchable)
    assert {item.id for item in items.nearest(["tea"], 2)[0]} == {"0", "1"}
    assert items.nearest(["tea"], 0) == [[]]
