"""MemAgent's training schema in a parquet file, and reading parquet. Needs pyarrow, which is an extra; knows no generator.

Columns (arXiv 2507.02259, its data script): data_source, prompt (one user message), context, ability, reward_model
(style and ground_truth), extra_info (index, question, num_docs).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.common.version import install

Row = dict[str, Any]


def training_row(record: Row, data_source: str) -> Row:
    """A record of the evaluation schema (`answers`) or of RULER's (`outputs`) as a row of MemAgent's training file.

    RULER's get a column more, `match`: the schema itself cannot say that all of `ground_truth` is asked for.
    """
    row = {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": record["input"]}],
        "context": record["context"],
        "ability": "memory",
        "reward_model": {"style": "rule", "ground_truth": list(record.get("answers") or record["outputs"])},
        "extra_info": {"index": record["index"], "question": record["input"], "num_docs": record.get("num_docs", 0)},
    }
    return row | {"match": "all"} if "outputs" in record else row


def require_pyarrow() -> ModuleType:
    """`pyarrow.parquet`, or a `ConfigError` that says how to install it."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ConfigError(f"Parquet files need pyarrow. {install('parquet')}") from error


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write rows atomically, their columns as in the first row."""
    parquet = require_pyarrow()
    pyarrow = importlib.import_module("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_parquet(path: Path, hint: str = "") -> list[Row]:
    """All rows of a parquet file, nested columns as dicts and lists."""
    if not path.is_file():
        raise MissingFileError(f"No such file: {path}.{' ' + hint if hint else ''}")
    parquet = require_pyarrow()
    pyarrow = importlib.import_module("pyarrow")
    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {str(error).splitlines()[0]}") from error
