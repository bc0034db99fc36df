"""What an engine is, and the loop it lives on. Knows nothing of text: token ids in, token ids and log-probs out.

Engines are asked by coroutines, which meet on one event loop in a thread of its own: a notebook's running loop is
never touched, and callers stay ordinary synchronous code (`run`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import numpy as np

from memfactory.common.processes import INHERITED
from memfactory.common.types import Completion, Sampling

T = TypeVar("T")

NOT_FINITE = "After {} sampled tokens the model's numbers are not finite: its weights are damaged, or they overflow the type computed in."
"""Why an engine gives a request up whose log-probs are not numbers."""


class Engine(Protocol):
    """Samples continuations. Requests of all live coroutines meet in one pool."""

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation; its random stream is `sampling.stream`, whatever it is batched with."""

    def weights_changed(self) -> None:
        """Forget everything computed from the old weights."""

    # An engine that holds memory or processes of its own has `close() -> None` too (`Models.close` calls it).


def uniforms(stream: tuple[int, ...], number: int) -> np.ndarray:
    """The first `number` uniform numbers in [0, 1) of a stream: float64, the same on every machine and for any batch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(stream))).random(number)


def seed_of(stream: tuple[int, ...]) -> int:
    """A seed in [0, 2^31) for samplers that draw for themselves."""
    return int(uniforms(stream, 1)[0] * 2**31)


def stream_key(text: str) -> int:
    """A stable 64-bit number for a name, to put into a stream."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


_THREAD = "memfactory-engine"
_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The package's event loop, running in its own thread from the first call on."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
    return _loop


def _forked() -> None:
    """In a forked child there is no such thread: the next call starts a new loop. Threads of torch are none either."""
    global _loop, _lock
    _lock = threading.Lock()
    if _loop is not None:
        INHERITED.append(_loop)
        _loop = None
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)  # as torch does in its data loaders' workers: more would wait for threads that are not there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def on_own_loop() -> bool:
    """True on the package's event loop, where nothing may wait for a coroutine but by `await`."""
    return threading.current_thread().name == _THREAD


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the package's loop and wait for it; Ctrl-C cancels it there. Not callable from that loop itself."""
    loop = event_loop()
    if on_own_loop():
        coroutine.close()
        raise RuntimeError("run() was called on the package's own event loop (from inside write, read or act); await the coroutine there.")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
