"""An embedded graph database that speaks Bolt, as a child process: no service to install, none that stays behind.

ArcadeDB (the extra `graph` brings it, with a Java of its own) on a folder, a free port of the loopback address and a password
made for the occasion. One process at a time may have a folder open. Knows no Cypher and no memory.

    <path>/databases/memory   the data: all that there is to keep
    <path>/server             the running server's configuration and log, made anew at each start
    <path>/lock               held by the server process as long as it lives, and says whose that is
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from memfactory.common.errors import ConfigError, StoreError
from memfactory.common.processes import command_of, parent_of, said_of, tell_of_forks, this_process
from memfactory.common.version import install

DATABASE = "memory"
_CHILD = Path(__file__).with_name("bolt_child.py")
_STOP_SECONDS = 25.0
"""A little more than the child allows itself."""
_ORPHAN_SECONDS = 6.0
"""How long a server whose parent is gone may still hold a folder: a little more than it allows itself."""
_LOG_LINES = 12


class BoltServer:
    """A running server: `uri`, `user`, `password`, `database`. Close it, or use it in a `with`; it also ends with this process.

    A missing library or a folder that cannot be used raises `ConfigError`; a folder that is open already or a server that
    does not start, `StoreError` with the end of the server's log.
    """

    def __init__(self, path: str | Path, *, timeout: float = 60.0, heap: str = "512m") -> None:
        """`path`: the folder of the data, made if need be. `timeout`: seconds for the server to start. `heap`: Java's memory."""
        if importlib.util.find_spec("arcadedb_embedded") is None:
            raise ConfigError(
                f"The embedded graph database is not installed. {install('graph')}; or name a server with NEO4J_URI, NEO4J_USER "
                "and NEO4J_PASSWORD."
            )
        self.path = Path(path).expanduser().absolute()
        self.user, self.password, self.database = "root", secrets.token_urlsafe(24), DATABASE
        self.log = self.path / "server" / "server.log"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _locked(self.path) as lock:
                self._process = self._start(lock)
        except OSError as error:
            raise ConfigError(f"The graph's folder {self.path} cannot be used: {error}. Give another `path`.") from error
        self._end = weakref.finalize(self, _stop, self._process)
        self._owner = os.getpid()
        tell_of_forks(self)
        request = {"databases": str(self.path / "databases"), "database": DATABASE, "password": self.password, "heap": heap}
        self._timeout = timeout
        self.uri = f"bolt://127.0.0.1:{self._ask(json.dumps(request), timeout)['port']}"

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return parent_of(self.pid) is not None if self._owner != os.getpid() else self._process.poll() is None

    def check_mine(self, what: str) -> None:
        """Only the process that started the server can do some things with it."""
        if self._owner != os.getpid():
            raise ConfigError(f"{what} is for the process that opened {self.path} ({self._owner}); this one was forked from it.")

    def _forked(self) -> None:
        """In a forked child the server can be asked over Bolt as before; it is the parent's, and ends with it."""
        self._end.detach()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def drop_log(self) -> None:
        """Write out the log of transactions and delete it: what was removed from the data is on no disk then.

        No transaction may be open.
        """
        self._ask("", self._timeout)

    def log_tail(self) -> str:
        """The last lines that the server printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(lines[-_LOG_LINES:])

    def close(self) -> None:
        """Stop the server in good order and wait for it. Closing twice is allowed."""
        self._end()

    def __enter__(self) -> BoltServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self, lock: IO[str]) -> subprocess.Popen[bytes]:
        """The child in its scratch folder, with the lock handed on to it."""
        shutil.rmtree(self.log.parent, ignore_errors=True)  # the users' file in it holds the last password
        self.log.parent.mkdir(mode=0o700)
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C in the terminal is for this process, which may still have something to write.
            process = subprocess.Popen(
                [sys.executable, str(_CHILD), str(os.getpid()), str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                cwd=self.log.parent, pass_fds=[lock.fileno()], start_new_session=True, bufsize=0,
            )  # fmt: skip
        _sign(lock, process.pid)
        return process

    def _ask(self, request: str, timeout: float) -> dict[str, Any]:
        """The child's answer to a line."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line, ended = b"", False
        try:
            if process.stdin.closed:
                raise BrokenPipeError
            process.stdin.write(request.encode() + b"\n")
            # The pipe stays open: its end is how the child learns that its parent is gone.
            if select.select([process.stdout], [], [], timeout)[0]:
                line = process.stdout.readline()
                ended = not line
        except BrokenPipeError:
            ended = True
        if not line:
            process.kill()
            self.close()
            problem = "has ended" if ended else f"did not answer within {timeout:g} s"
            raise StoreError(f"The embedded graph database on {self.path} {problem}. Its log ends:\n{self.log_tail()}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that the child reads; if it does not end then, end it."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _locked(folder: Path) -> IO[str]:
    """The folder's lock file, locked, with this process's name in it.

    Whoever inherits the open file holds the lock: the server does, so that after its parent's death the next one waits until
    the old one has closed the data; one that does not end by itself is ended.
    """
    lock = (folder / "lock").open("a+")
    deadline = time.monotonic() + _STOP_SECONDS
    patience = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            holder = _read(lock)
            server, orphan = holder.get("server"), _is_orphan(holder)
            if (holder and not orphan) or time.monotonic() > deadline:
                lock.close()
                raise StoreError(
                    f"The graph in {folder} is open already, by {said_of(holder)}. Close that store first, give another `path`, "
                    "or let both use one server: set NEO4J_URI, NEO4J_USER and NEO4J_PASSWORD."
                ) from error
            if orphan and server and time.monotonic() > patience and f"{_CHILD.name} {holder.get('pid')} {folder} " in command_of(server):
                with suppress(OSError):
                    os.kill(server, signal.SIGKILL)
            time.sleep(0.05)
    _sign(lock, None)
    return lock


def _sign(lock: IO[str], server: int | None) -> None:
    """Write into the lock who holds it, and the number of the server's process."""
    lock.truncate(0)
    lock.write(json.dumps(this_process() | {"server": server}))
    lock.flush()


def _read(lock: IO[str]) -> dict[str, Any]:
    lock.seek(0)
    try:
        holder = json.loads(lock.read())
    except ValueError:  # it is being written
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_orphan(holder: dict[str, Any]) -> bool:
    """Whether the process that opened the folder is gone: its number may have been given to another."""
    pid, server = holder.get("pid"), holder.get("server")
    if not isinstance(pid, int) or parent_of(pid) is None:
        return True
    return server is not None and parent_of(server) != pid
