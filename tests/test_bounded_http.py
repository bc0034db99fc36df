"""A try at a server ends: whatever drips, never ends, unpacks to gigabytes or nests without end is an infrastructure's failure."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator

import openai  # noqa: F401 - seconds that no test should count
import pytest
from openai_server import Handler, Server, reply, says, serving

from memfactory.common import bounded_http
from memfactory.common.errors import InfrastructureError, ServerTimeout
from memfactory.common.prompts import user
from memfactory.common.types import Sampling
from memfactory.engines.api import APIChat
from memfactory.engines.base import run
from memfactory.memory.embedders import OpenAIEmbedder


def drips(head: bytes, drop: bytes) -> Callable[[Handler, dict], None]:
    """Sends `head`, then a drop every few milliseconds, for seconds: each read is soon, the whole never."""

    def answer(handler: Handler, body: dict) -> None:
        handler.wfile.write(head)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


def floods(handler: Handler, body: dict) -> None:
    """A body without end, as fast as it goes."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 65536)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENDLESS = {
    "body": (drips(HEAD + b"\r\n", b" "), "within 0.2 s"),
    "head": (drips(HEAD, b"X-A: b\r\n"), "within 0.2 s"),
    "error": (drips(b"HTTP/1.1 429 Slow\r\nContent-Type: application/json\r\n\r\n", b" "), "within 0.2 s"),
    "flood": (floods, "longer than 1 MiB"),
    "bomb": (says(gzip.compress(b" " * (8 << 20)), Content_Encoding="gzip"), "longer than 1 MiB"),
    "nested": (says(b"[" * 200_000), "not JSON|is not a chat completion"),
    "not a list": (says(b"[]"), "not a chat completion"),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(bounded_http, "MOST_BYTES", 1 << 20)
    with serving() as one:
        yield one


@pytest.mark.parametrize("name", ENDLESS)
def test_a_chat_ends(server: Server, name: str) -> None:
    server.always, said = ENDLESS[name]
    chat = APIChat("api:x", base_url=server.url, api_key="right", timeout=0.2 if "within" in said else 5, max_retries=0)
    start = time.monotonic()
    with pytest.raises(InfrastructureError, match=said) as error:
        run(chat.chat(user("hi"), "answer", Sampling(4)))
    chat.close()
    assert isinstance(error.value, ServerTimeout) == ("within" in said) and time.monotonic() - start < 4


@pytest.mark.parametrize("name", ["body", "error", "flood", "bomb", "nested"])
def test_an_embedding_ends(server: Server, name: str) -> None:
    server.always, said = ENDLESS[name]
    embedder = OpenAIEmbedder(model="x", base_url=server.url, api_key="right", timeout=0.2 if "within" in said else 5, max_retries=0)
    start = time.monotonic()
    with pytest.raises(InfrastructureError):
        embedder.embed(["a"])
    assert time.monotonic() - start < 4


def test_a_packed_answer_is_read(server: Server) -> None:
    server.always = says(gzip.compress(json.dumps(reply("yes")).encode()), Content_Encoding="gzip")
    chat = APIChat("api:x", base_url=server.url, api_key="right", max_retries=0)
    assert run(chat.chat(user("hi"), "answer", Sampling(4))).text == "yes"
    chat.close()
