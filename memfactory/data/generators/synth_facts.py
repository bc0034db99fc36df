"""`synth_facts`: a long list of facts about people, and one question about one of them. Seeded; public JSON schema.

One-hop: `city alice ?`. Two-hop: `city boss alice ?`, the city of alice's boss, whose first fact comes before the second,
so that a reader who keeps only what is relevant so far can answer. A (relation, person) pair never occurs twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import ConfigError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators.world import NEW_NAMES, PERSON_RELATIONS, RELATIONS, TRAIN_NAMES, VALUES

NAMES = {"train": TRAIN_NAMES, "new": NEW_NAMES, "all": [*TRAIN_NAMES, *NEW_NAMES]}
FACT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """`relation person value .`"""

    relation: str
    person: str
    value: str

    @property
    def text(self) -> str:
        return f"{self.relation} {self.person} {self.value} ."


@dataclass(frozen=True, slots=True)
class Episode:
    """One generated example: the facts in reading order, the question and the facts that answer it."""

    facts: tuple[Fact, ...]
    facts_per_chunk: int
    question: str
    gold: tuple[Fact, ...]
    """The facts the answer follows from, in reading order: one for each hop."""

    @property
    def chunks(self) -> list[tuple[Fact, ...]]:
        step = self.facts_per_chunk
        return [self.facts[at : at + step] for at in range(0, len(self.facts), step)]

    @property
    def answer(self) -> str:
        return self.gold[-1].value


def draw_episode(
    rng: random.Random,
    chunks: int,
    facts_per_chunk: int = 4,
    two_hop: float = 0.35,
    names: Sequence[str] = TRAIN_NAMES,
    same_person: float = 0.08,
) -> Episode:
    """Draw one episode of `chunks * facts_per_chunk` facts; `same_person`: share of distractors about the asked person."""
    subject, bridge = rng.sample(list(names), 2)
    if rng.random() < two_hop:
        link, relation = rng.choice(PERSON_RELATIONS), rng.choice(list(VALUES))
        gold: tuple[Fact, ...] = (Fact(link, subject, bridge), Fact(relation, bridge, rng.choice(VALUES[relation])))
        question = f"{relation} {link} {subject} ?"
    else:
        relation = rng.choice(RELATIONS)
        gold = (_draw_fact(rng, relation, subject, names),)
        question = f"{relation} {subject} ?"
    total = chunks * facts_per_chunk
    used = {(fact.relation, fact.person) for fact in gold}
    facts: list[Fact] = []
    while len(facts) < total - len(gold):
        person = subject if rng.random() < same_person else rng.choice(list(names))
        relation = rng.choice(RELATIONS)
        if (relation, person) not in used and (person != subject or len(used) < 6 or rng.random() < same_person):
            used.add((relation, person))
            facts.append(_draw_fact(rng, relation, person, names))
    for at, fact in zip(sorted(rng.sample(range(total), len(gold))), gold, strict=True):
        facts.insert(at, fact)
    return Episode(tuple(facts), facts_per_chunk, question, gold)


def _draw_fact(rng: random.Random, relation: str, person: str, names: Sequence[str]) -> Fact:
    choices = VALUES.get(relation) or [name for name in names if name != person]
    return Fact(relation, person, rng.choice(choices))


@GENERATOR_REGISTRY.register("synth_facts")
def synth_facts(
    num_examples: int,
    *,
    seed: int = 0,
    chunks: Sequence[int] = (2, 3, 4),
    facts_per_chunk: int = 4,
    two_hop: float = 0.35,
    names: str = "train",
) -> list[dict[str, Any]]:
    """Examples in the public long-context schema (`context`, `input`, `answers`, `index`) with `hops` and `num_chunks` beside.

    Each example has its own random stream (seed, index): any prefix of a larger set is the smaller set. `names` is
    train, new or all. A chunk is `4 * facts_per_chunk` tokens of the tiny tokenizer.
    """
    if names not in NAMES:
        raise ConfigError(f"names={names!r} is unknown. Known: {', '.join(NAMES)}.")
    if two_hop > 0 and min(chunks) * facts_per_chunk < 2:
        raise ConfigError(f"chunks={tuple(chunks)} of {facts_per_chunk} fact(s) have no room for two hops; set two_hop=0.")
    most = max(chunks) * facts_per_chunk
    if min(chunks) < 1 or most > len(NAMES[names]) * len(RELATIONS) * 0.9:
        raise ConfigError(
            f"chunks={tuple(chunks)} x facts_per_chunk={facts_per_chunk} does not fit the world of {len(NAMES[names])} people."
        )
    rows = []
    for index in range(num_examples):
        rng = random.Random(f"synth_facts/{seed}/{index}")
        episode = draw_episode(rng, rng.choice(list(chunks)), facts_per_chunk, two_hop, NAMES[names])
        rows.append(
            {
                "context": " ".join(fact.text for fact in episode.facts),
                "input": episode.question,
                "answers": [episode.answer],
                "index": index,
                "hops": len(episode.gold),
                "num_chunks": len(episode.chunks),
            }
        )
    return rows
