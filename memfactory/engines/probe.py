"""Whether what samples and what is differentiated is the model's own forward: measured at start, not looked up in a list of classes.

Sequences of random tokens, short and long (past the attention window, where that can be paid), are computed alone and together and
compared with `model(input_ids).logits` of each one alone, in eval mode. Draws from no global random state. Knows no architecture.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PretrainedConfig

from memfactory.algorithms.logprobs import autocast, evaluating
from memfactory.common.errors import ConfigError, InfrastructureError, in_one_line
from memfactory.common.types import Sampling
from memfactory.engines.base import Engine, run
from memfactory.engines.forward import CLOSE
from memfactory.engines.fused import kernel_errors

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
Scored = tuple[Ids, Ids, Sequence[float]]
"""A prompt, its continuation, and the log-probs that somebody gives the continuation at `TEMPERATURE`."""

TEMPERATURE = 4.0
"""Of the comparison: a log-prob near 0 would say nothing, for it hardly moves with its logits."""

NEW, SHORT, LONG, PAST, LONGEST = 4, 7, 80, 16, 8192
"""Tokens of a continuation; of the short prompt; of the long one, whose beginning can then be shared (`prefill.SHARED`); by which
it passes a boundary; and at most."""

WORK = {"cpu": 2e11, "cuda": 1e15}
"""Floating-point operations that a comparison may take: seconds."""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison."""

    name: str
    off: float
    """The largest difference of a log-prob, times the temperature, relative to the spread of the logits; infinite: it does not run."""
    limit: float
    why: str = ""
    """What was raised, if it does not run."""

    @property
    def agrees(self) -> bool:
        """False also for what is no number."""
        return self.off < self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.why else f"{self.name}: off by {self.off:.2g} (rounding: below {self.limit:g})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparisons of one way to compute said."""

    cases: tuple[Case, ...]
    covered: int
    """Tokens up to which the comparison holds: the model's positions, or the first boundary that was too long to be passed."""
    beyond: str = ""
    """What the configuration calls that boundary."""

    @property
    def worst(self) -> Case:
        """The comparison that is furthest off."""
        return max(self.cases, key=lambda case: (not case.agrees, case.off if case.off == case.off else float("inf")))

    @property
    def agrees(self) -> bool:
        """Whether all do."""
        return all(case.agrees for case in self.cases)


def boundaries(config: PretrainedConfig) -> list[tuple[int, str]]:
    """(tokens, option): the lengths of a configuration past which a token may be computed otherwise, shortest first."""
    found: dict[int, str] = {}

    def walk(options: dict[str, Any]) -> None:
        kind = str(options.get("rope_type", options.get("type", "")))
        for name, value in options.items():
            if not isinstance(name, str):  # of labels
                continue
            if isinstance(value, dict) and "vision" not in name and "audio" not in name:
                walk(value)
            by_length = name == "original_max_position_embeddings" and kind in ("longrope", "dynamic", "su")
            window = ("window" in name and "layers" not in name) or name in ("attention_chunk_size", "max_attention_size")
            if isinstance(value, int) and not isinstance(value, bool) and value > 1 and (by_length or window):
                found[value] = name

    text = config.get_text_config()
    walk(text.to_dict())
    if (length := getattr(text, "original_max_position_embeddings", None)) and "longrope" in str(getattr(text, "rope_parameters", "")):
        found[int(length)] = "original_max_position_embeddings"
    return sorted(found.items())


def positions(config: PretrainedConfig) -> int:
    """Tokens that a model has positions for, prompt and response; very many if nothing limits them."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is computed alone and together."""

    short: Ids
    long: Ids
    twin: Ids
    """It shares the long one's beginning."""
    edges: tuple[Ids, ...]
    """They end just before a boundary, so that their continuation crosses it."""
    covered: int
    beyond: str

    @property
    def all(self) -> tuple[Ids, ...]:
        """Each."""
        return (self.short, self.long, self.twin, *self.edges)


