"""Loaders of published formats: they validate, name the record and field that is wrong, and never return an empty set.

Each maps the public spellings onto the columns that envs promise (DESIGN section 2). Knows no env.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.files import read_rows
from memfactory.data.parquet import read_parquet

log = logging.getLogger(__name__)

HINT = (
    "datas/tiny/train.json ships with the project. `memfactory data fetch` gets the published files, "
    "`memfactory data build` makes look-alikes without a network."
)

MATCHES = ("any", "all")
"""Whether one of the gold answers is enough, or all of them are asked for."""

_FORMS = (
    "`{context, input, answers}` (MemAgent's eval files, converted_hotpotqa; `question` may stand for `input`), "
    "`{context, input, outputs, answer_prefix}` (RULER's tasks), "
    "or MemAgent's parquet (`context`, `extra_info.question`, `reward_model.ground_truth`)"
)


def load_longcontext(path: Path) -> list[dict[str, Any]]:
    """Every published long-context format, told apart by its keys: JSON list, JSON lines or parquet; extra keys are kept.

    Returns examples with `example_id`, `context`, `question`, `answers` (all gold answers, as strings), `match` (any: one
    of them is enough; all: each is asked for, as in RULER's `outputs`) and `extra`.
    """
    rows = _rows(path)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} must hold a list of examples, {_FORMS}; it holds {_kind(rows)}.")
    examples = [_longcontext_example(path, number, row) for number, row in enumerate(rows)]
    several = sum(len(example["answers"]) > 1 for example in examples)
    mean = sum(len(example["context"]) for example in examples) / len(examples)
    log.info("%s: %d examples, %d with several gold answers, %.0f characters of context on average", path, len(examples), several, mean)
    return examples


def _rows(path: Path) -> Any:
    if path.suffix == ".parquet":
        return read_parquet(path, HINT)
    return read_rows(path, HINT)


def _longcontext_example(path: Path, number: int, row: Any) -> dict[str, Any]:
    where = f"{path}, record {number}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, {_FORMS}; got {_kind(row)}.")
    asked = "question" if "question" in row and "input" not in row else "input"
    used = {"context", asked, "answers", "outputs", "reward_model"}
    parquet = "reward_model" in row and "input" not in row
    question = _parquet_question(row) if parquet else row.get(asked)
    if isinstance(row.get("context"), list) and row["context"] and all(isinstance(number, int) for number in row["context"]):
        raise DataError(
            f"{where}: `context` is a list of document numbers (MemAgent's sets of over 10,000 documents leave the documents out). "
            "Fetch or build a smaller set, or write the documents' text into `context`."
        )
    for key, value in (("context", row.get("context")), ("extra_info.question" if parquet else asked, question)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: `{key}` must be a non-empty text, got {value!r:.60}. Keys here: {', '.join(row)}.")
    key, answers, match = _gold(row)
    answers = [answers] if isinstance(answers, (str, int, float)) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, (str, int, float)) and str(a).strip() for a in answers):
        raise DataError(f"{where}: `{key}` must be a text or a non-empty list of texts, got {answers!r:.60}. Keys here: {', '.join(row)}.")
    match = row.get("match", match)
    if match not in MATCHES:
        raise DataError(f"{where}: `match` must be one of {', '.join(MATCHES)}, got {match!r:.60}.")
    return {
        "example_id": f"{path.stem}/{number}",
        "context": row["context"],
        "question": question,
        "answers": [str(a) for a in answers],
        "match": match,
        "extra": {k: v for k, v in row.items() if k not in used | {"match"}},
    }


def _gold(row: dict[str, Any]) -> tuple[str, Any, str]:
    """(field, gold answers, whether any or all are asked for) by the record's form."""
    if "answers" not in row and "outputs" in row:
        return "outputs", row["outputs"], "all"
    if "answers" not in row and isinstance(row.get("reward_model"), dict):
        return "reward_model.ground_truth", row["reward_model"].get("ground_truth"), "any"
    return "answers", row.get("answers"), "any"


def _parquet_question(row: dict[str, Any]) -> Any:
    """The question of a MemAgent training row: `extra_info.question`, or the prompt's user message."""
    info, prompt = row.get("extra_info"), row.get("prompt")
    if isinstance(info, dict) and info.get("question"):
        return info["question"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return prompt[-1].get("content")
    return None


def _kind(value: Any) -> str:
    return "nothing" if value in ([], {}, None) else f"a {type(value).__name__}"
