"""A process that was started ends with the one that started it, whatever ended that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PARENT = (
    "import os, subprocess, sys; subprocess.run([sys.executable, '-m', 'memfactory.common.processes', str(os.getpid()), 'child', 'said'])"
)
CHILD = "import os, sys, time; print(os.getpid(), *sys.argv[1:], flush=True); time.sleep(60)"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_module_runs_and_ends_with_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": places})
    assert parent.stdout is not None
    number, argument = parent.stdout.readline().split()
    child = int(number)
    assert argument == "said"
    os.kill(child, 0)
    parent.send_signal(how)
    parent.wait()
    for _ in range(500):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its parent")
    parent.stdout.close()
