"""Promise: what Milvus cannot do is said with the place and the next step, in seconds; what it acknowledged is not lost."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores_helpers import DIM, Scripted, check_hits, milvus_server

from memfactory.common.errors import ConfigError, InfrastructureError, StoreError
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import search
from memfactory.memory.stores import open_store
from memfactory.memory.stores.milvus import MilvusStore
from memfactory.memory.stores.milvus_rows import key_of, mark_of

pytest.importorskip("milvus_lite")

EMBEDDER = HashedEmbedder(dim=DIM)


def opened(uri: Path | str, embedder: Any = EMBEDDER, **options: Any) -> MilvusStore:
    store = open_store("milvus", {"uri": str(uri)} | options, embedder=embedder)
    assert isinstance(store, MilvusStore)
    return store


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is printed, and nothing is logged that a user has not asked for."""
    yield
    out, err = capfd.readouterr()
    assert out == err == "" and not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.slow
def test_a_file_serves_one_store_at_a_time(tmp_path: Path, quiet: None) -> None:
    with opened(tmp_path / "m.db") as store:
        store.add("alice", ["tea"])
        with pytest.raises(StoreError, match=rf"{tmp_path}.*in use by process \d+ .*MILVUS_URI"):
            opened(tmp_path / "m.db")
        assert store.count("alice") == 1
    with opened(tmp_path / "m.db") as store:
        assert store.count("alice") == 1


def test_a_store_that_is_forgotten_lets_go(tmp_path: Path) -> None:
    store = opened(tmp_path / "m.db")
    store.add("alice", ["tea"])
    del store
    with opened(tmp_path / "m.db") as again:
        assert again.count("alice") == 1


@pytest.mark.parametrize("make", [lambda p: p.write_text("SQLite format 3"), lambda p: p.parent.joinpath("m.db").symlink_to("/dev/null")])
def test_a_path_that_is_no_folder(tmp_path: Path, make: Any, quiet: None) -> None:
    make(tmp_path / "m.db")
    with pytest.raises(ConfigError, match=r"m\.db is a file; Milvus Lite 3 keeps a folder"):
        opened(tmp_path / "m.db")


def test_a_place_that_cannot_be_made(tmp_path: Path, quiet: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be opened.*writable"):
        opened(tmp_path / "file" / "m.db")


def test_the_embedder_of_a_file_is_held_to(tmp_path: Path, quiet: None) -> None:
    with opened(tmp_path / "m.db") as store:
        store.add("alice", ["tea"])
    with pytest.raises(ConfigError, match=rf"embedded by '{EMBEDDER.name}', not by 'hashed:64:0.3'.*collection"):
        opened(tmp_path / "m.db", HashedEmbedder(dim=64))
    with opened(tmp_path / "m.db", HashedEmbedder(dim=64), collection="small") as store:
        assert store.namespaces() == ()
        store.add("alice", ["rome"])
    changed = Scripted(dim=8, name=EMBEDDER.name)  # an embeddings server whose model was replaced
    with opened(tmp_path / "m.db", changed) as store:
        for verb in (
            lambda: store.add("alice", ["rome"]),
            lambda: store.update("alice", "0", "x"),
            lambda: store.search("alice", "rome", 3),
        ):
            with pytest.raises(ConfigError, match=rf"vectors of 8 numbers.*have {DIM}"):
                verb()
        assert store.bank("alice") == MemoryBank.of(["tea"])
    with pytest.raises(ConfigError, match="Unknown index 'IVF'.*FLAT, HNSW"):
        opened(tmp_path / "n.db", index="IVF")


def test_the_place_and_the_login_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MILVUS_URI", raising=False)
    with open_store("milvus", embedder=EMBEDDER) as store:
        store.add("alice", ["tea"])
    assert (tmp_path / "output" / "memory" / "milvus.db").is_dir()
    monkeypatch.setenv("MILVUS_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        open_store("milvus", embedder=EMBEDDER)


@pytest.mark.parametrize("library", ["pymilvus", "milvus_lite"])
def test_a_missing_library_is_named_with_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r'not installed.*pip install -e "\.\[milvus\]"'):
        opened(tmp_path / "m.db")


def test_a_server_that_is_down(quiet: None) -> None:
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"Milvus at http://127\.0\.0\.1:9 failed.*MILVUS_URI") as caught:
        opened("http://root:secret@127.0.0.1:9")
    assert time.monotonic() - start < 3 and isinstance(caught.value, InfrastructureError)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer(quiet: None) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(StoreError, match="failed"):
            opened(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        assert time.monotonic() - start < 3


def test_a_server_that_refuses_the_login(quiet: None) -> None:
    import grpc

    class Refusal(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            def refuse(request: Any, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check api key is correct")

            return grpc.unary_unary_rpc_method_handler(refuse)

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((Refusal(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with pytest.raises(ConfigError, match=rf"{port} refused the login.*MILVUS_PASSWORD") as caught:
                opened(f"http://127.0.0.1:{port}", user="root", password="secret")
        finally:
            server.stop(grace=None).wait()
    assert "secret" not in str(caught.value)


def test_purged_memories_are_not_on_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "m.db") as store:
        store.add("alice", [f"the PIN of alice is {n}" for n in range(300)])  # some are written out, some in the log
        store.add("alice", ["the PIN of alice is secret"])
        store.add("bob", ["tea"])
        store.purge("alice")
        for path in (tmp_path / "m.db").rglob("*"):
            assert not path.is_file() or (b"alice is" not in path.read_bytes() and key_of("alice") not in str(path)), path
    with opened(tmp_path / "m.db") as store:
        assert store.namespaces() == ("bob",)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a log that Milvus Lite does not close
def test_what_cannot_be_written_out_is_kept_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Milvus Lite forgets a table that it fails to write out, and removes its log at the next success."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    texts = [f"memory {n}" for n in range(330)]
    with opened(tmp_path / "m.db") as store:
        with monkeypatch.context() as patch:
            patch.setattr("milvus_lite.engine.flush.write_data_file", full)
            store.add("alice", texts[:300])
            assert "No space left on device" in caplog.text and "is kept" in caplog.text
            assert store.bank("alice") == MemoryBank.of(texts[:300])
            assert len(store.search("alice", "memory", 999)) == 300
        for text in texts[300:]:
            store.add("alice", [text])
    with opened(tmp_path / "m.db") as store:
        assert store.bank("alice") == MemoryBank.of(texts)


def test_search_is_exact_over_files_and_log_alike(tmp_path: Path) -> None:
    words = "tea dog cat oslo rome paris cello novel rain book lamp door".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 4)) for _ in range(330)]
    with opened(tmp_path / "m.db") as store:
        for start in range(0, 330, 110):  # a file of some, a log of others
            store.add("alice", texts[start : start + 110])
        for id in range(0, 330, 9):
            store.update("alice", str(id), texts[id] + " again")
        live = store.list("alice")
        for query in texts[:5]:
            check_hits(store.search("alice", query, 20), search(query, live, EMBEDDER, 20))


def test_hnsw_finds_nearly_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 16))
    table = {f"text {n}": tuple(row / np.linalg.norm(row)) for n, row in enumerate(rows)}
    with opened(tmp_path / "m.db", Scripted(table, dim=16), index="HNSW") as store:
        store.add("alice", list(table))
        found = store.search_many("alice", list(table)[:50], 10)
        scores = rows[:50] @ rows.T / np.outer(np.linalg.norm(rows[:50], axis=1), np.linalg.norm(rows, axis=1))
        exact = [{f"text {n}" for n in np.argsort(-row)[:10]} for row in scores]
        assert np.mean([len({item.text for item, _ in hits} & near) / 10 for hits, near in zip(found, exact, strict=True)]) > 0.9


