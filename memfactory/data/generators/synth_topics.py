"""`synth_topics`: questions with twenty memories each, of which those on the question's topic are useful. Seeded; for rerankers.

A question says what it is about in two asking words of its topic (`itinerary`, `luggage`) and is set in a situation (a
person, a place, a time). A memory says its topic in three telling words (`passport`, `lisbon`, `jetlag`), which no question
uses, and has a situation too. Useful is what has the question's topic, whatever the situation.

Why a lexical retriever is misled: asking and telling words are disjoint, so all that a question and a memory can share is
the situation, and that is shared more often by useless memories (`lure`) than by useful ones (`share`). Its first five of
twenty hold about one useful memory, a little less than chance (five of twenty). Why a linear map can do better: which telling
words go with which asking words is the same in every question, 64 pairs for each of 16 topics, and a bilinear form of two bags
of words can hold such a table.

Why nothing leaks: telling words, situations and templates are drawn alike for useful and useless memories, so a memory
alone says nothing; nor does its place. `split` sets apart a quarter of the pairs of asking words and of the triples of telling
words: held-out questions and memories are combinations that training never has, of the same words. Knows no embedder.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators.words import with_articles

_TOPICS = """
dinner recipe lunch menu snack dessert grocery cooking | vegetarian peanut gluten curry tofu basil lactose sourdough
workout exercise gym stamina stretching coach warmup muscle | marathon yoga treadmill hamstring pilates rowing dumbbell kneecap
trip holiday itinerary flight hotel luggage destination souvenir | lisbon passport jetlag hostel alps visa safari ferry
garden lawn planting seeds watering pruning flowerbed terrace | tomatoes compost lavender slugs greenhouse roses drought mulch
song concert playlist instrument album rehearsal melody festival | violin jazz metronome choir vinyl guitar piano trumpet
pet vet puppy leash aquarium grooming breeder adoption | terrier hamster litterbox parrot goldfish kibble siamese rabies
book novel author library chapter bestseller paperback reading | thriller poetry dystopia memoir tolstoy sonnet bookmark detective
budget savings investing loan taxes salary spending bank | mortgage pension dividend overdraft bonds payroll invoice inflation
meeting deadline manager promotion interview resume office career | timesheet startup consulting overtime engineer freelance intern payslip
doctor medicine symptom sleeping appointment diagnosis clinic remedy | asthma migraine penicillin insomnia pollen anaemia diabetes inhaler
laptop software backup computer password printer upgrade network | linux firewall keyboard python router graphics terminal encryption
repair painting renovation shelf leaking furniture ceiling handyman | plumber drill wallpaper varnish insulation socket tiles hammer
car driving tyre parking fuel engine mechanic vehicle | diesel hatchback hybrid clutch gearbox motorway exhaust carburettor
film cinema actor series trailer streaming director plot | western anime noir subtitles sequel hitchcock horror documentary
language vocabulary grammar translate accent lesson fluent dictionary | spanish mandarin verbs flashcards umlaut cyrillic subjunctive kanji
photo camera picture portrait shoot gallery exposure snapshot | tripod lens aperture darkroom sepia shutter polaroid panorama
"""
_SITUATIONS: dict[str, list[str]] = {
    "person": "sister uncle neighbour cousin roommate grandmother colleague nephew landlord twin godmother barber classmate niece".split(),
    "place": "harbour basement chapel orchard lighthouse stadium bakery riverside windmill museum quarry cottage village campus".split(),
    "time": "january february october november december monday tuesday thursday saturday sunday midnight autumn easter halloween".split(),
}
_QUESTIONS = (
    "Can you suggest something about {a} and {b}? My {person} asked at the {place} on {time}.",
    "On {time} I will see my {person} near the {place}. Any advice on {a} or {b}?",
    "I keep thinking about {a} since {time}. What would my {person} from the {place} say of {b}?",
    "Before {time} I have to decide on {a}, and {b} too. My {person} waits at the {place}.",
)
_MEMORIES = (
    "Talked about {a}, {b} and {c} with the {person}, by the {place}, around {time}.",
    "Around {time} the {person} brought up {a}; it led to {b} and {c}, back at the {place}.",
    "Remembers {a} from the {place}, told the {person} of {b}, and put off {c} until {time}.",
    "Since {time} there was {a} and {b}. The {person} noted {c} close to the {place}.",
)
SPLITS = ("train", "held_out")


def _topics() -> list[tuple[list[str], list[str]]]:
    halves = (line.split("|") for line in _TOPICS.strip().splitlines())
    return [(asking.split(), telling.split()) for asking, telling in halves]


TOPICS = _topics()
"""(asking words, telling words) of each topic."""


def _combinations(topic: int, side: int, split: str) -> list[tuple[str, ...]]:
    """The pairs of asking words (side 0) or triples of telling words (side 1) of a split: a fixed quarter of them is held out."""
    every = list(itertools.combinations(TOPICS[topic][side], 2 + side))
    random.Random(f"synth_topics/{topic}/{side}").shuffle(every)
    cut = len(every) // 4
    return every[:cut] if split == "held_out" else every[cut:]


@GENERATOR_REGISTRY.register("synth_topics")
def synth_topics(
    num_examples: int,
    *,
    seed: int = 0,
    split: str = "train",
    memories: int = 20,
    useful: int = 5,
    topics: int = len(TOPICS),
    share: float = 0.3,
    lure: float = 0.36,
) -> Iterator[dict[str, Any]]:
    """Questions with `memories` memories each, `useful` of them on the question's topic: `{input, M, outputs, index}`.

    `M` are the memories' texts, `outputs` the useful ones. `share` and `lure`: how likely a part of the situation is the
    question's, in a useful and in another memory. Record i depends on (seed, i) and not on `num_examples`.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if not 2 <= topics <= len(TOPICS):
        raise ConfigError(f"topics={topics}: there are {len(TOPICS)}, and 2 is the least.")
    most = len(_combinations(0, 1, split))
    if not 1 <= useful < memories or useful > most:
        raise ConfigError(f"useful={useful} of memories={memories}: at least 1, fewer than all, at most {most}.")
    if not (0 <= share <= 1 and 0 <= lure <= 1):
        raise ConfigError(f"share={share} and lure={lure} are probabilities, in [0, 1].")
    world = World(topics, split, share, lure)
    return (world.record(random.Random(f"synth_topics/{seed}/{split}/{index}"), index, memories, useful) for index in range(num_examples))


