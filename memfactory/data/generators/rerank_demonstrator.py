"""A careless chooser of memories: it plays RMM's reranking and answering on `synth_dialog` by rule, for a tiny model to imitate.

The memory is every line of the dialogue as it was said, so that what was replaced stands beside what is true, and which of them to
keep is the lesson. Its mistakes are the headroom of reinforcement learning; their rates are in the model card. What it reads and
writes are the very prompts and forms of the agent's lines style.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.bank_prompts import answer_messages, in_lines, numbered_lines
from memfactory.common.rmm_prompts import choose_messages
from memfactory.data.generators.bank_demonstrator import BankHabits, answer, used_for
from memfactory.data.generators.demonstrator import Row, echo_row
from memfactory.data.generators.dialog_bank import Bank, apply, oracle
from memfactory.data.generators.dialog_world import Path, Statement, read_line, read_question
from memfactory.data.generators.synth_dialog import synth_dialog

CANDIDATES, KEPT = 12, 4
"""Memories to choose from, and kept at most: the agent's options of the tiny model."""


@dataclass(frozen=True, slots=True)
class ChooserHabits:
    """The demonstrator's rates, each a probability per question."""

    right: float
    """What is needed is kept, and nothing else; else one or two others of the candidates that are near, or nothing."""
    answer: float
    """An answer that the kept memories give is given; else `unknown`."""


CAREFUL = ChooserHabits(right=0.92, answer=0.98)
CARELESS = ChooserHabits(right=0.4, answer=0.96)


def lines_of(dialogue: Mapping[str, Any]) -> list[str]:
    """Every line of a dialogue in the order of speaking, without its full stop: the memory of `verbatim_extractor`."""
    return [str(turn["text"]).removesuffix(" .") for session in dialogue["sessions"] for turn in session["turns"]]


def live_lines(lines: Sequence[str]) -> dict[int, Statement]:
    """{number of a line: what it says} of the lines that make what is true at the end, by the gold operations."""
    bank: Bank = {}
    source: dict[int, int] = {}
    free = 0
    for number, text in enumerate(lines):
        said = read_line(f"{text} .")
        if said is None:
            continue
        for edit in oracle(bank, said, free):
            bank = apply(bank, [edit])
            if edit.op in ("ADD", "UPDATE"):
                source[edit.id] = number
        free = max([free, *(id + 1 for id in bank)])
    return {source[id]: said for id, said in sorted(bank.items(), key=lambda entry: source[entry[0]])}


def needed(live: Mapping[int, Statement], path: Path) -> list[int]:
    """The lines that the answer rests on, in the order of speaking."""
    used = used_for(dict(live), path)
    return [number for number, said in live.items() if any(said is item for item in used)]


def nearest(lines: Sequence[str], question: str, limit: int) -> list[int]:
    """The lines that share most words with a question, at most `limit`, in the order of speaking."""
    words = set(question.split())
    ranked = sorted(range(len(lines)), key=lambda number: -len(words & set(lines[number].split())))
    return sorted(ranked[:limit])


def choose(rng: random.Random, lines: Sequence[str], shown: Sequence[int], gold: Sequence[int], question: str, right: float) -> list[int]:
    """Positions among the `shown` lines to keep: those of `gold`, or, as often as the habits err, near ones that are not."""
    if rng.random() < right:
        return [place for place, number in enumerate(shown) if number in gold]
    words = set(question.split())
    wrong = [place for place, number in enumerate(shown) if number not in gold]
    near = [place for place in wrong if len(words & set(lines[shown[place]].split())) > 1] or wrong
    return sorted(rng.sample(near, min(len(near), rng.choice((0, 1, 1, 2)))))


def play_rerank(rng: random.Random, dialogue: Mapping[str, Any], habits: ChooserHabits) -> list[Row]:
    """The demonstrator's turns on one dialogue, as rows for `MemSFTTrainer`: a choice and an answer for each question."""
    lines = lines_of(dialogue)
    live = live_lines(lines)
    rows: list[Row] = []
    for asked in dialogue["questions"]:
        question = asked["question"]
        path = read_question(question)
        assert path is not None, question
        shown = nearest(lines, question, CANDIDATES)
        kept = choose(rng, lines, shown, needed(live, path), question, habits.right)
        keys = [" ".join([*lines[shown[place]].split()[:2], str(place)]) for place in kept]
        prompt = choose_messages(numbered_lines([lines[number] for number in shown]), question, "lines")
        rows.append({"messages": prompt, "response": in_lines(keys) or "none .", "stage": "rerank"})
        texts = [lines[shown[place]] for place in kept]
        facts = {
            n: said for n, text in enumerate(texts) if (said := read_line(f"{text} .")) is not None and said.values and said.kind != "not"
        }
        reader = BankHabits(extract=1, chatter=0, right=1, answer=habits.answer)
        told = answer(rng, facts, question, reader)
        rows.append({"messages": answer_messages(in_lines(texts) or "none", question), "response": told, "stage": "answer"})
    return rows


def rerank_demonstrations(seed: int, habits: ChooserHabits, sessions: tuple[int, ...] = (1, 2, 3, 5), echo: float = 0.1) -> Iterator[Row]:
    """An endless seeded stream of rows: the demonstrator's turns with a share of copying exercises, mixed in small pools."""
    rng = random.Random(f"rerank_demonstrations/{seed}")
    pool: list[Row] = []
    number = 0
    while True:
        while len(pool) < 512:
            drawn = synth_dialog(8, seed=seed * 100_003 + 50_021 + number, rendering="triples", sessions=sessions, names="all")
            number += 1
            for dialogue in drawn:
                pool.extend(play_rerank(rng, dialogue, habits))
            pool.extend(echo_row(rng) for _ in range(int(8 * 8 * echo)))
        rng.shuffle(pool)
        for _ in range(256):
            yield pool.pop()
