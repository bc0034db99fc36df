"""Loaders of published formats: they validate, name the record and field that is wrong, and never return an empty set.

Each maps the public spellings onto the columns that envs promise (DESIGN section 2). Knows no env.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.files import read_json, read_jsonl

log = logging.getLogger(__name__)

HINT = (
    "datas/tiny/train.json ships with the project; `python datas/make_tiny.py` rebuilds it. The published files are in the hub data set "
    "nworats/MemFactory: `hf download nworats/MemFactory --repo-type dataset --local-dir datas`."
)


def load_longcontext(path: Path) -> list[dict[str, Any]]:
    """The public long-context format: a JSON list (or JSON lines) of `{context, input, answers}`; extra keys are kept.

    Returns examples with `example_id`, `context`, `question`, `answers` (all gold answers, as strings).
    """
    rows = read_jsonl(path, HINT) if path.suffix == ".jsonl" else read_json(path, HINT)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} must hold a list of examples with `context`, `input` and `answers`; it holds {_kind(rows)}.")
    examples = [_longcontext_example(path, number, row) for number, row in enumerate(rows)]
    several = sum(len(example["answers"]) > 1 for example in examples)
    mean = sum(len(example["context"]) for example in examples) / len(examples)
    log.info("%s: %d examples, %d with several gold answers, %.0f characters of context on average", path, len(examples), several, mean)
    return examples


def _longcontext_example(path: Path, number: int, row: Any) -> dict[str, Any]:
    where = f"{path}, record {number}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with `context`, `input` and `answers`, got {_kind(row)}.")
    for key in ("context", "input"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{where}: `{key}` must be a non-empty text, got {row.get(key)!r:.60}. Keys here: {', '.join(row)}.")
    answers = row.get("answers")
    answers = [answers] if isinstance(answers, (str, int, float)) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, (str, int, float)) and str(a).strip() for a in answers):
        raise DataError(
            f"{where}: `answers` must be a text or a non-empty list of texts, got {row.get('answers')!r:.60}. Keys here: {', '.join(row)}."
        )
    extra = {k: v for k, v in row.items() if k not in ("context", "input", "answers")}
    return {
        "example_id": f"{path.stem}/{number}",
        "context": row["context"],
        "question": row["input"],
        "answers": [str(a) for a in answers],
        "extra": extra,
    }


def _kind(value: Any) -> str:
    return "nothing" if value in ([], {}, None) else f"a {type(value).__name__}"
