"""Which questions of a file are asked: those of some types, and of these a fixed part that has every type. Knows no rule and no agent."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace

from memfactory.common.errors import unknown_name
from memfactory.evaluation.tasks.base import Loaded, Question, Sample


def of_types(loaded: Loaded, types: Collection[str], names: Mapping[str, str]) -> Loaded:
    """The samples with only the questions of these types, by the benchmark's number or by its true name; () is all of them."""
    if not types:
        return loaded
    known = loaded.types
    by_name = {name: kind for kind, name in names.items()}
    wanted = {by_name.get(kind, kind) if kind not in known else kind for kind in types}
    for kind in wanted - set(known):
        raise unknown_name("type of question in this file", kind, [*known, *(names[k] for k in known if k in names)])
    return _kept(loaded, {q.id for sample in loaded.samples for q in sample.questions if q.type in wanted})


def places(loaded: Loaded, seed: int) -> dict[str, float]:
    """{question's id: its place in [0, 1)}: the first questions by place are the same part of every type, and one of each at first.

    Within a type the order is by a hash of the id and the seed: the same on every machine, whatever else the file holds. So
    a smaller limit's questions are among those of a larger one.
    """
    by_type: dict[str, list[str]] = {}
    for sample in loaded.samples:
        for question in sample.questions:
            by_type.setdefault(question.type, []).append(question.id)
    return {
        name: rank / len(names) for names in by_type.values() for rank, name in enumerate(sorted(names, key=lambda name: _hash(name, seed)))
    }


def limited(loaded: Loaded, limit: int, seed: int) -> Loaded:
    """The `limit` first questions by `places` (0: all), in the file's order."""
    at = places(loaded, seed)
    if not limit or limit >= len(at):
        return loaded
    first = sorted(at, key=lambda name: (at[name], _hash(name, seed)))[:limit]
    return _kept(loaded, set(first))


def ordered(loaded: Loaded, seed: int) -> Loaded:
    """The samples by the place of their first question: the first of them are a fair part of the file."""
    at = places(loaded, seed)
    key = {sample.id: min((at[q.id], _hash(q.id, seed)) for q in sample.questions) for sample in loaded.samples}
    return replace(loaded, samples=sorted(loaded.samples, key=lambda sample: key[sample.id]))


def _kept(loaded: Loaded, names: set[str]) -> Loaded:
    def of(sample: Sample) -> tuple[Question, ...]:
        return tuple(question for question in sample.questions if question.id in names)

    return replace(loaded, samples=[replace(sample, questions=asked) for sample in loaded.samples if (asked := of(sample))])


def _hash(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
