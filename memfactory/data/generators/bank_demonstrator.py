"""A careless keeper of a memory bank: it plays Memory-R1's three stages on `synth_dialog` by rule, for a tiny model to imitate.

Its mistakes (a fact not extracted, chatter extracted, a wrong operation, a wrong number) are the headroom that
reinforcement learning is to recover, and their rates are written into the model card. What it reads and what it writes
are the very prompts and forms of the agent's lines style.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages, extract_messages, in_lines, manage_messages, numbered_lines
from memfactory.data.generators.demonstrator import Row, echo_row
from memfactory.data.generators.dialog_bank import Bank, Edit, apply, oracle, read
from memfactory.data.generators.dialog_world import Path, Statement, answer_text, read_line, read_question, triple
from memfactory.data.generators.synth_dialog import synth_dialog

NEAR, ANSWER_FROM = 3, 8
"""Memories shown for each new fact, and for an answer: the agent's options of the tiny model."""

OPERATIONS = ("ADD", "UPDATE", "DEL", "NONE")


@dataclass(frozen=True, slots=True)
class BankHabits:
    """The demonstrator's rates, each a probability per fact."""

    extract: float
    """A statement of the session is extracted."""
    chatter: float
    """A line of chatter is extracted as if it told something."""
    right: float
    """The operation is the right one; else any of the four, on any item."""
    answer: float
    """An answer that the memories give is given; else `unknown`."""


CAREFUL = BankHabits(extract=0.90, chatter=0.10, right=0.85, answer=0.97)
CARELESS = BankHabits(extract=0.60, chatter=0.30, right=0.55, answer=0.95)


def _text(said: Statement) -> str:
    return triple(said).removesuffix(" .")


def near(bank: Bank, words: set[str], limit: int) -> Bank:
    """The items that share most words with a text, at most `limit`, in the bank's order: what a lexical retriever would show."""
    ranked = sorted(bank, key=lambda number: -len(words & set(_text(bank[number]).split())))
    kept = set(ranked[:limit])
    return {number: item for number, item in bank.items() if number in kept}


def manage(rng: random.Random, bank: Bank, shown: list[int], facts: list[Statement], habits: BankHabits) -> tuple[str, Bank]:
    """(one operation a fact, the bank after them): numbers are positions among the items `shown`."""
    touched: set[int] = set()
    lines, after = [], bank
    for said in facts:
        (edit, *_) = oracle(after, said, max(after, default=-1) + 1)
        if rng.random() >= habits.right:
            edit = Edit(rng.choice(OPERATIONS), rng.choice(shown) if shown else -1, said)
        known = edit.id in shown and edit.id not in touched
        kind = edit.op if edit.op in ("ADD", "NONE") or known else "NONE"
        number = "new" if kind == "ADD" or not known else str(shown.index(edit.id))
        lines.append(f"{said.relation} {said.person} {number} {kind} .")
        if kind in ("UPDATE", "DEL"):
            touched.add(edit.id)
        if kind != "NONE":
            free = max([*after, *bank], default=-1) + 1
            after = apply(after, [Edit(kind, free if kind == "ADD" else edit.id, said if kind != "DEL" else None)])
    return " ".join(lines) or "none .", after


def used_for(bank: Bank, path: Path) -> list[Statement]:
    """The items that an answer rests on, in the order in which they are needed."""
    *relations, person = path
    used: list[Statement] = []
    for relation in reversed(relations):
        found = [item for item in bank.values() if item.key == (relation, person)]
        used += [item for item in found if item.kind != "also"][:1] + [item for item in found if item.kind == "also"]
        person = used[-1].values[0] if used and used[-1].values else ""
    return used


def answer(rng: random.Random, bank: Bank, question: str, habits: BankHabits) -> str:
    """Restate the memories that answer, then say what they say."""
    path = read_question(question)
    assert path is not None, question
    values = read(bank, path)
    if not values or rng.random() >= habits.answer:
        return "**Answer:** unknown"
    return f"{in_lines(_text(item) for item in used_for(bank, path))} **Answer:** {answer_text(values, 'triples')}"


def play_bank(rng: random.Random, dialogue: Mapping[str, Any], habits: BankHabits) -> list[Row]:
    """All turns of the demonstrator on one dialogue, as rows for `MemSFTTrainer`."""
    rows: list[Row] = []
    bank: Bank = {}
    for session in dialogue["sessions"]:
        lines = [turn["text"] for turn in session["turns"]]
        told = [(line, read_line(line)) for line in lines]
        facts = [said for _, said in told if said is not None and rng.random() < habits.extract]
        noise = [" ".join(line.split()[1:]) for line, said in told if said is None and rng.random() < habits.chatter]
        said_of = [said for text in noise if (said := read_line(text)) is not None]
        everything = facts + said_of
        response = in_lines(_text(said) for said in everything) or "none"
        rows.append({"messages": extract_messages(" ".join(lines), "lines"), "response": response, "stage": "extraction"})
        if everything:
            kept = {number for said in everything for number in near(bank, {said.relation, said.person}, NEAR)}
            shown = {number: item for number, item in bank.items() if number in kept}
            messages = manage_messages(
                numbered_lines([_text(item) for item in shown.values()]), in_lines(_text(said) for said in everything), "lines"
            )
            operations, bank = manage(rng, bank, list(shown), everything, habits)
            rows.append({"messages": messages, "response": operations, "stage": "update"})
    for question in dialogue["questions"]:
        shown = near(bank, set(question["question"].split()), ANSWER_FROM)
        messages = answer_messages(in_lines(_text(item) for item in shown.values()) or "none", question["question"])
        rows.append({"messages": messages, "response": answer(rng, shown, question["question"], habits), "stage": "answer"})
    return rows


def bank_demonstrations(seed: int, habits: BankHabits, sessions: tuple[int, ...] = (1, 2, 3, 5), echo: float = 0.1) -> Iterator[Row]:
    """An endless seeded stream of rows: the demonstrator's turns with a share of copying exercises, mixed in small pools."""
    rng = random.Random(f"bank_demonstrations/{seed}")
    pool: list[Row] = []
    number = 0
    while True:
        while len(pool) < 512:
            drawn = synth_dialog(8, seed=seed * 100_003 + number, rendering="triples", sessions=sessions, names="all")
            number += 1
            for dialogue in drawn:
                pool.extend(play_bank(rng, dialogue, habits))
            pool.extend(echo_row(rng) for _ in range(int(8 * 12 * echo)))
        rng.shuffle(pool)
        for _ in range(256):
            yield pool.pop()
