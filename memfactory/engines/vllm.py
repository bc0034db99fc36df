"""vLLM in this process, with the promise of the hf engine: token ids in, token ids and log-probs out. Knows no text.

It holds weights of its own, so it is for machines with room for them; in training they follow the trainer's (`follow`). How it works:

1. One thread owns vLLM, which is not thread-safe: it makes it, steps it and shuts it down. The event loop only waits.
2. Requests that arrive during a step join the batch at the next one.
3. Nothing comes from the checkpoint's `generation_config`: every sampling parameter is said, with a seed from the request's
   own stream. vLLM draws other numbers from it than hf does: the distributions are equal, the tokens only if greedy.
4. Log-probs are of the distribution that is sampled from, at its temperature (at temperature 0: at 1). With top-p below 1,
   which training refuses, they are those after it; hf's are those before it.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, in_one_line
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Sampling
from memfactory.common.version import install
from memfactory.engines.base import NOT_FINITE, seed_of
from memfactory.engines.load import source_of, stop_ids_at
from memfactory.engines.vllm_worker import pack_again
from memfactory.engines.weights import checkpoint_weights

if TYPE_CHECKING:  # importing it takes many seconds, and most installations have none
    from vllm import LLMEngine, SamplingParams

T = TypeVar("T")

INSTALL = f"{install('vllm')}. Without a GPU install requirements-vllm.txt as tests/vllm.sh does."

_CPU_CACHE = 4 << 30
"""Bytes of keys and values on a CPU, unless said otherwise: vLLM would take most of the machine's memory."""

_CLOSED = "The vllm engine was closed; load the model again."


@dataclass(slots=True, eq=False)
class _Request:
    prompt: list[int]
    parameters: SamplingParams
    future: asyncio.Future[Completion]


