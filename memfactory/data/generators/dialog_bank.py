"""The rules of a memory bank over `synth_dialog`'s statements: the gold operations, readers, and policies that get it wrong.

A bank maps ids to statements in the order of their making; an id is never used again. These are yardsticks for agents, not a
memory for them. Knows no text and no dialogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memfactory.data.generators.dialog_world import Path, Statement

Bank = dict[int, Statement]


@dataclass(frozen=True, slots=True)
class Edit:
    """One operation: ADD and UPDATE have a fact, DEL and NONE only the id of an item."""

    op: str
    id: int
    fact: Statement | None = None


Policy = Callable[[Bank, Statement, int], list[Edit]]
"""(bank, what was said, the next free id) -> operations."""


def items_of(bank: Bank, said: Statement) -> list[int]:
    """The ids of the items about the same key, oldest first."""
    return [number for number, item in bank.items() if item.key == said.key]


def apply(bank: Bank, edits: Sequence[Edit]) -> Bank:
    """A new bank with the operations done."""
    after = dict(bank)
    for edit in edits:
        if edit.op == "DEL":
            del after[edit.id]
        elif edit.fact is not None:
            after[edit.id] = edit.fact
    return after


def read(bank: Bank, path: Path, newest: bool = False) -> tuple[str, ...]:
    """The values that a bank gives for a path; empty if it has none.

    Of several plain items of a key the oldest answers, so that a stale one left in the bank is believed; with `newest`, the
    newest. Items that say `also` are added. A vague item gives no answer.
    """
    *relations, person = path
    values: tuple[str, ...] = ()
    for relation in reversed(relations):
        items = [item for item in bank.values() if item.key == (relation, person)]
        single = [item for item in items if item.kind != "also"]
        chosen = (single[-1:] if newest else single[:1]) + [item for item in items if item.kind == "also"]
        if any(item.kind == "vague" for item in chosen):
            return ()
        values = tuple(dict.fromkeys(value for item in chosen for value in item.values))
        person = values[0] if len(values) == 1 else ""
    return values


def oracle(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """The gold operations: one for a line that tells something, none of them needless."""
    about = items_of(bank, said)
    holding = [number for number in about if bank[number].kind != "vague" and said.values[:1] == bank[number].values]
    if said.kind in ("retract", "not"):
        return [Edit("DEL", number) for number in (about if said.kind == "retract" else holding)] or [Edit("NONE", -1)]
    if not about:
        return [Edit("ADD", free, replace(said, kind="plain") if said.kind == "also" else said)]
    if holding or said.kind == "vague":
        return [Edit("NONE", (holding or about)[0])]
    if said.kind == "also":
        return [Edit("ADD", free, said)]
    return [Edit("UPDATE", about[0], said), *(Edit("DEL", number) for number in about[1:])]


def never_write(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """An empty bank."""
    return []


def always_add(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """Every statement becomes an item; what is taken back is not understood."""
    return [] if said.kind in ("retract", "not") else [Edit("ADD", free, said)]


def never_delete(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """Gold without DEL."""
    return [edit for edit in oracle(bank, said, free) if edit.op != "DEL"]


def never_update(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """Gold with ADD for UPDATE."""
    edits = oracle(bank, said, free)
    return [Edit("ADD", free, said)] if edits[0].op == "UPDATE" else edits


def one_per_key(bank: Bank, said: Statement, free: int) -> list[Edit]:
    """The last word on a key replaces all before it: additions are taken for changes."""
    about = items_of(bank, said)
    if said.kind in ("retract", "not"):
        return [Edit("DEL", number) for number in about]
    fact = replace(said, kind="plain") if said.kind == "also" else said
    return [Edit("UPDATE", about[0], fact)] if about else [Edit("ADD", free, fact)]


POLICIES: dict[str, Policy] = {
    "oracle": oracle,
    "one per key": one_per_key,
    "never delete": never_delete,
    "never update": never_update,
    "always add": always_add,
    "never write": never_write,
}
"""Managers by rule, with perfect extraction, from the best to the worst."""
