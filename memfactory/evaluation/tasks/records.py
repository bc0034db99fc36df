"""Records of a file, whichever way it holds them: what loaders of tasks share. Knows no benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError
from memfactory.common.files import read_rows
from memfactory.data.parquet import read_parquet


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, record) of a JSON list, JSON lines or parquet; a list under `data` is one too. None at all is an error."""
    rows: Any = read_parquet(path, "") if path.suffix == ".parquet" else read_rows(path)
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} must hold a list of records; it holds {'none' if rows == [] else f'a {type(rows).__name__}'}.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, record {number}: expected an object, got {row!r:.60}.")
        yield number, row
