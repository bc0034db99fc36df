"""vLLM's own OpenAI-compatible server as an engine: token ids in, token ids and log-probs out, new weights through a folder.

The server, which may be another machine with the same folder mounted, is started in vLLM's development mode: only then does it have the
two addresses by which a trainer can renew it, `/collective_rpc` (here `reload_weights`, from a folder, in place) and
`/reset_prefix_cache`. That mode lets whoever reaches the port do anything with the server: keep it inside. On a CPU it also needs
`vllm_worker.Renewable`, whose docstring says why.

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL --logprobs-mode processed_logprobs ...

Knows no text.
"""

from __future__ import annotations

import shutil
import weakref
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Sampling
from memfactory.engines.base import run, seed_of
from memfactory.engines.load import stop_ids_at
from memfactory.engines.weights import save_weights

if TYPE_CHECKING:
    import openai
    from transformers import PreTrainedModel

_EXTENSION = "memfactory.engines.vllm_worker.Renewable"

_START = "Start it with VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs (docs/use.md)."


@ENGINE_REGISTRY.register("vllm_server")
class VLLMServer:
    """Samples on a vLLM server that serves the checkpoint at `model_path`, and renews its weights; see the module's docstring."""

    def __init__(
        self, model_path: str, stop_ids: frozenset[int] | None = None, *, base_url: str = "http://localhost:8000/v1",
        weights_folder: str = "rollout_weights", timeout: float = 600.0, max_retries: int = 2, served_name: str | None = None,
    ) -> None:  # fmt: skip
        """`stop_ids`: every end-of-turn token; None: those that the checkpoint names.

        `base_url`: its address, with `/v1`. `weights_folder`: a folder under the same path here and there. `timeout`: seconds for one
        call. `served_name`: what the server calls the model, if not `model_path`.
        """
        self.model_path, self.base_url = model_path, base_url.rstrip("/")
        self.stop_ids = stop_ids_at(model_path) if stop_ids is None else stop_ids
        self.weights_folder = Path(weights_folder).resolve()
        self._served, self._timeout, self._retries = served_name or model_path, timeout, max_retries
        self._client: openai.AsyncOpenAI | None = None
        self._source: weakref.ref[PreTrainedModel] | None = None
        self._versions = count(1)
        self._flying = 0
        self._reload = "reload_weights"
        self.max_length = run(self._checked())

    # The engine's promise

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation; `PromptTooLong` if the server's `max_model_len` leaves no room for it."""
        room = self.max_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise PromptTooLong(f"A prompt of {len(prompt_ids)} tokens does not fit the server's max_model_len of {self.max_length}.")
        asked = {
            "model": self._served, "prompt": list(prompt_ids), "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0,
            "min_p": 0.0, "repetition_penalty": 1.0, "seed": seed_of(sampling.stream), "max_tokens": min(sampling.max_tokens, room),
            "stop_token_ids": sorted(self.stop_ids), "logprobs": 0, "return_token_ids": True,
        }  # fmt: skip
        self._flying += 1
        try:
            reply = await self._post("/v1/completions", asked)
        finally:
            self._flying -= 1
        choice = reply["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise InfrastructureError(f"{self} gave a request up ({choice['finish_reason']}).")
        ids, logprobs = tuple(choice["token_ids"]), tuple(map(float, choice["logprobs"]["token_logprobs"]))
        if len(ids) != len(logprobs):
            raise InfrastructureError(f"{self} answered with {len(ids)} tokens and {len(logprobs)} log-probs.")
        return Completion(ids, logprobs, choice["finish_reason"])

    def follow(self, model: PreTrainedModel) -> None:
        """From now on `weights_changed` makes the server sample with the weights that `model` then has; it does so at once."""
        self._source = weakref.ref(model)
        self.weights_changed()

    def weights_changed(self) -> None:
        """Bring the weights of the model that is followed to the server, if there is one; forget what it computed from the old ones."""
        model = self._source() if self._source is not None else None
        if model is None:
            run(self._forget())
            return
        folder = self.weights_folder / f"{next(self._versions)}"
        save_weights(model, str(folder))
        try:
            self.load_weights(str(folder))
        finally:
            shutil.rmtree(folder)

    def load_weights(self, folder: str) -> None:
        """Make the server sample with the checkpoint in `folder`, which it reads itself; several servers may read the same one."""
        if self._flying:
            raise InfrastructureError("The weights changed while requests were being sampled; update only between rollouts.")
        run(self._post("/collective_rpc", {"method": self._reload, "kwargs": {"weights_path": str(Path(folder).resolve())}}))
        run(self._forget())

    def close(self) -> None:
        """Close the connections; the server goes on."""
        client, self._client = self._client, None
        if client is not None:
            run(client.close())

    def __str__(self) -> str:
        return f"vLLM's server at {self.base_url}"

    # The server

    async def _checked(self) -> int:
        """Its `max_model_len`, if it is there, serves the model, and can be renewed."""
        served = (await self._get("/v1/models"))["data"]
        names = [about["id"] for about in served]
        if self._served not in names:
            raise ConfigError(f"{self} serves {', '.join(names)}, not {self._served!r}: start it with that model, or give served_name.")
        about = (await self._get("/server_info?config_format=json", f"It is not in development mode. {_START}"))["vllm_config"]
        mode = about["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ConfigError(f"{self} reports {mode}, not those of the distribution that it samples from. {_START}")
        if about["parallel_config"]["worker_extension_cls"] == _EXTENSION:
            self._reload = "renew_weights"
        elif about["device_config"]["device_type"] == "cpu":
            raise ConfigError(f"{self} runs on a CPU, where it renews all of its weights only with --worker-extension-cls {_EXTENSION}.")
        return int(served[names.index(self._served)]["max_model_len"])

    async def _forget(self) -> None:
        if not (await self._post("/reset_prefix_cache", {})).get("success"):
            raise InfrastructureError(f"{self} could not clear its prefix cache, which holds keys and values of the old weights.")

    async def _get(self, path: str, if_missing: str = "") -> dict[str, Any]:
        return await self._asked("get", path, None, if_missing)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._asked("post", path, body, f"It is not in development mode. {_START}")

    async def _asked(self, verb: str, path: str, body: dict[str, Any] | None, if_missing: str) -> dict[str, Any]:
        import openai

        root = self.base_url.removesuffix("/v1")
        options: dict[str, Any] = {} if body is None else {"body": body}
        try:
            return dict(await getattr(self._connected(), verb)(root + path, cast_to=object, **options))
        except openai.NotFoundError as error:
            raise ConfigError(f"{self} has no {path.partition('?')[0]}. {if_missing}") from error
        except openai.BadRequestError as error:
            raise InfrastructureError(f"{self} refused a request: {_one_line(error)}") from error
        except openai.OpenAIError as error:
            raise InfrastructureError(f"{self} failed: {_one_line(error.__cause__ or error)}") from error

    def _connected(self) -> openai.AsyncOpenAI:
        import openai

        if self._client is None:
            limits = openai.DefaultAsyncHttpxClient(timeout=self._timeout)
            self._client = openai.AsyncOpenAI(
                api_key="none", base_url=self.base_url, timeout=self._timeout, max_retries=self._retries, http_client=limits
            )
        return self._client


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
