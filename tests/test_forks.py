"""Promise: after a fork nothing hangs and nothing acknowledged is lost: what can be opened anew is, what cannot says so in words."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from memfactory.common import processes
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.stores import open_store

EMBEDDER = HashedEmbedder(dim=16)
SECONDS = 60

BEGIN = """
import os, signal, sys
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.stores import open_store

def in_child(*verbs):
    # Does these in a forked child, which says what came of them and must end by itself.
    if (pid := os.fork()) == 0:
        signal.alarm(40)
        for verb in verbs:
            try:
                print(verb(), flush=True)
            except Exception as error:
                print(type(error).__name__, error, flush=True)
        sys.exit(0)
    print("child", os.waitpid(pid, 0)[1], flush=True)

def open_it():
    return open_store(sys.argv[1], eval(sys.argv[2]), embedder=HashedEmbedder(dim=16))
"""


def run(body: str, *arguments: str) -> list[str]:
    """The lines that a program prints."""
    program = textwrap.dedent(BEGIN) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=3 * SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STORE = """
store = open_it()
store.add("alice", ["one", "two"])
in_child(lambda: store.count("alice"), lambda: store.add("alice", ["of the child"])[0].id,
         lambda: store.search("alice", "two", 1)[0][0].text, lambda: store.purge("bob"), store.close)
store.add("alice", ["of the parent"])
print(store.search("alice", "of the parent", 1)[0][0].text)
store.close()
with open_it() as store:
    print([item.text for item in store.list("alice")])
"""


@pytest.mark.slow
def test_a_file_is_the_parents_and_the_child_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    *said, ended, found, kept = run(STORE, "milvus", repr({"uri": str(tmp_path / "m.db")}))
    assert ended == "child 0" and found == "of the parent" and kept == "['one', 'two', 'of the parent']" and said.pop() == "None"
    assert len(said) == 4 and all(line.startswith("ConfigError") and "Open the store after the fork (gunicorn:" in line for line in said)


@pytest.mark.slow
def test_the_child_has_a_graph_of_its_own_connections(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    said = run(STORE, "neo4j", repr({"path": str(tmp_path)}))
    assert said[:3] == ["2", "2", "two"] and said[3].startswith("ConfigError purge is for the process that opened")
    assert said[4:] == ["None", "child 0", "of the parent", "['one', 'two', 'of the child', 'of the parent']"]


@pytest.mark.slow
def test_the_child_of_a_hybrid_reads_the_graph_and_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("arcadedb_embedded")
    said = run(STORE, "hybrid", repr({"path": str(tmp_path)}))
    assert said[0] == "2" and all("Open the store after the fork" in line for line in said[1:4])
    assert said[4:] == ["None", "child 0", "of the parent", "['one', 'two', 'of the parent']"]


@pytest.mark.slow
def test_the_child_of_a_servers_client_connects_anew(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    program = (
        "import sys; from milvus_lite.adapter.grpc.server import run_server; run_server(sys.argv[1], '127.0.0.1', int(sys.argv[2]), 1)"
    )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "server"), str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        said = run(STORE, "milvus", repr({"uri": f"127.0.0.1:{port}"}))
        assert said[:6] == ["2", "2", "two", "None", "None", "child 0"]
        assert said[6:] == ["of the parent", "['one', 'two', 'of the child', 'of the parent']"]
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_agent_answers_in_a_child_as_in_its_parent(threads: str) -> None:
    """The engine's loop is a thread, and so are torch's: neither is in the child."""
    body = f"""
        import torch
        torch.set_num_threads({threads})
        from memfactory.agents.base import BaseAgent
        agent = BaseAgent.load("models/tiny-bank", store="in_memory", user="alice")
        agent.add("bob : city alice paris .", date="2026-11-21")
        print(agent.ask("city alice ?").text)
        in_child(lambda: agent.ask("city alice ?").text, lambda: len(agent.add("bob : job alice chef .").edits))
        print(agent.ask("city alice ?").text)
    """
    first, child, edits, ended, again = run(body)
    assert first == child == again and ended == "child 0" and edits.isdigit()


def test_a_child_forked_while_another_thread_holds_every_lock_does_not_wait_for_it() -> None:
    store = open_store("in_memory", embedder=EMBEDDER)
    store.add("alice", ["tea"])
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            held.set()
            over.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(SECONDS)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if store.count("alice") == 1 and store.add("alice", ["rome"])[0].id == "1" else 1)
    over.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0 and store.count("alice") == 1


def test_whoever_asked_is_told_of_a_fork_once_and_not_kept_alive() -> None:
    class Told:
        forks = 0

        def _forked(self) -> None:
            self.forks += 1

    told = Told()
    processes.tell_of_forks(told)
    processes.tell_of_forks(told)
    pid = os.fork()
    if pid == 0:
        os._exit(told.forks)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 1 and told.forks == 0
    before = len(processes._told)
    del told
    assert len(processes._told) < before
