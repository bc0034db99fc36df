"""The fictional world of `synth_hop`: people, towns, firms and works, and the English sentences that tell of them. Seeded.

Every name is made up and unique within a text, so that nothing can be known beforehand. Each relation of an entity is one
sentence of its document. Knows no question.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import lru_cache

from memfactory.data.generators.words import ADJECTIVES, NOUNS, with_articles

RELATIONS: dict[str, dict[str, str]] = {
    "person": {"born_in": "town", "born_year": "year", "works_for": "firm", "teacher": "person"},
    "town": {"province": "province", "mayor": "person", "river": "river", "chartered": "year"},
    "firm": {"founded_by": "person", "founded": "year", "located_in": "town"},
    "work": {"directed_by": "person", "produced_by": "firm", "set_in": "town", "released": "year"},
}
"""What is told of each kind of entity, and the kind of each value."""

FACTS: dict[str, tuple[str, str]] = {
    "born_in": (
        "{T} was born in the town of {v} as the third child of a family of {n} makers, and went to the {a} school beside the {m} there.",
        "The birthplace was {v}, where the family kept a {a} house with a {n} above the door and a {m} in the yard.",
    ),
    "born_year": (
        "The parish register gives {v} as the year of birth, but no portrait and no letter from the {a} early years has come down to us.",
        "Born in {v}, the later owner of a {a} collection of {n} drawings was said to be able to read before the age of four.",
    ),
    "works_for": (
        "After some {a} years of study {T} joined {v}, where colleagues remember a patient and rather silent member of the staff.",
        "A post at {v} followed, at first for one summer, and {T} stayed there to the end in a {a} room that looked out on a {n}.",
    ),
    "teacher": (
        "{v} was the teacher who mattered most, and the two of them went on writing {a} letters to each other about every {n} they saw.",
        "What {T} knew of the craft was learned from {v}, an exacting teacher who kept a {a} {n} on the desk.",
    ),
    "province": (
        "{T} is a {a} town in the province of {v}, known for its {n} market and for the {m} that is carved over the old gate.",
        "The town belongs to the province of {v}, whose {a} flag with the {n} hangs from the hall on market days.",
    ),
    "mayor": (
        "{v} has been mayor since the last election and has promised a {a} {n} museum, which the council has put off twice.",
        "The present mayor is {v}, who won a {a} majority with a plan for the old {n} works behind the station.",
    ),
    "river": (
        "It lies on the river {v}, which floods the {a} meadows nearly every spring and once carried off the {n} of the mill.",
        "Two bridges cross the river {v} here, one of them {a} and narrow and guarded by a {n} of stone.",
    ),
    "chartered": (
        "The charter of {v} made it a free town, and a copy with a {a} seal in the form of a {n} is kept in the archive.",
        "Its rights as a town go back to {v}, when a {a} quarrel over a {n} was settled before the regional court.",
    ),
    "founded_by": (
        "The firm was founded by {v} with the money from a {a} {n} shop and with a loan that was paid back within three years.",
        "{v} founded the firm in a {a} workshop behind a {n} store, and for a long time was the only one who drew a wage.",
    ),
    "founded": (
        "It began trading in {v} with a {a} catalogue of eleven pages, on the cover of which there was a {n} and a motto.",
        "The founding deed is dated {v} and is shown to visitors in a {a} case between a {n} and the first machine.",
    ),
    "located_in": (
        "The head office of {T} is in {v}, in a {a} building that used to be a {n} hall and still has the old lift.",
        "Its head office stands in {v}, next to a {a} yard, where a {n} of iron marks the place of the first workshop.",
    ),
    "directed_by": (
        "{T} was directed by {v}, who rewrote the {a} ending several times and cut a long scene with a {n} at the very last moment.",
        "The director was {v}, who is said to have wanted a {a} {n} in every single scene and to have got it in most.",
    ),
    "produced_by": (
        "It was produced by {v}, which had to sell a {a} warehouse full of {n} props to pay for the last weeks of shooting.",
        "The production by {v} ran over its budget because of a {a} storm that destroyed the painted {n} on the second day.",
    ),
    "set_in": (
        "The story is set in {v}, where a {a} {n} turns up in the market one morning and nobody admits to owning it.",
        "Its action takes place in {v} over the course of one {a} week, most of it in a room behind the {n} shop.",
    ),
    "released": (
        "{T} was released in {v} to {a} reviews, most of which praised the music and passed over the matter of the {n}.",
        "The first public showing was in {v}, in front of a {a} audience of barely ninety people and one {n}.",
    ),
}
"""Two sentences for each relation: {T} the document's title, {v} the value; the other slots are words that mean nothing."""

