"""Anchors: what no method at all scores. They keep everything word for word and hand another agent's reader, by its own answer
prompt, nothing, everything, the last k items, the k that BM25 or vectors find, or the evidence; or they abstain always.

The oracle alone is shown gold: its `OracleView` says which turns answer a question (`evaluation/leak.py` makes it, for no other
agent). Anchors know no task and no score.
"""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from memfactory.agents.base import BaseAgent
from memfactory.agents.use import shows
from memfactory.agents.word_for_word import WordForWord, held, of_sources, pieces_of
from memfactory.common.errors import ConfigError
from memfactory.common.ranges import ranged
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.common.types import Sampling, View
from memfactory.engines.chat import LocalChat, Models, Session
from memfactory.engines.scripted import ScriptedChat, ScriptedEngine
from memfactory.memory.embedders import CachedEmbedder, make_embedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import search

PREFIX = "anchor_"
"""Of their keys in AGENT_REGISTRY."""
KINDS = ("empty", "full", "last_k", "bm25", "dense", "oracle", "abstain")
"""In the order of tables."""
DEFAULT_K = 10
"""Items for agents that do not say how many they answer from (MemAgent)."""


@dataclass(frozen=True, slots=True)
class OracleView(View):
    """A view with gold in it: which turns answer each question. Only `OracleAnchor` is ever shown one."""

    evidence: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class AnchorOptions:
    """Beside which agent it stands, and how much it hands over."""

    agent: str = "memory_r1_agent"
    """The agent whose reader and answer prompt it uses: a key of AGENT_REGISTRY."""
    agent_options: dict[str, Any] = field(default_factory=dict)
    """That agent's options."""
    k: int | None = ranged(None, least=1)
    """Items handed over by those that choose; None: the agent's `answer_from`, or 10."""
    max_prompt_length: int | None = ranged(None, least=1)
    """Most tokens of a prompt: items that do not fit are left out and counted, the least wanted first. None: no limit."""


class Anchor(BaseAgent):
    """Base of anchors: a subclass says which items, the most wanted first."""

    Options = AnchorOptions
    retrieves = False
    """Whether its choice is a retrieval, to be scored as one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        super().__init__(tokenizer, device, **kwargs)
        self.reader: BaseAgent = AGENT_REGISTRY.get(self.options.agent)(tokenizer, device, **self.options.agent_options)
        self.stages = self.reader.stages

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"agent_options": self.reader.describe(), "k": self.k}

    @property
    def in_stages(self) -> bool:
        """Writing costs nothing here: there is nothing to lay by."""
        return False

    @property
    def k(self) -> int:
        """Items that it hands over, where it chooses."""
        return self.options.k or getattr(self.reader.options, "answer_from", None) or DEFAULT_K

    def initial(self, view: View) -> WordForWord:
        return WordForWord(evidence=view.evidence if isinstance(view, OracleView) else ())

    def events(self, view: View) -> Sequence[Any]:
        return view.events or pieces_of(view.context)

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> WordForWord:
        return held(memory).with_event(event, getattr(self.reader.options, "style", "json"))

    async def read(self, model: Session, memory: Any, question: str) -> str:
        memory = held(memory)
        wanted = await self.fitting(model, memory.items, await self.choose(memory, question, model.question or 0), question)
        items = [memory.items[at] for at in sorted(wanted)]
        if self.retrieves:
            model.ranking = tuple(memory.items[at].id for at in wanted)
            shows(model, items)
        return await self.reader.read_items(model, items, question)

    @abstractmethod
    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        """Places of the items to hand over for a question and its number, the most wanted first."""

    async def fitting(self, model: Session, items: Sequence[MemoryItem], wanted: Sequence[int], question: str) -> list[int]:
        """As many of the first wanted as fit into `max_prompt_length` tokens; how many do not is counted."""
        limit, most = self.options.max_prompt_length, len(wanted)
        if limit is None or not most or (over := await self._length(items, wanted, question)) <= limit:
            return list(wanted)
        # Prompts grow almost evenly with their items: a few guesses in between find the last that fits.
        fits, under = 0, await self._length(items, (), question)
        while most - fits > 1:
            guess = min(max(fits + int((most - fits) * (limit - under) / max(over - under, 1)), fits + 1), most - 1)
            length = await self._length(items, wanted[:guess], question)
            fits, under, most, over = (guess, length, most, over) if length <= limit else (fits, under, guess, length)
        model.count("shortened_prompts")
        model.count("items_that_did_not_fit", len(wanted) - fits)
        return list(wanted[:fits])

    async def _length(self, items: Sequence[MemoryItem], wanted: Sequence[int], question: str) -> int:
        """Tokens of the reader's longest prompt with the wanted of the items: it is made, and sent to nobody."""
        if self.tokenizer is None:
            raise ConfigError("max_prompt_length is in tokens: give a tokenizer (--tokenizer FOLDER) for a model behind an API.")
        listener, encoder = ScriptedChat(lambda messages, stage: ""), LocalChat(self.tokenizer, ScriptedEngine(lambda *_: ()))
        models = Models({"policy": listener})
        await self.reader.read_items(
            models.session(sampling=Sampling(0), stream=(0,), training=False), [items[at] for at in sorted(wanted)], question
        )
        return max(len(encoder.encode(messages)) for _, messages in listener.asked)