def prompts_for(model: PreTrainedModel, most: int = 0) -> Prompts:
    """Prompts that pass every boundary that can be paid, and have with their continuation at most `most` tokens (0: the model's)."""
    config = model.config
    limit = min(positions(config), most or 1 << 30)
    parameters = max(1, sum(parameter.numel() for parameter in model.parameters()))
    payable = max(SHORT + 1, min(LONGEST, int(WORK.get(model.device.type, WORK["cpu"]) / (8 * parameters))))
    places = [(at, name) for at, name in boundaries(config) if at < limit]
    passed = [at for at, _ in places if at + PAST <= payable and at + PAST + NEW <= limit]
    length = max(2, min(max(min(LONG, payable), *(at + PAST for at in passed), 0), limit - NEW))
    covered, beyond = min(((at, name) for at, name in places if at not in passed), default=(limit, ""))
    rng, usable = np.random.Generator(np.random.Philox(14)), _usable(config)
    draw = [int(usable[at]) for at in rng.integers(0, len(usable), 2 * length + SHORT)]
    long = tuple(draw[:length])
    twin = (*long[: length - min(9, length // 2)], *draw[length : length + 5])[:length]
    edges = tuple(long[: at - 2] for at in passed[-2:] if at > 3)
    return Prompts(tuple(draw[-min(SHORT, length) :]), long, twin, edges, covered, beyond)


def _usable(config: PretrainedConfig) -> np.ndarray:
    """Ids of the vocabulary that the configuration gives no meaning of their own."""
    special: set[int] = set()

    def walk(options: dict[str, Any]) -> None:
        for name, value in options.items():
            if isinstance(value, dict):
                walk(value)
            elif isinstance(name, str) and name.endswith(("_id", "_index", "_ids")):
                special.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))

    walk(config.to_dict())
    size = int(config.get_text_config().vocab_size)
    return np.array([at for at in range(size) if at not in special] or [0])


def plain_logprobs(model: PreTrainedModel, prompt: Ids, response: Ids, bf16: bool = False) -> tuple[list[float], float]:
    """Log-probs of a continuation at `TEMPERATURE` by the model's own forward, alone and without a cache, and its logits' spread."""
    ids = torch.tensor([(*prompt, *response)], device=model.device)
    with torch.no_grad(), evaluating(model), autocast(model.device, bf16):
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    table = torch.log_softmax(logits / TEMPERATURE, -1)
    values = table.gather(-1, torch.tensor(response, device=model.device)[:, None])[:, 0]
    return values.tolist(), float(logits.std(-1).mean())


def compared(model: PreTrainedModel, name: str, scored: Callable[[], Sequence[Scored]], bf16: bool = False) -> Case:
    """One comparison with the plain forward; that it cannot be computed at all is one of its outcomes."""
    half = torch.bfloat16 if bf16 else model.dtype
    limit = CLOSE.get(half, 1e-3)
    try:
        off = 0.0
        for prompt, response, values in scored():
            plain, spread = plain_logprobs(model, prompt, response, bf16)
            gaps = [TEMPERATURE * abs(a - b) / max(spread, 1e-9) for a, b in zip(plain, values, strict=True)]
            # In half precision rounding may send a token to another expert: its sequence is judged as a whole.
            own = max(gaps) if half == torch.float32 else (sum(gap * gap for gap in gaps) / len(gaps)) ** 0.5
            off = own if not own <= off else off  # written so that NaN stays
    except torch.OutOfMemoryError:
        raise
    except _FAILS as error:
        return Case(name, float("inf"), limit, f"it does not run ({type(error).__name__}: {in_one_line(error, 160)})")
    return Case(name, off, limit)


_FAILS: tuple[type[Exception], ...] = (*kernel_errors(), KeyError, IndexError, AssertionError, ArithmeticError)
"""What a model may raise whose layers ask for another cache, other arguments or other masks."""


def probe_engine(model: PreTrainedModel, make: Callable[[], Engine], prompts: Prompts, bf16: bool = False) -> Verdict:
    """What an engine samples, against the model's own forward: alone, together, after what others share, across a boundary."""

    def sampled(chosen: Sequence[Ids]) -> list[Scored]:
        async def every() -> list[Any]:
            engine = make()
            asked = (engine.complete(prompt, Sampling(NEW, TEMPERATURE, stream=(14, at))) for at, prompt in enumerate(chosen))
            return list(await asyncio.gather(*asked))

        try:
            return [(prompt, out.ids, out.logprobs) for prompt, out in zip(chosen, run(every()), strict=True)]
        except InfrastructureError as error:
            raise RuntimeError(str(error)) from error

    groups = {
        "a short prompt alone": [prompts.short], "a long prompt alone": [prompts.long], "short and long together": prompts.all,
    }  # fmt: skip
    groups |= {f"a turn across {len(edge) + 2} tokens": [edge] for edge in prompts.edges}
    cases = [compared(model, name, lambda chosen=chosen: sampled(chosen), bf16) for name, chosen in groups.items()]  # type: ignore[misc]
    return Verdict(tuple(cases), prompts.covered, prompts.beyond)


Found = tuple[str, Verdict, list[str]]


def first_that_agrees(ways: Iterator[tuple[str, Verdict]]) -> Found:
    """(its name, its verdict, what is wrong with those before it); a way that does not agree is returned only if none does."""
    wrong: list[str] = []
    first: tuple[str, Verdict] | None = None
    for name, verdict in ways:
        if verdict.agrees:
            return name, verdict, wrong
        first = first or (name, verdict)
        wrong.append(f"{name}: {verdict.worst}")
    assert first is not None
    return *first, wrong


_SEEN: dict[tuple[Any, ...], Found] = {}


def seen_once(model: PreTrainedModel, what: tuple[Any, ...], ask: Callable[[], Found]) -> Found:
    """The verdict on models of this class, configuration, type and device, asked once in a process."""
    adapted = any(hasattr(module, "lora_A") for module in model.modules())
    own = (type(model), model.config.to_json_string(use_diff=False), model.config._attn_implementation, model.dtype, model.device.type)
    key = (*own, adapted, *what)
    if key not in _SEEN:
        _SEEN[key] = ask()
    return _SEEN[key]


def refuse_encoder(model: PreTrainedModel) -> None:
    """A `ConfigError` for what has no continuation of its own."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__} is an encoder-decoder; memory agents are trained on decoders.")
