"""The in-process engine: continuous batching over the trainer's own parameters, on any Hugging Face decoder.

There is no second copy of the weights and nothing to synchronise. Knows no text and no stage. How it works:

1. Prefill `prompt[:-1]` through the bare decoder (no logits); equal prompts are prefilled once. The last prompt token
   is fed in the next decode step, so every sampled token comes from one place.
2. Rows are dense in 0..n-1, each at its own position; a new request fills a hole; when holes abound the last rows move.
3. One uniform number per token and the inverse of the cumulative distribution: what is sampled does not depend on the
   batch, up to floating-point ties.
4. No cache outlives its request, so new weights need no invalidation, only an idle engine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from memfactory.algorithms.logprobs import autocast, evaluating, logits_at
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong
from memfactory.common.registry import ENGINE_REGISTRY
from memfactory.common.types import Completion, Finish, Sampling
from memfactory.engines.base import uniforms
from memfactory.engines.load import stop_ids
from memfactory.engines.slot_cache import SlotCache, cache_bytes_per_token

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 65536
"""Most padded tokens in one prefill: what does not fit waits for the next tick."""

_SPAN = 64
"""The visible width of the cache grows in steps of this many columns."""


@dataclass(slots=True, eq=False)
class _Request:
    prompt: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[Completion]
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens [n] and their log-probs [n] from logits [n, V], one uniform number [n] (float64) each.

    Temperature 0 takes the most likely token and reports its log-prob at temperature 1. The log-prob is always of the
    distribution before top-p.
    """
    greedy = temperature == 0
    table = torch.log_softmax(logits.float() / torch.where(greedy, 1.0, temperature)[:, None], dim=-1)
    probabilities = table.double().exp()
    if top_p is not None:
        probabilities = _nucleus(probabilities, top_p)
    edges = probabilities.cumsum(-1)
    drawn = torch.searchsorted(edges, (uniform * edges[:, -1])[:, None], right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    token = torch.where(greedy, table.argmax(-1), drawn)
    return token, table.gather(-1, token[:, None])[:, 0]


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero what lies outside the smallest set of tokens that holds `top_p` [n] of the probability."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p[:, None]
    return probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)


