"""Every number of every command and part has a range, and what lies outside it is one message before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.arena.plan import ArenaConfig
from memfactory.common.config import TrainConfig, read_config
from memfactory.common.errors import ConfigError
from memfactory.common.flags import parse_flags
from memfactory.common.ranges import Range, _words, range_of
from memfactory.common.registry import REGISTRIES, build_options
from memfactory.data.build import BuildConfig
from memfactory.evaluation.config import EvalConfig
from memfactory.evaluation.judging import JudgeConfig

COMMANDS = {TrainConfig: "train", EvalConfig: "eval", JudgeConfig: "judge", BuildConfig: "data build", ArenaConfig: "arena"}


def parts() -> Iterator[type]:
    """The options of every registered part that declares them in a dataclass."""
    for registry in REGISTRIES:
        for _, part in registry.items():
            options = getattr(part, "Options", None)
            if dataclasses.is_dataclass(options) and part.__module__.startswith("memfactory."):
                yield options  # type: ignore[misc]


def numbers(options: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(options) if _words(field)]


def outside(field: dataclasses.Field) -> list[float]:
    """What the option must refuse: no number, infinity, and a number past each bound."""
    bounds, whole = range_of(field), "float" not in _words(field)
    past: list[float] = [math.nan, math.inf, -math.inf] if not whole else []
    past += [bounds.least - 1] if bounds.least is not None else []
    past += [bounds.above] if bounds.above is not None else []
    past += [bounds.most + 1] if bounds.most is not None else []
    past += [bounds.below] if bounds.below is not None else []
    return [int(value) if whole else float(value) for value in past]


CASES = [(options, field, value) for options in COMMANDS for field in numbers(options) for value in outside(field)]


@pytest.mark.parametrize(("options", "field", "value"), CASES, ids=[f"{COMMANDS[o]} {f.name} {v}" for o, f, v in CASES])
def test_a_number_out_of_range_is_one_message_that_names_it_and_the_range(options: type, field: dataclasses.Field, value: float) -> None:
    many = str(field.type).startswith("list")
    with pytest.raises(ConfigError) as error:
        options(**{field.name: [value] if many else value})
    assert f"--{field.name} {value}" in str(error.value) and str(range_of(field)) in str(error.value) and "\n" not in str(error.value)


def test_every_number_of_a_command_has_a_bound() -> None:
    assert not [f"{COMMANDS[options]} {field.name}" for options in COMMANDS for field in numbers(options) if range_of(field) == Range()]


def test_every_count_of_a_part_has_a_bound_and_none_takes_what_is_no_number() -> None:
    for options in parts():
        for field in numbers(options):
            if "int" in _words(field):
                assert range_of(field).least is not None, f"{options.__qualname__}.{field.name}"
            for value in [*outside(field), math.nan, "many"]:
                required = {f.name: "x" for f in dataclasses.fields(options) if f.default is f.default_factory is dataclasses.MISSING}
                with pytest.raises(ConfigError, match=rf"^Part: {field.name} "):
                    build_options("Part", options, {**required, field.name: value})


def test_the_ranges_hold_every_default() -> None:
    for options in [*COMMANDS, *parts()]:
        for field in numbers(options):
            values = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            for value in values if isinstance(values, list) else [values]:
                assert value is None or range_of(field).holds(value), f"{options.__qualname__}.{field.name}"


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": {"b": [1e999]}}', '{"a": -Infinity}'])
@pytest.mark.parametrize("name", ["agent_options", "env_options", "trainer_options", "loss_options", "engine_options"])
def test_no_mapping_holds_what_is_no_finite_number(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name} a.*is not a finite number"):
        read_config([f"--{name}", text])


def test_a_part_says_which_of_its_options_cannot_be() -> None:
    with pytest.raises(ConfigError, match="MemoryAgent: chunk_size 0: must be at least 1"):
        MemoryAgent(None, "cpu", **json.loads('{"chunk_size": 0}'))


@pytest.mark.parametrize(("value", "told"), [(True, "True"), ("3", "'3'"), (2.5, "2.5")])
def test_what_is_no_whole_number_is_none(value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=f"--votes {told}: must be a whole number, at least 1"):
        JudgeConfig(votes=value)


def test_flags_go_the_same_way() -> None:
    with pytest.raises(ConfigError, match="--top_p nan: must be a finite number, above 0 and at most 1"):
        parse_flags(EvalConfig, ["--top_p", "nan"], "memfactory eval")


@pytest.mark.parametrize("flags", [["--train_extraction", "--train_update"], ["--train_extraction", "True", "--train_update", "true"]])
def test_a_switch_without_a_value_is_true_as_the_public_launchers_write_it(flags: list[str]) -> None:
    config = read_config([*flags, "--bf16", "--lr", "0.1"])
    assert (config.train_extraction, config.train_update, config.bf16, config.lr) == (True, True, True, 0.1)
