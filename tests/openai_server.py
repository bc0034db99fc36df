"""An OpenAI-compatible server for tests: a real tiny model behind real HTTP on a free local port, which misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from memfactory.common.types import Sampling
from memfactory.engines.base import run
from memfactory.engines.chat import ChatModel

Answer = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """`script`: what the next requests get, one entry each, before the model answers; `always`: what every request gets."""

    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, chat: ChatModel | None, name: str = "tiny", key: str = "right") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chat, self.name, self.key = chat, name, key
        self.script: deque[Answer] = deque()
        self.always: Answer | None = None
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        with server.lock:
            server.requests.append(body)
            server.paths.append(self.path)
            server.now += 1
            server.most = max(server.most, server.now)
            answer = server.script.popleft() if server.script else server.always or complete
        try:
            answer(self, body)
        finally:
            with server.lock:
                server.now -= 1

    def send(self, body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


def complete(handler: Handler, body: dict[str, Any]) -> None:
    """What a good server does: the model's answer with usage, finish_reason and the request's own sampling."""
    server = handler.server
    if handler.headers.get("Authorization") != f"Bearer {server.key}":
        return handler.send({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, 401)
    if body["model"] != server.name:
        return handler.send({"error": {"message": f"The model `{body['model']}` does not exist", "code": "model_not_found"}}, 404)
    assert server.chat is not None
    sampling = Sampling(body["max_tokens"], body["temperature"], body.get("top_p", 1.0), (body["seed"],))
    turn = run(server.chat.chat(body["messages"], "served", sampling))
    used = {"prompt_tokens": len(turn.prompt_ids), "completion_tokens": len(turn.response_ids)}
    return handler.send(reply(turn.text, turn.finish, used | {"total_tokens": sum(used.values())}))


def reply(content: Any, finish: Any = "stop", usage: Any = None) -> dict[str, Any]:
    """A chat completion with this content."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": "tiny", "choices": [choice], "usage": usage}


def says(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> Answer:
    """An answer that is the same whatever was asked; errors ask to be tried again at once."""
    return lambda handler, _: handler.send(body, status, kind, **({"retry-after-ms": "1"} if status >= 400 else {}), **headers)


def unsupported(name: str) -> dict[str, Any]:
    """What OpenAI's newer models say of a parameter."""
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    if name == "max_tokens":
        message += " Use 'max_completion_tokens' instead."
    if name == "temperature":
        message = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
    code = "unsupported_value" if name == "temperature" else "unsupported_parameter"
    return {"error": {"message": message, "type": "invalid_request_error", "param": name, "code": code}}


def refuses(names: Sequence[str], content: str = "fine") -> Answer:
    """A newer model: the first of these parameters that a request has is refused in OpenAI's words."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        wrong = next((name for name in names if name in body), None)
        handler.send(reply(content)) if wrong is None else handler.send(unsupported(wrong), 400)

    return answer


def hangs_up(handler: Handler, body: dict[str, Any]) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True


def breaks_off(handler: Handler, body: dict[str, Any]) -> None:
    """Half an answer, then the connection ends."""
    handler.close_connection = True
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id": ')


def stalls(seconds: float) -> Answer:
    """No answer for a while, then a right one."""

    def wait(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.send(reply("late"))

    return wait


@contextmanager
def serving(chat: ChatModel | None = None, **options: Any) -> Iterator[Server]:
    """A server in a thread, on a free port."""
    server = Server(chat, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
