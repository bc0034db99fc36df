"""Help and version: every command explains itself, each flag stands once, and nothing is loaded for what needs nothing."""

from __future__ import annotations

import re

import pytest

from memfactory.cli import main
from memfactory.common.config import TrainConfig
from memfactory.common.flags import FlagParser


@pytest.mark.parametrize("words", [["plan"], ["report"], ["compare"], ["list"], ["data"]], ids=" ".join)
def test_a_short_commands_help_is_its_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0 and main([*words, "-h"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"memfactory {words[0]} ") and all(len(line) <= 88 for line in told.splitlines())


@pytest.mark.parametrize("words", ["train", "eval", "judge", "chat", "data build", "data fetch"])
def test_every_other_commands_help_lists_its_flags(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and told.startswith(f"usage: memfactory {words}") and re.search(r"^  --\w+", told, re.MULTILINE)


def test_a_flag_stands_once_as_the_docs_spell_it_with_a_default_that_says_something() -> None:
    told = FlagParser(TrainConfig, prog="memfactory train").format_help()  # type: ignore[arg-type]
    flags = re.findall(r"^  (--[\w-]+)", told, re.MULTILINE)
    assert len(flags) == len(set(flags)) and not [flag for flag in flags if "-" in flag[2:]] and "(default" not in told
    assert (
        "--lr X " in told
        and "Default: 1e-06." in told
        and "--epoch N " in told
        and "None" not in told
        and "--plugins, --import TEXT ..." in told
    )


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_names_what_a_report_should(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert re.fullmatch(r"memfactory \d+\.\d+\.\d+, torch \S+, transformers \S+, Python \S+\n", capsys.readouterr().out)
