"""A client of Milvus: of a file, whose engine then runs in this process, or of a server. Knows no collection and no memory."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, StoreError
from memfactory.common.processes import INHERITED, tell_of_forks
from memfactory.common.redaction import without_login
from memfactory.common.version import install
from memfactory.memory.stores import milvus_files

_HOST = re.compile(r"(?:[\w-]+(?:\.[\w-]+)*|\[[0-9a-fA-F:]+\]):\d{1,5}")
"""`localhost:19530` is no folder."""
INSTALL = install("milvus")


class MilvusConnection:
    """Opened when it is first used, and again after a failure; not thread-safe.

    After a failure a file must be opened anew: Milvus Lite goes on writing behind what a full disk has torn in its log, and
    forgets a table that it could not write out. What it acknowledged before stands in the log, which is read when it is opened.
    A server that comes back may have unloaded what was loaded.
    """

    def __init__(self, uri: str, user: str, password: str, timeout: float, opened: Callable[[Any], None]) -> None:
        """`uri`: a path or scheme://host:port; `timeout`: seconds to connect; `opened` is called with each new client."""
        uri = f"http://{uri}" if _HOST.fullmatch(uri) else uri
        self.local = "://" not in uri
        self.address = str(Path(uri).expanduser().absolute()) if self.local else without_login(uri)
        self._uri, self._login, self._timeout = uri, (user, password), timeout
        self._opened = weakref.WeakMethod(opened)  # a store that is forgotten lets go of its file at once
        self._client: Any = None
        self._engine: weakref.finalize | None = None
        self._lock: int | None = None
        self._parent = 0
        """Of a child that was forked when a file was open: who has it."""
        tell_of_forks(self)

    @contextmanager
    def use(self) -> Iterator[Any]:
        """The `MilvusClient`; its failures become `StoreError`, a refused login `ConfigError`, both with the address."""
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints each error that it raises, with the traceback
        try:
            import grpc
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise ConfigError(f"The store 'milvus' needs pymilvus, which is not installed ({error}). {INSTALL}") from error
        if self._parent:
            raise ConfigError(
                f"The memories in {self.address} were opened by process {self._parent}, before this one was forked from it, and a file "
                "serves one process. Open the store after the fork (gunicorn: post_fork or without --preload; celery: "
                "worker_process_init), in one process; for several run a Milvus server and set MILVUS_URI."
            )
        try:
            if self._client is None:
                self._open()
            yield self._client
        except (MilvusException, grpc.RpcError) as error:
            self.close()
            raise self._failure(error) from error

    def close(self) -> None:
        """Hang up; a file is written out and unlocked."""
        client, engine, self._client, self._engine, self._lock = self._client, self._engine, None, None, None
        if client is not None:
            client.close()
        if engine is not None:
            engine()

    def _forked(self) -> None:
        """In a forked child: the file is the parent's alone; of a server a new client is made."""
        INHERITED.append((self._client, self._engine))
        if self._engine is not None:
            held = self._engine.detach()
            INHERITED.append(held)
            if self._lock is not None:  # closed without unlocking: the lock is the parent's, and ends with it
                os.close(self._lock)
            self._parent = os.getppid()
        self._client = self._engine = self._lock = None

    def _open(self) -> None:
        from pymilvus import MilvusClient

        uri, login = (self._start(Path(self.address)), ("", "")) if self.local else (self._uri, self._login)
        opened = False
        try:
            # The engine is a thread of this process: its server takes pymilvus's pings, one in 10 seconds, for an attack and hangs up.
            quiet = {"grpc.keepalive_time_ms": 2**31 - 1} if self.local else {}
            # Not shared with other clients of the address, which closing would cut off.
            self._client = MilvusClient(uri, *login, timeout=self._timeout, dedicated=True, grpc_options=quiet)
            if (hook := self._opened()) is not None:
                hook(self._client)
            opened = True
        finally:
            if not opened:
                self.close()

    def _start(self, path: Path) -> str:
        """Start the engine on its folder. `MilvusClient(path)` would hide why that failed, and hold the folder to the end."""
        try:
            from milvus_lite.adapter.grpc.server import start_server_in_thread
            from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError
        except ImportError as error:
            raise ConfigError(
                f"A file of memories needs milvus-lite 3, which is not installed ({error}). {INSTALL}; or set MILVUS_URI to a server."
            ) from error
        logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)  # as pymilvus; and the torn end of a log, which is repaired
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; Milvus Lite 3 keeps a folder (older versions wrote files). Give another uri.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            milvus_files.check(path)
            server, database, port = start_server_in_thread(str(path))
        except DataDirLockedError as error:
            raise StoreError(
                f"The memories in {path} are in use by {milvus_files.holder(path)}. Close them there first; "
                "for several processes at a time run a Milvus server and set MILVUS_URI."
            ) from error
        except (MilvusLiteError, OSError) as error:
            raise StoreError(f"The memories in {path} cannot be opened: {error}. Is the place writable, and the disk not full?") from error
        milvus_files.sign(path)
        self._lock = database._lock_fd
        # Also when the store is forgotten, or the process ends.
        self._engine = weakref.finalize(self, _stop, server, database)
        return f"http://127.0.0.1:{port}"

    def _failure(self, error: Exception) -> StoreError | ConfigError:
        import grpc

        cause = error.__cause__ if isinstance(error.__cause__, grpc.RpcError) else error
        code = cause.code() if isinstance(cause, grpc.RpcError) else None
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return ConfigError(f"Milvus at {self.address} refused the login. Set MILVUS_USER and MILVUS_PASSWORD in .env.")
        reason = " ".join(str(getattr(error, "message", error)).split())[:300]
        advice = "Is the disk full, or a file damaged?" if self.local else "Is it running, and MILVUS_URI right?"
        return StoreError(f"Milvus at {self.address} failed: {reason}. {advice}")


def _stop(server: Any, database: Any) -> None:
    server.stop(grace=None).wait()
    database.close()
