"""Command lines from dataclasses: one way to declare an option, to read it and to say what is wrong with it. Knows no command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.ranges import KEY, Range, check_finite
from memfactory.common.redaction import learn

T = TypeVar("T")


class _Metadata(dict[str, Any]):
    """A field's metadata. `HfArgumentParser` hands a copy of all keys to argparse, which knows no range: that key is not listed."""

    def keys(self) -> Any:
        return [key for key in self if key != KEY]

    def copy(self) -> dict[str, Any]:  # what older versions of transformers ask for
        return {key: self[key] for key in self.keys()}  # noqa: SIM118


def option(
    default: Any, text: str, *aliases: str,
    least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None,
) -> Any:  # fmt: skip
    """A field with its help text, which `--help` prints, other spellings of its flag, and the bounds of its number (`Range`)."""
    metadata = _Metadata({"help": text, KEY: Range(least, above, most, below)} | ({"aliases": list(aliases)} if aliases else {}))
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def mapping_of(name: str, value: Any) -> dict[str, Any]:
    """A mapping given as JSON on the command line, or as it is; anything else raises `ConfigError`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"--{name} {value!r} is not JSON: {error}. Example: --{name} '{{\"key\": 1}}'.") from error
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"--{name} must be a mapping, got {value!r}.")
    check_finite(name, value)
    learn(value)
    return dict(value or {})


_HOME = re.compile(r"((?:--)?[\w.-]+=)?~(?=/|$)")


def at_home(word: str) -> str:
    """A word whose leading `~` is the home folder, also behind `--flag=` or `name=`, where no shell looks, and in files."""
    found = _HOME.match(word)
    return f"{found[1] or ''}{Path.home()}{word[found.end() :]}" if found else word


class _Help(argparse.HelpFormatter):
    """Each flag once, as the docs spell it, with its default where that says something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")] or action.option_strings
        if action.nargs == 0:
            return ", ".join(names)
        kind = {int: "N", float: "X", string_to_bool: "True|False"}.get(action.type, "TEXT")
        return f"{', '.join(names)} {f'{kind} ...' if action.nargs == '+' else kind}"

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        if action.default in (None, "", "{}", [], argparse.SUPPRESS) or "Default:" in said:
            return said
        return f"{said} Default: %(default)s."


class FlagParser(HfArgumentParser):
    """argparse whose complaints are ours: one message, no page of usage. A switch without a value is True, whatever its default."""

    def __init__(self, options: Any, **settings: Any) -> None:
        super().__init__(options, formatter_class=_Help, **settings)
        for action in self._actions:
            if action.type is string_to_bool:  # the base class lets only those with a default of their own stand bare
                action.nargs, action.const = "?", True

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args([at_home(str(word)) for word in args or ()], namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. `{self.prog} --help` explains the flags.")


def gathered(arguments: list[str], names: tuple[str, ...], alone: str | None = None) -> list[str]:
    """The same arguments with the values of a repeated list flag behind its first name: argparse keeps only the last.

    `alone`: what the flag means without a value, if anything.
    """
    kept: list[str] = []
    values: list[str] = []
    taking = False
    for argument in arguments:
        if argument in names:
            taking = True
        elif argument.startswith("--"):
            taking = False
            kept.append(argument)
        else:
            (values if taking else kept).append(argument)
    if not values and alone is not None and any(name in arguments for name in names):
        values = [alone]
    return [*kept, names[0], *values] if values else kept


def parse_flags(options: type[T], arguments: Sequence[str], command: str, usage: str = "", positional: int = 0) -> tuple[T, list[str]]:
    """(options, positional words) from `--flag value ...`; an unknown flag names the nearest known one.

    A class variable ALONE, {list flag: value}, says what such a flag means without a value. `command`: how the user calls it, for
    messages. `positional`: the most words that may stand without a flag, before the flags.
    """
    words = list(arguments)
    given: list[str] = []
    while words and not words[0].startswith("-") and len(given) < positional:
        given.append(at_home(words.pop(0)))
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if field.default_factory is not dataclasses.MISSING:
            names = tuple(f"--{name.lstrip('-')}" for name in (*field.metadata.get("aliases", ()), field.name))
            words = gathered(words, names, getattr(options, "ALONE", {}).get(field.name))
    parser = FlagParser(options, prog=command, usage=usage or None, allow_abbrev=False)
    parsed, extra = parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)
    if extra:
        if not str(extra[0]).startswith("-"):
            first = f" Words without a flag stand first: {usage or command}." if positional else ""
            raise ConfigError(f"Unexpected word {extra[0]!r} for {command}.{first} `{command} --help` explains the flags.")
        known = [f"--{f.name}" for f in dataclasses.fields(options)]  # type: ignore[arg-type]
        raise unknown_name(f"flag of {command}", str(extra[0]), known, f"`{command} --help` explains them.")
    return parsed, given
