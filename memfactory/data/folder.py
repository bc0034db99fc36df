"""Data sets that are several files: a generator that returns a `DataFolder` is built into a folder, whole or not at all.

Knows how a folder is written and what it may replace, not what is in the files.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError
from memfactory.common.files import new_folder, write_text


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The records of each file by its name, which ends in .jsonl, and what there is to say of them."""

    files: Mapping[str, Sequence[Mapping[str, Any]]]
    notes: Sequence[tuple[str, str]]
    """(label, value) pairs for the report."""


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What was built."""

    path: Path
    folder: DataFolder
    written: bool
    """False if the folder was there already with the same content."""
    seconds: float

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) pairs for a table."""
        files = [(name, f"{len(records)} records") for name, records in self.folder.files.items()]
        place = ("folder", f"{self.path}{'' if self.written else ' (unchanged)'}")
        return [place, *files, *self.folder.notes, ("seconds", f"{self.seconds:.1f}")]


def makes_folder(generator: Callable[..., Any]) -> bool:
    """Whether a generator says by its return type that it makes several files. Such a one takes no number of records."""
    return inspect.signature(generator).return_annotation in (DataFolder, DataFolder.__name__)


def folder_path(output: str | None, name: str) -> Path:
    """The folder to write; a file's name is refused."""
    if not output:
        raise ConfigError(f"Where to? {name} makes several files: give --output FOLDER, for example datas/{name}.")
    path = Path(output).expanduser()
    if path.is_file() or path.suffix in (".json", ".jsonl", ".parquet"):
        raise ConfigError(f"--output {output}: {name} makes several files. Give a folder, such as {path.with_suffix('')}.")
    return path


def write_folder(path: Path, folder: DataFolder, overwrite: bool) -> bool:
    """Write the folder unless it is there with this content. One that holds anything else than these files is never replaced."""
    contents = {
        name: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records) for name, records in folder.files.items()
    }
    there = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if others := sorted(there - set(contents)):
        raise ConfigError(f"{path} holds other files ({', '.join(others[:3])}). Give a --output folder of its own.")
    if there:
        if there == set(contents) and all((path / name).read_bytes() == text.encode("utf-8") for name, text in contents.items()):
            return False
        if not overwrite:
            raise ConfigError(f"{path} exists with other content. Give another --output, or --overwrite True to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(path) as part:
        for name, text in contents.items():
            write_text(part / name, text)
    return True
