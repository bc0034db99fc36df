"""What must stand in the folder of Milvus Lite before it is opened. Knows no client and no memory.

Milvus Lite takes what is missing for nothing: an older list of files for the newest, a cut log for one that a kill has torn, a
lost collection for none; and deletes the files that its list does not name. So what is not whole is refused before it looks.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, StoreError
from memfactory.common.files import write_json
from memfactory.common.processes import said_of, this_process

NOTES = "memfactory.json"
"""Which collections there are."""
LOCK = "LOCK"
"""Milvus Lite's own, empty but for what `sign` writes."""


def check(folder: Path) -> None:
    """`StoreError` for a folder of memories that is not whole, `ConfigError` for one of other things; nothing is changed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not names & {NOTES, LOCK, "collections"}:
        raise ConfigError(f"{folder} is a folder with other things in it ({min(names)}, ...), not one of memories. Give another `uri`.")
    for name in _json(folder / NOTES).get("collections", ()) if NOTES in names else ():
        if not (folder / "collections" / name / "schema.json").is_file():
            raise _damaged(folder, f"the collection {name!r}, which was made in it, is gone")
    for place in sorted((folder / "collections").glob("*/")):
        _check_collection(folder, place)


def _check_collection(folder: Path, place: Path) -> None:
    manifest = place / "manifest.json"
    if not manifest.is_file() or not (place / "schema.json").is_file():
        if (place / "manifest.json.prev").exists() or manifest.exists() or any(place.glob("partitions/*/*/*.parquet")):
            raise _damaged(folder, f"{place.relative_to(folder)} has lost its manifest.json or schema.json")
        return  # its maker died
    _json(place / "schema.json")
    held = _json(manifest)
    partitions = held.get("partitions")
    if not isinstance(partitions, dict) or not all(isinstance(files, dict) for files in partitions.values()):
        raise _damaged(folder, f"{manifest.relative_to(folder)} is no list of files")
    for partition, files in partitions.items():
        for name in (*files.get("data_files", ()), *files.get("delta_files", ())):
            path = place / "partitions" / partition / str(name)
            if not path.is_file() or not _is_parquet(path):
                raise _damaged(folder, f"{path.relative_to(folder)} is missing or cut short")
    for name, (size, crc) in _noted(_log_of(folder, place.name)).items():
        number, path = int(name.rpartition("_")[2].partition(".")[0]), place / "wal" / name
        if not path.is_file() and (held.get("active_wal_number") or 0) > number:
            continue  # written out since
        data = path.read_bytes()[:size] if path.is_file() else b""
        if len(data) < size or zlib.crc32(data) != crc:
            raise _damaged(folder, f"{path.relative_to(folder)} no longer holds what was written to it")


class Acknowledged:
    """How far Milvus Lite's log reached after each write that was acknowledged."""

    def __init__(self, folder: Path, collection: str) -> None:
        held = list(_json(folder / NOTES).get("collections", ())) if (folder / NOTES).is_file() else []
        if collection not in held:
            write_json(folder / NOTES, {"collections": [*held, collection]})
        self._wal = folder / "collections" / collection / "wal"
        self._file = os.open(_log_of(folder, collection), os.O_CREAT | os.O_RDWR, 0o644)
        self.close = weakref.finalize(self, os.close, self._file)
        self._seen: dict[str, tuple[int, int]] = {}

    def note(self) -> None:
        """What is in the log now was acknowledged. On a full disk the last note stands, which then says less."""
        with suppress(OSError):
            found = {}
            for path in sorted(self._wal.glob("wal_*.arrow")):
                size, crc = self._seen.get(path.name, (0, 0))
                with path.open("rb") as file:
                    file.seek(size)
                    more = file.read()
                found[path.name] = (size + len(more), zlib.crc32(more, crc))
            self._seen = found
            os.pwrite(self._file, json.dumps(found).encode() + b"\n", 0)


def sign(folder: Path) -> None:
    """Write into the lock, which this process holds, whose it is."""
    with suppress(OSError):
        (folder / LOCK).write_text(json.dumps(this_process()), encoding="utf-8")


def holder(folder: Path) -> str:
    """Who signed the lock, in words."""
    try:
        signed = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        signed = None
    return said_of(signed) if isinstance(signed, dict) else "another process, or another store of this one"


def _log_of(folder: Path, collection: str) -> Path:
    return folder / f"{collection}.acknowledged"


def _noted(path: Path) -> dict[str, tuple[int, int]]:
    """The last note: the file's first line."""
    try:
        return {str(name): (int(size), int(crc)) for name, (size, crc) in json.loads(path.read_bytes().partition(b"\n")[0]).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path.parent, f"{path.name} holds no object")
    return value


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        return head == file.read(4) == b"PAR1"


def _damaged(folder: Path, what: str) -> StoreError:
    return StoreError(f"The memories in {folder} are damaged: {what}. Nothing was changed. Put back a copy, or give another `uri`.")
