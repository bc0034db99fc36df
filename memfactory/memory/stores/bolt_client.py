"""A Bolt server asked with time limits: the `neo4j` driver in an event loop of its own thread. Knows no statement and no memory.

The asynchronous driver, since the other one waits for ever on a server that has stalled. Whatever goes wrong is one of ours:
`ConfigError` for what is asked of the wrong place or with the wrong password, `Conflict` if another writer was first, else
`StoreError` with the address and the next step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from memfactory.common.errors import ConfigError, StoreError, in_one_line
from memfactory.common.processes import INHERITED, tell_of_forks
from memfactory.common.version import install

T = TypeVar("T")
Rows = list[list[Any]]

_SCHEMES = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")
_EXAMPLE = "Example of an address: bolt://localhost:7687."
_MARK = "\N{SYMBOL FOR ESCAPE}"
_CONNECT_SECONDS = 5.0
_IDLE_SECONDS = 5.0
"""A connection unused for so long is tried before it is used: the server may have been started anew."""


class Conflict(StoreError):
    """Another writer was first, nothing was written: ask again."""


class Transaction:
    """Statements that are carried out together, by `commit`, or not at all."""

    def __init__(self, client: BoltClient, inner: Any) -> None:
        self._client, self._inner = client, inner

    def run(self, statement: str, values: dict[str, Any] | None = None, *, more: float = 0.0) -> Rows:
        """The statement's rows; values are sent apart from the statement. `more`: seconds beyond the usual limit."""
        return self._client._await(_rows(self._inner, statement, values or {}), more)

    def commit(self, *, more: float = 0.0) -> None:
        self._client._await(self._inner.commit(), more)


