"""A list of vLLM servers as one engine: token ids in, token ids and log-probs out. Knows no text and no trainer.

Each request goes to the server that has the fewest of ours, in turn where several have; one that fails goes to the next server.
A server is asked on its OpenAI-compatible completions endpoint with token ids, for token ids (`return_token_ids`) and the
log-probs of what was sampled, which must be those of the distribution sampled from: `--logprobs-mode processed_logprobs`.
New weights come as a folder that every server can read (`vllm_server.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfactory.common.bounded_http import async_client
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, in_one_line
from memfactory.common.redaction import learn
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Sampling
from memfactory.engines.base import run, seed_of
from memfactory.engines.vllm_server import VLLMServer

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

_REST = 30.0
"""Seconds for which a server that failed is asked only if no other is left."""


@dataclass(slots=True, eq=False)
class _Server:
    root: str
    client: openai.AsyncOpenAI
    control: VLLMServer
    model: str = ""
    busy: int = 0
    """Requests of ours that it has now."""
    served: int = 0
    resting: float = 0.0
    """Until when it is avoided, on the monotonic clock."""


@ENGINE_REGISTRY.register("servers")
class ServerPool:
    """Samples from any of several servers that hold the same model; see the module's docstring."""

    def __init__(
        self, urls: list[str], stop_ids: frozenset[int] = frozenset(), *, api_key: str = "none", timeout: float = 3600.0,
        max_retries: int = 1, first: int = 0,
    ) -> None:  # fmt: skip
        """`urls`: http://HOST:PORT, with or without /v1. `stop_ids`: every end-of-turn token. `timeout`: seconds for one response.

        `first`: where taking turns begins; processes that share the servers give different numbers. A server that does not answer
        now, or two that serve different models, are `ConfigError`.
        """
        if not urls:
            raise ConfigError("No rollout server: give at least one, http://HOST:PORT.")
        self.stop_ids, self._turn = stop_ids, first
        learn({"api_key": api_key, "urls": urls})
        self._options: dict[str, Any] = {"api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        self.servers: list[_Server] = run(self._connect(urls))

    async def _connect(self, urls: list[str]) -> list[_Server]:
        import openai  # not above: importing it takes half a second

        made: list[_Server] = []
        for url in urls:
            root = url.rstrip("/").removesuffix("/v1")
            if not root.startswith(("http://", "https://")):
                await _closed(made)
                raise ConfigError(f"Rollout server {url!r}: write http://HOST:PORT.")
            client = openai.AsyncOpenAI(base_url=f"{root}/v1", http_client=async_client(self._options["timeout"]), **self._options)
            made.append(_Server(root, client, VLLMServer(root, client)))
        for server in made:
            try:
                listed = await server.client.with_options(timeout=20).models.list()
            except openai.OpenAIError as error:
                await _closed(made)
                raise ConfigError(
                    f"The rollout server {server.root} does not answer ({in_one_line(error.__cause__ or error)}). Start it first: "
                    "docs/scaling.md has the command."
                ) from error
            server.model = listed.data[0].id if listed.data else ""
            try:
                await server.control.check()
            except (ConfigError, InfrastructureError):
                await _closed(made)
                raise
        return made

    # The engine's promise

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation on the least busy server; if all fail, `InfrastructureError`."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens {sampling.max_tokens}: a turn needs room for at least one token.")
        tried: list[_Server] = []
        while True:
            server = self._choose(tried)
            server.busy += 1
            try:
                return await self._ask(server, prompt_ids, sampling)
            except InfrastructureError as error:
                if isinstance(error, PromptTooLong):
                    raise
                server.resting = time.monotonic() + _REST
                tried.append(server)
                if len(tried) == len(self.servers):
                    raise
                log.warning("Rollout server %s failed, another is asked: %s", server.root, error)
            finally:
                server.busy -= 1

    def weights_changed(self) -> None:
        """Nothing: what the servers keep of old weights goes when new ones are loaded."""

    def load(self, folder: Path) -> None:
        """Have every server load the weights in `folder` and forget what it computed from the old ones."""
        run(self._load(folder))

    def close(self) -> None:
        """Close the connections."""
        run(_closed(self.servers))

    def _choose(self, tried: list[_Server]) -> _Server:
        now, count = time.monotonic(), len(self.servers)
        left = [(server.resting > now, server.busy, (at - self._turn) % count, at) for at, server in enumerate(self.servers)]
        at = min(entry for entry in left if self.servers[entry[3]] not in tried)[3]
        self._turn = at + 1
        return self.servers[at]

    async def _ask(self, server: _Server, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        import openai

        # Nothing is left to the checkpoint's generation_config: every parameter is said.
        more = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": sorted(self.stop_ids), "return_token_ids": True}
        try:
            reply = await server.client.completions.create(
                model=server.model, prompt=list(prompt_ids), max_tokens=sampling.max_tokens, temperature=sampling.temperature,
                top_p=sampling.top_p, seed=seed_of(sampling.stream), logprobs=0, extra_body=more | {"skip_special_tokens": False},
            )  # fmt: skip
        except openai.BadRequestError as error:
            said = in_one_line(error.__cause__ or error)
            kind = PromptTooLong if "context length" in said or "maximum model length" in said else ConfigError
            raise kind(f"{server.root} refused a request: {said}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ConfigError(f"{server.root} refused a request: {in_one_line(error.__cause__ or error)}") from error
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise InfrastructureError(f"{server.root} failed: {in_one_line(error.__cause__ or error)}") from error
        server.served += 1
        return _completion(server.root, reply, sampling.max_tokens)

    async def _load(self, folder: Path) -> None:
        await asyncio.gather(*(server.control.load_weights(str(folder)) for server in self.servers))


def _completion(root: str, reply: Any, most: int) -> Completion:
    """What a server sampled, if it says it in full: its tokens, a finite log-prob of each, and why it ended."""
    choice = reply.choices[0] if getattr(reply, "choices", None) else None
    ids = getattr(choice, "token_ids", None)
    logprobs = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
    if choice is None or ids is None or logprobs is None:
        raise ConfigError(f"{root} returns no token ids and log-probs: rollouts need vLLM 0.10.2 or newer (return_token_ids, logprobs).")
    reason = choice.finish_reason
    whole = len(ids) == len(logprobs) and 0 < len(ids) <= most and all(value is not None and math.isfinite(value) for value in logprobs)
    if not whole or reason not in ("stop", "length"):
        raise InfrastructureError(f"{root} gave {len(ids)} tokens, {len(logprobs)} log-probs and the finish {reason!r}: not a response.")
    return Completion(tuple(ids), tuple(map(float, logprobs)), reason)


async def _closed(servers: list[_Server]) -> None:
    for server in servers:
        await server.client.close()
