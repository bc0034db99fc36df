"""Which of the shown memories a reranker keeps, and what a reflector noted and merges: what models write, read strictly.

Total: nothing raises. A number counts once and only if it was shown; the rest is left out and counted, so that repeats and
inventions win nothing. Knows no prompt, no bank and no reward.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memfactory.common.parsing import says_nothing, strip_thinking
from memfactory.memory.json_text import MAX_LENGTH, clean, json_values, parts

OUT_OF_RANGE, REPEATED, NOT_A_NUMBER = "choice out of range", "repeated choice", "not a number"
"""Why an entry was left out: the keys of `Choices.problems`."""
NO_TOPIC, ANOTHER_LIST = "no topic with a summary", "in a second list: the first one counts"

_LIST = re.compile(r"\[([^\[\]{}]*)\]")
_NUMBER = re.compile(r"-?[0-9]+")
_LINE = re.compile(r"(?:^|\s)\.(?:\s|$)|\n")
_NOTHING = re.compile(r"none\s*\.?", re.IGNORECASE)
_MERGE = re.compile(r"\W*Merge\(\s*(\d{1,9})\s*,", re.IGNORECASE)
_ADD = re.compile(r"\W*Add\(\s*\)\W*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choices:
    """What was read. Example: `Choices((4, 0), Counter({"repeated choice": 1}))` of `[4, 0, 4]`."""

    ids: tuple[int, ...] = ()
    """Numbers of shown memories, each once, in the order of their first mention."""
    problems: Counter[str] = field(default_factory=Counter)
    readable: bool = True
    """False if nothing in the text is a list or a line of the asked form."""


def parse_choices(text: str, shown: int) -> Choices:
    """The memories 0 to `shown` - 1 that a text keeps: its last bracketed list of numbers, or lines `<words> <number> .`, or none."""
    visible = strip_thinking(text)
    if visible is None:
        return Choices(readable=False)
    if lists := _LIST.findall(visible):
        return _checked([entry.strip().strip("\"'") for entry in lists[-1].split(",")] if lists[-1].strip() else [], shown)
    if _NOTHING.fullmatch(visible.strip()):
        return Choices()
    lines = [words for line in _LINE.split(visible) if (words := line.split())]
    return _checked([words[-1] for words in lines], shown) if lines else Choices(readable=False)


def _checked(entries: Iterable[object], shown: int) -> Choices:
    """Numbers once each and in range; readable if any entry is a number, or there are none."""
    ids: list[int] = []
    problems: Counter[str] = Counter()
    texts = [str(entry) for entry in entries]
    for entry in texts:
        # More digits than `shown` has cannot be in range, and int() refuses thousands of them.
        digits = entry.lstrip("0") or "0"
        number = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) <= len(str(shown)) else -1
        if not _NUMBER.fullmatch(entry):
            problems[NOT_A_NUMBER] += 1
        elif not 0 <= number < shown:
            problems[OUT_OF_RANGE] += 1
        elif number in ids:
            problems[REPEATED] += 1
        else:
            ids.append(number)
    return Choices(tuple(ids), problems, readable=problems[NOT_A_NUMBER] < len(texts) or not texts)


@dataclass(frozen=True, slots=True)
class Topic:
    """One entry of a reflection. Example: Topic("Alice paints on Sundays", (0, 2))"""

    summary: str
    turns: tuple[int, ...] = ()
    """Numbers of the session's turns that it rests on."""


Drop = Callable[[str, str], None]
"""Told of what was written and is left out, and why."""


def parse_topics(text: str, turns: int, drop: Drop = lambda what, why: None) -> tuple[list[Topic], bool]:
    """(topics, readable) of a reflection over a session of `turns` turns; NO_TRAIT and an empty list are readable and none.

    Of two lists the first that holds a topic counts; what stands in others is left out.
    """
    visible = strip_thinking(text)
    if visible is None:
        return [], False
    for part in parts(visible):
        values = [found.value.get("extracted_memories") if isinstance(found.value, dict) else found.value for found in json_values(part)]
        lists = [value for value in values if isinstance(value, list)]
        read = [[(entry, _topic(entry, turns)) for entry in value] for value in lists]
        first = next((at for at, pairs in enumerate(read) if any(topic for _, topic in pairs)), 0)
        for at, pairs in enumerate(read):
            for entry, topic in pairs:
                if at != first or topic is None:
                    drop(str(entry)[:500], NO_TOPIC if topic is None else ANOTHER_LIST)
        if lists:
            topics = [topic for _, topic in read[first] if topic is not None]
            distinct = list({topic.summary: topic for topic in reversed(topics)}.values())[::-1]
            return distinct, bool(topics) or not lists[first]
    return [], "NO_TRAIT" in visible


def _topic(entry: Any, turns: int) -> Topic | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("summary"), str) or not (summary := clean(entry["summary"])):
        return None
    if says_nothing(summary):
        return None
    reference = entry.get("reference")
    return Topic(summary, _checked(reference, turns).ids if isinstance(reference, list) else ())


def parse_merges(text: str, shown: int, drop: Drop = lambda what, why: None) -> tuple[list[tuple[int, str]], bool]:
    """([(number, merged summary)], readable) of the actions for one new topic; none of them means that it is added.

    A number that was not shown, or a second merge into one, is left out: what is left then is to add, as in the paper.
    """
    visible = strip_thinking(text)
    if visible is None:
        return [], False
    merges: dict[int, str] = {}
    readable = False
    for line in visible.splitlines() if len(visible) <= MAX_LENGTH else ():
        if (merge := _merge(line)) is not None:
            number, summary = merge
            readable = True
            if number < shown and number not in merges and summary and not says_nothing(summary):
                merges[number] = summary
            else:
                drop(line.strip(), OUT_OF_RANGE if number >= shown else REPEATED if number in merges else NO_TOPIC)
        readable = readable or bool(_ADD.fullmatch(line.strip()))
    return list(merges.items()), readable


def _merge(line: str) -> tuple[int, str] | None:
    """(number, summary) of `Merge(number, summary)`, with anything but words around it; None of another line."""
    head = _MERGE.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    words = next((at + 1 for at in range(len(rest) - 1, -1, -1) if rest[at].isalnum() or rest[at] == "_"), 0)
    first = len(rest) - len(rest.lstrip()) + 1  # a summary has one character at least, a space if there is no other
    close = max(rest.find(")", max(words, first)), rest.find(")", max(words, 1)) if first > 1 and not words else -1)
    return None if close < 0 else (int(head[1]), clean(rest[:close].strip().strip("\"'")))


def numbered_turns(turns: Sequence[str]) -> str:
    """A session as a reflection is shown it: `0: text` a line."""
    return "\n".join(f"{number}: {text}" for number, text in enumerate(turns))
