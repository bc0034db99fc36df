"""A reader that forgets: it plays MemAgent's turns on `synth_facts` by rule, for a tiny model to imitate.

Its carelessness is the headroom that reinforcement learning is to recover, and its rates are written into the model
card. Two of its turns' properties matter for learning: it restates the facts it answers from, so that a two-hop answer
is two one-hop copies, and what it writes is always a copy of facts in view.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memfactory.common.prompts import NO_MEMORY, memory_answer_messages, memory_update_messages
from memfactory.data.generators.synth_facts import NAMES, Episode, Fact, draw_episode
from memfactory.data.generators.world import RELATIONS, VALUES, words

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Habits:
    """The demonstrator's rates, each a probability per fact and turn."""

    write: float
    """A relevant fact of the section is written to memory."""
    write_irrelevant: float
    keep: float
    """A relevant fact of the memory is kept."""
    keep_irrelevant: float
    capacity: int = 4
    """Most facts in memory; the oldest irrelevant ones go first."""


MILD = Habits(write=0.75, write_irrelevant=0.08, keep=0.85, keep_irrelevant=0.40)
FORGETFUL = Habits(write=0.40, write_irrelevant=0.10, keep=0.65, keep_irrelevant=0.50)


def memory_text(facts: list[Fact]) -> str:
    """A memory as the model writes it."""
    return " ".join(fact.text for fact in facts) or NO_MEMORY


def update(rng: random.Random, episode: Episode, memory: list[Fact], section: tuple[Fact, ...], habits: Habits) -> list[Fact]:
    """One reading turn of the demonstrator. A second-hop fact is relevant only once its first hop is in memory or in view."""

    def relevant(fact: Fact) -> bool:
        if fact not in episode.gold:
            return False
        before = episode.gold[: episode.gold.index(fact)]
        return all(other in memory or other in section for other in before)

    kept = [f for f in memory if rng.random() < (habits.keep if relevant(f) else habits.keep_irrelevant)]
    new = [f for f in section if rng.random() < (habits.write if relevant(f) else habits.write_irrelevant)]
    facts = kept + new
    while len(facts) > habits.capacity:
        facts.remove(next((f for f in facts if f not in episode.gold), facts[0]))
    return facts


def answer(episode: Episode, memory: list[Fact]) -> str:
    """Restate the facts that answer, then box the value; `unknown` if one is missing."""
    if any(fact not in memory for fact in episode.gold):
        return "\\boxed{ unknown }"
    return f"{' '.join(fact.text for fact in episode.gold)} \\boxed{{ {episode.answer} }}"


def play(rng: random.Random, episode: Episode, habits: Habits, chunk_first: float = 0.1) -> list[Row]:
    """All turns of the demonstrator on one episode, as rows for `MemSFTTrainer`: {messages, response, stage}."""
    rows: list[Row] = []
    memory: list[Fact] = []
    order = "chunk_first" if rng.random() < chunk_first else "memory_first"
    for section in episode.chunks:
        messages = memory_update_messages(episode.question, memory_text(memory), " ".join(f.text for f in section), order)
        memory = update(rng, episode, memory, section, habits)
        rows.append({"messages": messages, "response": memory_text(memory), "stage": "memory"})
    messages = memory_answer_messages(episode.question, memory_text(memory))
    rows.append({"messages": messages, "response": answer(episode, memory), "stage": "answer"})
    return rows


def echo_row(rng: random.Random) -> Row:
    """A copying exercise: random words or letters repeated, or facts that share a relation, copied in another order."""
    draw = rng.random()
    if draw < 0.3:
        text = " ".join(rng.choices(words(), k=rng.randint(2, 12)))
        response = text
    elif draw < 0.35:
        text = response = " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(2, 5))) for _ in range(2))
    else:
        relation = rng.choice(RELATIONS)
        people = rng.sample(NAMES["all"], rng.randint(2, 7))
        facts = [Fact(relation, person, rng.choice(VALUES.get(relation) or NAMES["all"])) for person in people]
        text = " ".join(f.text for f in facts)
        response = " ".join(f.text for f in rng.sample(facts, len(facts)))
    return {"messages": [{"role": "user", "content": text}], "response": response, "stage": "echo"}


def demonstrations(
    seed: int, habits: Habits, chunks: tuple[int, ...] = (1, 2, 3), echo: float = 0.1, chunk_first: float = 0.1
) -> Iterator[Row]:
    """An endless seeded stream of rows: the demonstrator's turns, with a share of copying exercises, mixed in small pools.

    `chunk_first`: the share of episodes whose prompts have the section before the memory.
    """
    rng = random.Random(f"demonstrations/{seed}")
    pool: list[Row] = []
    while True:
        while len(pool) < 512:
            if rng.random() < echo:
                pool.append(echo_row(rng))
            episode = draw_episode(rng, rng.choice(chunks), names=NAMES["all"])
            pool.extend(play(rng, episode, habits, chunk_first))
        rng.shuffle(pool)
        for _ in range(256):
            yield pool.pop()
