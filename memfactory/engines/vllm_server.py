"""New weights for a vLLM server: it loads a folder that it can see, in place, and forgets what it computed from the old ones.

vLLM's OpenAI-compatible server takes no weights by itself. In its development mode it has two more addresses that suffice:
`/collective_rpc` calls a method of its workers (`reload_weights`, from a folder) and `/reset_prefix_cache` clears the keys and values
of prompts. That mode lets whoever reaches the port do anything with the server: keep it inside.

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL --logprobs-mode processed_logprobs ...

Knows no tokens: who samples asks the server's ordinary addresses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfactory.common.errors import ConfigError, InfrastructureError, in_one_line

if TYPE_CHECKING:
    import openai

EXTENSION = "memfactory.engines.vllm_worker.Renewable"

_START = "Start it with VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs (docs/use.md)."


class VLLMServer:
    """The control of one server, over a client that its owner keeps and closes."""

    def __init__(self, root: str, client: openai.AsyncOpenAI) -> None:
        """`root`: `http://HOST:PORT`. `client`: any client of it, for its connections, time-outs and retries."""
        self.root, self.client = root.rstrip("/").removesuffix("/v1"), client
        self.max_model_len = 0
        self._method = "reload_weights"

    async def check(self) -> None:
        """`ConfigError` unless the server can train: it takes new weights, all of them, and reports what it samples from."""
        about = (await self._asked("get", "/server_info?config_format=json"))["vllm_config"]
        mode = about["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ConfigError(f"{self} reports {mode}, not log-probs of the distribution that it samples from. {_START}")
        if about["parallel_config"].get("worker_extension_cls") == EXTENSION:
            self._method = "renew_weights"
        elif about["device_config"].get("device") == "cpu":
            raise ConfigError(f"{self} runs on a CPU, where it renews all of its weights only with --worker-extension-cls {EXTENSION}.")
        self.max_model_len = int(about["model_config"]["max_model_len"])

    async def load_weights(self, folder: str) -> None:
        """Sample from the checkpoint in `folder` from now on; it is read by the server, under the same path. Nothing may be in flight.

        `save_weights` writes such a folder. After a failure nobody knows which weights the server has: load again, or stop.
        """
        order = {"method": self._method, "kwargs": {"weights_path": str(Path(folder).resolve())}}
        await self._asked("post", "/collective_rpc", order)
        if not (await self._asked("post", "/reset_prefix_cache", {})).get("success"):
            raise InfrastructureError(f"{self} could not clear its prefix cache, which holds keys and values of the old weights.")

    def __str__(self) -> str:
        return f"The vLLM server {self.root}"

    async def _asked(self, verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import openai

        options: dict[str, Any] = {} if body is None else {"body": body}
        try:
            return dict(await getattr(self.client, verb)(self.root + path, cast_to=object, **options))
        except openai.NotFoundError as error:
            raise ConfigError(f"{self} has no {path.partition('?')[0]}: it is not in development mode. {_START}") from error
        except (openai.OpenAIError, ValueError, TypeError, RecursionError) as error:
            raise InfrastructureError(f"{self} failed at {path.partition('?')[0]}: {in_one_line(error.__cause__ or error, 400)}") from error
