"""A stand-in for vLLM's server for tests: a real model behind `/v1/completions` with token ids, and the endpoints that load weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai_server import Handler, Server, serving
from transformers import AutoModelForCausalLM, PreTrainedModel

from memfactory.common.types import Sampling
from memfactory.engines.base import run
from memfactory.engines.hf import HFEngine

_LOADING = threading.Lock()
"""transformers loads one model at a time in a process."""


class TokenHandler(Handler):
    def do_GET(self) -> None:
        if self.path.startswith("/server_info"):
            model = {"logprobs_mode": "processed_logprobs", "max_model_len": 512}
            return self.send({"vllm_config": {"model_config": model, "parallel_config": {}, "device_config": {"device": "cuda"}}})
        return self.send({"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "x"}]})


class TokenServer:
    """The server, the model that it holds, and which folders of weights it was told to load."""

    def __init__(self, server: Server, model: PreTrainedModel, stop_ids: frozenset[int]) -> None:
        self.server, self.loaded = server, []
        self.model, self.engine = model, HFEngine(model, stop_ids)
        self.url = server.url
        server.always = self.answer
        server.RequestHandlerClass = TokenHandler

    @property
    def asked(self) -> int:
        """Requests for tokens so far."""
        return self.server.paths.count("/v1/completions")

    def answer(self, handler: Handler, body: dict[str, Any]) -> None:
        if handler.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.loaded.append(Path(body["kwargs"]["weights_path"]))
            with _LOADING:
                self.model.load_state_dict(AutoModelForCausalLM.from_pretrained(self.loaded[-1]).state_dict())
            return handler.send({"results": [None]})
        if handler.path == "/reset_prefix_cache":
            return handler.send({"success": True})
        assert handler.path == "/v1/completions" and body["return_token_ids"] and body["logprobs"] == 0
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0) and body["stop_token_ids"]
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"], (body["seed"],))
        out = run(self.engine.complete(tuple(body["prompt"]), sampling))
        logprobs = {"token_logprobs": list(out.logprobs), "tokens": [f"token_id:{i}" for i in out.ids], "top_logprobs": None}
        choice = {"index": 0, "text": "", "finish_reason": out.finish, "token_ids": list(out.ids), "logprobs": logprobs}
        return handler.send({"id": "x", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]})


@contextmanager
def token_server(model: PreTrainedModel, stop_ids: frozenset[int]) -> Iterator[TokenServer]:
    """A server of its own copy of a model, on a free port."""
    with serving() as server:
        yield TokenServer(server, model, stop_ids)
