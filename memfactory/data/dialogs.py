"""Loaders of dialogues and of memory-bank rows: every published form becomes one, faults are mended and counted, never in silence.

Knows how to tell the forms apart; each form's own faults are known by its module.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.files import read_rows
from memfactory.data.dialog_records import Loaded, Record, answer_texts, check_dialogue, completed, field, objects
from memfactory.data.dialog_rules import is_dialogue
from memfactory.data.locomo import is_locomo, locomo_dialogue
from memfactory.data.longmemeval import is_longmemeval, longmemeval_dialogue

log = logging.getLogger(__name__)

HINT = (
    "`memfactory data build synth_dialog --output datas/dialogs.json` makes dialogues without a network; locomo10.json is in "
    "github.com/snap-research/locomo, LongMemEval in the hub data set xiaowu0162/longmemeval-cleaned."
)
FORMS = (
    "`{dialog_id, sessions, questions}` (synth_dialog), `{sample_id, conversation, qa}` (LoCoMo), "
    "or `{question_id, haystack_sessions, ...}` (LongMemEval)"
)
BANK_FORMS = "`{M, f, q, a, context_memory}` or `{memory, fact, query, answer, context_memory}`"
_LETTERS = {"memory": "M", "fact": "f", "query": "q", "answers": "a"}
_WORDS = {"memory": "memory", "fact": "fact", "query": "query", "answers": "answer"}
"""The two spellings of the public files for each column."""


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """Memory-bank rows of a file, with the columns of a batch, and how often each kind of repair was made."""

    rows: list[Record]
    repairs: Counter[str]


def load_memory_file(path: Path) -> Loaded | LoadedRows:
    """Dialogues or memory-bank rows, whichever the file holds: told apart by the first record's question."""
    rows = _rows(path, f"{FORMS}; or {BANK_FORMS}")
    is_bank = isinstance(rows[0], dict) and bool({_LETTERS["query"], _WORDS["query"]} & rows[0].keys())
    return load_bank_rows(path, rows) if is_bank else load_dialogs(path, rows)


def load_dialogs(path: Path, rows: list[Any] | None = None) -> Loaded:
    """Dialogues of a file of any form, told apart by its keys: JSON (a list, or one record by itself) or JSON lines.

    `rows`: what the file holds, if it has been read.
    """
    rows = _rows(path, FORMS) if rows is None else rows
    repairs: Counter[str] = Counter()
    dialogues: list[Record] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        where = f"{path}, record {number}"
        dialogue = check_dialogue(_dialogue(row, f"{path.stem}/{number}", where, repairs), where)
        name = dialogue["dialog_id"]
        if name in seen:
            raise DataError(f"{where}: its id {name!r} is that of record {seen[name]} too. Each record must have its own.")
        seen[name] = number
        dialogues.append(dialogue)
    if not any(dialogue["questions"] for dialogue in dialogues):
        raise DataError(f"{path}: none of its {len(dialogues)} dialogues has a question.")
    _report(path, f"{len(dialogues)} dialogues, {sum(len(d['questions']) for d in dialogues)} questions", repairs)
    return Loaded(dialogues, repairs)


def load_bank_rows(path: Path, rows: list[Any] | None = None) -> LoadedRows:
    """Memory-bank rows (MemFactory's public train.jsonl), JSON or JSON lines, in either spelling of its keys.

    Rows have `example_id`, `memory`, `fact`, `context_memory`, `query`, `answers` (all golds), `sessions` (None: a row has no
    dialogue) and `extra`, which holds every other key. `rows`: what the file holds, if it has been read.
    """
    rows = _rows(path, BANK_FORMS) if rows is None else rows
    repairs: Counter[str] = Counter()
    loaded = [_bank_row(row, f"{path}, record {number}", f"{path.stem}/{number}", repairs) for number, row in enumerate(rows)]
    _report(path, f"{len(loaded)} memory-bank rows", repairs)
    return LoadedRows(loaded, repairs)


def _rows(path: Path, forms: str) -> list[Any]:
    rows = read_rows(path, HINT)
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} must hold records of the form {forms}; it holds {'none' if rows == [] else f'a {type(rows).__name__}'}.")
    return rows


def _dialogue(row: Any, name: str, where: str, repairs: Counter[str]) -> Record:
    if isinstance(row, dict):
        if is_dialogue(row):
            return completed(row, name)
        if is_locomo(row):
            return locomo_dialogue(row, where, repairs)
        if is_longmemeval(row):
            return longmemeval_dialogue(row, where, repairs)
    keys = f"an object with the keys {', '.join(row)}" if isinstance(row, dict) else f"{row!r:.60}"
    raise DataError(f"{where}: expected {FORMS}; got {keys}.")


def _bank_row(row: Any, where: str, name: str, repairs: Counter[str]) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, got {row!r:.60}.")
    keys = {column: _spelling(row, column, where) for column in _LETTERS}
    if "context_memory" not in row:
        repairs["row without context_memory: taken as empty"] += 1
    lists = {"context_memory": "context_memory", "memory": keys["memory"]}
    memories = {
        column: [_memory(item, f"{where}, {key}[{n}]") for n, item in enumerate(objects(row, key, where, empty=True))] if key in row else []
        for column, key in lists.items()
    }
    fact = objects(row, keys["fact"], where)
    for number, turn in enumerate(fact):
        for key in ("role", "content"):
            field(turn, key, str, f"{where}, {keys['fact']}[{number}]")
    used = {*keys.values(), "context_memory"}
    return {
        "example_id": name,
        "memory": memories["memory"],
        "fact": fact,
        "context_memory": memories["context_memory"],
        "query": field(row, keys["query"], str, where),
        "answers": answer_texts(row[keys["answers"]], where, keys["answers"], repairs),
        "sessions": None,
        "extra": {key: value for key, value in row.items() if key not in used},
    }


def _spelling(row: Record, column: str, where: str) -> str:
    """The key that a row has for a column; one of the two, and not both with different content."""
    found = [key for key in (_LETTERS[column], _WORDS[column]) if key in row]
    if not found:
        raise DataError(f"{where}: `{_LETTERS[column]}` (or `{_WORDS[column]}`) is missing. Keys here: {', '.join(row)}.")
    if len(found) == 2 and row[found[0]] != row[found[1]]:
        raise DataError(f"{where}: `{found[0]}` and `{found[1]}` are both there and differ. Keep one of them.")
    return found[0]


def _memory(item: Record, where: str) -> Record:
    field(item, "value", str, where)
    if not isinstance(item.get("id"), (str, int)) or isinstance(item.get("id"), bool):
        raise DataError(f"{where}: `id` must be a text or a whole number, got {item.get('id')!r:.60}.")
    return item


def _report(path: Path, what: str, repairs: Counter[str]) -> None:
    mended = "; ".join(f"{number} x {repair}" for repair, number in sorted(repairs.items()))
    log.info("%s: %s%s", path, what, f". Repairs: {mended}" if mended else "")


def only_told(sessions: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Sessions with nothing but what an agent is told: LongMemEval's session ids say which ones hold the answer."""
    return tuple(
        {"date": session["date"], "turns": [{key: turn[key] for key in ("id", "speaker", "text")} for turn in session["turns"]]}
        for session in sessions
    )