class BoltClient:
    """A connected client. `uri`: bolt://HOST:PORT or neo4j://HOST:PORT; `timeout`: seconds for one statement."""

    def __init__(self, uri: str, user: str, password: str, *, database: str | None, timeout: float, advice: str) -> None:
        """`database`: None for the server's default; `advice`: the next step to name where the server is down."""
        try:
            import neo4j
        except ImportError as error:
            raise ConfigError(f"A graph store needs the neo4j driver ({error}). {install('graph')}") from error
        if uri.partition("://")[0] not in _SCHEMES:
            raise ConfigError(f"A graph server speaks Bolt, so {uri!r} is not its address. {_EXAMPLE}")
        self.uri, self.database, self.timeout, self._advice = uri, database, timeout, advice
        self._errors = neo4j.exceptions
        logging.getLogger("neo4j").setLevel(logging.CRITICAL)  # it prints each error that it raises
        self._driver: Any = None
        self._make = partial(
            neo4j.AsyncGraphDatabase.driver, uri, auth=(user, password), connection_timeout=min(timeout, _CONNECT_SECONDS),
            telemetry_disabled=True, liveness_check_timeout=_IDLE_SECONDS, notifications_min_severity="OFF",
        )  # fmt: skip
        self._loop: asyncio.AbstractEventLoop | None = self._start()
        tell_of_forks(self)
        connected = False
        try:
            self._await(self._connect())
            connected = True
        finally:
            if not connected:
                self.close()

    def run(self, statement: str, values: dict[str, Any] | None = None, *, more: float = 0.0) -> Rows:
        """The rows of a statement that is a transaction of its own. `more`: seconds beyond the usual limit."""

        async def once() -> Rows:
            async with self._session() as session:
                return await _rows(session, statement, values or {})

        return self._await(once(), more)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction; what was not committed by the end of the `with` is rolled back."""

        async def begin() -> tuple[Any, Any]:
            session, begun = self._session(), None
            try:
                begun = await session.begin_transaction()
            finally:
                if begun is None:
                    await session.close()
            return session, begun

        session, inner = self._await(begin())
        try:
            yield Transaction(self, inner)
        finally:
            with suppress(StoreError):  # a server that is gone has rolled back; the first error is the one to tell
                self._await(session.close())

    def close(self) -> None:
        """Let go of the connections. Closing twice is allowed."""
        if self._end.alive and self._driver is not None:
            with suppress(StoreError):
                self._await(self._driver.close())
        self._end()

    async def _connect(self) -> None:
        self._driver = self._make()
        await self._driver.verify_connectivity()

    def _start(self) -> asyncio.AbstractEventLoop:
        """The loop, running in its thread."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="bolt", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, loop, thread)  # also of a client that was forgotten
        return loop

    def _forked(self) -> None:
        """In a forked child there is no thread, and the connections are the parent's: new ones are made when they are needed."""
        INHERITED.append((self._loop, self._driver, self._end.detach()))
        self._loop, self._driver = None, None

    def _session(self) -> Any:
        # All rows at once: they are wanted as a list.
        return self._driver.session(database=self.database, fetch_size=-1)

    def _await(self, work: Coroutine[Any, Any, T], more: float = 0.0) -> T:
        """What the coroutine returns, in time, or one of our errors."""

        async def limited() -> T:
            return await asyncio.wait_for(work, self.timeout + more)

        if self._loop is None:
            self._loop = self._start()
            self._await(self._connect())
        with self._boundary(self.timeout + more):
            return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()

    @contextmanager
    def _boundary(self, limit: float) -> Iterator[None]:
        """The driver's errors as ours."""
        known = self._errors
        try:
            yield
        except (known.ConfigurationError, ValueError) as error:
            raise ConfigError(f"The graph server at {self.uri!r} cannot be used: {in_one_line(error)}. {_EXAMPLE}") from error
        except known.ConstraintError as error:  # nothing that we write breaks one, unless somebody else wrote it just now
            raise Conflict(f"{self.uri}: another writer was first ({in_one_line(error)}).") from error
        except known.Neo4jError as error:
            raise self._refusal(error) from error
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise StoreError(f"The graph server at {self.uri} did not answer within {limit:g} s. {self._advice}") from error
        except (known.DriverError, OSError) as error:
            raise StoreError(f"The graph server at {self.uri} cannot be reached: {in_one_line(error)}. {self._advice}") from error

    def _refusal(self, error: Any) -> Exception:
        """What the server answered with an error code."""
        code = error.code or ""
        if code.startswith("Neo.ClientError.Security"):
            return ConfigError(f"The graph server at {self.uri} refused the user or password ({code}). Set NEO4J_USER and NEO4J_PASSWORD.")
        if "DatabaseNotFound" in code:
            return ConfigError(f"The graph server at {self.uri} has no database {self.database!r}. Give another `database`.")
        kind = Conflict if error.is_retryable() else StoreError
        return kind(f"The graph server at {self.uri} failed ({code}): {in_one_line(error)}")


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():  # a forgotten client is collected in whatever thread
        thread.join()
        loop.close()


async def _rows(runner: Any, statement: str, values: dict[str, Any]) -> Rows:
    result = await runner.run(statement, sent(values))
    return [received(row) for row in await result.values()]


def sent(value: Any) -> Any:
    """A value as Bolt can carry it: a text with half a surrogate pair, which is no Unicode, is sent as its bytes, with a mark."""
    if isinstance(value, str):
        return value if _is_plain(value) else _MARK + value.encode("utf-8", "surrogatepass").decode("latin-1")
    if isinstance(value, dict):
        return {name: sent(part) for name, part in value.items()}
    return [sent(part) for part in value] if isinstance(value, (list, tuple)) else value


def received(value: Any) -> Any:
    """What `sent` was given."""
    if isinstance(value, str):
        if not value.startswith(_MARK):
            return value
        return value[len(_MARK) :].encode("latin-1").decode("utf-8", "surrogatepass")
    return [received(part) for part in value] if isinstance(value, list) else value


def _is_plain(text: str) -> bool:
    if text.startswith(_MARK):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
