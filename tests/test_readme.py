"""The README does not lie: its commands name files and flags that exist, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.config import read_config
from memfactory.common.flags import parse_flags
from memfactory.data.build import BuildConfig, build
from memfactory.evaluation.config import EvalConfig
from memfactory.evaluation.judging import JudgeConfig
from memfactory.serving.chat import ChatConfig

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""
BLOCK = re.compile(r"^(?P<mark><!--[^\n]*-->\n+)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TOP_LEVEL = ("examples", "tests", "models", "datas", "evaluation", "docs", "benchmarks", "memfactory")
MADE_BY_A_RUN = ("output", "models/Qwen", "datas/converted", "datas/hop_50.json")

pytestmark = [pytest.mark.skipif(not TEXT, reason="there is no README.md"), pytest.mark.usefixtures("forgotten_parts")]


def blocks(kind: str, text: str = TEXT) -> list[str]:
    """The bodies of the fenced blocks of a language, but for those marked <!-- not run -->."""
    return [m["body"] for m in BLOCK.finditer(text) if m["kind"] == kind and "not run" not in (m["mark"] or "")]


PYTHON = [
    (page, number, block)
    for page in ("README.md", "docs/use.md", "docs/extend.md")
    for number, block in enumerate(blocks("python", (ROOT / page).read_text(encoding="utf-8")), 1)
]


def commands() -> list[list[str]]:
    """Every command of the bash blocks as words, variables set before it left out."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in some if not re.match(r"[A-Z_]+=", word)] for some in words if some]


def repository_files(word: str) -> Iterator[str]:
    """Paths of this repository that a word names, also inside VARIABLE=path and name=path."""
    path = word.rpartition("=")[2]
    if path.split("/")[0] in TOP_LEVEL and "/" in path and not path.startswith(MADE_BY_A_RUN):
        yield path


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(TEXT.splitlines()) <= 120 and max(map(len, TEXT.splitlines())) <= 100


def test_the_readme_shows_commands_and_python() -> None:
    assert commands() and blocks("python")


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line.strip()])
def test_a_command_names_files_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert not [path for word in words for path in repository_files(word) if not (ROOT / path).exists()]


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "memfactory"], ids=" ".join)
def test_a_memfactory_command_parses(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memfactory import cli

    monkeypatch.chdir(ROOT)
    if words[1] == "train":
        assert read_config(words[2:])
    elif words[1] == "eval":
        config, _ = parse_flags(EvalConfig, words[2:], "memfactory eval")
        assert config.models and all(Path(spec.rpartition("=")[2]).exists() or "output/" in spec for spec in config.models)
    elif words[1] == "compare":
        assert len(words) == 4
    elif words[1] == "judge":
        assert len(parse_flags(JudgeConfig, words[2:], "memfactory judge", positional=1)[1]) == 1
    elif words[1:3] == ["data", "build"]:
        config, names = parse_flags(BuildConfig, words[3:], "memfactory data build", positional=1)
        report = build(replace(config, name=names[0], number=2, output=str(tmp_path / "out.json")))
        assert report.number == 2
    else:
        assert cli.main(words[1:]) == 0, capsys.readouterr().err


def test_flags_named_in_the_text_exist() -> None:
    text = BLOCK.sub("", TEXT)
    named = {flag for code in re.findall(r"`([^`\n]+)`", text) for flag in re.findall(r"--([a-zA-Z_]\w*)", code)}
    commands = (EvalConfig, ChatConfig, JudgeConfig)
    known = {"fresh", "all", "help", "import", *read_config([]).to_dict(), *(field.name for config in commands for field in fields(config))}
    assert not named - known


@pytest.mark.parametrize(("page", "number", "block"), PYTHON, ids=[f"{page}-{number}" for page, number, _ in PYTHON])
def test_a_python_block_runs(page: str, number: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models", "datas", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memfactory.trainers.base.plot_curves", lambda *args: None)
    namespace: dict[str, Any] = {"__name__": f"block_{number}"}
    exec(compile(block, f"{page}, Python block {number}", "exec"), namespace)


def test_the_chinese_readme_has_the_same_commands_code_and_figures() -> None:
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    fences = {name: [re.sub(r"\s*#.*", "", m["body"]) for m in BLOCK.finditer(text)] for name, text in (("en", TEXT), ("zh", chinese))}
    assert fences["en"] == fences["zh"]
    figures = {name: re.findall(r"[+-]?\d*\.\d{3,4}", BLOCK.sub("", text)) for name, text in (("en", TEXT), ("zh", chinese))}
    assert figures["en"] == figures["zh"]
    links = {name: sorted(re.findall(r"\]\(([^)\s]+)\)", text)) for name, text in (("en", TEXT), ("zh", chinese))}
    assert [link for link in links["en"] if link != "README.zh-CN.md"] == [link for link in links["zh"] if link != "README.md"]


def test_links_to_files_lead_somewhere() -> None:
    targets = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", TEXT) if not re.match(r"\w+:", target)}
    assert not [target for target in sorted(targets - {""}) if not (ROOT / target).exists()]
