"""Promise: what `memfactory new` writes is a working start: its own test passes, and nothing is overwritten."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from memfactory.cli import main
from memfactory.common.registry import REGISTRIES, import_plugins
from memfactory.common.scaffold import kinds, new_part


@pytest.mark.usefixtures("forgotten_parts")
@pytest.mark.parametrize("kind", kinds())
def test_a_started_part_passes_its_own_test(kind: str, tmp_path: Path) -> None:
    path = new_part(kind, "two_notes", tmp_path)
    import_plugins([str(path)])
    assert [registry.kind for registry in REGISTRIES if "two_notes" in registry] == [kind]
    (made,) = (module for name, module in sys.modules.items() if name.startswith("memfactory_plugin_two_notes"))
    (test,) = (value for name, value in vars(made).items() if name.startswith("test_"))
    test(*[tmp_path] * len(inspect.signature(test).parameters))


def test_the_command_says_what_to_do_next_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "agent", "two_notes"]) == 0 and "python -m pytest two_notes.py" in capsys.readouterr().out
    for words, says in (
        (["agent", "two_notes"], "two_notes.py is there already"),
        (["agents", "other"], "Known: agent, env, module, task"),
        (["env", "Two-Notes"], "lower-case letters"),
        (["env"], "takes a kind and a name"),
    ):
        assert main(["new", *words]) == 2
        assert says in capsys.readouterr().err.replace("\n", " ")
