"""Promise: the graph says what relates memories, several processes write to it safely, nothing acknowledged is lost when any
process is killed, and a graph and Milvus that a crash left apart are brought together again. The contract itself is in test_stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores_helpers import Scripted, new_user

from memfactory.common.errors import ConfigError, StoreError
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem, MemoryOp
from memfactory.memory.stores import bolt_server, graph_rows, open_store
from memfactory.memory.stores.base import Row
from memfactory.memory.stores.bolt_client import BoltClient, Conflict, Transaction, received, sent
from memfactory.memory.stores.entities import names, sessions
from memfactory.memory.stores.hybrid import HybridStore
from memfactory.memory.stores.neo4j import Neo4jStore
from memfactory.memory.stores.shelf import Shelf

EMBEDDER = HashedEmbedder(dim=128)


# Parts that need no server.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann met Bo's boss in New York", ("Ann", "Bo", "New York")),
        ("Alice's sister Anna-Maria O'Neill works at IBM", ("Alice", "Anna-Maria O'Neill", "IBM")),
        ("She moved to Élan on Monday, in May. I'm glad; The End", ("Élan", "End")),
        ("nobody here, 北京 is big", ()),
        ("", ()),
        ("Bob Bob, Bob", ("Bob Bob", "Bob")),
        ("X" * 101, ()),
    ],
)
def test_names_are_runs_of_capitalised_words(text: str, found: tuple[str, ...]) -> None:
    assert names(text) == found


def test_an_item_belongs_to_the_sessions_of_its_sources_or_else_to_its_day() -> None:
    assert sessions(MemoryItem("0", "a", sources=("D3:11", "D3:12", "D4:1", "note"))) == ("D3", "D4", "note")
    assert sessions(MemoryItem("0", "a", created="May 8")) == ("May 8",) and sessions(MemoryItem("0", "a")) == ()


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.text() | st.text(st.characters(categories=["Cs"])) | st.none() | st.integers(), lambda inner: st.lists(inner)))
def test_every_text_survives_the_wire(value: Any) -> None:
    assert received(sent(value)) == value
    str(sent(value)).encode()
    assert received(sent([received(sent(sent("\udfff")))])) == [sent("\udfff")], "also one that looks escaped"


def test_a_shelf_takes_whole_changes_only_and_embeds_what_it_never_saw() -> None:
    embedder, shelf = Scripted({"a": (1, 0), "b": (0, 1)}, dim=2), Shelf("x")
    queries = np.eye(2, dtype=np.float32)
    assert shelf.scores(embedder, queries).shape == (0, 2)
    assert not shelf.put([Row(MemoryItem("1", "b"), 1)], 1, 2) and shelf.bank == MemoryBank() and shelf.revision == 0
    assert shelf.put([Row(MemoryItem("1", "b"), 1), Row(MemoryItem("0", "a"), 0, vector=embedder.embed(["a"])[0])], 1, 2)
    embedder.calls.clear()
    assert shelf.scores(embedder, queries).tolist() == [[1, 0], [0, 1]] and embedder.calls == [["b"]]
    assert not shelf.put([Row(MemoryItem("3", "b"), 3)], 2, 4), "a row between is missing"
    assert shelf.put([Row(MemoryItem("0", "b", version=2), 0)], 2, 2)
    assert shelf.scores(embedder, queries).tolist() == [[0, 1], [0, 1]], "the vector of the old text is not used"
    assert shelf.put([Row(MemoryItem("1", "b"), 1, deleted=True)], 3, 2)
    assert (
        shelf.live(None)[0] == [MemoryItem("0", "b", version=2)]
        and shelf.live(None)[1].tolist() == [0]
        and shelf.bank.deleted == (MemoryItem("1", "b"),)
    )


def test_a_wrong_place_is_an_error_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("NEO4J_URI", "NEO4J_USER", "NEO4J_PASSWORD"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    for options, kind, message in [
        ({"uri": "bolt://127.0.0.1:1", "password": "x"}, StoreError, r"127.0.0.1:1 cannot be reached.*Check NEO4J_URI"),
        ({"uri": "bolt://127.0.0.1:1"}, ConfigError, "Set NEO4J_PASSWORD"),
        ({"uri": "http://127.0.0.1:1", "password": "x"}, ConfigError, "Example of an address: bolt://"),
        ({"timeout": 0}, ConfigError, "timeout 0: must be above 0"),
        ({"expand": -1}, ConfigError, "expand -1: must be at least 0"),
    ]:
        with pytest.raises(kind, match=message):
            open_store("neo4j", options, embedder=EMBEDDER)
    monkeypatch.setenv("NEO4J_URI", "bolt://127.0.0.1:2")
    monkeypatch.setenv("NEO4J_PASSWORD", "x")
    with pytest.raises(StoreError, match=r"127.0.0.1:2 cannot be reached"):
        open_store("neo4j", embedder=EMBEDDER)
    monkeypatch.setattr(bolt_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[graph\]"; or name a server'):
        open_store("neo4j", {"path": "graph"}, embedder=EMBEDDER)
    assert time.monotonic() - start < 5 and not (tmp_path / "graph").exists()


# With a server, which takes seconds to start.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bolt_server.BoltServer]:
    pytest.importorskip("arcadedb_embedded")
    with bolt_server.BoltServer(tmp_path_factory.mktemp("graph")) as running:
        yield running


def options_of(server: bolt_server.BoltServer, **more: Any) -> dict[str, Any]:
    return {"uri": server.uri, "user": server.user, "password": server.password, "database": server.database} | more


def open_on(server: bolt_server.BoltServer, **more: Any) -> Neo4jStore:
    """A store as another process would have it: nothing read yet."""
    store = open_store("neo4j", options_of(server, **more), embedder=EMBEDDER)
    assert isinstance(store, Neo4jStore)
    return store


def ask(store: Neo4jStore, statement: str, user: str) -> list[Any]:
    return sorted(store._graph.run(statement, {"user": user}))


@pytest.mark.slow
def test_the_graph_says_what_mentions_whom_comes_from_where_and_replaced_what(server: bolt_server.BoltServer) -> None:
    mentions = "MATCH (m:Memory {user: $user})-[:MENTIONS]->(e:Entity {user: $user}) RETURN m.id, e.name"
    places = "MATCH (m:Memory {user: $user})-[:IN_SESSION]->(s:Session) RETURN m.id, s.name"
    successions = "MATCH (m:Memory {user: $user})-[:SUPERSEDES]->(old:Memory) RETURN m.id, m.state, old.id, old.state"
    user = new_user()
    with open_on(server) as store:
        store.add(user, ["Ann lives in Rome", "Bo has a dog"], source="D1:3", when="May 1")
        assert ask(store, mentions, user) == [["0", "Ann"], ["0", "Rome"], ["1", "Bo"]]
        store.apply(user, [MemoryOp("UPDATE", "1", "Cy has a dog")], source="D2:1")
        assert ask(store, mentions, user) == [["0", "Ann"], ["0", "Rome"], ["1", "Cy"]]
        assert ask(store, places, user) == [["0", "D1"], ["1", "D1"], ["1", "D2"]]
        store.apply(user, [MemoryOp("UPDATE", "0", "Ann lives in Oslo")], write_policy="temporal", when="May 9")
        assert ask(store, successions, user) == [["2", "live", "0", "closed"]]
        store.delete(user, "2")
        assert ["2", "Oslo"] not in ask(store, mentions, user), "a tombstone mentions nobody"
        assert ask(store, "MATCH (u:User {name: $user})-[:OWNS]->(m) RETURN m.position, m.state", user) == [
            [0, "closed"], [1, "live"], [2, "deleted"],
        ]  # fmt: skip
        store.purge(user)
        assert ask(store, "MATCH (n) WHERE n.user = $user OR n.name = $user RETURN n.key", user) == []


@pytest.mark.slow
def test_expansion_appends_what_shares_a_name_the_rarest_name_first(server: bolt_server.BoltServer) -> None:
    user, query = new_user(), "who is the sister of Bob"
    facts = ["The sister of Bob is Carol", "Carol works at Acme", "Bob likes tea", "Bob likes jazz", "Dan sleeps", "Carol lied"]
    with open_on(server) as plain, open_on(server, expand=3) as store:
        store.add(user, facts, owner="eve")
        store.add(user, ["Carol has a sister"], owner="bob")
        store.delete(user, "5")
        first = plain.search(user, query, 1, owner="eve")
        assert [item.id for item, _ in first] == ["0"]
        found = store.search(user, query, 1, owner="eve")
        assert found[:1] == first and [item.id for item, _ in found[:2]] == ["0", "1"], "two mention Carol, three Bob"
        exact = {item.id: score for item, score in plain.search(user, query, 9)}
        assert all(score == exact[item.id] for item, score in found)
        assert {item.id for item, _ in found[2:]} == {"2", "3"} and found[2][1] > found[3][1], "nearer ones first among equals"
        found = store.search(user, query, 1)
        assert len(found) == 4 and found[1][0].id == "6" and found[1:] == sorted(found[1:], key=lambda hit: -hit[1]), "two and two"
        assert [item.id for item, _ in store.search(user, "Dan sleeps", 1)] == ["4"]
        assert store.search(user, "?", 2) == [(item, 0.0) for item in plain.list(user)[:2]]


@pytest.mark.slow
def test_values_are_never_part_of_a_statement(server: bolt_server.BoltServer, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: set[str] = set()

    def watch(plain: Any) -> Any:
        def run(self: Any, statement: str, *values: Any, **limits: float) -> Any:
            statements.add(statement)
            return plain(self, statement, *values, **limits)

        return run

    for kind in (BoltClient, Transaction):
        monkeypatch.setattr(kind, "run", watch(kind.run))
    evil = "Bob'}) DETACH DELETE n //"
    user = new_user(evil)
    with open_on(server, expand=2) as store:
        store.add(user, [MemoryItem(evil, evil, evil, evil, sources=(evil,)), f"X'}} {evil}"])
        store.apply(user, [MemoryOp("UPDATE", evil, "Bob")], write_policy="temporal", when=evil)
        store.update(user, "0", "rome")
        store.search(user, evil, 1)
        assert store.history(user, "1") == (evil, "Bob")
        store.purge(user)
    known = [value for value in vars(graph_rows).values() if isinstance(value, str)]
    assert statements <= {*known, *graph_rows.SCHEMA, *graph_rows.PURGE} and len(statements) > 10


@pytest.mark.slow
def test_a_change_is_all_or_nothing(server: bolt_server.BoltServer, monkeypatch: pytest.MonkeyPatch) -> None:
    user = new_user()
    with open_on(server) as store:
        store.add(user, ["tea", "rome"])
        before, run = store.bank(user), Transaction.run

        def broken(self: Transaction, statement: str, values: dict[str, Any], **limits: float) -> Any:
            return run(self, "THIS IS NO CYPHER" if statement == graph_rows.UNLOCK else statement, values, **limits)

        monkeypatch.setattr(Transaction, "run", broken)
        with pytest.raises(StoreError, match="failed"):
            store.apply(user, [MemoryOp("ADD", None, "Oslo"), MemoryOp("UPDATE", "0", "coffee"), MemoryOp("DEL", "1")])
        with pytest.raises(StoreError, match="failed"):
            store.add(new_user("nobody"), ["x"])
        monkeypatch.undo()
        assert store.bank(user) == before and "nobody" not in " ".join(store.namespaces())
        assert store.apply(user, [MemoryOp("ADD", None, "Oslo")]).applied[0].id == "2"
        with open_on(server) as other:
            assert other.bank(user) == store.bank(user)
            assert ask(other, "MATCH (e:Entity {user: $user}) RETURN e.name", user) == [["Oslo"]]


@pytest.mark.slow
def test_another_writer_is_waited_for_and_then_it_is_an_error(server: bolt_server.BoltServer, monkeypatch: pytest.MonkeyPatch) -> None:
    user, tries = new_user(), []
    with open_on(server, timeout=60.0) as patient, open_on(server, timeout=1.0) as store:
        commit = Transaction.commit

        def contested(self: Transaction, **limits: float) -> None:
            tries.append(1)
            if len(tries) < 4:
                raise Conflict("another writer was first")
            commit(self, **limits)

        monkeypatch.setattr(Transaction, "commit", contested)
        assert [item.id for item in patient.add(user, ["tea"])] == ["0"] and len(tries) == 4
        monkeypatch.setattr(Transaction, "commit", lambda self, **limits: (_ for _ in ()).throw(Conflict("another writer was first")))
        start = time.monotonic()
        with pytest.raises(StoreError, match="another writer"):
            store.add(user, ["rome"])
        assert time.monotonic() - start > 0.9 and store.count(user) == 1


@pytest.mark.slow
def test_stores_of_one_graph_see_each_others_writes(server: bolt_server.BoltServer) -> None:
    user = new_user()
    with open_on(server) as one, open_on(server) as two:
        one.add(user, ["tea", "rome"])
        assert two.bank(user) == one.bank(user) and two.search(user, "rome", 1)[0][0].id == "1"
        two.update(user, "1", "oslo in winter")
        two.add(user, ["cello"])
        assert one.search(user, "oslo in winter", 1)[0][0].id == "1" and one.search(user, "cello", 1)[0][1] == 1.0
        assert one.search(user, "oslo cello", 3) == two.search(user, "oslo cello", 3)
        one.purge(user)
        assert two.bank(user) == MemoryBank() and two.search(user, "tea", 2) == []
        two.add(user, ["new"])
        assert [item.text for item in one.list(user)] == ["new"]


WRITER = """
    import sys
    from memfactory.memory.embedders import HashedEmbedder
    from memfactory.memory.stores import open_store
    name, user, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
    store = open_store(name, options, embedder=HashedEmbedder(dim=128))
    print("open", getattr(store.server, "pid", 0), flush=True)
    for n in range(int(sys.argv[4])):
        (item,) = store.add(user, [f"Fact {n} of {sys.argv[5]}"])
        print(item.id, item.text, flush=True)
