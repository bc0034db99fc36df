"""The in-process engine over a model, once it has been compared with the model's own forward; what does not agree is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memfactory.common.errors import ConfigError
from memfactory.engines.hf import HFEngine
from memfactory.engines.probe import Found, Verdict, boundaries, first_that_agrees, probe_engine, prompts_for, refuse_encoder, seen_once

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

WHOLE, UNSHARED, WITHIN = "as it is", "without shared beginnings", "up to {} tokens"


def checked_engine(
    model: PreTrainedModel, stop_ids: frozenset[int], slots: int = 192, bf16: bool = False, options: Mapping[str, Any] | None = None
) -> HFEngine:
    """An `HFEngine` that samples what the model's own forward says, or a `ConfigError` with the figure. `options`: as it takes them.

    Where only sharing beginnings, or only turns past a length, are computed otherwise, it does without them and says so.
    """
    way, verdict, wrong = engine_verdict(model, bf16, options or {})
    if not verdict.agrees:
        raise ConfigError(
            f"The hf engine would not sample from {type(model).__name__} as it is. {verdict.worst}. Use --engine vllm, or serve the model "
            "and use --engine api (training: --rollout_servers); or take a decoder whose layers attend to all that came before. "
            "`memfactory doctor MODEL` shows every comparison."
        )
    engine = HFEngine(model, stop_ids, slots, bf16, **(options or {}))
    engine.share_prefixes = engine.share_prefixes and way != UNSHARED
    if wrong:
        log.warning("%s is sampled %s, for otherwise it is not the model's own forward (%s).", type(model).__name__, way, wrong[0])
    if verdict.covered < engine.max_length:
        reason = verdict.beyond or "the cap that the comparison set"
        log.warning(
            "%s is sampled up to %d tokens, prompt and response (%s); longer turns are refused one by one.",
            type(model).__name__, verdict.covered, f"{reason}; what lies beyond was not compared" if verdict.beyond else "see above",
        )  # fmt: skip
        engine.max_length, engine.limit = verdict.covered, f"{verdict.covered} tokens up to which its forward was compared"
    return engine


def engine_verdict(model: PreTrainedModel, bf16: bool, options: Mapping[str, Any]) -> Found:
    """(how the engine samples, what the comparisons said, what is wrong with the ways before)."""
    refuse_encoder(model)
    attention, share = options.get("decode_attention", "auto"), options.get("share_prefixes", True)

    def ways() -> Iterator[tuple[str, Verdict]]:
        def asked(sharing: bool, most: int = 0) -> Verdict:
            def make() -> HFEngine:
                return HFEngine(model, frozenset(), 8, bf16, graphs="off", decode_attention=attention, share_prefixes=sharing)

            return probe_engine(model, make, prompts_for(model, most), bf16)

        yield WHOLE, asked(share)
        if share:
            yield UNSHARED, asked(False)
        for at in [at for at, _ in boundaries(model.config)][:1]:
            yield WITHIN.format(at), asked(share, at)

    return seen_once(model, ("hf", bf16, attention, share), lambda: first_that_agrees(ways()))
