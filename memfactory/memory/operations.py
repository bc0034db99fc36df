"""From what a model wrote to operations and facts, and back. Never raises, and takes nothing for an answer that is none.

JSON in the shapes of mem0 and Memory-R1 (arXiv 2508.19828) and of the public version, or a line of words per operation for
models too small for JSON. Knows no bank: whether an operation can be executed is the bank's to say.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from memfactory.common.errors import ConfigError
from memfactory.common.guarded_json import loads
from memfactory.common.parsing import says_nothing, strip_thinking
from memfactory.memory.items import Kind, MemoryOp
from memfactory.memory.json_text import MAX_LENGTH, TOO_LONG, Found, clean, json_values, looks_like_json, parts

UNCLOSED = "unclosed thought"
NO_LIST = "no list"
CUT = "cut off"
NOT_AN_OBJECT = "not an object"
UNKNOWN_OPERATION = "unknown operation"
NO_FACT = "no such fact"
LEFT_OUT = "left out"
NOT_A_FACT = "not a fact"
REPEATED = "repeated fact"
ANOTHER_LIST = "in a second list: the first one counts"
"""What was wrong with an answer: the keys of the counts in a trajectory's report."""

KINDS: dict[str, Kind] = {
    "ADD": "ADD", "INSERT": "ADD", "CREATE": "ADD", "UPDATE": "UPDATE",
    "DEL": "DEL", "DELETE": "DEL", "REMOVE": "DEL", "NONE": "NONE", "NOOP": "NONE", "NOCHANGE": "NONE",
}  # fmt: skip
"""Names of operations, in capitals without spaces, hyphens and underscores."""

_KIND_KEYS = ("event", "op", "operation", "action", "type")
_TEXT_KEYS = ("text", "content", "value", "new_memory", "memory")
_ID_KEYS = ("id", "memory_id", "index")
_OWNER_KEYS = ("owner", "user_id", "speaker")
_LIST_KEYS = ("operations", "memory", "memories", "ops", "actions")
_FACT_KEYS = ("fact", "value", "text", "content", "memory", "summary")
_FACT_LIST_KEYS = ("facts", "memory_list", "memories", "memory", "extracted_memories")