@ENGINE_REGISTRY.register("hf")
class HFEngine:
    """Samples from a `PreTrainedModel` in this process; see the module's docstring."""

    def __init__(self, model: PreTrainedModel, stop_ids: frozenset[int], slots: int = 192, bf16: bool = False) -> None:
        """`stop_ids`: every end-of-turn token. `slots`: most requests decoding together. `bf16`: arithmetic as in training."""
        _refuse_unsupported(model)
        self.model, self.stop_ids, self.slots, self.bf16 = model, stop_ids, slots, bf16
        self.max_length = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
        self.device = model.device
        self._waiting: list[_Request] = []
        self._rows: list[_Request | None] = []
        self._orphans: list[_Request] = []
        self._driver: asyncio.Task[None] | None = None
        self._cache: SlotCache | None = None

    # The engine's promise

    async def complete(self, prompt_ids: tuple[int, ...], sampling: Sampling) -> Completion:
        """Sample one continuation; `PromptTooLong` if the model has no position left for it."""
        if sampling.max_tokens < 1:
            raise ConfigError(f"max_tokens {sampling.max_tokens}: a turn needs room for at least one token.")
        room = self.max_length - len(prompt_ids)
        if not prompt_ids or room < 1:
            raise PromptTooLong(f"A prompt of {len(prompt_ids)} tokens does not fit the model's {self.max_length} positions.")
        loop = asyncio.get_running_loop()
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
            self._cache = None  # the memory is the update's until the next rollout
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
        """Admit, decode one token for every row, and return the requests that ended."""
        for at, row in enumerate(self._rows):
            if row is not None and row.future.done():  # its caller gave up
                self._rows[at] = None
        self._waiting = [r for r in self._waiting if not r.future.done()]
        live = sum(row is not None for row in self._rows)
        number = min(self.slots - live, len(self._waiting))
        # Admission in small waves: one prefill of several prompts costs less, and a lone tail is never starved.
        if number and (live == 0 or number >= min(16, 1 + live // 8)):
            number = self._affordable(number)
            with autocast(self.device, self.bf16):
                self._admit(self._waiting[:number])
            self._waiting = self._waiting[number:]  # only now: a prefill that fails must reach those it was for
        elif live < 0.75 * len(self._rows):
            self._close_holes()
        if not any(self._rows):
            self._rows = []
            return []
        holes = [at for at, row in enumerate(self._rows) if row is None]
        if holes:  # a hole keeps writing: park it where the next prefill overwrites before anything reads
            self.positions[torch.tensor(holes, device=self.device)] = 0
        return self._decode()

    def _affordable(self, number: int) -> int:
        """How many of the first waiting requests one padded prefill may hold; at least one."""
        width = 0
        for at, request in enumerate(self._waiting[:number]):
            width = max(width, len(request.prompt))
            if at and width * (at + 1) > _PREFILL_TOKENS:
                return at
        return number

    def _admit(self, requests: list[_Request]) -> None:
        heads = {head: at for at, head in enumerate(dict.fromkeys(request.prompt[:-1] for request in requests))}
        width = max(map(len, heads))
        holes = [at for at, row in enumerate(self._rows) if row is None]
        places = [*holes, *range(len(self._rows), self.slots)][: len(requests)]
        self._rows += [None] * (max(places) + 1 - len(self._rows))
        if self._cache is None:
            self._cache = SlotCache(self.slots, torch.bfloat16 if self.bf16 else None)
            self._new_state()
        # A one-token prompt has nothing to prefill; one dummy token keeps the shapes, and its key is never visible.
        ids = torch.zeros(len(heads), max(width, 1), dtype=torch.int64)
        for head, at in heads.items():
            ids[at, : len(head)] = torch.tensor(head, dtype=torch.int64)
        prefilled = DynamicCache()
        self.model.base_model(input_ids=ids.to(self.device), past_key_values=prefilled, use_cache=True)
        self._cache.adopt(prefilled)
        self._cache.reserve(_round_up(width + 1, _SPAN))
        rows = torch.tensor(places, device=self.device)
        self._cache.insert(prefilled, rows, torch.tensor([heads[r.prompt[:-1]] for r in requests], device=self.device))
        self.tokens[rows] = torch.tensor([r.prompt[-1] for r in requests], device=self.device)
        self.positions[rows] = torch.tensor([len(r.prompt) - 1 for r in requests], device=self.device)
        self.temperatures[rows] = torch.tensor([r.sampling.temperature for r in requests], device=self.device)
        self.top_ps[rows] = torch.tensor([r.sampling.top_p for r in requests], device=self.device)
        for place, request in zip(places, requests, strict=True):
            self._rows[place] = request
            self._streams[place] = uniforms(request.sampling.stream, request.max_tokens).tolist()

    def _new_state(self) -> None:
        self.tokens = torch.zeros(self.slots, dtype=torch.int64, device=self.device)
        self.positions = torch.zeros_like(self.tokens)
        self.temperatures = torch.ones(self.slots, device=self.device)
        self.top_ps = torch.ones(self.slots, device=self.device)
        self._streams: list[list[float]] = [[] for _ in range(self.slots)]

    def _close_holes(self) -> None:
        """Move the last rows into the holes, so that decode steps touch live rows only."""
        assert self._cache is not None
        live = [at for at, row in enumerate(self._rows) if row is not None]
        holes = [at for at, row in enumerate(self._rows[: len(live)]) if row is None]
        moved = live[len(live) - len(holes) :]
        if holes:
            target, source = torch.tensor(holes, device=self.device), torch.tensor(moved, device=self.device)
            self._cache.move(target, source)
            for state in (self.tokens, self.positions, self.temperatures, self.top_ps):
                state[target] = state[source]
            for hole, old in zip(holes, moved, strict=True):
                self._rows[hole], self._streams[hole] = self._rows[old], self._streams[old]
        self._rows = self._rows[: len(live)]

    def _decode(self) -> list[tuple[_Request, Completion]]:
        assert self._cache is not None
        n = len(self._rows)
        longest = max(len(r.prompt) + len(r.ids) for r in self._rows if r is not None)
        span = _round_up(longest, _SPAN)
        if span > self._cache.length:
            # A quarter more than is needed now, but never more than any live row can come to need.
            needed = max(len(r.prompt) + r.max_tokens for r in self._rows if r is not None)
            self._cache.reserve(max(span, min(_round_up(span + span // 4, _SPAN), _round_up(needed, _SPAN))))
        draws = [self._streams[at][len(r.ids)] if r is not None else 0.0 for at, r in enumerate(self._rows)]
        uniform = torch.tensor(draws, dtype=torch.float64, device=self.device)
        with autocast(self.device, self.bf16):
            logits = self._step(n, span)
        nucleus = self.top_ps[:n] if any(r is not None and r.sampling.top_p < 1 for r in self._rows) else None
        token, logprob = sample(logits, uniform, self.temperatures[:n], nucleus)
        self.tokens[:n] = token
        self.positions[:n] += 1
        return self._collect(token.tolist(), logprob.tolist())

    def _step(self, n: int, span: int) -> Tensor:
        """One forward of the first n rows at their own positions; device work only. Returns logits [n, V]."""
        assert self._cache is not None
        positions = self.positions[:n]
        self._cache.aim(positions, span)
        dtype = torch.bfloat16 if self.bf16 else self.model.dtype
        # Additive, in the model's type: a boolean 4-D mask is silently wrong under eager attention.
        hidden = torch.arange(span, device=self.device) > positions[:, None]
        mask = torch.zeros(n, 1, 1, span, dtype=dtype, device=self.device)
        mask.masked_fill_(hidden[:, None, None], torch.finfo(dtype).min)
        inputs = {
            "input_ids": self.tokens[:n, None],
            "position_ids": positions[:, None],
            "attention_mask": mask,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        return logits_at(self.model, (slice(None), -1), inputs)

    def _collect(self, tokens: list[int], logprobs: list[float]) -> list[tuple[_Request, Completion]]:
        ended = []
        for at, request in enumerate(self._rows):
            if request is None:
                continue
            request.ids.append(tokens[at])
            request.logprobs.append(logprobs[at])
            stopped = tokens[at] in self.stop_ids
            if stopped or len(request.ids) == request.max_tokens:
                finish: Finish = "stop" if stopped else "length"
                ended.append((request, Completion(tuple(request.ids), tuple(request.logprobs), finish)))
                self._rows[at] = None
        return ended


def slots_that_fit(model: PreTrainedModel, length: int) -> int:
    """How many rows of `length` tokens the memory that a GPU has free now holds in bf16, with room for growing; at least one."""
    row = cache_bytes_per_token(model.config.get_text_config(), 2) * length
    return max(1, int(0.6 * torch.cuda.mem_get_info(model.device)[0] / row))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _refuse_unsupported(model: PreTrainedModel) -> None:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder-decoder; the hf engine samples from decoders.")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"The hf engine has no cache for layers of type {sorted(kinds)}; use full-attention models.")
    window = getattr(config, "sliding_window", None)
    used = "sliding_attention" in kinds or ("layer_types" not in config.to_dict() and getattr(config, "use_sliding_window", True))
    if window and used and window < getattr(config, "max_position_embeddings", 0):
        raise ConfigError(
            f"{type(model).__name__} attends in a window of {window}; the hf engine would ignore it. Use a full-attention model."
        )


def stop_ids_of(model: PreTrainedModel, eos_token_id: int | None) -> frozenset[int]:
    """Every end-of-turn token: the tokenizer's and all that the checkpoint names (some models have several)."""
    return stop_ids(eos_token_id, model.config, model.generation_config)
