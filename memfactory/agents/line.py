"""An application's line to the models: it hears what a question was answered from, and leaves out what does not fit. Knows no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memfactory.agents.told import LEFT_OUT
from memfactory.common.errors import PromptTooLong
from memfactory.common.types import Messages, Retrieved, Turn
from memfactory.engines.chat import Session
from memfactory.memory.items import MemoryItem


@dataclass(slots=True)
class Line(Session):
    """An application's session, which hears what a question was answered from; branches share what was heard."""

    shown: list[MemoryItem] = field(default_factory=list)
    most: int | None = None
    """Memories that may be put before the model; None: as many as the agent likes."""
    offered: list[int] = field(default_factory=list)
    """How many were put before it, one number for each time that the agent asked."""
    whole: bool = True
    """A turn that the model's window cuts off counts as one that does not fit."""

    def at_most(self, k: int, held: int) -> int:
        """Fewer, if so many did not fit before."""
        number = k if self.most is None else min(self.most, k)
        self.offered.append(min(number, held))
        if left := min(k, held) - min(number, held):
            self.count(LEFT_OUT, left)
        return number

    async def chat(self, messages: Messages, *, stage: str, max_tokens: int) -> Turn:
        """As ever; a turn that the window cut off is `PromptTooLong` while something can be left out."""
        # Without super(): a class with slots is made twice, and super() means the first one.
        turn = await Session.chat(self, messages, stage=stage, max_tokens=max_tokens)
        if self.whole and turn.finish == "length" and 0 < len(turn.response_ids) < max_tokens:
            raise PromptTooLong(f"The {stage} prompt left room for {len(turn.response_ids)} tokens of its answer.")
        return turn


def shows(model: Session, items: Sequence[MemoryItem]) -> None:
    """Said by an agent's `read`: these memories are before the model. Applications listen, reports tell people, sources are kept."""
    if model.question is not None:
        model.trajectory.given[model.question] = tuple(items)
    if isinstance(model, Line):
        model.shown[:] = items
    place = {id: at for at, id in enumerate(model.ranking)}
    ranked = all(item.id in place for item in items)
    best_first = sorted(items, key=lambda item: place[item.id]) if ranked else items
    model.trajectory.retrieved[model.question or 0] = Retrieved(ranked, tuple(_source(item) for item in best_first))


def _source(item: MemoryItem) -> dict[str, list[str]]:
    if item.sources:
        return {"turns": list(item.sources)}
    dates = [date for date in dict.fromkeys((item.created, item.updated)) if date]
    return {"dates": dates} if dates else {}
