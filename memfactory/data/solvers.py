"""Rules that answer a record of each family from its text alone, and say where in the text they found what they needed.

They read the questions and texts that an agent reads, never what a generator knew, so a record that they answer can be
answered. Knows no statistics.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memfactory.data.documents import split_documents
from memfactory.data.generators.hop_world import read_facts
from memfactory.data.generators.synth_hop import BRIDGES, SAME, TARGETS, WHICH

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Solved:
    """Answers, and the places of what they follow from: (place from 0, number of places)."""

    answers: list[str]
    places: list[tuple[int, int]]


def solve_documents(record: Record) -> Solved:
    """`synth_hop`: the answer from the gold documents (`evidence`) alone; no answer if they do not state it."""
    documents = split_documents(record["context"])
    gold = [documents[number - 1] for number in record["evidence"]]
    told = {document.partition("\n")[0]: read_facts(document) for document in gold}
    answers = [answer for answer in _readings(record["input"], told) if answer]
    return Solved(answers[:1], [(number - 1, len(documents)) for number in record["evidence"]])


def _readings(question: str, told: dict[str, dict[str, str]]) -> Iterator[str | None]:
    for bridge, target, pattern in _bridge_forms():
        if match := pattern.fullmatch(question):
            between = told.get(match["A"], {}).get(bridge, "")
            yield told.get(between, {}).get(target)
    for kind, relation, when, pattern in _comparison_forms():
        if match := pattern.fullmatch(question):
            first, second = (told.get(match[name], {}).get(relation) for name in "AB")
            if first and second and kind == "same":
                yield "yes" if first == second else "no"
            elif first and second:
                yield match["A"] if (int(first) < int(second)) == (when == "earlier") else match["B"]


@lru_cache(maxsize=1)
def _bridge_forms() -> list[tuple[str, str, re.Pattern[str]]]:
    return [
        (bridge, target, _pattern(form.replace("{B}", phrase)))
        for (_, bridge), phrase in BRIDGES.items()
        for (_, target), form in TARGETS.items()
    ]


@lru_cache(maxsize=1)
def _comparison_forms() -> list[tuple[str, str, str, re.Pattern[str]]]:
    same = [("same", relation, "", _pattern(form)) for (_, relation), form in SAME.items()]
    times = [(relation, when, form.replace("{when}", when)) for (_, relation), form in WHICH.items() for when in ("earlier", "later")]
    return same + [("which", relation, when, _pattern(form)) for relation, when, form in times]


def _pattern(form: str) -> re.Pattern[str]:
    return re.compile("".join(f"(?P<{part[1]}>.+?)" if part in ("{A}", "{B}") else re.escape(part) for part in re.split(r"(\{\w\})", form)))


def find_documents(record: Record) -> Solved:
    """Real HotpotQA, which no rule answers: the accepted answers if each gold document is there, else none."""
    documents = split_documents(record["context"])
    titles = {documents[number - 1].partition("\n")[0] for number in record["evidence"]}
    present = bool(titles) and titles == set(record["evidence_titles"])
    return Solved(list(record["answers"]) if present else [], [(number - 1, len(documents)) for number in record["evidence"]])


def solve_needles(record: Record) -> Solved:
    """`niah`: all values that needles give for the keys asked about."""
    asked = re.search(r".* for (.+?) mentioned in the text\?", record["input"], re.DOTALL)
    keys = set(re.split(r", and |, ", asked[1])) if asked else set()
    places, answers = [], []
    pieces = _pieces(record["context"])
    for place, piece in enumerate(pieces):
        match = re.search(r"special magic \w+ for (\S+) is: ([\w-]+)\.", piece)
        if match and match[1] in keys:
            places.append((place, len(pieces)))
            answers.append(match[2])
    return Solved(answers, places)


def solve_variables(record: Record) -> Solved:
    """`vt`: all variables that hold the value asked about, assignments followed in reading order."""
    asked = re.search(r"value (\d+)", record["input"])
    held: dict[str, str] = {}
    places = {}
    pieces = _pieces(record["context"])
    for place, piece in enumerate(pieces):
        if match := re.fullmatch(r"VAR (\w+) = (?:VAR (\w+)|(\d+))", piece):
            held[match[1]] = match[3] or held.get(match[2], "")
            places[match[1]] = (place, len(pieces))
    answers = [name for name, value in held.items() if asked and value == asked[1]]
    return Solved(answers, [places[name] for name in answers])


def _pieces(context: str) -> list[str]:
    """The lines of a text, or its sentences if it is one line."""
    return context.split("\n") if "\n" in context else re.split(r"(?<=\.) ", context)


def solve_common(record: Record) -> Solved:
    """`cwe`: the most common words of the numbered list; none if there is a tie for the last place."""
    asked = re.search(r"(\d+) most common", record["input"])
    return Solved(_most_common(re.findall(r"\d+\. (\S+)", record["context"]), int(asked[1]) if asked else 0), [])


def solve_frequent(record: Record) -> Solved:
    """`fwe`: the three most frequent words but the dots; none if there is a tie for the third place."""
    return Solved(_most_common([word for word in record["context"].split() if word != "..."], 3), [])


def _most_common(words: list[str], number: int) -> list[str]:
    ranked = Counter(words).most_common(number + 1)
    tied = len(ranked) > number and ranked[number][1] == ranked[number - 1][1]
    return [] if tied else [word for word, _ in ranked[:number]]


def solve_facts(record: Record) -> Solved:
    """`synth_facts`: the question's relations followed back from the person to the value."""
    words = record["context"].split()
    table = {(words[at], words[at + 1]): (at // 4, words[at + 2]) for at in range(0, len(words) - 2, 4)}
    *relations, value, _ = record["input"].split()
    places = []
    for relation in reversed(relations):
        at, value = table.get((relation, value), (0, ""))
        places.append((at, len(words) // 4))
    return Solved([value], places)


SOLVERS: dict[str, Callable[[Record], Solved]] = {
    "synth_hop": solve_documents,
    "hotpotqa": find_documents,
    "niah": solve_needles,
    "vt": solve_variables,
    "cwe": solve_common,
    "fwe": solve_frequent,
    "synth_facts": solve_facts,
}
"""By the name of the generator."""
