"""`vt`, `cwe`, `fwe`: RULER's variable tracking and word counting (arXiv 2404.06654), at any length in tokens.

The context stands apart from the question, as in MemAgent's fork. Two artefacts of the originals are gone: the order of
the words differs from record to record, and `index` is unique. Knows no agent and no tokenizer: it is handed a counter.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from memfactory.common.errors import ConfigError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators.fitting import Count, Grown, fit, scattered
from memfactory.data.generators.prose import NOISE
from memfactory.data.generators.words import word_stream

VT_ANSWER_TOKENS, CWE_ANSWER_TOKENS, FWE_ANSWER_TOKENS = 30, 120, 50
"""Left of the length for the answer (`tokens_to_generate` of RULER)."""
DOTS = "..."
"""The most frequent word of `fwe`, which does not count."""
Record = dict[str, Any]


@GENERATOR_REGISTRY.register("vt")
def vt(num_examples: int, *, count: Count, seed: int = 0, tokens: int = 16384, chains: int = 1, hops: int = 4) -> Iterator[Record]:
    """RULER's variable tracking: name all variables that hold a value, through `hops` assignments among noise.

    With more than one chain the others are decoys. No example precedes the text (RULER has one, MemAgent's fork none).
    """
    if chains < 1 or hops < 0:
        raise ConfigError(f"vt: chains={chains}, hops={hops}: at least 1 chain and 0 hops.")

    def record(index: int) -> Record:
        rng = random.Random(f"vt/{seed}/{index}")
        values = rng.sample(range(10000, 99999), chains)
        names = list(islice(_unique(lambda: "".join(rng.choices(string.ascii_uppercase, k=5))), chains * (hops + 1)))
        groups = [names[at : at + hops + 1] for at in range(0, len(names), hops + 1)]
        turns = [chain for chain in range(chains) for _ in range(hops + 1)]
        rng.shuffle(turns)  # the chains cross each other, each in its own order
        steps = [_steps(group, value) for group, value in zip(groups, values, strict=True)]
        lines = [next(steps[chain]) for chain in turns]

        def render(units: int) -> str:
            return "\n".join(scattered(lines, NOISE * units, random.Random(f"vt/{seed}/{index}/places")))

        question = f"Follow the variable assignments in the text. Which variables hold the value {values[0]}? Find all of them."
        prefix = f" By the assignments in the text, the {hops + 1} variables that hold the value {values[0]} are:"
        return ruler_record(index, question, prefix, groups[0], render, count, tokens, VT_ANSWER_TOKENS, least=1, owner="vt")

    return (record(index) for index in range(num_examples))


def _steps(names: list[str], value: int) -> Iterator[str]:
    """The assignments of one chain."""
    yield f"VAR {names[0]} = {value}"
    yield from (f"VAR {new} = VAR {old}" for old, new in zip(names, names[1:], strict=False))


@GENERATOR_REGISTRY.register("cwe")
def cwe(
    num_examples: int,
    *,
    count: Count,
    seed: int = 0,
    tokens: int = 16384,
    num_common: int = 10,
    common_times: int | None = None,
    uncommon_times: int | None = None,
) -> Iterator[Record]:
    """RULER's common words: a numbered list in which ten words come 30 times and all others 3 times (6 and 1 below 4096 tokens)."""
    often = common_times or (30 if tokens >= 4096 else 6)
    seldom = uncommon_times or (3 if tokens >= 4096 else 1)
    if num_common < 1 or seldom < 1 or often <= seldom:
        raise ConfigError(f"cwe: common_times={often} must be above uncommon_times={seldom}, and num_common={num_common} at least 1.")

    def record(index: int) -> Record:
        stream = word_stream(random.Random(f"cwe/{seed}/{index}"))
        common: list[str] = []
        while len(common) < num_common:
            word = next(stream)  # scores look for substrings: no word may contain another one that is asked for
            if not any(word in other or other in word for other in common):
                common.append(word)
        others = Grown(word for word in stream if not any(known in word for known in common))

        def render(units: int) -> str:
            words = common * often + others.first(units) * seldom
            random.Random(f"cwe/{seed}/{index}/order").shuffle(words)
            return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))

        question = (
            f"The text is a numbered list of words, some of which come more often than others. What are its {num_common} most common words?"
        )
        prefix = f" The {num_common} most common words of the list are:"
        return ruler_record(index, question, prefix, common, render, count, tokens, CWE_ANSWER_TOKENS, least=1, owner="cwe")

    return (record(index) for index in range(num_examples))


@GENERATOR_REGISTRY.register("fwe")
def fwe(num_examples: int, *, count: Count, seed: int = 0, tokens: int = 16384, alpha: float = 2.0) -> Iterator[Record]:
    """RULER's frequent words: the three most frequent coded words of a text whose frequencies fall as rank ** -alpha.

    The first rank is `...`, which does not count; `tokens // 50` words of six letters share the others. Six in ten words
    of the text are dots at alpha=2.
    """
    from scipy.special import zeta  # not above: importing it takes a quarter of a second

    if alpha <= 1:
        raise ConfigError(f"fwe: alpha={alpha} must be above 1: the frequencies are a zeta distribution.")
    vocabulary = max(tokens // 50, 5)
    share = [rank**-alpha / float(zeta(alpha)) for rank in range(1, vocabulary + 1)]
    # Counts are rounded down: words whose shares of the text differ by one word or more cannot tie.
    least = math.ceil(max(1 / (share[rank] - share[rank + 1]) for rank in (1, 2, 3)))

    def record(index: int) -> Record:
        rng = random.Random(f"fwe/{seed}/{index}")
        words = [DOTS, *islice(_unique(lambda: "".join(rng.choices(string.ascii_lowercase, k=6))), vocabulary - 1)]

        def render(units: int) -> str:
            text = [word for word, part in zip(words, share, strict=True) for _ in range(int(units * part))]
            random.Random(f"fwe/{seed}/{index}/order").shuffle(text)
            return " ".join(text)

        question = "The text is a sequence of coded words and dots. Not counting the dots '...', which three coded words come most often?"
        prefix = " Not counting the dots, the three coded words that come most often are:"
        return ruler_record(index, question, prefix, words[1:4], render, count, tokens, FWE_ANSWER_TOKENS, least=least, owner="fwe")

    return (record(index) for index in range(num_examples))


def ruler_record(
    index: int,
    question: str,
    prefix: str,
    outputs: list[str],
    render: Callable[[int], str],
    count: Count,
    tokens: int,
    reserve: int,
    least: int,
    owner: str,
) -> Record:
    """A record in RULER's schema; `length` is the tokens of context and question plus the `reserve` for the answer."""
    taken = count(question) + reserve
    fitted = fit(render, count, tokens - taken, least, f"{owner} with tokens={tokens}")
    return {
        "index": index,
        "input": question,
        "context": fitted.text,
        "outputs": list(outputs),
        "answer_prefix": prefix,
        "length": fitted.tokens + taken,
    }


def _unique(draw: Callable[[], str]) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        word = draw()
        if word not in seen:
            seen.add(word)
            yield word
