"""Refusing code written for the public MemFactory in words, where its class or import would otherwise fail in riddles.

docs/porting.md says what became of each part. Knows signatures only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from memfactory.common.errors import ConfigError

GUIDE = "docs/porting.md shows how to port it."


def refuse_old_style(cls: type, method: str, old: Iterable[str], instead: str) -> None:
    """Raise `ConfigError` if a class defines `method` with one of the `old` parameters."""
    function = cls.__dict__.get(method)
    if not inspect.isfunction(function):
        return
    found = sorted(set(old) & set(inspect.signature(function).parameters))
    if found or (function.__code__.co_consts and "reward_fn" in function.__code__.co_consts):
        what = f"takes {', '.join(found)}" if found else "reads reward_fn"
        raise ConfigError(f"{cls.__qualname__}.{method} is in the style of the public MemFactory (it {what}). {instead} {GUIDE}")


def renamed(module: str, name: str, names: Mapping[str, str]) -> NoReturn:
    """For a module's `__getattr__`: an old name is told what became of it, any other is the usual `AttributeError`."""
    if name in names:
        raise ConfigError(f"{module}.{name} is a name of the public MemFactory: {names[name]} {GUIDE}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


SAMPLES = {"Samples": "agents return trajectories of turns, and the trainer packs the tokens that were sampled."}
"""What modules and agents of the public version returned."""


def samples(module: str, name: str) -> Any:
    """`__getattr__` of the modules that `Samples` was imported from."""
    renamed(module, name, SAMPLES)
