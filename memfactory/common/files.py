"""Files that are either whole or absent. Knows nothing of what they hold."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memfactory.common.errors import DataError, MissingFileError
from memfactory.common.guarded_json import loads
from memfactory.common.text import ESCAPED_HALF, mend_value

log = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old one or the new one, also after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a surrogate pair is no reason to lose the rest
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def file_hash(path: str | Path | None) -> str | None:
    """The first 16 hex digits of a file's SHA-256; None if there is no such file."""
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def looks_local(path: str) -> bool:
    """True for a path; a hub name is `owner/name` with no such folder here."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists() or path.split("/")[0] in ("models", "output")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with non-ASCII text as it is. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, hint: str = "") -> Any:
    """Parse a JSON file. A missing file is `MissingFileError` with `hint`, a broken one `DataError`."""
    if not path.is_file():
        raise MissingFileError(f"No such file: {path}.{' ' + hint if hint else ''}")
    try:
        return _mended(path, text := _text(path), loads(text))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def read_jsonl(path: Path, hint: str = "") -> list[dict[str, Any]]:
    """Parse a JSON-lines file of objects; an error names the line. A missing file is `MissingFileError` with `hint`."""
    return [row for _, row in numbered_jsonl(path, hint)]


def numbered_jsonl(path: Path, hint: str = "") -> list[tuple[int, dict[str, Any]]]:
    """The same with the number of each object's line, for errors about what is in it; blank lines are skipped."""
    if not path.is_file():
        raise MissingFileError(f"No such file: {path}.{' ' + hint if hint else ''}")
    rows = []
    text = _text(path)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object, got {line.strip():.60}.")
            rows.append((number, row))
    kept: list[dict[str, Any]] = _mended(path, text, [row for _, row in rows])
    return list(zip([number for number, _ in rows], kept, strict=True))


def _mended(path: Path, text: str, value: Any) -> Any:
    """The value that the text holds; half characters in it (JSON can write them) are mended, and said."""
    if not ESCAPED_HALF.search(text):
        return value
    value, broken = mend_value(value)
    if broken:
        log.warning("%s: %d half characters (lone surrogates) in its texts; each is read as U+FFFD.", path, broken)
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, then rename it into place: `path` is whole or does not exist. An older one is replaced."""
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.rename(path, old)
        os.rename(part, path)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to its sibling `target`, replacing an older link in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    os.replace(part, link)
