"""Trackers: one line a step in metrics.jsonl, whole after any kill; SwanLab without a key or a network; neither ever stops a run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memfactory.common.errors import ConfigError, UnknownNameError
from memfactory.common.files import read_jsonl
from memfactory.common.registry import TRACKER_REGISTRY
from memfactory.common.tracking import JsonlTracker, build_trackers, tracker_names

OFFLINE_SWANLAB = """
import socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was opened: {args}")

socket.socket.connect = refuse
socket.create_connection = refuse
from memfactory.common.tracking import build_trackers
trackers = build_trackers(["swanlab"], Path(sys.argv[1]), "a run", {"lr": 0.1}, 1)
for step in (1, 2):
    trackers.log(step, {"reward": 0.25 * step}, {"reward_values": [0.0, 0.5, 0.5, 1.0], "empty": []}, {"sample": "Question: city ?"})
trackers.close()
print("finished")
"""


def logged(folder: Path, *steps: int, first_step: int = 1) -> None:
    tracker = JsonlTracker(folder, first_step=first_step)
    for step in steps:
        tracker.log(step, {"reward": step / 10}, {"reward_values": [0.0, 1.0]}, {"sample": "a text"})
    tracker.close()


def steps_in(folder: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]


def test_a_line_a_step_with_numbers_and_histograms(tmp_path: Path) -> None:
    logged(tmp_path / "run", 1, 2)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows == [{"step": step, "reward": step / 10, "reward_values": [0.0, 1.0]} for step in (1, 2)]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"reward": 0.5}, {}, {})
    assert steps_in(tmp_path) == [1]
    tracker.close()


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2, 3, 4, 5)
    logged(tmp_path, 4, first_step=4)
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2)
    logged(tmp_path, first_step=1)
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', '{"step": 3}', "{"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    logged(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(torn)
    logged(tmp_path, 3, first_step=3)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_a_file_of_one_torn_line_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1', encoding="utf-8")
    logged(tmp_path, 1)
    assert steps_in(tmp_path) == [1]


def test_metrics_are_always_written_whatever_else_is_asked_for(tmp_path: Path) -> None:
    for number, names in enumerate(([], ["jsonl"])):
        trackers = build_trackers(names, tmp_path / str(number), None, {}, 1)
        trackers.log(1, {"reward": 1.0})
        trackers.close()
        assert steps_in(tmp_path / str(number)) == [1]


def test_an_unknown_tracker_names_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown tracker 'swanlap'\. Did you mean 'swanlab'\?"):
        TRACKER_REGISTRY.get("swanlap")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unknown_tracker_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2)
    with pytest.raises(UnknownNameError):
        build_trackers(["swanlap"], tmp_path, None, {}, 1)
    gc.collect(1)  # what is of this test is young
    assert steps_in(tmp_path) == [1, 2]


def without_swanlab(monkeypatch: pytest.MonkeyPatch) -> None:
    original = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "swanlab" else original(name, *rest))
    monkeypatch.setitem(sys.modules, "swanlab", None)


def test_a_run_name_without_swanlab_only_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    without_swanlab(monkeypatch)
    names = tracker_names([], "my run")
    assert names == []
    assert "--wandb_name my run: swanlab is not installed, so only metrics.jsonl is written" in caplog.text
    build_trackers(names, tmp_path, "my run", {}, 1).close()


def test_a_run_name_turns_swanlab_on_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    assert tracker_names([], "my run") == ["swanlab"]
    assert tracker_names(["jsonl"], "my run") == ["jsonl"]
    assert tracker_names([], None) == []


def test_asking_for_swanlab_without_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_swanlab(monkeypatch)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[tracking\]"'):
        TRACKER_REGISTRY.get("swanlab")(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("swanlab") is None, reason="swanlab is not installed")
def test_swanlab_logs_without_a_key_and_without_a_network(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SWANLAB")}
    environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE_SWANLAB, str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0 and "finished" in result.stdout, result.stdout + result.stderr
    assert "a connection was opened" not in result.stderr
    assert [row["reward"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0.25, 0.5]
    content = b"".join(path.read_bytes() for path in (tmp_path / "run" / "swanlog").rglob("*") if path.is_file())
    for word in (b"reward", b"reward_values", b"sample"):
        assert word in content, f"{word!r} is not among what swanlab kept"


class FakeSwanLab:
    """Takes what SwanLab would."""

    Text = str

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, Any]]] = []

    class echarts:
        class Bar:
            def add_xaxis(self, labels: list[str]) -> None:
                self.labels = labels

            def add_yaxis(self, title: str, counts: list[int]) -> None:
                self.title, self.counts = title, counts

    def init(self, **settings: Any) -> None:
        self.settings = settings

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.rows.append((-1, {}))


@pytest.mark.parametrize(
    ("variables", "mode"), [({}, "offline"), ({"SWANLAB_API_KEY": "k"}, "cloud"), ({"SWANLAB_MODE": "local"}, "local")]
)
def test_swanlab_is_offline_unless_there_is_a_key_or_a_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], mode: str
) -> None:
    fake = FakeSwanLab()
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    build_trackers(["swanlab"], tmp_path, "a run", {"lr": 1.0}, 1).close()
    assert fake.settings["mode"] == mode and fake.settings["experiment_name"] == "a run" and fake.settings["config"] == {"lr": 1.0}
    assert Path(fake.settings["logdir"]).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("values", "counts"),
    [([0.0, 0.05, 0.55, 1.0], [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]), ([0.5, 0.5], [2] + [0] * 9)],
)
def test_a_histogram_counts_every_value_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values: list[float], counts: list[int]
) -> None:
    fake = FakeSwanLab()
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    trackers = build_trackers(["swanlab"], tmp_path, None, {}, 1)
    trackers.log(3, {"reward": 0.5}, {"reward_values": values, "empty": []}, {"sample": "text"})
    (step, row) = fake.rows[0]
    assert step == 3 and row["reward"] == 0.5 and row["sample"] == "text" and "empty" not in row
    assert row["reward_values"].counts == counts and len(row["reward_values"].labels) == 10
    trackers.close()


def test_torn_lines_do_not_hide_broken_ones(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        JsonlTracker(tmp_path, first_step=4)
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]) == {"step": 1}
