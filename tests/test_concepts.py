"""Promise: docs/concepts.md says what is so: its data loads, its errors are the real ones, its stages, files and picture are today's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memfactory.common.errors import DataError
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.envs.base import BaseEnv
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.envs.memory_bank import MemoryBankEnv

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
LONG, TOLD = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))


def env(kind: type[BaseEnv], rows: list, tmp_path: Path) -> BaseEnv:
    path = tmp_path / "my.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return kind(str(path))


def test_the_data_of_five_lines_loads_and_shows_no_gold(tmp_path: Path) -> None:
    example = env(LongcontextEnv, LONG, tmp_path)[0]
    assert (example["question"], example["answers"]) == ("Where does Ann live?", ["Paris"]) and example["extra"] == {}
    told = env(MemoryBankEnv, TOLD, tmp_path)
    view = told.observe(told[0])
    assert view.questions == ("Where does Ann live?",) and "I moved to Paris." in str(view.events) and "8 May 2023" in str(view.events)


def test_the_errors_are_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    undated = json.loads(json.dumps(TOLD))
    del undated[0]["sessions"][0]["date"]
    misnamed = [*LONG * 3, {"context": "c", "query": "q", "answers": ["a"]}]
    for kind, rows in ((MemoryBankEnv, undated), (LongcontextEnv, misnamed)):
        Path("my.json").write_text(json.dumps(rows), encoding="utf-8")
        with pytest.raises(DataError) as error:
            kind("my.json")
        assert f"Error: {error.value}\n" in PAGE


def test_every_agents_stages_are_in_its_row() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \([^)]*\) \|(.*)$", PAGE, re.MULTILINE))
    assert rows.keys() == {key for key, kind in AGENT_REGISTRY.items() if kind.__module__.startswith("memfactory.") and kind.stages}
    for key, row in rows.items():
        assert set(AGENT_REGISTRY.get(key).stages) == set(re.findall(r"`(\w+)`", row)), key


def test_the_files_it_names_are_there() -> None:
    places = re.findall(r"`((?:recipes|memfactory|examples)/[\w./*]+)`", PAGE)
    assert len(places) > 8
    for place in places:
        assert list(ROOT.glob(place.rstrip("/"))), place


def test_the_picture_is_what_its_source_draws() -> None:
    made = subprocess.run([sys.executable, str(ROOT / "docs/images/concepts.py")], capture_output=True, check=True, encoding="utf-8")
    assert made.stdout == (ROOT / "docs/images/concepts.svg").read_text(encoding="utf-8")
