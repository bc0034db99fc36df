"""`NaiveUpdater`: Memory-R1's manager. New facts and the memories near them become ADD, UPDATE, DEL and NONE (arXiv 2508.19828).

Whatever the policy writes, the bank stays whole: what cannot be read changes nothing, what is invalid is rejected and
counted, the other operations apply. A model can only reach what it was shown: the prompt numbers the memories anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import in_lines, manage_messages, numbered_lines
from memfactory.common.errors import unknown_name
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.bank import WHEN_FULL, WRITE_POLICIES, MemoryBank
from memfactory.memory.items import MemoryItem
from memfactory.memory.operations import parse_operations, renumber
from memfactory.modules.base import BaseModule


def numbered(items: Sequence[MemoryItem], style: str) -> str:
    """Memories under the numbers that operations name them by: `0: text` a line, or `relation person 0 value .` in lines."""
    if not items:
        return "none"
    if style == "json":
        return "\n".join(f"{number}: {item.text}" for number, item in enumerate(items))
    return numbered_lines([item.text for item in items])


@MODULE_REGISTRY.register("naive_updater")
class NaiveUpdater(BaseModule):
    """Operations on a `MemoryBank` from new facts."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """How it is asked, and what its operations do."""

        max_tokens: int = ranged(1024, least=1)
        """Budget of the turn."""
        style: str = "json"
        """json, or lines for models too small for it."""
        write_policy: str = "crud"
        """crud, add_only, or temporal (nothing is deleted, old facts are closed)."""
        capacity: int | None = ranged(None, least=1)
        """Most live items."""
        when_full: str = "refuse"
        """What becomes of an ADD over it: refuse, or oldest (it is added, and the item added longest ago is forgotten)."""

        def __post_init__(self) -> None:
            if self.when_full not in WHEN_FULL:
                raise unknown_name("when_full", self.when_full, WHEN_FULL)
            if self.write_policy not in WRITE_POLICIES:
                raise unknown_name("write_policy", self.write_policy, WRITE_POLICIES)

    async def act(self, model: Session, *args: Any) -> MemoryBank:
        """`act(model, bank, facts, shown, when)` returns the new bank; `shown`: the memories near the facts."""
        bank, facts, shown, when = args
        options = self.options
        new = "\n".join(facts) if options.style == "json" else in_lines(facts)
        messages = manage_messages(numbered(shown, options.style), new, options.style)
        turn = await model.chat(messages, stage="update", max_tokens=options.max_tokens)
        parsed = parse_operations(turn.text, facts)
        for what, why in parsed.dropped:
            model.drop("update", what, why)
        if not parsed.readable:
            model.count("unreadable_update")
            model.drop("update", turn.text, ", ".join(parsed.problems))
            for fact in facts:
                model.drop("update", fact, "no operation for it could be read")
        elif options.style == "json" and (missing := len(facts) - len(parsed.ops) - len(parsed.dropped)) > 0:
            model.drop("update", f"{missing} of {len(facts)} new facts", "no operation was written for them")
        ops = renumber(parsed.ops, [item.id for item in shown])
        if options.when_full == "oldest":
            held = len(bank)
            bank = bank.make_room(ops, options.capacity, options.write_policy, when)
            model.count("forgotten", held - len(bank))
        done = bank.apply(ops, write_policy=options.write_policy, capacity=options.capacity, when=when)
        for op in done.applied:
            model.count(f"operation_{op.kind}")
        for rejection in done.rejected:
            model.count(f"rejected_{rejection.reason.replace(' ', '_')}")
        model.count("rejected_operations", len(done.rejected))
        return done.bank
