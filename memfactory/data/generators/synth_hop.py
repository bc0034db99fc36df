"""`synth_hop`: questions over two documents of a made-up world, among hard and easy other documents. Seeded; offline.

Stands in for HotpotQA: `bridge` questions go through one document to another, comparisons ask about two documents. Each
record has a world of its own, so that nothing learned from one answers another. Knows no agent and no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import ConfigError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.documents import join_documents, permuted
from memfactory.data.generators.hop_world import RELATIONS, Entity, World

HARD = 8
"""Documents beside the two gold ones that are of the gold ones' kinds; half of them share a value with one."""

BRIDGES: dict[tuple[str, str], str] = {
    ("work", "directed_by"): "the director of {A}",
    ("work", "produced_by"): "the firm that produced {A}",
    ("work", "set_in"): "the town in which {A} is set",
    ("person", "born_in"): "the town where {A} was born",
    ("person", "works_for"): "the firm that {A} joined",
    ("person", "teacher"): "the teacher of {A}",
    ("firm", "founded_by"): "the founder of {A}",
    ("firm", "located_in"): "the town in which {A} has its head office",
    ("town", "mayor"): "the mayor of {A}",
}
"""How a question speaks of an entity that it does not name."""
TARGETS: dict[tuple[str, str], str] = {
    ("person", "born_in"): "In which town was {B} born?",
    ("person", "works_for"): "Which firm did {B} join?",
    ("person", "teacher"): "Who was {B} taught by?",
    ("firm", "located_in"): "In which town is the head office of {B}?",
    ("firm", "founded_by"): "Who was the founder of {B}?",
    ("town", "province"): "In which province is {B}?",
    ("town", "mayor"): "Who is the mayor of {B}?",
    ("town", "river"): "Which river flows through {B}?",
}
SAME: dict[tuple[str, str], str] = {
    ("person", "born_in"): "Were {A} and {B} born in the same town?",
    ("person", "works_for"): "Did {A} and {B} join the same firm?",
    ("person", "teacher"): "Were {A} and {B} taught by the same teacher?",
    ("firm", "located_in"): "Are the head offices of {A} and {B} in the same town?",
    ("firm", "founded_by"): "Were {A} and {B} founded by the same person?",
    ("work", "directed_by"): "Did {A} and {B} have the same director?",
    ("work", "produced_by"): "Were {A} and {B} produced by the same firm?",
    ("town", "province"): "Are {A} and {B} in the same province?",
    ("town", "river"): "Are {A} and {B} on the same river?",
}
WHICH: dict[tuple[str, str], str] = {
    ("person", "born_year"): "Who was born {when}, {A} or {B}?",
    ("firm", "founded"): "Which firm was founded {when}, {A} or {B}?",
    ("work", "released"): "Which was released {when}, {A} or {B}?",
    ("town", "chartered"): "Which town got its charter {when}, {A} or {B}?",
}

BLOCK = ("bridge",) * 6 + ("yes", "no", "first", "second")
"""The kinds of ten questions in a row, in a random order: comparisons are balanced in every ten records, not just on average."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer and its two gold entities, in the order in which they are read."""

    text: str
    answer: str
    gold: tuple[Entity, Entity]


@GENERATOR_REGISTRY.register("synth_hop")
def synth_hop(num_examples: int, *, seed: int = 0, docs: int = 50) -> Iterator[dict[str, Any]]:
    """Multi-hop questions over `docs` documents of a made-up world: two gold, eight hard, the others easy.

    Records are `{context, input, answers, num_docs, index}` with `evidence`, the numbers of the gold documents, beside.
    Record i depends on (seed, i) alone, its question and its first ten documents not on `docs`.
    """
    if docs < 2 + HARD:
        raise ConfigError(f"docs={docs}: synth_hop needs at least {2 + HARD}, two gold and {HARD} hard documents.")
    return (_record(seed, index, docs) for index in range(num_examples))


def _record(seed: int, index: int, docs: int) -> dict[str, Any]:
    kinds = list(BLOCK)
    random.Random(f"synth_hop/{seed}/block/{index // len(BLOCK)}").shuffle(kinds)
    world = World(random.Random(f"synth_hop/{seed}/{index}"))
    question = draw_question(world, kinds[index % len(BLOCK)])
    entities = [*question.gold, *hard_distractors(world, question.gold)]
    documents = [world.document(entity) for entity in entities]
    documents += [world.document(world.entity(world.rng.choice(list(RELATIONS)))) for _ in range(docs - len(documents))]
    ordered, numbers = permuted(documents, random.Random(f"synth_hop/{seed}/{index}/order"))
    return {
        "context": join_documents(ordered),
        "input": question.text,
        "answers": [question.answer],
        "num_docs": docs,
        "index": index,
        "evidence": numbers[:2],
    }


def draw_question(world: World, kind: str) -> Question:
    """One question: `bridge`, `yes` or `no` (do two entities share a value), `first` or `second` (which is earlier or later)."""
    while True:
        question = _bridge(world) if kind == "bridge" else _comparison(world, kind)
        if kind != "bridge" or question.answer.lower() not in question.text.lower():
            return question


def _bridge(world: World) -> Question:
    (first_kind, link), phrase = world.rng.choice(list(BRIDGES.items()))
    second_kind = RELATIONS[first_kind][link]
    relation, target = world.rng.choice([(relation, text) for (kind, relation), text in TARGETS.items() if kind == second_kind])
    first, second = world.entity(first_kind), world.entity(second_kind)
    first.facts[link] = second.name
    return Question(target.format(B=phrase.format(A=first.name)), second.facts[relation], (first, second))


def _comparison(world: World, kind: str) -> Question:
    (of, relation), form = world.rng.choice(list((SAME if kind in ("yes", "no") else WHICH).items()))
    first, second = world.entity(of), world.entity(of)
    when = world.rng.choice(["earlier", "later"])
    if kind == "yes":
        second.facts[relation] = first.facts[relation]
    elif kind != "no":
        early, late = sorted(world.rng.sample(range(1800, 2000), 2))
        ordered = (early, late) if (kind == "first") == (when == "earlier") else (late, early)
        first.facts[relation], second.facts[relation] = map(str, ordered)
    answer = {"first": first.name, "second": second.name}.get(kind, kind)
    return Question(form.format(A=first.name, B=second.name, when=when), answer, (first, second))


def hard_distractors(world: World, gold: tuple[Entity, Entity]) -> list[Entity]:
    """Entities of the gold ones' kinds, by turns; half of them have the value of one relation in common with a gold one."""
    distractors = []
    for number in range(HARD):
        like = gold[number % 2]
        entity = world.entity(like.kind)
        if number % 4 < 2:
            relation = world.rng.choice([relation for relation, kind in RELATIONS[like.kind].items() if kind != "year"])
            entity.facts[relation] = like.facts[relation]
        distractors.append(entity)
    return distractors
