"""`memfactory new KIND NAME`: a file with a part of one's own and a passing test, to start from. Open it to add a kind.

A kind is a text in `memfactory/templates/`, in which `{name}` and `{Name}` stand for the part's key and class. Knows no part.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from memfactory.common.errors import ConfigError, unknown_name


def kinds() -> list[str]:
    """What can be started: the names of the templates."""
    return sorted(part.name.removesuffix(".txt") for part in files("memfactory").joinpath("templates").iterdir())


def new_part(kind: str, name: str, folder: Path) -> Path:
    """Write `folder/NAME.py` and return its path; a file that is there is never overwritten (`ConfigError`)."""
    if kind not in kinds():
        raise unknown_name("kind of part", kind, kinds())
    if not name.isidentifier() or name != name.lower():
        raise ConfigError(f"The name {name!r} is a key and a file's name: lower-case letters, digits and _, such as two_notes.")
    path = folder / f"{name}.py"
    if path.exists():
        raise ConfigError(f"{path} is there already. Choose another name, or move it away.")
    text = files("memfactory").joinpath("templates").joinpath(f"{kind}.txt").read_text(encoding="utf-8")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    path.write_text(text.replace("{name}", name).replace("{Name}", class_name), encoding="utf-8")
    return path
