"""Files that are either whole or absent. Knows nothing of what they hold."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.common.guarded_json import loads
from memfactory.common.records import fits
from memfactory.common.redaction import masked
from memfactory.common.text import ESCAPED_HALF, mend_value

log = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, without secrets: a reader sees the old one or the new one, also after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a surrogate pair is no reason to lose the rest
        file.write(masked(text))
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


def read_object(path: Path, needed: Mapping[str, Any] = MappingProxyType({}), hint: str = "") -> dict[str, Any]:
    """Parse a JSON file that holds an object; `needed`: {field: its type}, such as {"examples": list[str]}, of those that it must have."""
    value = read_json(path, hint)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {value!r:.60}.")
    for name, kind in needed.items():
        if name not in value or not fits(value[name], kind):
            raise DataError(f"{path} is not as it was written: its field {name!r} is {value.get(name)!r:.60}.")
    return value


def read_rows(path: Path, hint: str = "") -> Any:
    """Parse a data file, whatever its ending: JSON, or one JSON object a line."""
    lines = path.suffix == ".jsonl"
    try:
        return read_jsonl(path, hint) if lines else read_json(path, hint)
    except MissingFileError:
        raise
    except DataError as error:
        first = _text(path).lstrip()[:1]  # the other form begins otherwise: a list, or a line that is whole
        try:
            if first == "[" if lines else first == "{":
                return read_json(path) if lines else read_jsonl(path)
        except DataError:
            pass
        raise error


def read_yaml(path: Path, what: str = "file") -> dict[str, Any]:
    """A YAML file's mapping. A key that stands twice, an alias inside itself, values without end and what is no text, number,
    switch, list or mapping of these are refused; a date is the text that it was written as."""
    if not path.is_file():
        raise MissingFileError(f"No such {what}: {path}.")
    try:
        value = yaml.load(_text(path), Loader=_Plain)
    except DataError as error:
        raise ConfigError(str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(value, (dict, type(None))) or not all(isinstance(key, str) for key in value or {}):
        raise ConfigError(f"{path} must hold a mapping of options, not a {type(value).__name__}.")
    return value or {}


class _Plain(yaml.SafeLoader):
    """Only what JSON has."""

    MOST = 10_000
    """Values that a file may hold, what its aliases repeat counted each time: a few of them can be a billion laughs."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        anchor = getattr(self.peek_event(), "anchor", None)
        if self.check_event(yaml.AliasEvent):
            if anchor in self._open:
                raise yaml.YAMLError(f"*{anchor} stands inside itself")
            return super().compose_node(parent, index)
        self._open.append(anchor)
        node: Any = super().compose_node(parent, index)
        self._open.pop()
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
        self._sizes[id(node)] = size = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > self.MOST:
            raise yaml.YAMLError(f"more than {self.MOST:,} values, with what its aliases repeat")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r:.60} stands twice or is no text, at line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _not_taken(_: _Plain, node: yaml.Node) -> Any:
    raise yaml.YAMLError(f"{node.tag} is not taken, at line {node.start_mark.line + 1}")


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("binary", "set", "omap", "pairs", "timestamp", "python/tuple"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_tag}", _not_taken)


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
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder beside `path`, then rename it into place: `path` is whole or does not exist. An older one is replaced."""
    put_back(path)
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    for stale in (part, old):  # of a killed process that had this one's number
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if not path.exists():
            os.rename(part, path)
        elif not _exchanged(part, path):  # two steps where the system has none in one: `put_back` mends a kill between them
            os.rename(path, old)
            os.rename(part, path)
    finally:
        put_back(path)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def put_back(path: Path) -> None:
    """Give a folder that is missing its older self back, which a kill in the middle of `new_folder` can leave beside it."""
    for old in [] if path.exists() else path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        os.rename(old, path)
        return


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that no moment has neither; False where the system or its file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux: relative to the working directory (-100), RENAME_EXCHANGE
        return bool(libc.renameat2(-100, names[0], -100, names[1], 2) == 0)
    return hasattr(libc, "renamex_np") and bool(libc.renamex_np(*names, 2) == 0)  # macOS: RENAME_SWAP


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to its sibling `target`, replacing an older link in one step."""
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    os.replace(part, link)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder of results: two processes at once would write one report, or one run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"Another process is writing {folder}. Wait for it, stop it, or give another --output_dir.") from error
        yield


def check_place(folder: Path) -> None:
    """`ConfigError` if the folder of --output_dir, which need not be there yet, cannot be written to, or another process holds it."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"--output_dir {folder} cannot be written to: {error.strerror or error}. Give another.") from error
    if (folder / ".lock").is_file():
        with alone(folder):
            pass
