"""Haystacks: generated English prose, and the short filler lines of RULER's noise. Knows no needle and no token.

The prose stands in for the essays of the original, which are under copyright: it reads as English, says nothing that
matters, and holds no digits, so that nothing in it can pass for a needle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from memfactory.data.generators.words import ADJECTIVES, NOUNS, with_articles

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""The filler of RULER's noise haystack (arXiv 2404.06654), one unit a repetition of all five."""

_OPENINGS = (
    "",
    "In those years",
    "Most people agree that",
    "On the way home we noticed that",
    "As far as anyone remembers,",
    "It is often said that",
    "Some time later",
    "To our surprise",
    "When the season changed,",
    "According to the neighbours,",
)
_SENTENCES = (
    "the {a} {n} stood beside the {m} for as long as the {k} was open",
    "a {a} {n} tells you more about the {m} than any {b} {k} ever could",
    "nobody had thought of bringing the {n} to the {m} before the {k} was finished",
    "the {n} and the {m} were kept in a {a} corner next to the {b} {k}",
    "one should never trade a {a} {n} for a {b} {m}, whatever the {k} may promise",
    "those who work with a {n} learn to look at every {m} with {a} eyes",
    "there was a {a} {n} in the window, and behind it a {b} {m} that nobody used",
    "what makes a {n} {a} is not the {m} but the way in which the {k} is made",
    "the {a} road led past the {n}, over the {m} and down to the {k}",
    "we talked about the {n} until the {m} grew {a} and the {k} was quiet",
    "every {n} begins as a {a} plan and ends as a {b} {m} on somebody's shelf",
    "the owner of the {n} would rather repair the {a} {m} than buy a {b} {k}",
)


def prose(rng: random.Random) -> Iterator[str]:
    """Endless sentences of 12 to 25 words."""
    while True:
        body = rng.choice(_SENTENCES).format(
            a=rng.choice(ADJECTIVES), b=rng.choice(ADJECTIVES), n=rng.choice(NOUNS), m=rng.choice(NOUNS), k=rng.choice(NOUNS)
        )
        text = with_articles(f"{rng.choice(_OPENINGS)} {body}.".lstrip())
        yield text[0].upper() + text[1:]