@AGENT_REGISTRY.register("anchor_empty")
class EmptyAnchor(Anchor):
    """The reader with an empty memory: what it knows or guesses."""

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return ()


@AGENT_REGISTRY.register("anchor_full")
class FullAnchor(Anchor):
    """The reader with everything; what does not fit loses its beginning."""

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return range(len(memory.items))[::-1]


@AGENT_REGISTRY.register("anchor_last_k")
class LastAnchor(FullAnchor):
    """The last k items."""

    retrieves = True

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return range(len(memory.items))[::-1][: self.k]


@AGENT_REGISTRY.register("anchor_bm25")
class BM25Anchor(Anchor):
    """The k items that BM25 finds."""

    retrieves = True

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return memory.bm25.rank(question)[: self.k]


@AGENT_REGISTRY.register("anchor_dense")
class DenseAnchor(Anchor):
    """The k items nearest by the agent's embedder, `hashed` if it has none."""

    retrieves = True
    _found: CachedEmbedder | None = None

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        if self._found is None:
            chosen = self.reader._embedder()
            self._found = CachedEmbedder(make_embedder(chosen) if isinstance(chosen, str) else chosen)
        if self._found.waits:  # for a server: the other attempts go on meanwhile
            near = await asyncio.to_thread(search, question, memory.items, self._found, self.k)
        else:
            near = search(question, memory.items, self._found, self.k)
        place = {item.id: at for at, item in enumerate(memory.items)}
        return [place[item.id] for item, _ in near]


@AGENT_REGISTRY.register("anchor_oracle")
class OracleAnchor(Anchor):
    """The evidence: what a perfect memory and a perfect retrieval would hand to this reader."""

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return of_sources(memory.items, memory.evidence[number] if number < len(memory.evidence) else ())


@AGENT_REGISTRY.register("anchor_abstain")
class AbstainAnchor(Anchor):
    """Abstains always and asks no model: what a table gives for saying nothing."""

    _OPTION = re.compile(r"(\([a-z]\)) not mentioned", re.IGNORECASE)

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        super().__init__(tokenizer, device, **kwargs)
        self.stages = ()

    async def choose(self, memory: WordForWord, question: str, number: int) -> Sequence[int]:
        return ()

    async def read(self, model: Session, memory: Any, question: str) -> str:
        option = self._OPTION.search(question)
        return option[1] if option else "unknown"


def beside(kind: str, agent: str, agent_options: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(key, options) of the anchor `kind` that stands beside an agent with these options."""
    return f"{PREFIX}{kind}", {"agent": agent, "agent_options": dict(agent_options), **given}