ASIDES = (
    "Little else is certain, and what the {a} guide books tell about the {n} and the {m} was made up by later writers.",
    "A {a} exhibition with a {n}, two letters and a broken {m} was shown for some weeks and drew more visitors than expected.",
    "The usual story about the {a} {n} is not true, although it is still told to visitors who ask about the {m}.",
    "In the local archive there is a {a} box labelled with a {n}, which nobody has been allowed to open for decades.",
    "Some accounts mention a {a} {m} as well, but the only witness was a {n} seller with a poor memory.",
)

_ONSETS = "b br c d dr f g gl h j k kl l m n p pr r s sk st t tr v z".split()
_VOWELS = "a e i o u ai ea".split()
_CODAS = "l n r s t x m nd rn lt sk v".split()
_FIRM_ENDINGS = "Works Mills Press Pictures Brothers Foundry Trading Studios Shipyard Glass".split()


@dataclass(slots=True)
class Entity:
    """Something that has a document: its kind, its name and its facts, one value a relation."""

    kind: str
    name: str
    facts: dict[str, str] = field(default_factory=dict)


class World:
    """Draws entities whose names never repeat, and writes their documents."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._used: set[str] = set()

    def name(self, kind: str) -> str:
        """A new name of a kind of thing; a year is no name and may come again."""
        if kind == "year":
            return str(self.rng.randrange(1800, 2000))
        while True:
            name = self._draw(kind)
            if name not in self._used:
                self._used.add(name)
                return name

    def _draw(self, kind: str) -> str:
        rng = self.rng
        if kind == "work":
            return f"The {rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"
        first = _word(rng)
        if kind == "person":
            return f"{first} {_word(rng)}"
        return f"{first} {rng.choice(_FIRM_ENDINGS)}" if kind == "firm" else first

    def entity(self, kind: str) -> Entity:
        """A new entity, all its facts about names that occur nowhere else."""
        return Entity(kind, self.name(kind), {relation: self.name(value) for relation, value in RELATIONS[kind].items()})

    def document(self, entity: Entity) -> str:
        """Title and 4 or 5 sentences in a random order: one for each fact, and some that say nothing. 90 to 150 words and marks."""
        sentences = [self._filled(self.rng.choice(FACTS[relation]), entity.name, value) for relation, value in entity.facts.items()]
        asides = self.rng.randint(4, 5) - len(sentences)
        sentences += [self._filled(aside, entity.name, "") for aside in self.rng.sample(ASIDES, asides)]
        self.rng.shuffle(sentences)
        return f"{entity.name}\n{' '.join(sentences)}"

    def _filled(self, template: str, title: str, value: str) -> str:
        rng = self.rng
        words = {"a": rng.choice(ADJECTIVES), "n": rng.choice(NOUNS), "m": rng.choice(NOUNS)}
        return with_articles(template.format(T=title, v=value, **words))


def _word(rng: random.Random) -> str:
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(2))
    return "".join(syllables).capitalize()


def read_facts(document: str) -> dict[str, str]:
    """The facts that a document's sentences state, found by the form of the sentences alone: {relation: value}."""
    return {relation: match[1] for relation, pattern in _readers() if (match := pattern.search(document))}


@lru_cache(maxsize=1)
def _readers() -> list[tuple[str, re.Pattern[str]]]:
    holes = {"T": ".+?", "v": r"([A-Z]\w+(?: [A-Z]\w+)*|\d{4})", "a": r"\w+", "n": r"\w+", "m": r"\w+"}
    readers = []
    for relation, templates in FACTS.items():
        for template in templates:
            parts = re.split(r"\{(\w)\}", template.removeprefix("{T} "))  # a search that begins with `.+?` is slow
            pattern = "".join(holes[part] if at % 2 else re.escape(part) for at, part in enumerate(parts))
            readers.append((relation, re.compile(re.sub(r"\\ (a)(?=\\ \\w)", r"\\ an?", pattern))))
    return readers
