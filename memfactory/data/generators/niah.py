"""`niah`: RULER's needles in a haystack (Hsieh et al., arXiv 2404.06654), all eight variants, at any length in tokens.

A needle says which value a key has; the question asks for the values of one key or of four. Keys and values of a text
never repeat, so that no decoy is a second answer. Knows no agent and no tokenizer: it is handed a counter of tokens.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memfactory.common.errors import unknown_name
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators.fitting import Count, Grown, scattered
from memfactory.data.generators.prose import NOISE, prose
from memfactory.data.generators.ruler import ruler_record
from memfactory.data.generators.words import key_stream

ANSWER_TOKENS = 128
"""Left of the length for the answer (`tokens_to_generate` of RULER)."""
NEEDLE = "One of the special magic {kind} for {key} is: {value}."


@dataclass(frozen=True, slots=True)
class Variant:
    """How one of the eight tasks differs from the others."""

    haystack: str
    """noise, essay or needles (decoys)."""
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    """Values of each key that is asked about."""
    queries: int = 1


VARIANTS = {
    "single_1": Variant("noise"),
    "single_2": Variant("essay"),
    "single_3": Variant("essay", value="uuids"),
    "multikey_1": Variant("essay", keys=4),
    "multikey_2": Variant("needles"),
    "multikey_3": Variant("needles", key="uuids", value="uuids"),
    "multivalue": Variant("essay", values=4),
    "multiquery": Variant("essay", keys=4, queries=4),
}


@GENERATOR_REGISTRY.register("niah")
def niah(num_examples: int, *, count: Count, seed: int = 0, tokens: int = 16384, variant: str = "single_1") -> Iterator[dict[str, Any]]:
    """RULER's needles in a haystack: single_1..3, multikey_1..3, multivalue, multiquery.

    Records are `{index, input, context, outputs, answer_prefix, length}`; `length` is the tokens of context and question
    plus `ANSWER_TOKENS`, at most `tokens`. Record i depends on (seed, variant, tokens, i) alone.
    """
    if variant not in VARIANTS:
        raise unknown_name("variant of niah", variant, VARIANTS)
    return (_record(index, f"niah/{variant}/{seed}/{index}", VARIANTS[variant], tokens, count) for index in range(num_examples))


def _record(index: int, stream: str, variant: Variant, tokens: int, count: Count) -> dict[str, Any]:
    needles = _needles(random.Random(f"{stream}/needles"), variant)
    keys = [next(needles) for _ in range(variant.keys)]
    asked = keys[: variant.queries]
    listed = _listing([key for key, _ in asked])
    kind = variant.value if len(asked) * variant.values > 1 else variant.value[:-1]
    verb = "are" if len(asked) * variant.values > 1 else "is"
    question = (
        f"Somewhere in the text special magic {variant.value} are given for certain keys. "
        f"What {verb} {'all the' if verb == 'are' else 'the'} special magic {kind} for {listed} mentioned in the text?"
    )
    golden = [NEEDLE.format(kind=variant.value, key=key, value=value) for key, values in keys for value in values]
    random.Random(f"{stream}/order").shuffle(golden)
    hay = Grown(_hay(random.Random(f"{stream}/hay"), variant, needles))
    between = " " if variant.haystack == "essay" else "\n"

    def render(units: int) -> str:
        return between.join(scattered(golden, hay.first(units), random.Random(f"{stream}/places")))

    prefix = f" The special magic {kind} for {listed} mentioned in the text {verb}"
    outputs = [value for _, values in asked for value in values]
    return ruler_record(index, question, prefix, outputs, render, count, tokens, ANSWER_TOKENS, least=1, owner="niah")


def _needles(rng: random.Random, variant: Variant) -> Iterator[tuple[str, list[str]]]:
    """Endless (key, values); no key and no value comes twice."""
    keys = key_stream(rng) if variant.key == "words" else _uuids(rng)
    values = _numbers(rng) if variant.value == "numbers" else _uuids(rng)
    for key in keys:
        yield key, [next(values) for _ in range(variant.values)]


def _hay(rng: random.Random, variant: Variant, decoys: Iterator[tuple[str, list[str]]]) -> Iterator[str]:
    if variant.haystack == "essay":
        yield from prose(rng)
    elif variant.haystack == "needles":
        for key, (value,) in decoys:
            yield NEEDLE.format(kind=variant.value, key=key, value=value)
    while True:
        yield " ".join(NOISE)


def _numbers(rng: random.Random) -> Iterator[str]:
    """Numbers of seven digits, uniform, without a repeat."""
    seen: set[int] = set()
    while True:
        number = rng.randrange(10**6, 10**7)
        if number not in seen:
            seen.add(number)
            yield str(number)


def _uuids(rng: random.Random) -> Iterator[str]:
    while True:
        yield str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _listing(names: list[str]) -> str:
    """`a`; `a, b, and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