@ENGINE_REGISTRY.register("vllm")
class VLLMEngine:
    """Samples from a checkpoint with vLLM; see the module's docstring. One at a time in a process: `close` makes room."""

    _open: weakref.ref[VLLMEngine] | None = None
    """The one of this process: vLLM's process groups are global, and the first to be closed would take them from the others."""

    def __init__(
        self, model_path: str, stop_ids: frozenset[int] | None = None, device: str = "auto", *, max_model_len: int | None = None,
        gpu_memory_utilization: float | None = None, kv_cache_memory_bytes: int | None = None, dtype: str | None = None,
        enforce_eager: bool | None = None, tensor_parallel_size: int = 1,
    ) -> None:  # fmt: skip
        """`stop_ids`: every end-of-turn token; None: those that the checkpoint names. The options are called as vLLM calls them.

        `max_model_len`: most tokens of a prompt with its answer; None: the model's positions, as far as memory reaches.
        `gpu_memory_utilization`: the share of the device's memory to fill, 0.9 on a GPU; or `kv_cache_memory_bytes`: for keys
        and values alone, 4 GiB on a CPU. `dtype` None: bfloat16 on a GPU, float32 on a CPU. `enforce_eager`: compile nothing
        and capture no graphs; None: so on a CPU. `tensor_parallel_size`: GPUs that share the model. What vLLM refuses is
        `ConfigError`.
        """
        source = source_of(model_path)
        on_cpu = _import_vllm(device)
        other = VLLMEngine._open() if VLLMEngine._open is not None else None
        if other is not None:
            raise ConfigError(f"vLLM holds one model at a time in a process: close {other.model_path!r} first, or use the api engine.")
        self.model_path: str = model_path
        self.stop_ids = stop_ids_at(model_path) if stop_ids is None else stop_ids
        self._eager = on_cpu if enforce_eager is None else enforce_eager
        if on_cpu and kv_cache_memory_bytes is None and gpu_memory_utilization is None:
            kv_cache_memory_bytes = _CPU_CACHE
        options: dict[str, Any] = {
            "max_model_len": max_model_len or -1, "kv_cache_memory_bytes": kv_cache_memory_bytes, "enforce_eager": self._eager,
            "dtype": dtype or ("float32" if on_cpu else "bfloat16"), "tensor_parallel_size": tensor_parallel_size,
        }  # fmt: skip
        if on_cpu:  # vLLM 0.32 on a CPU fails on a request with a seed whose prompt is read in pieces
            options["enable_chunked_prefill"] = False
        if gpu_memory_utilization is not None:
            options["gpu_memory_utilization"] = gpu_memory_utilization
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memfactory-vllm")
        with ExitStack() as failed:
            failed.callback(self._thread.shutdown)
            self._llm: LLMEngine | None = self._thread.submit(_make, source, options).result()
            self.max_length = int(self._llm.model_config.max_model_len)
            self._vocabulary = int(self._llm.model_config.get_vocab_size())
            failed.pop_all()
        VLLMEngine._open = weakref.ref(self)
        self._owner = os.getpid()
        self._unusable = ""
        self._source: weakref.ref[torch.nn.Module] | None = None
        self._waiting: list[_Request] = []
        self._running: dict[str, _Request] = {}
        self._numbers = count()
        self._driver: asyncio.Task[None] | None = None

    # The engine's promise

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation; `PromptTooLong` if `max_model_len` leaves no room for it. vLLM's temperatures end at 2."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens {sampling.max_tokens}: a turn needs room for at least one token.")
        room = self.max_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise PromptTooLong(f"A prompt of {len(prompt_ids)} tokens does not fit vLLM's max_model_len of {self.max_length}.")
        if not 0 <= max(prompt_ids) < self._vocabulary:  # vLLM looks it up unchecked, and is lost
            raise ConfigError(f"The prompt has the token {max(prompt_ids)}, and the model {self._vocabulary} of them: not its tokenizer's.")
        self._check()
        loop = asyncio.get_running_loop()
        request = _Request(list(prompt_ids), self._parameters(sampling, room), loop.create_future())
        self._waiting.append(request)
        if self._driver is None or self._driver.done():
            self._driver = loop.create_task(self._drive())
            self._driver.add_done_callback(self._ended)
        return await request.future

    def follow(self, model: torch.nn.Module) -> None:
        """From now on `weights_changed` makes vLLM sample with the weights that `model` then has; it does so at once."""
        assert self._llm is not None
        if self._llm.vllm_config.parallel_config.world_size > 1:
            raise ConfigError("The vllm engine takes new weights on one GPU only: start servers with more, and use --rollout_servers.")
        self._source = weakref.ref(model)
        self.weights_changed()

    def weights_changed(self) -> None:
        """Take the weights of the model that is followed, if there is one, and forget what vLLM keeps of prompts under the old ones."""
        if self._waiting or self._running:
            raise InfrastructureError("The weights changed while requests were being sampled; update only between rollouts.")
        if self._source is not None and (model := self._source()) is not None:
            options = {"weights_iterator": checkpoint_weights(model)}
            self.on_thread(lambda llm: llm.collective_rpc("reload_weights", kwargs=options))
            self.on_thread(lambda llm: llm.apply_model(pack_again))
        if not self.on_thread(lambda llm: llm.reset_prefix_cache()):
            raise InfrastructureError("vLLM could not clear its prefix cache, which holds keys and values of the old weights.")

    def on_thread(self, function: Callable[[LLMEngine], T]) -> T:
        """`function` of vLLM's own engine (by which the executor and the model can be reached), on the thread that owns it."""
        self._check()
        assert self._llm is not None
        return self._thread.submit(function, self._llm).result()

    def close(self) -> None:
        """Give the memory back; requests still being sampled fail. Closing twice is allowed."""
        llm, self._llm = self._llm, None
        if llm is not None:
            self._unusable = self._unusable or _CLOSED
            self._thread.submit(llm.engine_core.shutdown).result()
            self._thread.shutdown()
            VLLMEngine._open = None

    # The loop

    def _check(self) -> None:
        if self._owner != os.getpid():
            raise ConfigError(
                f"vLLM was loaded by process {self._owner}, before this one was forked from it, and runs there alone. "
                "Load the model after the fork, or serve it and use the api engine."
            )
        if self._unusable:
            raise InfrastructureError(self._unusable)

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or self._running:
            self._check()
            arrived = {str(next(self._numbers)): request for request in self._waiting}
            self._running |= arrived
            self._waiting = []
            for name, outcome in await loop.run_in_executor(self._thread, self._step, arrived):
                future = self._running.pop(name).future
                if future.done():  # its caller gave up
                    continue
                if isinstance(outcome, Completion):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
            await asyncio.sleep(0)  # every coroutine that was woken posts its next request before the next step

    def _ended(self, driver: asyncio.Task[None]) -> None:
        """A step that failed fails every request with its own error, and the engine too: nobody knows the state it is in."""
        error = InfrastructureError("The engine was stopped.") if driver.cancelled() else driver.exception()
        if error is None:
            return
        self._unusable = self._unusable or f"vLLM failed before ({in_one_line(error, 400)}); load the model again."
        for request in (*self._waiting, *self._running.values()):
            if not request.future.done():
                request.future.set_exception(error)
        self._waiting, self._running = [], {}

    def _step(self, arrived: dict[str, _Request]) -> list[tuple[str, Completion | Exception]]:
        """On vLLM's thread: admit, sample one token for every row, and say what became of the requests that ended."""
        from vllm.exceptions import VLLMError
        from vllm.inputs import tokens_input

        llm = self._llm
        if llm is None:
            raise InfrastructureError(_CLOSED)
        ended: list[tuple[str, Completion | Exception]] = []
        for name, request in arrived.items():
            try:
                llm.add_request(name, tokens_input(request.prompt), request.parameters)
            except (VLLMError, ValueError) as error:
                ended.append((name, InfrastructureError(f"vLLM refused a request: {in_one_line(error, 400)}")))
        given_up = [name for name, request in self._running.items() if request.future.done()]
        if given_up:
            llm.abort_request(given_up)
            ended += [(name, InfrastructureError("Its caller gave up.")) for name in given_up]
        # vLLM compiles one small function of its sampler even so, which takes a C++ compiler and twenty seconds.
        with torch.compiler.set_stance("force_eager") if self._eager else nullcontext():
            outputs = llm.step()
        return ended + [(output.request_id, self._completion(output.outputs[0])) for output in outputs if output.finished]

    def _parameters(self, sampling: Sampling, room: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMError
        from vllm.sampling_params import RequestOutputKind

        try:
            return SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, min_p=0.0, repetition_penalty=1.0,
                seed=seed_of(sampling.stream), max_tokens=min(sampling.max_tokens, room), stop_token_ids=sorted(self.stop_ids),
                logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
        except (VLLMError, ValueError) as error:
            raise ConfigError(f"vLLM cannot sample so: {in_one_line(error, 400)}") from error

    def _completion(self, output: Any) -> Completion | Exception:
        if output.finish_reason not in ("stop", "length"):
            return InfrastructureError(f"vLLM gave a request up ({output.finish_reason}).")
        ids = tuple(output.token_ids)
        logprobs = tuple(float(of[token].logprob) for token, of in zip(ids, output.logprobs, strict=True))
        if not all(map(math.isfinite, logprobs)):
            return InfrastructureError(NOT_FINITE.format(next(at for at, value in enumerate(logprobs) if not math.isfinite(value))))
        return Completion(ids, logprobs, output.finish_reason)


def _import_vllm(device: str) -> bool:
    """Import vLLM for use in this process; True if it is built for CPUs."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # It tells its makers about every start, binds threads to cores that others use too, and logs what users need not know.
    for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("VLLM_LOGGING_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)
    try:
        import vllm  # noqa: F401
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(f"The vllm engine needs vLLM ({error}). {INSTALL}") from error
    kind, _, number = device.partition(":")
    if kind != "auto" and kind != current_platform.device_type:
        raise ConfigError(f"--device {device}: the vLLM that is installed runs on {current_platform.device_type or 'no device here'}.")
    if number not in ("", "0"):
        raise ConfigError(f"--device {device}: vLLM takes the first GPU that it sees. Set CUDA_VISIBLE_DEVICES={number} and --device cuda.")
    return bool(current_platform.is_cpu())


def _make(source: str, options: dict[str, Any]) -> LLMEngine:
    from vllm import EngineArgs, LLMEngine
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.exceptions import VLLMError

    made = False
    try:
        with _left_as_it_was():
            arguments = EngineArgs(
                model=source, skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="processed_logprobs",
                disable_log_stats=True, use_tqdm_on_load=False, **options,
            )  # fmt: skip
            engine = LLMEngine.from_engine_args(arguments)
        made = True
        return engine
    except (VLLMError, ValueError) as error:
        raise ConfigError(f"vLLM cannot open {source!r}: {in_one_line(error, 400)}") from error
    finally:
        if not made:
            cleanup_dist_env_and_memory()


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """vLLM seeds every global random generator and, on a CPU, takes `torch.set_num_threads` away; both belong to others."""
    python, numpy, set_num_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_num_threads
