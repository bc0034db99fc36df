"""What an arena compares: one YAML file as a value. Knows names and numbers, not how anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, MissingFileError, unknown_name
from memfactory.common.files import read_yaml
from memfactory.common.flags import option
from memfactory.common.ranges import check_ranges


@dataclass
class ArenaConfig:
    """Options of the arena's script; what is left out is as the YAML file has it."""

    config: str = option("examples/arena.yaml", "The YAML file that decides every number.")
    model: str | None = option(None, "The base that every row starts from, and the reader of every row that does not train its own.")
    agents: list[str] = option([], "Only these rows.")
    seeds: list[int] = option([], "Only these seeds.", least=0)
    budget: int | None = option(None, "Sampled tokens of training, the same for each row and seed.", least=1)
    limit: int = option(0, "Only so many dialogues of each held-out set; 0: all.", least=0)
    workers: int = option(0, "Trainings and evaluations at a time; 0: as many as there are GPUs, or cores.", least=0)
    output_dir: str = option("output/arena", "Where data, runs, ledgers and the report go; what is there is not made again.")

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self))


@dataclass(frozen=True)
class ArenaRow:
    """One way to keep a memory."""

    name: str
    title: str
    agent: str
    env: str
    about: str = ""
    agent_options: Mapping[str, Any] = field(default_factory=dict)
    env_options: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Options of training that only this row has."""


@dataclass(frozen=True)
class Plan:
    """A whole arena."""

    model: str
    seeds: Sequence[int]
    budget: int
    k: int
    dialogues: Mapping[str, Any]
    """Options of `synth_dialog` that all sets share."""
    train_on: Mapping[str, Any]
    held_out: Mapping[str, Mapping[str, Any]]
    """{name of a set: its options}; the first is of the lengths that are trained on."""
    training: Mapping[str, Any]
    rows: Mapping[str, ArenaRow]
    anchors: Mapping[str, Any] = field(default_factory=dict)
    """{"beside": row whose reader and options they take, "kinds": [...]}."""
    paradigms: Sequence[str] = ()
    """Rows that are compared with each other."""
    limit: int = 0

    def run_name(self, row: str, seed: int) -> str:
        """What one training is called."""
        return f"{row}-s{seed}"

    @property
    def compared(self) -> list[str]:
        """The paradigms among the rows at hand."""
        return [name for name in self.paradigms if name in self.rows]


def read_plan(config: ArenaConfig) -> Plan:
    """The plan of a YAML file, with what the options replace."""
    path = Path(config.config)
    if not path.is_file():
        raise MissingFileError(f"No such arena: {path}. examples/arena.yaml ships with the project.")
    told = read_yaml(path)
    if not isinstance(told.get("rows"), dict):
        raise ConfigError(f"{path} must be a mapping with `rows`, a mapping of what is compared.")
    rows = {name: _made(ArenaRow, {"name": name, **row}, f"row {name} of {path}") for name, row in told["rows"].items()}
    for name in config.agents:
        if name not in rows:
            raise unknown_name("--agents", name, rows)
    plan: Plan = _made(Plan, told | {"rows": {name: row for name, row in rows.items() if name in (config.agents or rows)}}, str(path))
    if plan.anchors and plan.anchors.get("beside") not in rows:
        raise unknown_name(f"anchors.beside of {path}", str(plan.anchors.get("beside")), rows)
    if plan.anchors.get("beside") not in plan.rows:
        plan = replace(plan, anchors={})
    given: dict[str, Any] = {"model": config.model, "seeds": config.seeds, "budget": config.budget, "limit": config.limit}
    return replace(plan, **{name: value for name, value in given.items() if value})


def _made(of: type, values: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in fields(of)]
    for name in values:
        if name not in known:
            raise unknown_name(f"key of {where}", str(name), known)
    try:
        return of(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition('__init__() ')[2] or error}.") from error