def test_an_item_that_does_not_fit_is_named(tmp_path: Path) -> None:
    noise = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FFF, 60_000)))
    with opened(tmp_path / "m.db") as store:
        store.add("alice", ["tea"])
        with pytest.raises(Exception, match=r"Memory '1' of user 'alice'.*65535"):
            store.add("alice", [noise])
        assert store.bank("alice") == MemoryBank.of(["tea"])


# Several processes at one server, played by several stores.


@pytest.fixture
def server(tmp_path: Path) -> str:
    return milvus_server(tmp_path)


@pytest.mark.slow
def test_two_processes_at_a_server_see_each_other_and_give_no_id_twice(server: str) -> None:
    with opened(server) as one, opened(server) as two:
        start = threading.Barrier(4)

        def write(writer: int) -> list[MemoryItem]:
            store = (one, two)[writer % 2]
            start.wait()
            return [store.add("alice", [f"writer {writer} says {n}"])[0] for n in range(4)]

        with ThreadPoolExecutor(4) as pool:
            kept = [item for mine in pool.map(write, range(4)) for item in mine]
        assert len({item.id for item in kept}) == 16
        assert one.bank("alice") == two.bank("alice") and set(one.bank("alice")) == set(kept)
        one.update("alice", "3", "changed")
        assert two.get("alice", "3") == one.get("alice", "3") and two.history("alice", "3")[-1] == "changed"
        two.purge("alice")
        assert one.count("alice") == 0 and one.namespaces() == ()


@pytest.mark.slow
def test_a_writer_waits_for_another_and_not_for_a_dead_one(server: str) -> None:
    with opened(server, timeout=0.4) as store:
        store.add("alice", ["tea"])

        def claim(seconds: float) -> None:
            with store._milvus.use() as client:
                client.upsert(store._name, [mark_of("alice", "lock/0", "lock", str(time.time() + seconds), DIM)])

        claim(30)
        with pytest.raises(StoreError, match=r"Another process has been writing to user 'alice'.*Try again"):
            store.add("alice", ["rome"])
        assert store.count("alice") == 1 and store.add("bob", ["free"])
        claim(-1)
        assert [item.id for item in store.add("alice", ["rome"])] == ["1"]


def test_a_writer_that_took_too_long_writes_nothing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfactory.memory.stores.milvus_claims.LEASE", -1.0)
    with opened(server) as store, pytest.raises(StoreError, match="nothing was written"):
        store.add("alice", ["tea"])


