"""Everything that reads what a model wrote, in one table, and texts that attack it. For test_fuzz_outputs.py."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from memfactory.common.parsing import final_answer, last_boxed, normalize_math, normalize_squad, says_nothing, strip_thinking
from memfactory.common.registry import SCORER_REGISTRY
from memfactory.evaluation import tasks as _tasks  # noqa: F401 - registers their scorers
from memfactory.judges.benchmarks import mark
from memfactory.judges.exact import boxed_answer
from memfactory.judges.llm import judged_part, verdict
from memfactory.memory.choices import parse_choices, parse_merges, parse_topics
from memfactory.memory.citations import parse_citations
from memfactory.memory.json_text import clean, json_values, looks_like_json, parts
from memfactory.memory.operations import parse_facts, parse_operations

FACTS = ["Alice lives in Lima", "Bo has a dog", "a b c"]
GOLDS = ["Lima, Peru", "a", "yes; for a reason", "(c)"]
READ_BY_HAND: dict[str, Callable[[str], Any]] = {
    "strip_thinking": strip_thinking,
    "strip_thinking, opened": partial(strip_thinking, opened=True),
    "last_boxed": last_boxed,
    "final_answer": final_answer,
    "normalize_math": normalize_math,
    "normalize_squad": normalize_squad,
    "says_nothing": says_nothing,
    "parse_operations": parse_operations,
    "parse_operations, lines": partial(parse_operations, facts=FACTS),
    "parse_operations, candidates": partial(parse_operations, candidates={"7": "a fact", "0": "another"}),
    "parse_facts": parse_facts,
    "parse_choices": partial(parse_choices, shown=20),
    "parse_topics": partial(parse_topics, turns=9),
    "parse_merges": partial(parse_merges, shown=9),
    "parse_citations": partial(parse_citations, shown=12),
    "json_values": lambda text: list(json_values(text)),
    "looks_like_json": looks_like_json,
    "parts": parts,
    "clean": clean,
    "verdict": verdict,
    "judged_part": judged_part,
    "boxed_answer": boxed_answer,
}
"""{what reads: the reader with what it needs besides the text}."""

HOMES = (
    "memfactory.common.parsing memfactory.memory.json_text memfactory.memory.operations memfactory.memory.choices "
    "memfactory.memory.citations memfactory.judges.llm memfactory.judges.exact"
).split()
"""Modules whose public functions of a `text` or an `answer` read what models write."""


@cache
def readers() -> dict[str, Callable[[str], Any]]:
    """Those and every scorer."""

    def scorer(name: str) -> Callable[[str], Any]:
        return lambda text: mark(name, text, GOLDS, question="Where is (a) Bo?", labels=["lima", "cusco"])

    return READ_BY_HAND | {f"scorer {name}": scorer(name) for name in SCORER_REGISTRY}


def unlisted() -> set[str]:
    """Public functions of a text in HOMES that stand in no table."""
    found = set()
    for home in map(importlib.import_module, HOMES):
        for name, function in inspect.getmembers(home, inspect.isfunction):
            first = next(iter(inspect.signature(function).parameters), "")
            if function.__module__ == home.__name__ and not name.startswith("_") and first in ("text", "answer"):
                found.add(name)
    scorers = {part.__name__ for _, part in SCORER_REGISTRY.items()}
    return found - {name.split(",")[0] for name in READ_BY_HAND} - scorers


SEEDS = [
    '{"memory": [{"id": "0", "text": "Alice lives in Lima", "event": "ADD"}, {"id": 7, "event": "NONE"}]}',
    "```json\n[{'event': 'UPDATE', 'id': 1, 'text': 'Bo has a cat',}, {\"event\": \"DEL\", \"id\": \"#2\"}]\n```",
    *("Alice lives new ADD .\nBo has 0 UPDATE .", "- Alice lives in Lima\n2. Bo has a dog", "none .", "NO_TRAIT", "[3, 0, 3, 99]"),
    *(
        '{"facts": ["Alice lives in Lima", "Bo has a dog"]}',
        '[{"fact": "a"}, {"fact": "b"}]',
        "He likes tea. [0, 2]",
        "It rains. [NO_CITE]",
    ),
    '{"extracted_memories": [{"summary": "Bo paints", "reference": [0, 2]}]}',
    *('Merge(0, "Bo paints (on Sundays)")', "Add()", "I do not know; it is not mentioned.", "\\boxed Lima", "**Answer:** (c) Lima"),
    '```json\n{"reason": "same city", "verdict": "correct"}\n```',
    *('{"verdict": "wrong"}', "<think>hm [1]</think>The answer is \\boxed{Lima}.", "Yes. Because \\fbox{a {b} c}$"),
    "The user's “name” is Ann—恵子",
]
"""What well-behaved models write."""

PIECES = [
    *"{}[]()\"'`\\,:.;#-*_$<>|/ \n\t\r\0\x1b0aAé中😀“”’\ud800\u2028\u200b\xa0",
    *(
        '{"',
        "[{",
        "[[",
        "{'",
        '{"a":',
        '":"',
        '",',
        '\\"',
        "\\\\",
        "```",
        "```json\n",
        '{"```json{```"}',
        "{{",
        "}}",
        "{a",
        "{ a: ",
        "[ ",
        "{ ",
    ),
    *("\\boxed{", "\\boxed ", "\\fbox {", "<think>", "</think>", "**Answer:**", "Merge(", "Merge(0, ", "Merge(0,x)", "Add( ", ") ", "[0]"),
    *("[0, ", "NO_CITE", "none ", "none .", " . ", "a ", "ADD ", "new ADD .\n", "0 ", "1,", "9" * 50, "-", "null", "NaN", "1e999", "true"),
    *('{"verdict": "correct"}', '{"verdict":', '{"event":"ADD","text":"x"},', '{"fact":', "not mentioned", "no ", "A) ", "(c)", "a, "),
    *("the ", ":\n", "- ", "\\u00", "\\ud800", "/*", "//", "' , '", '" : ', "\n\n", ".)", "don’t ", "<|im_end|>", "b, c ", "x y z "),
]
"""What parsers stumble over, alone and repeated."""


def mutated(seed: int, number: int) -> Iterator[str]:
    """`number` outputs made of well-behaved ones by cutting, doubling, swapping and inserting."""
    rng = random.Random(f"mutated {seed}")
    for _ in range(number):
        text = rng.choice(SEEDS)
        for _ in range(rng.randint(1, 6)):
            i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
            piece = rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 3, 40))
            doubled = text[:j] + text[i:j] * rng.randint(1, 5) + text[j:]
            other = text[:i] + rng.choice(SEEDS) + text[i:]
            text = rng.choice((text[:i] + piece + text[i:], text[:i] + text[j:], text[:i] + piece + text[j:], doubled, other))[:4000]
        yield text


def pathological(seed: int, number: int, most: int = 1 << 20) -> Iterator[Callable[[float], str]]:
    """`number` families of texts: called with a share of its size (at most `most` characters), each gives a text of one shape."""
    rng = random.Random(f"pathological {seed}")
    single = [(piece,) for piece in PIECES]
    for at in range(number):
        unit = "".join(single[at]) if at < len(single) else "".join(rng.choices(PIECES, k=rng.randint(2, 4)))
        before, after = (rng.choice(("", "", "", *PIECES, *SEEDS)) for _ in range(2))
        size = most if at < len(single) else int(2 ** rng.uniform(12, most.bit_length() - 1))
        nested = rng.choice(("", "", *"]})\"'`"))
        yield partial(_text, before, unit, nested, after, size)


def _text(before: str, unit: str, nested: str, after: str, size: int, share: float) -> str:
    times = max(1, int(size * share) // (len(unit) + len(nested)))
    return before + unit * times + nested * times + after
