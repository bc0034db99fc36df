"""Promise: kill -9 at any moment, over and over: what was acknowledged is there, each list of operations whole or not at all, nobody
stays behind. MEMFACTORY_KILLS says how often each store is killed."""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.processes import command_of, parent_of

KILLS = int(os.environ.get("MEMFACTORY_KILLS", "3"))

WRITER = """
    import json, sys
    from memfactory.memory.embedders import HashedEmbedder
    from memfactory.memory.items import MemoryOp
    from memfactory.memory.stores import open_store
    store = open_store(sys.argv[1], eval(sys.argv[2]), embedder=HashedEmbedder(dim=64))
    bank = store.bank("alice")
    live, gone = [[i.id, i.text] for i in bank], [[i.id, i.text] for i in bank.deleted]
    found = [store.search("alice", text, 1)[0][0].text for _, text in live[::7]]
    print(json.dumps({"live": live, "gone": gone, "found": found}), flush=True)
    number = (len(live) + len(gone)) // 2
    while True:
        ops = [MemoryOp("ADD", None, f"pair {number} left of the {number} hills"), MemoryOp("ADD", None, f"pair {number} right bank")]
        if live:
            ops.append(MemoryOp("DEL", store.list("alice")[0].id))
        live = store.apply("alice", ops).bank
        print(number, flush=True)
        number += 1
"""


class Writer:
    """A process that writes, and what it says."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        command = [sys.executable, "-c", textwrap.dedent(WRITER), name, repr(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def next(self) -> str:
        try:
            return self.lines.get(timeout=120)
        except queue.Empty:
            self.process.kill()
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read()) from None

    def kill(self) -> list[str]:
        """End it now; whole lines that it had said by then and nobody has read."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        said = [self.lines.get() for _ in range(self.lines.qsize())]
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return [line for line in said if line.endswith("\n")]


def left_behind(folder: Path) -> list[int]:
    """Processes other than this one's that have to do with the folder."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in numbers if pid != os.getpid() and str(folder) in command_of(pid) and parent_of(pid) is not None]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("name", "option"), [("milvus", "uri"), ("neo4j", "path"), ("hybrid", "path")])
def test_nothing_acknowledged_is_lost_and_nobody_stays(name: str, option: str, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite" if name == "milvus" else "arcadedb_embedded")
    rng, acknowledged, opening, slowest = random.Random(name), -1, 5.0, 0.0
    for kill in range(KILLS + 1):
        began = time.monotonic()
        writer = Writer(name, {option: str(tmp_path / "memory")})
        said: list[str] = []
        if kill % 4 == 3:  # while it opens
            time.sleep(rng.uniform(0, opening))
        else:
            held = json.loads(writer.next())
            opening = time.monotonic() - began
            texts = [text for _, text in held["live"]]
            pairs = sorted(int(text.split()[1]) for _, text in (*held["live"], *held["gone"]))
            written = len(pairs) // 2
            assert acknowledged + 1 <= written <= acknowledged + 2 and pairs == sorted([*range(written)] * 2)
            assert len(held["gone"]) == max(0, written - 1) and held["found"] == texts[::7]
            acknowledged = written - 1
            said = [writer.next() for _ in range(rng.randint(0, 25))]
            time.sleep(rng.random() / 50)
        said += writer.kill()
        died = time.monotonic()
        acknowledged = max([acknowledged, *(int(line) for line in said if line.strip().isdecimal())])
        if kill % 2:  # or the next one comes while the old one's server still ends
            while left_behind(tmp_path) and time.monotonic() < died + 10:
                time.sleep(0.1)
            slowest = max(slowest, time.monotonic() - died)
            assert left_behind(tmp_path) == []
    while left_behind(tmp_path) and time.monotonic() < died + 10:
        time.sleep(0.1)
    assert left_behind(tmp_path) == []
    sys.stdout.write(f"{name}: {KILLS} kills, {acknowledged + 1} lists of operations kept, gone after {slowest:.1f} s at most\n")
