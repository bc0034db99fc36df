"""Files that are cut off, damaged, of other types or foreign are an error in words, or load: never an exception of another kind."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from memfactory.agents.build import context_window, trained_as
from memfactory.common.config import read_config
from memfactory.common.errors import ConfigError, DataError, MemFactoryError
from memfactory.common.files import read_json, read_jsonl, read_rows, read_yaml, write_json
from memfactory.common.records import fits, record
from memfactory.data.dialogs import load_memory_file
from memfactory.data.formats import load_longcontext
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.evaluation.jobs import load_scores
from memfactory.evaluation.judgments import Line, read_judgments
from memfactory.evaluation.ledger import Attempt, read_attempts
from memfactory.evaluation.memories import Written, hash_of, read_memories

ATTEMPT = Attempt("e/0", "greedy", 0, "ok", 1.0, {"default": 1.0}, questions=[1.0], answers=["a"], memory={"0": "x"}, report={"cut": 1})
JUDGED = Line("e/0", "greedy", 0, 0, "j", "c", 1.0, [{"reply": "yes", "score": 1.0, "failure": None}])
WRITTEN = Written("e/0", "greedy", 0, "text", "noted", hash_of(("text", "noted")), "t", "w", [{"stage": "memory"}])
QA = [{"context": "pet grace dog .", "input": "pet grace ?", "answers": ["dog"], "index": 0}]
JOB = {"dataset": "d", "model_name": "m", "k": 0, "examples": ["e/0"]}
ABOUT = {"agent": "memagent", "agent_options": {"chunk_size": 4}, "roles": {"answer": "policy"}, "format": 1}
MODEL = {"model_type": "qwen3", "max_position_embeddings": 512, "text_config": {"max_position_embeddings": 8}}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def scores(path: Path) -> Any:
    write_json(path.parent / "job.json", JOB)
    return load_scores(path.parent)


def job(path: Path) -> Any:
    (path.parent / "attempts.jsonl").write_text(lines(asdict(ATTEMPT)), encoding="utf-8")
    return load_scores(path.parent)


KINDS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "ledger": ("attempts.jsonl", lines(*[asdict(ATTEMPT)] * 2), scores),
    "attempts": ("attempts.jsonl", lines(asdict(ATTEMPT)), lambda path: read_attempts(path.parent)),
    "judgments": ("judgments.jsonl", lines({"judge": "j", "identity": {"model": "m"}}, asdict(JUDGED)), lambda p: read_judgments(p.parent)),
    "memories": ("memories.jsonl", lines(asdict(WRITTEN)), lambda path: read_memories(path.parent)),
    "job": ("job.json", json.dumps(JOB), job),
    "checkpoint": ("memfactory.json", json.dumps(ABOUT), lambda path: trained_as(str(path.parent))),
    "config": ("config.json", json.dumps(MODEL), lambda path: context_window(str(path.parent))),
    "qa": ("data.json", json.dumps(QA), load_longcontext),
    "qa lines": ("data.jsonl", lines(*QA), load_longcontext),
    "dialogs": ("dialogs.json", json.dumps(list(synth_dialog(1, seed=5, rendering="triples"))), load_memory_file),
    "yaml": ("run.yaml", "lr: 1e-4\nagent_options: {chunk_size: 4}\neval_data_path: [a, b]\n", lambda path: read_config([str(path)])),
}
ODD = [None, True, -1, 1.5, math.inf, "", "x", [], ["x"], {}, {"x": 1}, [[[]]], 10**30, "\ud83d", {"": None}]


def mutated(text: str, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, repeated or nested; or a field of another type."""
    data = bytearray(text.encode())
    at = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[: rng.randrange(len(data))]
    elif kind == 3:
        data = bytearray((b"[" if rng.random() < 0.5 else b'{"a":') * rng.choice([1, 100_000])) + data
    else:
        rows = text.splitlines(keepends=True)
        row = rng.randrange(len(rows))
        try:
            value = json.loads(rows[row])
        except ValueError:
            value = rows[row].partition(":")[0]
            return text.replace(rows[row], f"{value}: {json.dumps(rng.choice(ODD))}\n").encode()
        rows[row] = json.dumps(_swapped(value, rng)) + "\n"
        data = bytearray("".join(rows).encode(errors="backslashreplace"))
    return bytes(data)


