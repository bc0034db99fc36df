"""A careless reader of dialogues: it plays MemAgent's turns on `synth_dialog` by rule, with the question in hand. And a stream of
demonstrations of all that the arena's agents and anchors do, this reader's among them.

The memory is a few statements about what is asked; its mistakes (a statement not written, one that is lost, one that is kept though it was
replaced) are the headroom of reinforcement learning. What it reads and writes are the very prompts and forms of the agents.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages, in_lines
from memfactory.common.prompts import NO_MEMORY, memory_update_messages
from memfactory.data.generators.bank_demonstrator import CAREFUL as CAREFUL_KEEPER
from memfactory.data.generators.bank_demonstrator import CARELESS as CARELESS_KEEPER
from memfactory.data.generators.bank_demonstrator import BankHabits, answer, play_bank
from memfactory.data.generators.demonstrator import Row, echo_row
from memfactory.data.generators.dialog_bank import Bank, apply, oracle
from memfactory.data.generators.dialog_world import Key, Path, Statement, read_line, read_question, triple
from memfactory.data.generators.rerank_demonstrator import CAREFUL as CAREFUL_CHOOSER
from memfactory.data.generators.rerank_demonstrator import CARELESS as CARELESS_CHOOSER
from memfactory.data.generators.rerank_demonstrator import ChooserHabits, lines_of, live_lines, nearest, play_rerank
from memfactory.data.generators.synth_dialog import synth_dialog

CAPACITY = 6
"""Most statements in memory: a turn of 32 tokens."""


@dataclass(frozen=True, slots=True)
class ReaderHabits:
    """The demonstrator's rates, each a probability per statement and turn."""

    write: float
    """What a line says of what is asked is done to the memory: added, replaced or taken out."""
    write_irrelevant: float
    keep: float
    """A statement about what is asked stays."""
    keep_irrelevant: float
    answer: float


CAREFUL_READER = ReaderHabits(write=0.92, write_irrelevant=0.05, keep=0.98, keep_irrelevant=0.5, answer=0.97)
CARELESS_READER = ReaderHabits(write=0.6, write_irrelevant=0.2, keep=0.88, keep_irrelevant=0.6, answer=0.95)


@dataclass(frozen=True, slots=True)
class ArenaHabits:
    """The three paradigms' rates together."""

    reader: ReaderHabits
    keeper: BankHabits
    chooser: ChooserHabits


CAREFUL = ArenaHabits(CAREFUL_READER, CAREFUL_KEEPER, CAREFUL_CHOOSER)
CARELESS = ArenaHabits(CARELESS_READER, CARELESS_KEEPER, CARELESS_CHOOSER)


def relevance(key: Key, path: Path, bank: Bank) -> int:
    """3: the path begins at this key; 2: it goes on there, as far as is known; 1: it may yet; 0: it has nothing to do with it."""
    if key == (path[-2], path[-1]):
        return 3
    if len(path) < 3 or key[0] != path[0]:
        return 0
    links = [item for item in bank.values() if item.key == (path[-2], path[-1])]
    return 2 if any(key[1] in item.values for item in links) else 1


def read_session(rng: random.Random, bank: Bank, said: list[Statement], path: Path, habits: ReaderHabits) -> Bank:
    """The memory after one reading turn, at most CAPACITY statements: the least relevant go first, of those the oldest."""
    kept = {
        n: item for n, item in bank.items() if rng.random() < (habits.keep if relevance(item.key, path, bank) else habits.keep_irrelevant)
    }
    free = max(bank, default=-1) + 1
    for statement in said:
        if rng.random() < (habits.write if relevance(statement.key, path, kept) else habits.write_irrelevant):
            kept = apply(kept, oracle(kept, statement, free))
            free = max([free, *(n + 1 for n in kept)])
    ranked = sorted(kept, key=lambda n: (relevance(kept[n].key, path, kept), n))
    for n in ranked[: max(0, len(kept) - CAPACITY)]:
        del kept[n]
    return kept


def memory_text(bank: Bank) -> str:
    """A memory as the model writes it."""
    return in_lines(triple(item) for item in bank.values()) or NO_MEMORY


def play_reader(rng: random.Random, dialogue: Mapping[str, Any], habits: ReaderHabits, questions: int = 2) -> list[Row]:
    """The demonstrator's turns on some of a dialogue's questions, as rows for `MemSFTTrainer`."""
    rows: list[Row] = []
    reader = BankHabits(extract=1, chatter=0, right=1, answer=habits.answer)
    for asked in rng.sample(dialogue["questions"], min(questions, len(dialogue["questions"]))):
        path = read_question(asked["question"])
        assert path is not None, asked["question"]
        bank: Bank = {}
        for session in dialogue["sessions"]:
            lines = [turn["text"] for turn in session["turns"]]
            messages = memory_update_messages(asked["question"], memory_text(bank), " ".join(lines))
            bank = read_session(rng, bank, [said for line in lines if (said := read_line(line)) is not None], path, habits)
            rows.append({"messages": messages, "response": memory_text(bank), "stage": "memory"})
        shown = in_lines(triple(item) for item in bank.values()) or "none"
        told = answer(rng, bank, asked["question"], reader)
        rows.append({"messages": answer_messages(shown, asked["question"]), "response": told, "stage": "answer"})
    return rows


def play_lines(rng: random.Random, dialogue: Mapping[str, Any], habits: BankHabits) -> list[Row]:
    """Answers from lines as they were said, all of them or the nearest or the last, where what was replaced stands beside what is true."""
    rows: list[Row] = []
    lines = lines_of(dialogue)
    for asked in dialogue["questions"]:
        many = rng.choice((4, 8, 12))
        near, last = nearest(lines, asked["question"], many), list(range(max(0, len(lines) - many), len(lines)))
        shown = [lines[number] for number in rng.choice((list(range(len(lines))), near, last))]
        told = answer(rng, live_lines(shown), asked["question"], habits)
        rows.append({"messages": answer_messages(in_lines(shown), asked["question"]), "response": told, "stage": "answer"})
    return rows


def arena_demonstrations(
    seed: int, habits: ArenaHabits, sessions: tuple[int, ...] = (1, 2, 3, 5, 8), people: int = 6, echo: float = 0.06
) -> Iterator[Row]:
    """An endless seeded stream of rows of all three paradigms, each on dialogues of its own, mixed in small pools."""
    rng = random.Random(f"arena_demonstrations/{seed}")
    pool: list[Row] = []
    for number in itertools.count():
        drawn = synth_dialog(12, seed=seed * 100_003 + 70_001 + number, rendering="triples", sessions=sessions, names="all", people=people)
        for at, dialogue in enumerate(drawn):
            play = (
                lambda d: play_reader(rng, d, habits.reader),
                lambda d: play_bank(rng, d, habits.keeper),
                lambda d: play_rerank(rng, d, habits.chooser),
                lambda d: play_lines(rng, d, habits.keeper),
            )[at % 4]
            pool.extend(play(dialogue))
        pool.extend(echo_row(rng) for _ in range(int(12 * 8 * echo)))
        if len(pool) < 512:
            continue
        rng.shuffle(pool)
        while len(pool) > 256:
            yield pool.pop()
