"""The process in which the embedded graph database runs: started by `bolt_server`, by path; ends when its parent closes the pipe,
and when its parent is gone, whoever else may hold that pipe.

A process of its own, because a Java virtual machine can take the interpreter that it lives in down with it. Imports nothing
of this package: what it needs comes as a line of JSON on standard input, and is answered by a line on standard output,
`{"port": ...}`; each further line there asks to close the database's log. All else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, TextIO

STOP_SECONDS = 20.0
"""How long an orderly stop may take; then the process ends anyway, and the log of transactions is replayed at the next start."""

ORPHAN_SECONDS = 4.0
"""The same where the parent is gone: the next one may wait for the folder."""

_PLUGIN = "com.arcadedb.bolt.BoltProtocolPlugin"
# One collector thread and the quick compiler: half the start-up time, and the load here is one application's.
_JVM_ARGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def start(databases: str, database: str, password: str, heap: str) -> tuple[Any, int]:
    """The running server and its Bolt port, on the loopback address only; `databases` is a folder, the working one is scratch.

    `production` makes a commit wait until its log is on disk (`arcadedb.txWalFlush` 1), so what was acknowledged survives
    the death of the process and of the machine.
    """
    from arcadedb_embedded.server import ArcadeDBServer

    config = {
        "mode": "production",
        "host": "127.0.0.1",
        "http_port": "0",  # cannot be left out; any free port, behind the same password
        "server_plugins": f"Bolt:{_PLUGIN}",
        "bolt_port": 0,
        "server_databaseDirectory": databases,
    }
    server = ArcadeDBServer(os.getcwd(), password, config, {"heap_size": heap, "jvm_args": _JVM_ARGS})
    server.start()
    server.create_database(database)
    plugin = next(part for part in server._java_server.getPlugins() if str(part.getClass().getName()) == _PLUGIN)
    return server, int(plugin.getPort())


def answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def end_with(parent: int) -> None:
    """End soon after the parent: in good order if the main thread sees the end of its pipe in time, else at once."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        if running:
            stop = threading.Thread(target=running[0].stop, daemon=True)
            stop.start()
            stop.join(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


running: list[Any] = []
"""The server, once there is one."""


def main() -> None:
    end_with(int(sys.argv[1]))
    # The JVM prints to standard output too: keep it for the answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    server, port = start(**request)
    running.append(server)
    answer(answers, {"port": port})
    for _ in sys.stdin:  # until the parent closes the pipe, or dies
        # A closed database has no log of transactions; the next statement opens it again.
        server._java_server.getDatabase(request["database"]).getEmbedded().close()
        answer(answers, {"closed": True})
    watch = threading.Timer(STOP_SECONDS, os._exit, [1])
    watch.daemon = True
    watch.start()
    server.stop()
    os._exit(0)  # not through the JVM's own exit, see above


if __name__ == "__main__":
    # This folder has a neo4j.py: nothing may be imported from it by a bare name.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != os.path.dirname(os.path.abspath(__file__))]
    main()