@pytest.mark.slow
def test_a_server_that_dies_is_missed_at_once_and_used_again_when_it_is_back(tmp_path: Path, quiet: None) -> None:
    program = (
        "import sys; from milvus_lite.adapter.grpc.server import run_server; run_server(sys.argv[1], '127.0.0.1', int(sys.argv[2]), 1)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "server"), str(port)], stdout=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return child
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    child = start()
    try:
        with opened(f"http://127.0.0.1:{port}", timeout=2) as store:
            store.add("alice", ["tea"])
            child.kill()
            child.wait()
            for verb in (lambda: store.add("alice", ["rome"]), lambda: store.count("alice"), lambda: store.search("alice", "tea", 1)):
                began = time.monotonic()
                with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{port} failed"):
                    verb()
                assert time.monotonic() - began < 8
            child = start()
            for _ in range(20):
                try:
                    assert store.bank("alice") == MemoryBank.of(["tea"])
                    break
                except StoreError:
                    time.sleep(0.5)
            assert [item.id for item in store.add("alice", ["rome"])] == ["1"]
    finally:
        child.kill()
        child.wait()


# Death and full disks.

CHILD = """
import resource, sys
sys.path.insert(0, {tests!r})
from memfactory.common.errors import StoreError
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryOp
from memfactory.memory.stores import open_store
store = open_store("milvus", {{"uri": {uri!r}}}, embedder=HashedEmbedder(dim={dim}))
def say(*words):
    print(*words, flush=True)
"""


def child(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A process that writes to the file `m.db` and reports line by line."""
    program = CHILD.format(tests=str(Path(__file__).parent), uri=str(tmp_path / "m.db"), dim=DIM) + textwrap.dedent(body)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Killed at any moment, five times over: acknowledged writes are there, and each list of operations is there whole or not at all."""
    acknowledged = -1
    rng = np.random.default_rng(0)
    for _ in range(5):
        process = child(
            tmp_path,
            """
            n = max([int(item.text.split()[1]) for item in store.list("alice")], default=-1) + 1
            while True:
                ops = [MemoryOp("ADD", None, f"pair {n} left"), MemoryOp("ADD", None, f"pair {n} right")]
                if n:
                    ops.append(MemoryOp("DEL", store.list("alice")[0].id))
                store.apply("alice", ops)
                say(n)
                n += 1
            """,
        )
        assert process.stdout is not None and process.stderr is not None
        for _ in range(int(rng.integers(20, 220))):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            acknowledged = int(line)
        time.sleep(float(rng.random()) / 50)
        process.send_signal(signal.SIGKILL)
        rest, error = process.communicate()
        acknowledged = max([acknowledged, *map(int, re.findall(r"^\d+$(?=\n)", rest, re.MULTILINE))])
        assert error == ""
        with opened(tmp_path / "m.db") as store:
            bank = store.bank("alice")
        pairs = {int(item.text.split()[1]) for item in (*bank, *bank.deleted)}
        written = len(pairs)
        assert acknowledged + 1 <= written <= acknowledged + 2 and pairs == set(range(written))
        assert len(bank.items()) + len(bank.deleted) == 2 * written and len(bank.deleted) == written - 1
        acknowledged = written - 1


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_what_was_kept_stays(tmp_path: Path) -> None:
    """The disk is full for files over some size; then there is room again, and what comes after must not hang on a torn log."""
    for size in (120_000, 40_000):
        folder = tmp_path / str(size)
        process = child(
            folder,
            f"""
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            store.add("alice", [f"memory {{n}}" for n in range(20)])
            resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, hard))
            kept, failures = 20, 0
            while failures < 3:
                try:
                    kept += len(store.add("alice", [f"memory {{kept + n}}" for n in range(5)]))
                except StoreError as error:
                    failures += 1
                    say("failed", error)
                    assert "m.db" in str(error) and "disk full" in str(error)
                    assert store.count("alice") == kept, (store.count("alice"), kept)
                    assert [item.text for item in store.list("alice")] == [f"memory {{n}}" for n in range(kept)]
                    assert len(store.search("alice", "memory", 9999)) == kept
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            for _ in range(8):
                kept += len(store.add("alice", [f"memory {{kept + n}}" for n in range(5)]))
            say("kept", kept)
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
            """,
        )
        out, error = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, error
        kept = int(out.split()[-1])
        with opened(folder / "m.db") as store:
            assert [item.text for item in store.list("alice")] == [f"memory {n}" for n in range(kept)], out


@pytest.mark.slow
def test_ten_thousand_memories(tmp_path: Path) -> None:
    texts = [f"fact {n} of {n % 97} and {n % 13}" for n in range(10_000)]
    with opened(tmp_path / "m.db") as store:
        store.add("alice", texts)
    with opened(tmp_path / "m.db") as store:
        start = time.monotonic()
        assert store.count("alice") == 10_000 and time.monotonic() - start < 10
        start = time.monotonic()
        assert store.search("alice", texts[77], 1)[0][0].text == texts[77]
        assert time.monotonic() - start < 2
