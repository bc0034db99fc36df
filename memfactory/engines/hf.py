"""The in-process engine: continuous batching over the trainer's own parameters, on any Hugging Face decoder.

There is no second copy of the weights and nothing to synchronise. Knows no text and no stage. How it works:

1. Prefill `prompt[:-1]` through the bare decoder (no logits); equal prompts, and long beginnings in common, are prefilled once.
   The last prompt token is fed in the next decode step, so every sampled token comes from one place.
2. Rows are dense in 0..n-1, each at its own position; a new request fills a hole; when holes abound the last rows move.
3. One uniform number per token and the inverse of the cumulative distribution: what is sampled does not depend on the
   batch, up to floating-point ties.
4. No cache outlives its request, so new weights need no invalidation, only an idle engine.
5. On a GPU a decode step is a recorded graph over tensors that never move, as many slots as the free memory holds, and its tokens
   are read while the next step already runs: a row that sampled a stop token is decoded once more, for nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from memfactory.algorithms.logprobs import autocast, evaluating
from memfactory.common.config import ENGINE_GRAPHS
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, unknown_name
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Finish, Sampling
from memfactory.engines.base import NOT_FINITE, uniforms
from memfactory.engines.forward import DecodeForward
from memfactory.engines.graphs import CudaRecorder, GraphedSteps, Recorder, row_bucket
from memfactory.engines.load import stop_ids
from memfactory.engines.prefill import prefill
from memfactory.engines.sampling import sample as sample  # its home of old
from memfactory.engines.slot_cache import SlotCache, slots_that_fit
from memfactory.engines.slots import SlotState

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

_PREFILL_TOKENS = {"cuda": 16384}
"""Most tokens in one prefill by type of device, beyond which none gets faster; their keys and values stand beside the cache."""

_SPAN = {"cuda": 256}
"""The visible width of the cache grows in steps of this many columns; fewer steps are fewer graphs."""


@dataclass(slots=True, eq=False)
class _Request:
    prompt: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[Completion]
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    steps: int = 0
    """Decode steps that were started for it; on a GPU up to one more than tokens were read."""

    ended: bool = False

    @property
    def need(self) -> int:
        """Positions that it may come to fill."""
        return len(self.prompt) + self.max_tokens


@ENGINE_REGISTRY.register("hf")
class HFEngine:
    """Samples from a `PreTrainedModel` in this process; see the module's docstring. `checked_engine` makes one that was compared."""

    def __init__(
        self, model: PreTrainedModel, stop_ids: frozenset[int], slots: int = 192, bf16: bool = False, *, graphs: str = "auto",
        decode_attention: str = "auto", share_prefixes: bool = True, longest: int = 0, recorder: Recorder | None = None,
    ) -> None:  # fmt: skip
        """`stop_ids`: every end-of-turn token. `slots`: most requests decoding together. `bf16`: arithmetic as in training.

        `graphs`: auto (on a GPU), on or off. `decode_attention`: see `fused`. `share_prefixes`: prefill long common beginnings once.
        `longest`: tokens of the longest turn to come, prompt and response, as far as is known: on a GPU the cache is made for it.
        `recorder` makes the graphs instead of CUDA.
        """
        if graphs not in ENGINE_GRAPHS:
            raise unknown_name("engine_graphs", graphs, ENGINE_GRAPHS)
        self.model, self.stop_ids, self.slots, self.bf16 = model, stop_ids, slots, bf16
        self.share_prefixes, self.longest = share_prefixes, longest
        self.max_length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        self.limit = f"model's {self.max_length} positions"
        self.device = model.device
        on_gpu = self.device.type == "cuda"
        if graphs == "on" and not on_gpu and recorder is None:
            raise ConfigError("--engine_graphs on: CUDA graphs need a GPU, and the model is on the CPU. Use auto.")
        self.graphs: GraphedSteps | None = None
        if graphs != "off" and (on_gpu or recorder is not None):
            self.graphs = GraphedSteps(recorder if recorder is not None else CudaRecorder(self.device))
        self._forward = DecodeForward(model, bf16, decode_attention)
        self._fixed = on_gpu or recorder is not None
        """The cache keeps its addresses: it is made once for the longest row, and a longer one waits until it can be made anew."""
        self._lag = 1 if self._fixed else 0
        """Steps whose tokens may be unread when the next one starts."""
        self._waiting: list[_Request] = []
        self._rows: list[_Request | None] = []
        self._orphans: list[_Request] = []
        self._flying: deque[tuple[list[_Request | None], Callable[[], tuple[list[int], list[float]]]]] = deque()
        self._driver: asyncio.Task[None] | None = None
        self._cache: SlotCache | None = None
        self._state: SlotState | None = None
        self._length = self._steps = 0

    # The engine's promise

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation; `PromptTooLong` if the model has no position left for it."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens {sampling.max_tokens}: a turn needs room for at least one token.")
        room = self.max_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise PromptTooLong(f"A prompt of {len(prompt_ids)} tokens does not fit the {self.limit}.")
        loop = asyncio.get_running_loop()
        if self._driver is not None and self._driver.get_loop() is not loop:  # this process was forked from the one that drove it
            self._close()
            self._driver, self._waiting, self._rows = None, [], []
        request = _Request(prompt_ids, sampling, loop.create_future(), min(sampling.max_tokens, room))
        self._waiting.append(request)
        if self._driver is None or self._driver.done():
            self._driver = loop.create_task(self._drive())
            self._driver.add_done_callback(self._ended)
        return await request.future

    def weights_changed(self) -> None:
        """Nothing computed from weights outlives a request: only an engine at work could hold stale keys."""
        if self._waiting or any(self._rows):
            raise InfrastructureError("The weights changed while requests were being sampled; update only between rollouts.")

    # The loop

    async def _drive(self) -> None:
        finished = False
        try:
            with evaluating(self.model):
                while self._waiting or any(self._rows):
                    for request, completion in self._tick():
                        if not request.future.done():
                            request.future.set_result(completion)
                    await asyncio.sleep(0)  # every coroutine that was woken posts its next request before the next tick
            finished = True
        finally:
            self._close()
            if not finished:
                self._orphans = [*self._waiting, *(row for row in self._rows if row is not None)]
                self._waiting, self._rows = [], []

    def _ended(self, driver: asyncio.Task[None]) -> None:
        """A loop that failed fails every request it had, with its own error; the next request starts a new loop."""
        error = InfrastructureError("The engine was stopped.") if driver.cancelled() else driver.exception()
        for request in self._orphans:
            if error is not None and not request.future.done():
                request.future.set_exception(error)
        self._orphans = []

    @torch.inference_mode()
    def _tick(self) -> list[tuple[_Request, Completion]]:
        """Admit, start a decode step for every row, and return the requests that ended in the step before or, on a CPU, in this one."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():  # kernels go to the thread's own device
            return self._admit_and_step()

    def _admit_and_step(self) -> list[tuple[_Request, Completion]]:
        self._retire([at for at, row in enumerate(self._rows) if row is not None and row.future.done()])  # its caller gave up
        self._waiting = [r for r in self._waiting if not r.future.done()]
        live = sum(row is not None for row in self._rows)
        number = self._admissible(live)
        # Admission in small waves: one prefill of several prompts costs less, and a lone tail is never starved.
        if number and (live == 0 or number >= min(16, 1 + live // 8)):
            with autocast(self.device, self.bf16):
                self._admit(self._waiting[:number])
            self._waiting = self._waiting[number:]  # only now: a prefill that fails must reach those it was for
        elif live < (0.25 if self._forward.reads_by_row else 0.75) * len(self._rows):
            self._close_holes()
        if any(self._rows):
            self._start_step()
        ended = []
        while len(self._flying) > (self._lag if any(self._rows) else 0):
            ended += self._collect(*self._flying.popleft())
        while self._rows and self._rows[-1] is None:
            self._rows.pop()
        return ended

    # Requests in and out

    def _admissible(self, live: int) -> int:
        """How many of the first waiting requests may be admitted now. Opens the cache, and closes one too short for the first of them."""
        if not self._waiting:
            return 0
        if self._fixed and live == 0 and self._cache is not None and self._waiting[0].need > self._length:
            self._close()
        if self._state is None:
            self._open()
        assert self._state is not None
        number = min(len(self._state.tokens) - live, len(self._waiting))
        if not self._fixed:
            return number
        return next((at for at, request in enumerate(self._waiting[:number]) if request.need > self._length), number)

    def _open(self) -> None:
        """The slots' tensors: as many slots as were asked for, or as fit the free memory at the longest row that is known of."""
        slots = self.slots
        if self._fixed:
            self._length = _round_up(max(self.longest, *(request.need for request in self._waiting)), 64)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            free, tokens = torch.cuda.mem_get_info(self.device)[0], max(self._length, _PREFILL_TOKENS["cuda"])
            slots = min(slots, slots_that_fit(self.model.config, self._length, free, tokens, by_model=self._forward.fused is None))
        self._cache = SlotCache(slots, torch.bfloat16 if self.bf16 else None)
        self._state = SlotState(slots, max(request.max_tokens for request in self._waiting), self.device, readers=self._lag + 1)

    def _close(self) -> None:
        """Give the memory back: it is the update's until the next rollout."""
        self._flying.clear()
        if self.graphs is not None:
            self.graphs.forget()
        self._cache = self._state = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # a large block that the update took pieces of could not become a cache again

    def _admit(self, requests: list[_Request]) -> None:
        cache, state = self._cache, self._state
        assert cache is not None and state is not None
        longest = max(request.max_tokens for request in requests)
        if longest > state.width:
            state.widen(max(longest, 2 * state.width))
            if self.graphs is not None:
                self.graphs.forget()
        heads: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(requests):
            heads.setdefault(request.prompt[:-1], []).append(number)
        holes = [at for at, row in enumerate(self._rows) if row is None]
        places = [*holes, *range(len(self._rows), len(state.tokens))][: len(requests)]
        prompts = list(heads)
        for prefilled, members in prefill(self.model, prompts, self.share_prefixes, _PREFILL_TOKENS.get(self.device.type, 65536)):
            cache.adopt(prefilled)
            cache.reserve(self._length or _round_up(max(len(prompts[member]) for member in members) + 1, 64))
            pairs = [(places[number], row) for row, member in enumerate(members) for number in heads[prompts[member]]]
            rows, owners = (state.upload(list(part), torch.int64) for part in zip(*pairs, strict=True))
            cache.insert(prefilled, rows, owners)
            del prefilled  # before the next one is made
        streams = np.zeros((len(requests), longest))
        for number, request in enumerate(requests):
            streams[number, : request.max_tokens] = uniforms(request.sampling.stream, request.max_tokens)
        state.admit(
            state.upload(places, torch.int64), [r.prompt[-1] for r in requests], [len(r.prompt) - 1 for r in requests],
            [r.sampling.temperature for r in requests], [r.sampling.top_p for r in requests], torch.from_numpy(streams),
        )  # fmt: skip
        self._rows += [None] * (max(places) + 1 - len(self._rows))
        for place, request in zip(places, requests, strict=True):
            self._rows[place] = request

    def _retire(self, rows: list[int]) -> None:
        """Free rows; until it is filled again, a free one keeps writing where the next prefill overwrites before anything reads."""
        if rows and self._state is not None:
            self._state.retire(rows)
            for at in rows:
                self._rows[at] = None

    def _close_holes(self) -> None:
        """Move the last rows into the holes, so that decode steps touch live rows only."""
        assert self._cache is not None and self._state is not None
        live = [at for at, row in enumerate(self._rows) if row is not None]
        holes = [at for at, row in enumerate(self._rows[: len(live)]) if row is None]
        moved = live[len(live) - len(holes) :]
        if holes:
            target, source = (self._state.upload(rows, torch.int64) for rows in (holes, moved))
            self._cache.move(target, source, max(self._keys_of(self._rows[at]) for at in moved))
            self._state.move(target, source)
            for hole, old in zip(holes, moved, strict=True):
                self._rows[hole] = self._rows[old]
        self._rows = self._rows[: len(live)]

    @staticmethod
    def _keys_of(request: _Request | None) -> int:
        """Keys that the next step of a row sees, its own among them."""
        return 0 if request is None else len(request.prompt) + request.steps

    # One token for every row

    def _start_step(self) -> None:
        """Let the device decode one token for every row, and ask for the tokens."""
        assert self._cache is not None and self._state is not None
        n, longest = len(self._rows), max(map(self._keys_of, self._rows))
        span = _round_up(longest, _SPAN.get(self.device.type, 64))
        if self._fixed:
            n = row_bucket(n, len(self._state.tokens))
            span = self._length if self._forward.reads_by_row else min(span, self._length)
        elif span > self._cache.length:
            # A quarter more than is needed now, but never more than any live row can come to need.
            needed = max(r.need for r in self._rows if r is not None)
            self._cache.reserve(max(span, min(_round_up(span + span // 4, 64), _round_up(needed, 64))))
        nucleus = any(r is not None and r.sampling.top_p < 1 for r in self._rows)
        self._forward.check(self._state.tokens[:n], self._state.positions[:n], self._cache, span)
        step = partial(self._step, n, span, nucleus)
        if self.graphs is None:
            step()
        else:
            self.graphs.run((n, span, nucleus), step, self._state.idle)
        for request in self._rows:
            if request is not None:
                request.steps += 1
        self._steps += 1
        self._flying.append((list(self._rows), self._state.fetch(n, self._steps % (self._lag + 1))))

    @torch.inference_mode()
    def _step(self, n: int, span: int, nucleus: bool) -> None:
        """Device work only, on tensors that stay where they are: what a graph records."""
        assert self._cache is not None and self._state is not None
        tokens, positions = self._state.tokens[:n], self._state.positions[:n]
        self._state.advance(n, self._forward.logits(tokens, positions, self._cache, span), nucleus)

    def _collect(self, rows: list[_Request | None], read: Callable[[], tuple[list[int], list[float]]]) -> list[tuple[_Request, Completion]]:
        """Take over a step's tokens for the requests that were in its rows; those that ended."""
        ended = []
        tokens, logprobs = read()
        for request, token, logprob in zip(rows, tokens, logprobs, strict=False):
            if request is None or request.ended or request.future.done():
                continue
            if math.isnan(logprob):
                request.ended = True
                request.future.set_exception(InfrastructureError(NOT_FINITE.format(len(request.ids))))
                continue
            request.ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in self.stop_ids
            if stopped or len(request.ids) == request.max_tokens:
                request.ended = True
                finish: Finish = "stop" if stopped else "length"
                ended.append((request, Completion(tuple(request.ids), tuple(request.logprobs), finish)))
        self._retire([at for at, row in enumerate(self._rows) if row is not None and row.ended])
        return ended


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def stop_ids_of(model: PreTrainedModel, eos_token_id: int | None) -> frozenset[int]:
    """Every end-of-turn token: the tokenizer's and all that the checkpoint names (some models have several)."""
    return stop_ids(eos_token_id, model.config, model.generation_config)