def _swapped(value: Any, rng: random.Random) -> Any:
    """The same with one part, anywhere in it, exchanged, removed or added."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        value = dict(value) if isinstance(value, dict) else list(value)
        at: Any = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del value[at]
        elif isinstance(value, dict) and rng.random() < 0.1:
            value["foreign"] = rng.choice(ODD)
        else:
            value[at] = _swapped(value[at], rng)
        return value
    return rng.choice(ODD)


def check(kind: str, folder: Path, seeds: range) -> None:
    name, text, load = KINDS[kind]
    (folder / name).write_text(text, encoding="utf-8")
    load(folder / name)
    for seed in seeds:
        made = mutated(text, random.Random(f"{kind} {seed}"))
        (folder / name).write_bytes(made)
        try:
            load(folder / name)
        except MemFactoryError as error:
            assert len(str(error)) < 4000 and str(error), seed


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_refused_in_words_or_load(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, range(25))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_files(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, range(25, 25 + 100 * int(os.environ.get("MEMFACTORY_FUZZ", "1"))))


def test_a_bom_and_lines_under_another_ending_just_load(tmp_path: Path) -> None:
    rows = [{"a": "é"}, {"a": 2}]
    for name, text in (("x.json", lines(*rows)), ("y.jsonl", json.dumps(rows)), ("z.json", json.dumps(rows)), ("u.jsonl", lines(*rows))):
        for mark in ("", "\ufeff"):
            (tmp_path / name).write_text(mark + text, encoding="utf-8")
            assert read_rows(tmp_path / name) == rows
    assert read_jsonl(tmp_path / "u.jsonl") == rows and read_json(tmp_path / "z.json") == rows
    (tmp_path / "x.json").write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json is not valid JSON: Extra data"):
        read_rows(tmp_path / "x.json")


def test_an_alias_that_is_no_bomb_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("bank: &bank {near: 3}\na: *bank\nb: [*bank, *bank]\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"bank": {"near": 3}, "a": {"near": 3}, "b": [{"near": 3}] * 2}


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "more than 10,000 values, with what its aliases repeat"),
        ("a: &a\n  b: *a\n", r"\*a stands inside itself"),
        ("lr: 1\nlr: 2\n", "'lr' stands twice or is no text, at line 2"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("a: !!binary aGk=\n", "not valid YAML"),
        ("- a\n", "must hold a mapping"),
        ("1: a\n", "must hold a mapping"),
        ("? [a]\n: b\n", "not valid YAML|must hold"),
        ("a: [" * 5000, "not valid YAML"),
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_yaml(tmp_path / "a.yaml")


def test_a_date_is_the_text_it_was_written_as(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("wandb_name: 2026-11-28\nseed: 3\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"wandb_name": "2026-11-28", "seed": 3}
    assert read_config([str(tmp_path / "a.yaml")]).wandb_name == "2026-11-28"


def test_annotations_are_checked() -> None:
    good = [(1, int), (1, float), (None, int | None), ([], list[int]), ([1, "a"], tuple[int, str]), ({"a": [1.0]}, dict[str, list[float]])]
    bad = [(True, int), ("1", float), ({}, list[int]), ([1], tuple[int, str]), ({"a": 1}, dict[str, str]), ([None], list[int]), (None, str)]
    assert all(fits(value, hint) for value, hint in good) and not any(fits(value, hint) for value, hint in bad)
    with pytest.raises(DataError, match=r"line 3 is not as it was written: its field 'number' is 'x'\. Remove it\."):
        record(Attempt, asdict(ATTEMPT) | {"number": "x"}, "line 3", "Remove it.")
    assert record(Attempt, asdict(ATTEMPT), "line 3") == ATTEMPT
