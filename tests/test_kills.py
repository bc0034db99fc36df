"""Promise: whatever kills a command, nothing it acknowledged is lost, no process outlives it, and the next start ends as if undisturbed.

`MEMFACTORY_KILLS=60 python -m pytest tests/test_kills.py -m slow` kills more often than CI does. Stores are in test_kills_stores.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai_server import reply, says, serving
from test_judging import YES, folder_of

from memfactory.common.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("MEMFACTORY_KILLS", "3"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")]


def killed(kind: str, work: Path, *prepared: str, **environment: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), kind, str(work), str(KILLS), "7", *prepared]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    result = subprocess.run(command, capture_output=True, text=True, timeout=300 + 60 * KILLS, env=variables, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert json.loads(result.stdout.splitlines()[-1])["kills"] == KILLS


def test_training(tmp_path: Path) -> None:
    killed("train", tmp_path)


def test_evaluation(tmp_path: Path) -> None:
    rows = read_json(ROOT / "datas" / "tiny" / "eval.json")
    write_json(tmp_path / "first.json", rows[:40])
    write_json(tmp_path / "second.json", rows[40:70])
    killed("eval", tmp_path)


def test_judging(tmp_path: Path) -> None:
    folder_of(tmp_path / "made", k=4)
    with serving() as server:
        server.always = says(reply(YES))
        killed("judge", tmp_path, str(tmp_path / "made" / "out"), OPENAI_BASE_URL=server.url, OPENAI_API_KEY="right")


def test_building(tmp_path: Path) -> None:
    killed("build", tmp_path)
