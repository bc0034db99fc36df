"""A chat model behind an OpenAI-compatible endpoint: for roles, judges and the evaluation of models served elsewhere.

The client retries (with back-off, honouring Retry-After); what still fails is infrastructure's failure, in words. What the server
refuses for good is not tried again: a key, a name, an empty account is the user's to mend and ends the command. A parameter that
it says it does not take is left out from then on. Knows no token ids.
"""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memfactory.common.bounded_http import async_client
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, Refused, ServerTimeout, in_one_line
from memfactory.common.flags import mapping_of
from memfactory.common.processes import INHERITED, tell_of_forks
from memfactory.common.redaction import learn, without_login, without_secrets
from memfactory.common.refusals import for_good, no_quota, refused_parameter, too_long, withheld, without
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.common.text import mend
from memfactory.common.types import Finish, Messages, Sampling, Turn
from memfactory.engines.base import run, seed_of
from memfactory.engines.template import OPEN, canonical

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

PREFIX = "api:"
"""How a role names a model behind an API: `api:NAME`; `api:` alone is LLM_MODEL."""

_REFUSED: dict[tuple[str | None, str], set[str]] = {}
"""{(address, model): parameters that it said it does not take}, for every client of this process."""


@ENGINE_REGISTRY.register("api")
class APIChat:
    """Chat completions at OPENAI_BASE_URL. One object may be asked by many coroutines; `concurrency` of them at a time."""

    def __init__(
        self, name: str = PREFIX, *, base_url: str | None = None, api_key: str | None = None,
        timeout: float = 120.0, max_retries: int = 5, concurrency: int = 64, options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`name`: `api:MODEL`. `timeout`: seconds that one try may take. `options`: more of every request, such as {"reasoning_effort":
        "low"}; they win, and None leaves a parameter out. What is not given comes from the environment or `.env`."""
        settings = load_settings()
        self.model = name.removeprefix(PREFIX) or settings.llm_model
        if not self.model:
            raise ConfigError(f"{name!r} names no model and LLM_MODEL is not set. Write api:MODEL, or set LLM_MODEL in .env.")
        self.base_url = base_url or settings.openai_base_url
        key = api_key or settings.openai_api_key
        learn({"api_key": key, "base_url": self.base_url})
        if key is None and self.base_url is None:
            raise ConfigError(f"{PREFIX}{self.model} needs OPENAI_API_KEY, or OPENAI_BASE_URL for a server without keys. Set them in .env.")
        self.options = mapping_of("api_options", settings.llm_options if options is None else options)
        self._refused = _REFUSED.setdefault((self.base_url, self.model), set())
        self._worked = False
        self.timeout, self.max_retries, self._limit = timeout, max_retries, concurrency
        self.stats: Counter[str] = Counter()
        """requests (tries included), rate_limited, server_errors, timeouts, failures."""
        self._key = key or "none"
        self._client: openai.AsyncOpenAI | None = None
        self._gate: asyncio.Semaphore | None = None
        tell_of_forks(self)

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        """One call. A server that fails, stalls or answers with something else raises `InfrastructureError`."""
        import openai  # not above: importing it takes half a second, and most commands call no server

        client, gate = self._connect()
        request: dict[str, Any] = {
            "model": self.model, "messages": messages, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens,
            "seed": seed_of(sampling.stream),
        }  # fmt: skip
        if sampling.top_p < 1:
            request["top_p"] = sampling.top_p
        async with gate:
            try:
                reply = await self._create(client, request)
            except openai.OpenAIError as error:
                self.stats["failures"] += 1
                raise self._explained(error) from error
            except (ValueError, RecursionError) as error:  # a body that is not JSON, or too deep
                self.stats["failures"] += 1
                raise InfrastructureError(f"{self} answered with something that is not JSON: {error}") from error
        text, finish = self._read(reply)
        self._worked = True
        counts = [getattr(reply.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        usage = (counts[0], counts[1]) if all(isinstance(count, int) for count in counts) else None
        return Turn(stage, (), (), (), text, finish, trainable=False, usage=usage)  # type: ignore[arg-type]

    async def _create(self, client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
        """One call, made again without a parameter that the server says it does not take."""
        import openai

        # Another name for the limit, given as an option, is the limit.
        refused = {"max_tokens"} if "max_completion_tokens" in self.options else set()
        while True:
            sent = {name: value for name, value in without(request, self._refused | refused).items() if name not in self.options}
            try:
                more = {name: value for name, value in self.options.items() if value is not None}
                return await client.chat.completions.create(**sent, extra_body=more)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                able = set(sent) - {"model", "messages", "max_completion_tokens"}
                name = refused_parameter(_words(error), error.param, able)
                if name is None:
                    raise
                if name not in self._refused and name != "max_tokens":
                    log.warning("%s does not take %s and is asked without: %s", self, name, in_one_line(error))
                self._refused.add(name)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            run(client.close())

    def __str__(self) -> str:
        more = f" with {json.dumps(without_secrets(self.options), sort_keys=True)}" if self.options else ""
        return f"{PREFIX}{self.model} at {without_login(self.base_url or 'api.openai.com')}{more}"

    def _connect(self) -> tuple[openai.AsyncOpenAI, asyncio.Semaphore]:
        """The client, made on the event loop that uses it."""
        import openai

        if self._client is None or self._gate is None:
            hooks: dict[str, Any] = {"request": [self._asked], "response": [self._answered]}
            http = async_client(self.timeout, hooks)
            self._client = openai.AsyncOpenAI(
                api_key=self._key, base_url=self.base_url, timeout=self.timeout, max_retries=self.max_retries, http_client=http
            )
            self._gate = asyncio.Semaphore(self._limit)
            weakref.finalize(self, _forget, self._client, asyncio.get_running_loop())
        return self._client, self._gate

    def _forked(self) -> None:
        """In a forked child: the connections are the parent's."""
        INHERITED.append((self._client, self._gate))
        self._client = self._gate = None

    async def _asked(self, _: Any) -> None:
        self.stats["requests"] += 1

    async def _answered(self, response: Any) -> None:
        if response.status_code == 429 and not no_quota((await response.aread()).decode(errors="replace")):
            self.stats["rate_limited"] += 1
            if self.stats["rate_limited"] == 1:
                log.warning("%s limits the rate of requests; the client waits and tries again.", self)
        elif response.status_code >= 500:
            self.stats["server_errors"] += 1
        if response.status_code == 429 and no_quota(response.text) or for_good(response.status_code):
            response.headers["x-should-retry"] = "false"  # the client's own word for what would only be refused again

    def _explained(self, error: openai.OpenAIError) -> Exception:
        """Whose failure it is, and what to do."""
        import openai

        tries, said = f"after {self.max_retries + 1} tries", in_one_line(ValueError(_words(error)))
        if isinstance(error, openai.APITimeoutError):
            self.stats["timeouts"] += 1
            return ServerTimeout(f"{self} did not answer within {self.timeout:g} s, {tries}.")
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if status == 402 or status == 429 and no_quota(str(error)):
            return ConfigError(f"{self} has no quota left ({said}). Waiting does not help: add credit there, or name another model or key.")
        if isinstance(error, openai.RateLimitError):
            return InfrastructureError(f"{self} refused for its rate limit, {tries}: {said}")
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return ConfigError(f"{self} refused the key ({said}). Set OPENAI_API_KEY in .env or the environment.")
        if isinstance(error, openai.NotFoundError):
            return ConfigError(f"{self}: no such model or address ({said}). Check LLM_MODEL (or api:NAME) and OPENAI_BASE_URL.")
        if for_good(status):
            return self._refusal(said)
        if isinstance(error, openai.APIConnectionError):
            return InfrastructureError(f"{self} cannot be reached, {tries}: {error.__cause__ or error}")
        return InfrastructureError(f"{self} failed: {said}")

    def _refusal(self, said: str) -> Exception:
        """A request that is refused for good: for this prompt alone, or, where nothing has worked yet, for how all are made."""
        if too_long(said):
            return PromptTooLong(f"{self} failed: the prompt does not fit its window ({said}).")
        if withheld(said) or self._worked:
            return Refused(f"{self} failed: it refused this prompt, and would again ({said}).")
        return ConfigError(f"{self} refused the request ({said}). --api_options changes what is sent: null leaves a parameter out.")

    def _read(self, reply: Any) -> tuple[str, Finish]:
        """Text and finish of a reply, if it is one."""
        from openai.types.chat import ChatCompletion, ChatCompletionMessage

        choices = reply.choices if isinstance(reply, ChatCompletion) else None
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        # The client builds replies without checking them: what has no content at all is not an empty answer.
        said = isinstance(message, ChatCompletionMessage) and "content" in message.model_fields_set
        text = message.content if said and message is not None else None
        if not said or not isinstance(text, (str, type(None))):
            self.stats["failures"] += 1
            raise InfrastructureError(f"{self} answered with something that is not a chat completion: {reply!r:.200}")
        reason = choices[0].finish_reason if choices else None
        if reason == "content_filter":
            self.stats["failures"] += 1
            raise InfrastructureError(f"{self} withheld its answer (content_filter).")
        whole, broken = mend(text or "")  # JSON allows half a character
        if broken:
            self.stats["mended_characters"] += broken
            log.warning("%s answered with %d half characters (lone surrogates); each is read as U+FFFD.", self, broken)
        whole = canonical(whole)
        if reason == "length" and not whole.strip():  # all of its budget went into a thought that the server does not show
            whole = OPEN
        return whole, "length" if reason == "length" else "stop"


def _words(error: openai.OpenAIError) -> str:
    """What a server said; the client's own message leaves out a body without an `error`."""
    body = getattr(getattr(error, "response", None), "text", "")[:4000]
    return f"{error} - {body}" if body and len(str(error)) < 20 else str(error)


def _forget(client: openai.AsyncOpenAI, loop: asyncio.AbstractEventLoop) -> None:
    """Close a client nobody holds any more, on the loop that it lives on."""
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(client.close(), loop)
