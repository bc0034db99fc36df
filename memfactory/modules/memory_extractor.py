"""`NaiveExtractor`: from a part of a conversation to the facts worth remembering (Memory-R1's first stage, arXiv 2508.19828)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import extract_messages
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.operations import parse_facts
from memfactory.modules.base import BaseModule


def conversation_text(event: Mapping[str, Any], style: str = "json") -> str:
    """An event `{date, turns: [{speaker, text}]}` as a prompt shows it; in lines the texts alone, which say who is meant."""
    turns: Sequence[Mapping[str, Any]] = event["turns"]
    if style == "lines":
        return " ".join(str(turn["text"]) for turn in turns)
    head = [f"Date: {event['date']}"] if event.get("date") else []
    return "\n".join([*head, *(f"{turn['speaker']}: {turn['text']}" for turn in turns)])


@MODULE_REGISTRY.register("naive_extractor")
class NaiveExtractor(BaseModule):
    """Facts of a part of a conversation, as texts."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How it is asked."""

        max_tokens: int = ranged(1024, least=1)
        """Budget of the turn."""
        style: str = "json"
        """json, or lines for models too small for it."""

    async def act(self, model: Session, *args: Any) -> list[str]:
        """`act(model, event)` returns the facts; what cannot be read is none, and is counted."""
        (event,) = args
        messages = extract_messages(conversation_text(event, self.options.style), self.options.style)
        turn = await model.chat(messages, stage="extraction", max_tokens=self.options.max_tokens)
        parsed = parse_facts(turn.text, self.options.style)
        for what, why in parsed.dropped:
            model.drop("extraction", what, why)
        if not parsed.readable:
            model.count("unreadable_extraction")
            model.drop("extraction", turn.text, ", ".join(parsed.problems))
        facts = list(parsed.facts)
        # The parser notices a list that was cut off; of lines the last may be half a fact.
        if turn.finish == "length" and facts and not parsed.problems["cut off"]:
            model.drop("extraction", facts.pop(), "cut off")
            model.count("facts_cut_off")
        model.count("facts", len(facts))
        return facts