"""


def writer(name: str, user: str, options: dict[str, Any], count: int, tag: str = "Ann") -> subprocess.Popen[str]:
    """A process that adds memories and says what was acknowledged."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), name, user, repr(options), str(count), tag]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_write_at_once_get_different_ids(server: bolt_server.BoltServer) -> None:
    user = new_user()
    writers = [writer("neo4j", user, options_of(server), 15, tag) for tag in ("Ann", "Bo", "Cy")]
    said = [line.split(" ", 1) for process in writers for line in process.communicate(timeout=120)[0].splitlines()]
    kept = {id: text for id, text in said if id != "open"}
    assert [process.returncode for process in writers] == [0, 0, 0] and sorted(map(int, kept)) == list(range(45))
    with open_on(server) as store:
        assert {item.id: item.text for item in store.list(user)} == kept


@pytest.mark.slow
def test_what_the_server_refuses_or_does_not_answer_is_an_error_within_seconds(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    with bolt_server.BoltServer(tmp_path) as own, open_on(own, timeout=3.0) as store:
        store.add("ann", ["tea"])
        for more, message in [
            ({"password": "wrong"}, "refused the user or password.*NEO4J_PASSWORD"),
            ({"database": "x"}, "no database 'x'"),
        ]:
            with pytest.raises(ConfigError, match=message):
                open_on(own, **more)
        os.kill(own.pid, signal.SIGSTOP)
        start = time.monotonic()
        try:
            with pytest.raises(StoreError, match=r"did not answer within 3(\.\d+)? s"):
                store.add("ann", ["rome"])
            with pytest.raises(StoreError, match=r"did not answer within 3(\.\d+)? s|cannot be reached"):
                open_on(own, timeout=3.0)
            assert time.monotonic() - start < 10
        finally:
            os.kill(own.pid, signal.SIGCONT)
        assert [item.text for item in store.list("ann")] == ["tea"] and store.add("ann", ["rome"])[0].id == "1"
        os.kill(own.pid, signal.SIGKILL)
        with pytest.raises(StoreError, match="cannot be reached"):
            store.add("ann", ["oslo"])
        assert own._process.wait(10) and not own.alive


@pytest.mark.slow
def test_a_folder_is_open_once_and_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    mine = rf"open already, by process {os.getpid()} \(this one\).*NEO4J_URI"
    with bolt_server.BoltServer(tmp_path / "a b"), pytest.raises(StoreError, match=mine):
        bolt_server.BoltServer(tmp_path / "a b")
    with bolt_server.BoltServer(tmp_path / "a b") as again:
        assert again.alive
    assert not again.alive
    with pytest.raises(StoreError, match=r"has ended(.|\n)*Unable to start JVM"):
        bolt_server.BoltServer(tmp_path / "b", heap="all")
    with pytest.raises(StoreError, match=r"did not answer within 0.1 s"):
        bolt_server.BoltServer(tmp_path / "c", timeout=0.1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        bolt_server.BoltServer(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neo4j", "hybrid"])
def test_what_was_acknowledged_survives_the_kill_of_every_process(name: str, tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    options = {"path": str(tmp_path)}
    process = writer(name, "ann", options, 10_000)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[1])
    said = [process.stdout.readline() for _ in range(40)]
    process.kill()
    os.kill(pid, signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    kept = [line.strip().split(" ", 1) for line in said if line.endswith("\n")]
    with open_store(name, options, embedder=EMBEDDER) as store:
        have = [[item.id, item.text] for item in store.list("ann")]
        assert have[: len(kept)] == kept and len(kept) >= 40 and len(have) - len(kept) <= 1
        for _, text in kept[::10]:
            assert store.search("ann", text, 1)[0][0].text == text


@pytest.mark.slow
def test_the_server_ends_with_its_parent_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    process = writer("neo4j", "ann", {"path": str(tmp_path)}, 10_000)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[1])
    with pytest.raises(StoreError, match=rf"open already, by process {process.pid} \("):
        bolt_server.BoltServer(tmp_path)
    process.kill()
    process.communicate()
    with open_store("neo4j", {"path": str(tmp_path)}, embedder=EMBEDDER) as store:
        stat = Path(f"/proc/{pid}/stat")
        # It has ended; whether its new parent has collected it yet is not ours to say.
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        assert store.namespaces() in ((), ("ann",))


@pytest.mark.slow
def test_what_was_purged_is_on_no_disk(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    with open_store("hybrid", {"path": str(tmp_path)}, embedder=EMBEDDER) as store:
        store.add("ann", ["Rome is old"])
        store.add("zanzibar", [f"The treasure of Timbuktu, part {n}" for n in range(40)], source="Madagascar:1")
        store.update("zanzibar", "0", "The treasure of Timbuktu is lost")
        store.delete("zanzibar", "1")
        secrets = (b"zanzibar", b"Timbuktu", b"Madagascar", b"treasure")
        assert any(secret in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() for secret in secrets)
        store.purge("zanzibar")
        left = [(file, secret) for file in tmp_path.rglob("*") if file.is_file() for secret in secrets if secret in file.read_bytes()]
        assert left == [] and [item.text for item in store.list("ann")] == ["Rome is old"]


# The hybrid: two places.


def crash(folder: Path, where: str) -> None:
    """A process that keeps three memories and dies while it changes them, at a statement put in the middle of a write."""
    script = f"""
        import os, signal
        from memfactory.memory.embedders import HashedEmbedder
        from memfactory.memory.items import MemoryItem, MemoryOp
        from memfactory.memory.stores import open_store
        from memfactory.memory.stores import bolt_client, hybrid
        store = open_store("hybrid", {{"path": {str(folder)!r}}}, embedder=HashedEmbedder(dim=128))
        store.add("ann", ["Rome is old", "tea is hot", "the cello is loud"])
        store.add("bob", ["oslo is cold"])
        def die(*_, **__):
            os.kill(store.server.pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        {where}
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=120)
    assert killed.returncode == -signal.SIGKILL


EDIT = 'store.apply("ann", [MemoryOp("UPDATE", "0", "Rome fell"), MemoryOp("DEL", "1"), MemoryOp("ADD", None, "new")])'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "repairs"),
    [
        (f"hybrid.VectorIndex.put = die; {EDIT}", 0),
        (f"bolt_client.Transaction.commit = die; {EDIT}", 3),
        ('bolt_client.Transaction.commit = die; store.add("eve", ["x", "y"])', 2),
        ('bolt_client.Transaction.commit = die; store.purge("ann")', 3),
    ],
    ids=["before Milvus", "between the two", "a new user", "a purge"],
)
def test_a_crash_between_the_two_writes_is_repaired_when_it_is_opened(
    where: str, repairs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("arcadedb_embedded")
    crash(tmp_path, where)
    with open_store("hybrid", {"path": str(tmp_path)}, embedder=EMBEDDER) as store:
        assert isinstance(store, HybridStore)
        assert store.repairs == repairs and ("apart from the graph" in caplog.text) == (repairs > 0)
        assert store.bank("ann") == MemoryBank.of(["Rome is old", "tea is hot", "the cello is loud"])
        assert store.namespaces() == ("ann", "bob") == tuple(sorted(store._vectors.namespaces()))
        for text in ("Rome is old", "tea is hot", "the cello is loud"):
            assert store.search("ann", text, 1)[0] == (store.list("ann")[("R", "t", "t").index(text[0]) if text[4] != "c" else 2], 1.0)
        assert store.check() == 0, "once is enough"


@pytest.mark.slow
def test_the_hybrid_agrees_with_the_graph_whatever_happens_to_milvus(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    facts = ["Rome is old", "tea is hot", "the cello is loud", "oslo is cold"]
    with open_store("hybrid", {"path": str(tmp_path), "check": False}, embedder=EMBEDDER) as store:
        assert isinstance(store, HybridStore)
        store.add("ann", facts)
        vectors = store._vectors

        # Vectors that are gone, and such as nobody knows.
        vectors.drop("ann", [1, 2])
        vectors.put("ann", [Row(MemoryItem("9", "ghost"), 4, vector=EMBEDDER.embed(["ghost"])[0])])
        vectors.put("nobody", [Row(MemoryItem("0", "ghost"), 0, vector=EMBEDDER.embed(["ghost"])[0])])
        assert store.check() == 4 == store.repairs and vectors.namespaces() == ("ann",)
        assert [store.search("ann", fact, 1)[0][0].text for fact in facts] == facts

        # Milvus fails: nothing was written, and it goes on when it is back.
        before, put = store.bank("ann"), vectors.put

        def fail(*_: Any) -> None:
            raise StoreError("the disk is full")

        vectors.put = fail  # type: ignore[method-assign]
        with pytest.raises(StoreError, match="disk is full"):
            store.apply("ann", [MemoryOp("DEL", "0"), MemoryOp("ADD", None, "new")])
        vectors.put = put  # type: ignore[method-assign]
        assert store.bank("ann") == before and store.search("ann", "new", 9)[-1][0].id in "0123"

        # Another process writes to the graph, and its Milvus is not ours.
        assert store.server is not None
        with open_on(store.server) as other:
            other.update("ann", "3", "the fjord is deep")
            other.delete("ann", "0")
            other.add("ann", ["a drum"])
            for query in ("the fjord is deep", "a drum", "Rome is old"):
                assert store.search("ann", query, 5) == other.search("ann", query, 5)

        # Somebody was in Milvus while we looked elsewhere: found at the search.
        vectors.put("ann", [Row(MemoryItem("9", "ghost"), 4, vector=EMBEDDER.embed(["ghost"])[0])])
        assert store.search("ann", "ghost", 1)[0][0].id != "9" and store.search("ann", "a drum", 1)[0][1] == 1.0


@pytest.mark.slow
def test_the_hybrid_expands_with_the_cosines_of_the_exact_store(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    facts = ["The sister of Bob is Carol", "Carol works at Acme", "Bob likes tea", "Bob likes jazz", "Dan sleeps"]
    with open_store("hybrid", {"path": str(tmp_path), "expand": 3}, embedder=EMBEDDER) as store:
        assert isinstance(store, HybridStore) and store.server is not None
        store.add("ann", facts)
        with open_on(store.server, expand=3) as exact:
            found = store.search("ann", "who is the sister of Bob", 1)
            assert len(found) == 4 and found == exact.search("ann", "who is the sister of Bob", 1)
