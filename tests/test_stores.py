"""Promise: every store keeps what `MemoryBank` would hold, for each user alone, finds what exact search finds, and loses nothing."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from stores_helpers import BACKENDS, EDITS, Backend, Scripted, check_hits, new_user

from memfactory.common.errors import ConfigError, DataError, InfrastructureError, StoreError, UnknownNameError, UserError
from memfactory.common.registry import REGISTRIES, STORE_REGISTRY
from memfactory.memory.bank import UNKNOWN_ID, MemoryBank
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem, MemoryOp
from memfactory.memory.search import search
from memfactory.memory.stores import MemoryStore, open_store

FACTS = [
    "Alice adopted a golden retriever called Max in May 2023.",
    "Bob moved from Lisbon to a small flat in Oslo.",
    "Carol is allergic to peanuts and shellfish.",
    "Dave plays the cello in a string quartet on Thursdays.",
    "Eve is writing a novel about lighthouse keepers.",
    "Alice adopted a golden retriever called Max in May 2023.",
]
NAMES = [
    'o"Brien', "o'Brien", 'x" or user_key != "', "back\\slash\\", "新 用户 🐈", "a\nb", "%", "\ud800", "A", "a", " a", "n" * 256, "../x",
]  # fmt: skip


def _params(backends: Sequence[Backend]) -> list[Any]:
    def missing(backend: Backend) -> bool:
        return backend.library is not None and importlib.util.find_spec(backend.library) is None

    return [
        pytest.param(
            b,
            id=b.label or b.name,
            marks=[pytest.mark.skipif(missing(b), reason=f"{b.library} is not installed"), *([pytest.mark.slow] if b.slow else [])],
        )
        for b in backends
    ]


@pytest.fixture(scope="module", params=_params(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def store(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    """One store for many tests: each writes to users of its own."""
    with backend.open(tmp_path_factory.mktemp(backend.name)) as opened:
        yield opened


@pytest.fixture
def user() -> str:
    return new_user()


def everything(store: MemoryStore) -> dict[str, MemoryBank]:
    """What is kept, read anew from the backend."""
    store._banks.clear()
    return {user: store.bank(user) for user in store.namespaces()}


def test_texts_are_numbered_and_stamped_and_items_are_kept_as_they_are(store: MemoryStore, user: str) -> None:
    assert store.bank(user) == MemoryBank() and store.count(user) == 0 and user not in store.namespaces()
    given = MemoryItem("x9", "dog", "bob", "May 1", "May 2", 3, ("cat", "cow"), sources=("D1:1", "D2:5"), replaces="q")
    closed = MemoryItem("41", "tea", valid_until="")
    kept = store.add(user, ["paris", given, closed, "rome"], when="May 8", source="D1:3", owner="eve")
    assert kept == (
        MemoryItem("0", "paris", "eve", "May 8", "May 8", sources=("D1:3",)), given, closed,
        MemoryItem("42", "rome", "eve", "May 8", "May 8", sources=("D1:3",)),
    )  # fmt: skip
    assert everything(store)[user] == MemoryBank.of(kept)
    assert store.get(user, "x9") == given and store.get(user, "41") is None and store.get(user, "41", closed=True) == closed
    assert [item.id for item in store.list(user)] == ["0", "x9", "42"] and store.count(user) == 3
    assert [item.id for item in store.list(user, closed=True)] == ["0", "x9", "41", "42"]
    assert [item.id for item in store.list(user, owner="eve")] == ["0", "42"] and store.list(user, owner="") == ()
    assert [item.id for item in store.add(user, ["same", "same"])] == ["43", "44"]
    assert store.add(user, []) == ()


def test_a_first_item_may_be_closed(store: MemoryStore, user: str) -> None:
    closed = MemoryItem("0", "tea", valid_until="May 8")
    store.add(user, [closed])
    assert everything(store)[user] == MemoryBank.of([closed]) and store.search(user, "tea", 3) == []


@pytest.mark.parametrize("bad", ["", " \n", MemoryItem("9", ""), MemoryItem("", "a"), MemoryItem("0", "a"), MemoryItem("1", "a"), None, 7])
def test_what_is_no_new_memory_is_refused_with_all_that_came_with_it(store: MemoryStore, user: str, bad: Any) -> None:
    store.add(user, ["paris", "rome"])
    store.delete(user, "1")
    before = store.bank(user)
    with pytest.raises(DataError):
        store.add(user, ["oslo", bad])
    assert everything(store)[user] == before


def test_update_and_delete_keep_history_and_never_give_an_id_again(store: MemoryStore, user: str) -> None:
    store.add(user, ["paris", "tea"], when="May 1")
    updated = store.update(user, "0", "rome", when="May 2")
    assert updated == MemoryItem("0", "rome", "", "May 1", "May 2", 2, ("paris",)) == store.get(user, "0")
    gone = store.delete(user, "0", when="May 3")
    assert gone.text == "rome" and gone.updated == "May 3" and store.get(user, "0", closed=True) is None
    store.delete(user, "1")
    assert store.history(user, "0") == ("paris", "rome") and store.history(user, "9") == () and store.count(user) == 0
    assert [item.id for item in store.add(user, ["new"])] == ["2"]
    assert [item.id for item in everything(store)[user].deleted] == ["0", "1"]


def test_an_unknown_id_is_an_error_that_helps_and_writes_nothing(store: MemoryStore, user: str) -> None:
    store.add(user, ["paris", "tea", MemoryItem("c", "closed", valid_until="May 1")])
    store.delete(user, "1")
    before = store.bank(user)
    for id in ("1", "c", "9", "", 'x" or 1 == 1'):
        for edit in (lambda id=id: store.update(user, id, "rome"), lambda id=id: store.delete(user, id)):
            with pytest.raises(UnknownNameError) as caught:
                edit()
            assert repr(id) in str(caught.value) and repr(user) in str(caught.value) and "it has 1" in str(caught.value)
    with pytest.raises(DataError, match="blank"):
        store.update(user, "0", "  ")
    with pytest.raises(UnknownNameError):
        store.delete(new_user("nobody"), "0")
    assert everything(store)[user] == before


def test_any_operations_give_what_the_bank_gives(store: MemoryStore, backend: Backend) -> None:
    @settings(max_examples=backend.examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(EDITS)
    def check(edits: list[Any]) -> None:
        user, bank = new_user(), MemoryBank()
        for ops, options in edits:
            expected = bank.apply(ops, **options)
            bank = expected.bank
            assert store.apply(user, ops, **options) == expected
        assert store.bank(user) == bank
        store._banks.clear()
        assert store.bank(user) == bank
        known = {item.id for item in (*bank.items(closed=True), *bank.deleted)}
        assert {id: store.history(user, id) for id in known} == {id: bank.history(id) for id in known}
        assert store.list(user) == bank.items() and (user in store.namespaces()) == bool(known)
        check_hits(store.search(user, "a dog", 9), search("a dog", bank, store.embedder, 9))

    check()


def test_the_arguments_of_apply_are_checked_before_anything_is_written(store: MemoryStore, user: str) -> None:
    with pytest.raises(ConfigError, match="append"):
        store.apply(user, [MemoryOp("ADD", None, "x")], write_policy="append")  # type: ignore[arg-type]
    assert store.apply(user, [MemoryOp("DEL", "3")]).rejected[0].reason == UNKNOWN_ID
    assert user not in store.namespaces(), "what was rejected leaves no trace"


def test_search_is_exact_search(store: MemoryStore, user: str) -> None:
    store.add(user, FACTS, owner="eve")
    store.add(user, [MemoryItem("x", "!!!"), MemoryItem("y", "Bob adopted a cat", "bob")])
    store.delete(user, "2")
    for query in ("which dog did Alice adopt", "cello in Oslo", "", "?!"):
        for k in (0, 2, 99):
            for owner in (None, "eve", "nobody"):
                check_hits(store.search(user, query, k, owner=owner), search(query, store.list(user), store.embedder, k, owner))
    store.update(user, "3", "Dave sold his cello and bought a drum")
    assert store.search(user, "drum", 1)[0][0].text.endswith("drum")
    assert store.search(new_user("nobody"), "drum", 3) == []


def test_equal_items_stand_in_the_order_of_insertion_also_when_k_cuts_them(store: MemoryStore, user: str) -> None:
    store.add(user, ["oslo is cold", *["tea is hot"] * 40, "tea"])
    found = store.search(user, "tea is hot", 3)
    assert [item.id for item, _ in found] == ["1", "2", "3"] and found[0][1] == found[2][1] == 1.0
    assert [item.id for item, _ in store.search(user, "tea is hot", 42)][:40] == [str(n) for n in range(1, 41)]


def test_several_queries_are_one_call_of_the_embedder(backend: Backend, tmp_path: Path) -> None:
    embedder = Scripted({"up": (0, 0, 0, 1), "down": (0, 0, 0, -1), "": (0, 0, 0, 0)})
    with backend.open(tmp_path, embedder) as store:
        store.add("alice", ["up", "down"])
        embedder.calls.clear()
        found = store.search_many("alice", ["down", "", "up"], 2)
        assert embedder.calls == [["down", "", "up"]]
        assert [[(item.text, score) for item, score in hits] for hits in found] == [
            [("down", 1.0), ("up", -1.0)], [("up", 0.0), ("down", 0.0)], [("up", 1.0), ("down", -1.0)],
        ]  # fmt: skip
        assert store.search_many("alice", [], 2) == [] and store.search_many("alice", ["up"], 0) == [[]]
        assert len(embedder.calls) == 1, "nothing to ask"


def test_users_never_mix_whatever_they_are_called(store: MemoryStore) -> None:
    prefix = new_user()
    names = [f"{prefix}{name}"[:256] for name in NAMES]
    for name in names:
        store.add(name, [f"secret of {name}", MemoryItem("o", name, owner=name)])
    assert set(names) <= set(store.namespaces())
    kept = everything(store)
    for name in names:
        assert [item.text for item in kept[name]] == [f"secret of {name}", name]
        assert [item.id for item, _ in store.search(name, "secret of", 99)] == ["0", "o"]
        assert [item.id for item, _ in store.search(name, "secret", 9, owner=name)] == ["o"]
    store.purge(names[0])
    assert names[0] not in store.namespaces() and set(names[1:]) <= set(store.namespaces())
    for name in names[1:]:
        assert store.count(name) == 2


@pytest.mark.parametrize("bad", ["", "  ", "n" * 257, None, 3])
def test_a_user_needs_a_name(store: MemoryStore, bad: Any) -> None:
    for verb in (store.bank, store.purge, lambda user: store.add(user, ["x"]), lambda user: store.search(user, "x", 3)):
        with pytest.raises(DataError, match="A user is named by"):
            verb(bad)


def test_purge_leaves_nothing_and_numbering_starts_anew(store: MemoryStore, user: str) -> None:
    store.add(user, FACTS)
    store.delete(user, "0")
    store.purge(user)
    assert user not in store.namespaces() and store.bank(user) == MemoryBank() and store.history(user, "0") == ()
    assert store.search(user, "Alice", 5) == []
    store.purge(user)
    assert [item.id for item in store.add(user, ["tea"])] == ["0"]
    assert everything(store)[user] == MemoryBank.of(["tea"])


def test_a_long_history_is_kept(store: MemoryStore, user: str) -> None:
    store.add(user, ["start"])
    texts = [f"The diary of day {n}: " + "it rained and Bob read a book. " * 10 for n in range(300)]
    store.apply(user, [MemoryOp("ADD", "1", texts[0])])
    item = MemoryItem("2", texts[-1], history=tuple(texts[:-1]), version=300)
    store.add(user, [item])
    assert everything(store)[user].get("2") == item


def test_threads_lose_nothing_and_ids_never_collide(store: MemoryStore, user: str) -> None:
    write_from_threads(store, user, writers=8, each=4)


@pytest.mark.slow
def test_fifty_writers(store: MemoryStore, backend: Backend, user: str) -> None:
    write_from_threads(store, user, writers=50, each=2 if backend.slow else 10)


def write_from_threads(store: MemoryStore, user: str, writers: int, each: int) -> None:
    """Each adds, updates, deletes and searches; then everything that was acknowledged must be there, once."""
    start = threading.Barrier(writers)

    def write(writer: int) -> list[MemoryItem]:
        start.wait()
        mine = []
        for n in range(each):
            (item,) = store.add(user, [f"writer {writer} says {n}"])
            mine.append(store.update(user, item.id, f"writer {writer} repeats {n}") if n % 2 else item)
            assert store.search(user, mine[-1].text, 1)[0][0].id == item.id
        store.delete(user, mine.pop(0).id)
        return mine

    with ThreadPoolExecutor(writers) as pool:
        kept = [item for mine in pool.map(write, range(writers)) for item in mine]
    bank = everything(store)[user]
    assert len(kept) == len({item.id for item in kept}) == writers * (each - 1)
    assert {item.id: item for item in bank} == {item.id: item for item in kept}
    assert sorted(int(item.id) for item in (*bank, *bank.deleted)) == list(range(writers * each))


def test_an_embedder_that_fails_writes_nothing(backend: Backend, tmp_path: Path) -> None:
    embedder = Scripted()
    with backend.open(tmp_path, embedder) as store:
        store.add("alice", ["tea"])
        before = store.bank("alice")

        def fail(texts: Sequence[str]) -> Any:
            raise InfrastructureError("the embeddings server is down")

        embedder.embed = fail  # type: ignore[method-assign]
        for verb in (
            lambda: store.add("alice", ["rome"]), lambda: store.update("alice", "0", "rome"), lambda: store.search("alice", "rome", 2),
            lambda: store.apply("alice", [MemoryOp("DEL", "0"), MemoryOp("ADD", None, "rome")]),
        ):  # fmt: skip
            with pytest.raises(InfrastructureError, match="embeddings server"):
                verb()
        assert everything(store) == {"alice": before}


def test_a_backend_that_fails_leaves_the_memory_as_it_was(store: MemoryStore, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(user, ["tea"])
    before = store.bank(user)

    def fail(*_: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", fail)
        with pytest.raises(StoreError, match="disk is full"):
            store.add(user, ["rome"])
    assert store.bank(user) == before
    assert [item.id for item in store.add(user, ["rome"])] == ["1"]


def test_after_close_every_verb_says_so(backend: Backend, tmp_path: Path) -> None:
    store = backend.open(tmp_path)
    store.add("alice", ["tea"])
    store.close()
    store.close()
    for verb in (
        lambda: store.add("alice", ["x"]), lambda: store.update("alice", "0", "x"), lambda: store.delete("alice", "0"),
        lambda: store.apply("alice", []), lambda: store.get("alice", "0"), lambda: store.list("alice"), lambda: store.bank("alice"),
        lambda: store.history("alice", "0"), lambda: store.search("alice", "x", 2), lambda: store.search_many("alice", [], 2),
        store.namespaces, lambda: store.count("alice"), lambda: store.purge("alice"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"closed.*open_store"):
            verb()


def test_what_was_kept_is_there_when_it_is_opened_again(backend: Backend, tmp_path: Path) -> None:
    with backend.open(tmp_path) as store:
        store.add("alice", FACTS, when="May 8")
        store.update("alice", "0", "Max is gone")
        store.delete("alice", "1")
        store.apply("alice", [MemoryOp("UPDATE", "2", "Carol eats all")], write_policy="temporal", when="May 9")
        store.add("bob", ["tea"])
        store.purge("bob")
        kept, found = everything(store), store.search("alice", "what does Carol eat", 3)
    with backend.open(tmp_path) as store:
        if not backend.persistent:
            assert store.namespaces() == ()
            return
        assert everything(store) == kept and list(kept) == ["alice"]
        assert store.search("alice", "what does Carol eat", 3) == found
        assert [item.id for item in store.add("alice", ["new"])] == ["7"]


def test_names_and_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown store 'redis'.*in_memory.*milvus"):
        open_store("redis")
    with pytest.raises(UserError, match=r"option of InMemoryStore 'path'"):
        open_store("in_memory", {"path": "x"})
    with pytest.raises(UnknownNameError, match="embedder 'bert'"):
        open_store("in_memory", embedder="bert")
    assert {"in_memory", "milvus", "neo4j", "hybrid"} <= set(STORE_REGISTRY) and STORE_REGISTRY in REGISTRIES
    with open_store("in_memory") as store:
        assert isinstance(store.embedder, HashedEmbedder)