class World:
    """The combinations of a split, and how questions and memories are made of them."""

    def __init__(self, topics: int, split: str, share: float, lure: float) -> None:
        self.asking = [_combinations(topic, 0, split) for topic in range(topics)]
        self.telling = [_combinations(topic, 1, split) for topic in range(topics)]
        self.share, self.lure = share, lure

    def record(self, rng: random.Random, index: int, memories: int, useful: int) -> dict[str, Any]:
        """One question with its memories in a random order."""
        topic = rng.randrange(len(self.asking))
        others = [other for other in range(len(self.asking)) if other != topic]
        situation = {part: rng.choice(values) for part, values in _SITUATIONS.items()}
        question = _text(rng, _QUESTIONS, rng.choice(self.asking[topic]), situation)
        told = rng.sample(self.telling[topic], useful)
        good = [_text(rng, _MEMORIES, words, _situation(rng, situation, self.share)) for words in told]
        rest: list[str] = []
        while len(rest) < memories - useful:
            text = _text(rng, _MEMORIES, rng.choice(self.telling[rng.choice(others)]), _situation(rng, situation, self.lure))
            if text not in rest:
                rest.append(text)
        return {"input": question, "M": rng.sample(good + rest, memories), "outputs": good, "index": index}


def _situation(rng: random.Random, asked: dict[str, str], shared: float) -> dict[str, str]:
    """A memory's situation: each part is the question's with probability `shared`, else another."""
    return {
        part: asked[part] if rng.random() < shared else rng.choice([value for value in values if value != asked[part]])
        for part, values in _SITUATIONS.items()
    }


def _text(rng: random.Random, forms: Sequence[str], words: Sequence[str], situation: dict[str, str]) -> str:
    slots = dict(zip("abc", rng.sample(words, len(words)), strict=False))
    return with_articles(rng.choice(forms).format(**slots, **situation))
