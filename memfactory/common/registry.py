"""Tables of named parts, filled by decorators. Knows nothing of what a part does.

@MODULE_REGISTRY.register("my_module")
class MyModule(BaseModule): ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from memfactory.common.errors import ConfigError, MissingFileError, unknown_name
from memfactory.common.ranges import check_ranges
from memfactory.common.redaction import learn

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from a name to a class or function of one kind.

    Example: `AGENT_REGISTRY.get("memagent")` returns the class `MemoryAgent`; an unknown name raises
    `UnknownNameError`, which lists the known names and the nearest one. `homes`: the modules that register the project's own
    parts; they are imported at the first look, so that every look sees them and nobody pays for a table that is not used.
    """

    def __init__(self, kind: str, *homes: str) -> None:
        self.kind = kind
        self.homes = homes
        self._filed: dict[str, T] = {}
        self._looked = not homes
        self._looking = threading.RLock()

    @property
    def _parts(self) -> dict[str, T]:
        """What is filed, with the project's own. A home that looks here while it is imported sees what is there so far."""
        with self._looking:  # another thread's first look waits until everything is filed
            if not self._looked:
                self._looked, whole = True, False
                try:
                    for home in self.homes:
                        importlib.import_module(home)
                    whole = True
                finally:
                    self._looked = whole
        return self._filed

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: file the class or function under `name`. A name taken by another part raises `ConfigError`."""

        def file(part: T) -> T:
            own = getattr(part, "__module__", "").startswith("memfactory.")
            parts = self._filed if own else self._parts  # one's own part must not take a name before the project's has it
            taken = parts.get(name)
            # A module that is imported twice (a notebook cell run again) re-registers the same part: allowed.
            if taken is not None and _identity(taken) != _identity(part):
                raise ConfigError(f"{self.kind} {name!r} is already registered as {_identity(taken)}; choose another name.")
            parts[name] = part
            return part

        return file

    def get(self, name: str) -> T:
        """The part called `name`; `UnknownNameError` if there is none."""
        if name not in self._parts:
            raise unknown_name(self.kind, name, self._parts, "`memfactory list` shows what is registered.")
        return self._parts[name]

    def name_of(self, part: object) -> str:
        """The name a part is registered under; its class's own name if it is not."""
        return next((name for name, known in self._parts.items() if known is part), getattr(part, "__qualname__", str(part)))

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def items(self) -> list[tuple[str, T]]:
        """(name, part) pairs in the order of their names."""
        return sorted(self._parts.items())

    def filed(self) -> list[T]:
        """What was filed so far, one's own parts among it, without importing any of the project's."""
        return list(self._filed.values())


def _identity(part: object) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', part)}"


MODULE_REGISTRY: Registry[type] = Registry("module", "memfactory.modules")
AGENT_REGISTRY: Registry[type] = Registry("agent", "memfactory.agents")
ENV_REGISTRY: Registry[type] = Registry("env", "memfactory.envs", "memfactory.evaluation.tasks")
TRAINER_REGISTRY: Registry[type] = Registry(
    "trainer", *(f"memfactory.trainers.{name}_trainer" for name in ("mem_grpo", "mem_reinforce", "mem_sft"))
)
ENGINE_REGISTRY: Registry[type] = Registry("engine", *(f"memfactory.engines.{name}" for name in "api hf scripted servers vllm".split()))
LOSS_REGISTRY: Registry[Callable] = Registry("loss", "memfactory.algorithms.losses")
ADVANTAGE_REGISTRY: Registry[Callable] = Registry("advantage", "memfactory.algorithms.advantages")
TRACKER_REGISTRY: Registry[type] = Registry("tracker", "memfactory.common.tracking")
GENERATOR_REGISTRY: Registry[Callable] = Registry("generator", "memfactory.data.build")
SCORER_REGISTRY: Registry[Callable] = Registry("scorer", "memfactory.judges")
JUDGE_PROMPT_REGISTRY: Registry[Callable] = Registry("judge prompt", "memfactory.judges")
EMBEDDER_REGISTRY: Registry[type] = Registry("embedder", "memfactory.memory.embedders")
STORE_REGISTRY: Registry[type] = Registry(
    "store", *(f"memfactory.memory.stores.{name}" for name in "hybrid in_memory milvus neo4j".split())
)
TASK_REGISTRY: Registry[type] = Registry("task", "memfactory.evaluation.tasks")

REGISTRIES: tuple[Registry, ...] = (
    AGENT_REGISTRY, MODULE_REGISTRY, ENV_REGISTRY, TRAINER_REGISTRY, ENGINE_REGISTRY, LOSS_REGISTRY,
    ADVANTAGE_REGISTRY, TASK_REGISTRY, SCORER_REGISTRY, JUDGE_PROMPT_REGISTRY, GENERATOR_REGISTRY, EMBEDDER_REGISTRY, STORE_REGISTRY,
    TRACKER_REGISTRY,
)  # fmt: skip


def build_options(owner: str, options: type[T], given: Mapping[str, Any]) -> T:
    """Fill a component's `Options` dataclass from keyword arguments; an unknown key names the known ones."""
    learn(given)
    known = {f.name for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown_name(f"option of {owner}", name, known)
    empty = dataclasses.MISSING
    required = {f.name for f in dataclasses.fields(options) if f.default is empty and f.default_factory is empty}  # type: ignore[arg-type]
    if missing := sorted(required - set(given)):
        raise ConfigError(f"{owner} needs the option(s) {', '.join(missing)}. It has: {', '.join(sorted(known))}.")
    check_ranges(options, given, f"{owner}: ")  # before the class's own checks, which may count on numbers
    return options(**given)


def describe_options(part: object) -> list[str]:
    """`name=default` for each option of a part: the fields of its `Options`, or its own keyword parameters."""
    options = getattr(part, "Options", None)
    if options is not None and dataclasses.is_dataclass(options):
        return [f"{f.name}={_default(f)}" for f in dataclasses.fields(options)]
    if inspect.isfunction(part):
        parameters = inspect.signature(part).parameters.values()
        return [f"{p.name}={p.default!r}" for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is not p.empty]
    return []


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required"


def import_plugins(names: list[str]) -> None:
    """Import the user's own parts: files (`my_parts.py`), dotted modules, and the `memfactory.plugins` entry points."""
    for point in entry_points(group="memfactory.plugins"):
        point.load()
    for name in names:
        if name.endswith(".py"):
            _import_file(Path(name).expanduser())
        else:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise MissingFileError(f"--import {name}: no such module ({error}). Give a file ending in .py or a dotted name.") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"--import {path}: no such file. Give the path of a Python file that registers your parts.")
    name = f"memfactory_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    imported = False
    try:
        spec.loader.exec_module(module)
        imported = True
    finally:
        if not imported:  # a file that failed must fail again, not pass for imported
            del sys.modules[name]
