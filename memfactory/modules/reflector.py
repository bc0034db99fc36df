"""RMM's prospective reflection (Tan et al., 2025, arXiv 2503.08026): topics are noted at the end of a session and merged into the memory.

`ProspectiveReflector` stands in an extractor's slot, `TopicUpdater` in an updater's: they go together as in the paper, and each
goes with the other paper's parts too. A memory is the topic's summary with the turns it rests on below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.common.rmm_prompts import merge_messages, reflect_messages
from memfactory.engines.chat import Session
from memfactory.memory.bank import MemoryBank
from memfactory.memory.choices import Topic, numbered_turns, parse_merges, parse_topics
from memfactory.memory.items import MemoryOp
from memfactory.modules.base import BaseModule

SAID = "\n> "
"""Before each turn that a summary rests on."""


def summary_of(text: str) -> str:
    """A memory without the turns below its summary."""
    return text.split(SAID, 1)[0]


def turns_below(text: str) -> list[str]:
    """The turns below a memory's summary."""
    return text.split(SAID)[1:]


@MODULE_REGISTRY.register("prospective_reflector")
class ProspectiveReflector(BaseModule):
    """Topics of a session, asked for each speaker by itself."""

    stages = ("reflection",)

    @dataclass(frozen=True, slots=True)
    class Options:
        """How it is asked."""

        max_tokens: int = ranged(1024, least=1)
        """Budget of a turn."""
        keep_turns: bool = True
        """The turns that a topic rests on stand below its summary, as in the paper; else the summary alone."""

    async def act(self, model: Session, *args: Any) -> list[str]:
        """`act(model, event)` returns a text for each topic; what cannot be read is none, and is counted."""
        (event,) = args
        said = [f"{turn['speaker']}: {turn['text']}" for turn in event["turns"]]
        head = f"Date: {event['date']}\n" if event.get("date") else ""
        texts: list[str] = []
        for speaker in dict.fromkeys(str(turn["speaker"]) for turn in event["turns"]):
            messages = reflect_messages(head + numbered_turns(said), speaker)
            turn = await model.chat(messages, stage="reflection", max_tokens=self.options.max_tokens)
            topics, readable = parse_topics(turn.text, len(said), partial(model.drop, "reflection"))
            if not readable:
                model.count("unreadable_reflection")
                model.drop("reflection", turn.text, "no list of topics")
            texts += [self._text(topic, said) for topic in topics]
        model.count("facts", len(texts))
        return list(dict.fromkeys(texts))

    def _text(self, topic: Topic, said: list[str]) -> str:
        turns = [said[number] for number in topic.turns] if self.options.keep_turns else []
        return SAID.join([topic.summary, *turns])


@MODULE_REGISTRY.register("topic_updater")
class TopicUpdater(BaseModule):
    """RMM's Add and Merge: each new topic joins those that it continues, or is added."""

    stages = ("reflection",)

    @dataclass(frozen=True, slots=True)
    class Options:
        """How it is asked, and what its operations do."""

        max_tokens: int = ranged(512, least=1)
        """Budget of a turn."""
        write_policy: str = "crud"
        """crud, add_only, or temporal (nothing is deleted, old memories are closed)."""
        capacity: int | None = ranged(None, least=1)
        """Most live items; an ADD over it is rejected."""

    async def act(self, model: Session, *args: Any) -> MemoryBank:
        """`act(model, bank, facts, shown, when)` returns the new bank, one turn a fact; `shown`: the memories near the facts."""
        bank, facts, shown, when = args
        bank_now: MemoryBank = bank
        for fact in facts:
            # Of what was shown at first, as it is now: an earlier topic of this session may have changed it.
            near = [item for old in shown if (item := bank_now.get(old.id)) is not None]
            merges: list[tuple[int, str]] = []
            if near:
                history = "\n".join(f"{number}: {summary_of(item.text)}" for number, item in enumerate(near))
                messages = merge_messages(history, summary_of(fact))
                turn = await model.chat(messages, stage="reflection", max_tokens=self.options.max_tokens)
                merges, readable = parse_merges(turn.text, len(near), partial(model.drop, "reflection"))
                if not readable:
                    model.count("unreadable_merge")
                    model.drop("reflection", turn.text, "no merge could be read: the topic was added")
            ops = [MemoryOp("UPDATE", near[n].id, _merged(summary, near[n].text, fact)) for n, summary in merges]
            bank_now = self._applied(model, bank_now, ops or [MemoryOp("ADD", text=fact)], when)
        return bank_now

    def _applied(self, model: Session, bank: MemoryBank, ops: list[MemoryOp], when: str) -> MemoryBank:
        done = bank.apply(ops, write_policy=self.options.write_policy, capacity=self.options.capacity, when=when)
        for op in done.applied:
            model.count(f"operation_{op.kind}")
        model.count("rejected_operations", len(done.rejected))
        return done.bank


def _merged(summary: str, old: str, new: str) -> str:
    """The merged summary over the turns of both, each once."""
    return SAID.join([summary, *dict.fromkeys([*turns_below(old), *turns_below(new)])])
