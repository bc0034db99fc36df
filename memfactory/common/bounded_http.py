"""HTTP clients for model servers whose tries end: one time limit for a whole try, however its bytes drip, and a largest body.

A client's own time-out is of a single read, and its memory is the server's to fill. Knows no API and no model.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

MOST_BYTES = 1 << 26
"""Of a body, unpacked: some ten times the largest that a server has to send."""


def async_client(timeout: float, hooks: Mapping[str, list[Callable]] | None = None) -> Any:
    """An asynchronous client for `openai.AsyncOpenAI(http_client=...)`; `timeout` is of a try that says none.

    `hooks`: httpx's event hooks; those of responses are told of whole ones.
    """
    import openai  # not above: importing it takes half a second

    http, told = _library(openai.DefaultAsyncHttpxClient), hooks or {}
    default = http.USE_CLIENT_DEFAULT

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, auth: Any = default, follow_redirects: Any = default) -> Any:
            async def whole() -> Any:
                response = await super(Bounded, self).send(request, stream=True, auth=auth, follow_redirects=follow_redirects)
                try:
                    body = bytearray()
                    async for part in response.aiter_bytes():
                        body += _room_for(part, body, http, request)
                    return _read(http, response, bytes(body))
                finally:
                    await response.aclose()

            limit = _limit(request, timeout)
            try:
                response = await asyncio.wait_for(whole(), limit)
            except asyncio.TimeoutError as error:
                raise http.ReadTimeout(f"no whole answer within {limit:g} s", request=request) from error
            for hook in told.get("response", ()):
                await hook(response)
            return response

    return Bounded(timeout=timeout, event_hooks={"request": told.get("request", [])})


def client(timeout: float, hooks: Mapping[str, list[Callable]] | None = None) -> Any:
    """The same without asynchrony: the limit is looked at whenever bytes of the body come, or a read times out."""
    import openai

    http, told = _library(openai.DefaultHttpxClient), hooks or {}
    default = http.USE_CLIENT_DEFAULT

    class Bounded(openai.DefaultHttpxClient):
        def send(self, request: Any, *, stream: bool = False, auth: Any = default, follow_redirects: Any = default) -> Any:
            limit = _limit(request, timeout)
            end = time.monotonic() + limit
            response = super().send(request, stream=True, auth=auth, follow_redirects=follow_redirects)
            try:
                body = bytearray()
                for part in response.iter_bytes():
                    body += _room_for(part, body, http, request)
                    if time.monotonic() > end:
                        raise http.ReadTimeout(f"no whole answer within {limit:g} s", request=request)
                whole = _read(http, response, bytes(body))
            finally:
                response.close()
            for hook in told.get("response", ()):
                hook(whole)
            return whole

    return Bounded(timeout=timeout, event_hooks={"request": told.get("request", [])})


def _library(kind: type) -> Any:
    """The module that the client is from: openai has changed it."""
    return importlib.import_module(kind.__mro__[1].__module__.partition(".")[0])


def _limit(request: Any, timeout: float) -> float:
    said = request.extensions.get("timeout", {}).get("read")
    return timeout if said is None else said


def _room_for(part: bytes, body: bytearray, http: Any, request: Any) -> bytes:
    if len(body) + len(part) > MOST_BYTES:
        raise http.ReadError(f"the answer is longer than {MOST_BYTES >> 20} MiB", request=request)
    return part


def _read(http: Any, response: Any, body: bytes) -> Any:
    """The response with its body, which is unpacked already."""
    packed = {"content-encoding", "content-length", "transfer-encoding"}
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in packed]
    return http.Response(response.status_code, headers=headers, content=body, request=response.request, extensions=response.extensions)