_MOST_SHOWN = 500
"""Characters of what was dropped."""
_NO_IDS = ("", "new", "none", "null", "-")
_LINE_END = re.compile(r"\n|(?:^|(?<=\s))\.(?=\s|$)")
_LINE_ID = re.compile(r"new|#?\d+|\[\d+\]")
_BULLET = re.compile(r"^(?:[-*•]|\d+[.)])\s+")
_QUOTED = re.compile(r"^([\"'`])(.*)\1$")
_NOTHING = re.compile(r"(?:none|nothing|no[ _](?:traits?|facts?|operations?))[\s.]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read. Example: Parsed((MemoryOp("ADD", None, "Bob has a dog"),), Counter(), True)."""

    ops: tuple[MemoryOp, ...] = ()
    problems: Counter[str] = field(default_factory=Counter)
    readable: bool = True
    """False if no list was written, or nothing in it can be read. An empty list is readable: what it is worth, the env says."""
    dropped: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(what was written, why it is none of these), for people to read."""


@dataclass(frozen=True, slots=True)
class ParsedFacts:
    """What an extractor wrote; no facts and `readable` means that there is nothing to remember."""

    facts: tuple[str, ...] = ()
    problems: Counter[str] = field(default_factory=Counter)
    readable: bool = True
    dropped: tuple[tuple[str, str], ...] = field(default=(), compare=False)


def parse_operations(text: str, facts: Sequence[str] = (), candidates: Mapping[str, str] | None = None) -> Parsed:
    """The operations in what a model wrote.

    `facts`: the new facts, in the order in which the prompt showed them; the line format takes its texts from them, one fact
    to a line at most. `candidates`: the facts by number, for prompts that number them behind the old memories (the public
    version's): an ADD or UPDATE of such a number writes that fact (or the text beside it) as a new item. A fact or candidate
    that no operation names is counted as left out. An ADD never names the id of its item: the bank does.
    """
    answer = strip_thinking(text)
    if answer is None:
        return Parsed((), Counter({UNCLOSED: 1}), False)
    if len(answer) > MAX_LENGTH:
        return Parsed((), Counter({TOO_LONG: 1}), False)
    entries, problems, dropped = _json_list(answer, _operation_list, _is_operation)
    if entries is None:
        return Parsed((), problems, False) if problems else _parse_lines(parts(answer)[0], facts)
    left, ops = dict(candidates or {}), []
    for entry in entries:
        op = _operation(entry, candidates or {}, left)
        if isinstance(op, MemoryOp):
            ops.append(op)
        else:
            problems[op] += 1
            dropped.append((_shown(entry), op))
    if left:
        problems[LEFT_OUT] += len(left)
        dropped += [(fact, LEFT_OUT) for fact in left.values()]
    return Parsed(tuple(ops), problems, bool(ops) or not entries, tuple(dropped))


def parse_facts(text: str, style: str = "lines") -> ParsedFacts:
    """The facts in what an extractor wrote: a list in JSON, or one a line (bullets and numbers are dropped), or `a b c . d e f .`.

    `style`: what was asked for. Where it is json, lines are prose and no facts; an apology is none in any form.
    A fact that is repeated word for word is taken once and counted. `[]` alone, an empty list under its key, `none` and
    `NO_TRAIT` mean that there is nothing; no answer at all is unreadable, and so is JSON of another shape.
    """
    answer = strip_thinking(text)
    if answer is None:
        return ParsedFacts((), Counter({UNCLOSED: 1}), False)
    if len(answer) > MAX_LENGTH:
        return ParsedFacts((), Counter({TOO_LONG: 1}), False)
    entries, problems, dropped = _json_list(answer, _fact_list, lambda value: _text(value, _FACT_KEYS) != "")
    if entries is None:
        if problems or _is_json(answer) or looks_like_json(answer):
            return ParsedFacts((), problems or Counter({NO_LIST: 1}), False)
        if _NOTHING.fullmatch(answer):
            return ParsedFacts()
        entries = _plain_lines(parts(answer)[0]) if style == "lines" and not says_nothing(answer) else []
        if not entries:
            return ParsedFacts((), Counter({NO_LIST: 1}), False)
    facts: dict[str, None] = {}
    for entry in entries:
        fact = clean(entry) if isinstance(entry, str) else _text(entry, _FACT_KEYS)
        why = REPEATED if fact in facts else NOT_A_FACT if not fact or says_nothing(fact) or _says_none(fact, style) else None
        if why is not None:
            problems[why] += 1
            dropped.append((_shown(entry), why))
        else:
            facts[fact] = None
    return ParsedFacts(tuple(facts), problems, bool(facts) or not entries, tuple(dropped))


def _says_none(fact: str, style: str) -> bool:
    """True for `none` in a list of JSON; of lines it is the whole answer or a word."""
    return style == "json" and _NOTHING.fullmatch(fact) is not None


def _shown(entry: Any) -> str:
    """An entry as it was written, for people."""
    return entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)[:_MOST_SHOWN]


def format_operations(ops: Sequence[MemoryOp], style: Literal["json", "lines"] = "json", keys: Sequence[str] | None = None) -> str:
    """Operations as a model should write them; `parse_operations` reads them back (in lines given their texts as facts).

    `keys`: the first words of each line, as many as operations; otherwise all words of an operation's text but the last, which
    is a fact's key in the relation-first world. Needs texts as `parse_operations` leaves them: one line, single spaces.
    """
    if style == "json":
        rows = [{k: v for k, v in (("id", op.id), ("text", op.text), ("event", op.kind), ("owner", op.owner)) if v} for op in ops]
        return json.dumps({"memory": rows}, ensure_ascii=False).replace("think>", "think\\u003e")
    if style != "lines":
        raise ConfigError(f"Unknown style of operations {style!r}. Known: json, lines.")
    keys = [_key(op.text) for op in ops] if keys is None else keys
    return "\n".join(f"{key} {op.id or 'new'} {op.kind} .".lstrip() for key, op in zip(keys, ops, strict=True)) or "none ."


def renumber(ops: Sequence[MemoryOp], shown: Sequence[str], first: int = 0) -> tuple[MemoryOp, ...]:
    """Operations on positions in the list that a prompt showed (numbered from `first`), as operations on the ids that stood there.

    A position that was not shown becomes no id, which the bank rejects: a model cannot reach what it has not seen.
    """
    ids = {str(position): id for position, id in enumerate(shown, first)}
    return tuple(replace(op, id=None if op.id is None else ids.get(op.id)) for op in ops)


def _json_list(
    answer: str, list_of: Callable[[Any, bool], list[Any] | None], is_entry: Callable[[Any], bool]
) -> tuple[list[Any] | None, Counter[str], list[tuple[str, str]]]:
    """(the entries of the first list that is one, else all single entries, else an empty list; what was wrong with it; what it is not)."""
    problems: Counter[str] = Counter()
    dropped: list[tuple[str, str]] = []
    for part in parts(answer):
        single, empty = [], False
        values = json_values(part)
        for found in values:
            if found.cut:
                problems = Counter({CUT: 1})
                dropped = [("the last entry", CUT)]
            entries = list_of(found.value, found.alone)
            if entries:
                return entries, problems, [*dropped, *_further(values, list_of, is_entry)]
            empty = empty or entries is not None
            if entries is None and is_entry(found.value):
                single.append(found.value)
        if single or empty:
            return single, problems, dropped
    return None, problems, dropped


def _further(
    values: Iterable[Found], list_of: Callable[[Any, bool], list[Any] | None], is_entry: Callable[[Any], bool]
) -> Iterator[tuple[str, str]]:
    """What stands in the lists behind the first. Of two the first is meant as often as the last: one is taken, the other is said."""
    for found in values:
        for entry in list_of(found.value, found.alone) or ([found.value] if is_entry(found.value) else []):
            yield _shown(entry), ANOTHER_LIST


def _operation_list(value: Any, alone: bool) -> list[Any] | None:
    """The entries of a value that is a list of operations; None if it is not one."""
    if isinstance(value, list):
        return value if any(map(_is_operation, value)) or not value and alone else None
    listed = _first(value, _LIST_KEYS, (list, dict))
    return [listed] if isinstance(listed, dict) else listed


def _fact_list(value: Any, alone: bool) -> list[Any] | None:
    if isinstance(value, list):
        return value if any(isinstance(entry, str) or _text(entry, _FACT_KEYS) for entry in value) or not value and alone else None
    listed = _first(value, _FACT_LIST_KEYS, (list,))
    return listed if isinstance(listed, list) else None


def _is_operation(value: Any) -> bool:
    return _kind(value) is not None


def _operation(entry: Any, candidates: Mapping[str, str], left: dict[str, str]) -> MemoryOp | str:
    """One entry as an operation, or what is wrong with it. Takes the candidate that it names out of `left`."""
    if not isinstance(entry, dict):
        return NOT_AN_OBJECT
    kind = _kind(entry)
    if kind is None:
        return UNKNOWN_OPERATION
    id, text, owner = _id(entry), _text(entry, _TEXT_KEYS), _text(entry, _OWNER_KEYS)
    if id is not None and id in candidates:
        if left.pop(id, None) is None:
            return REPEATED
        if kind in ("ADD", "UPDATE"):
            return MemoryOp("ADD", None, text or clean(candidates[id]), owner)
        return MemoryOp("NONE")  # a fact that is not in the bank cannot be deleted: it is not stored
    writes = kind in ("ADD", "UPDATE")
    return MemoryOp(kind, None if kind == "ADD" else id, text if writes else "", owner)


def _first(value: Any, names: Sequence[str], types: tuple[type, ...]) -> Any:
    """The value under the first of these keys (in any case) that holds one of these types; None if there is none."""
    if isinstance(value, dict):
        lower = {key.lower().strip(): inner for key, inner in value.items() if isinstance(key, str)}
        return next((lower[name] for name in names if isinstance(lower.get(name), types)), None)
    return None


def _kind(value: Any) -> Kind | None:
    """The kind of an entry: of the first key that holds a known name."""
    names = (_first(value, (key,), (str,)) for key in _KIND_KEYS)
    return next((kind for name in names if name is not None and (kind := _named(name.upper()))), None)


def _named(name: str) -> Kind | None:
    """The kind of a name in capitals: NO_OP, NO-OP and NO OP are NOOP."""
    return KINDS.get(re.sub(r"[\s_-]", "", name))


def _text(value: Any, names: Sequence[str]) -> str:
    """The text under one of the keys; a number is text too. "" if there is none."""
    text = next((inner for name in names if (inner := _first(value, (name,), (str, int, float))) not in (None, "")), "")
    return "" if isinstance(text, bool) else clean(str(text))


def _id(entry: Any) -> str | None:
    """The id of an entry: 1, 1.0, "1", "#1" and "[1]" are the same; "new" and the like are none."""
    id = _first(entry, _ID_KEYS, (str, int, float))
    if isinstance(id, bool):
        return None
    if isinstance(id, float):
        return str(int(id)) if id.is_integer() else str(id)
    text = clean(str("" if id is None else id)).lstrip("#").removeprefix("[").removesuffix("]").strip()
    return None if text.lower() in _NO_IDS else text


def _is_json(answer: str) -> bool:
    """True for `null`, numbers and the like: JSON, but no sentence."""
    try:
        return not isinstance(loads(answer), str)
    except ValueError:
        return False


def _plain_lines(answer: str) -> list[str]:
    """Lines or dot-separated facts, without bullets, quotes and headings that end in a colon."""
    lines = [_BULLET.sub("", line.strip(), count=1) for line in _LINE_END.split(answer)]
    return [_QUOTED.sub(r"\2", line) for line in lines if line and not line.endswith(":")]


def _parse_lines(answer: str, facts: Sequence[str]) -> Parsed:
    """`<first words of a fact> <id or new> <OPERATION> .`: a line that ends otherwise is no operation, the name is in capitals."""
    lines = [words for line in _LINE_END.split(answer) if (words := line.split())]
    if _NOTHING.fullmatch(answer):
        return Parsed((), Counter({LEFT_OUT: len(facts)} if facts else {}))
    left, ops, readable = [fact.split() for fact in facts], [], False
    problems: Counter[str] = Counter()
    dropped: list[tuple[str, str]] = []
    for words in lines:
        kind = _named(words[-1])
        if kind is None or len(words) < 2 or not _LINE_ID.fullmatch(words[-2]):
            problems[UNKNOWN_OPERATION] += 1
            dropped.append((" ".join(words)[:_MOST_SHOWN], UNKNOWN_OPERATION))
            continue
        readable = True
        id, key = _id({"id": words[-2]}), words[:-2]
        fact = next((fact for fact in left if key and fact[: len(key)] == key), None)
        if fact is not None:
            left.remove(fact)
        if kind in ("ADD", "UPDATE") and fact is None:
            problems[NO_FACT] += 1
            dropped.append((" ".join(words)[:_MOST_SHOWN], NO_FACT))
            continue
        ops.append(MemoryOp(kind, None if kind == "ADD" else id, clean(" ".join(fact or ())) if kind in ("ADD", "UPDATE") else ""))
    if not readable:
        return Parsed((), Counter({NO_LIST: 1}), False)
    if left:
        problems[LEFT_OUT] += len(left)
        dropped += [(" ".join(fact), LEFT_OUT) for fact in left]
    return Parsed(tuple(ops), problems, dropped=tuple(dropped))


def _key(text: str) -> str:
    """All words of a fact but the last, or its only word."""
    words = text.split()
    return " ".join(words[:-1] or words)
