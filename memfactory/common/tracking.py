"""Where a run's numbers go: `metrics.jsonl` always, SwanLab if asked for. Knows nothing of what the numbers mean.

A tracker never decides whether a run goes on: SwanLab without a key logs offline.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from memfactory.common.errors import ConfigError
from memfactory.common.files import read_jsonl, write_jsonl
from memfactory.common.redaction import masked
from memfactory.common.registry import TRACKER_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.common.version import install

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes numbers, histograms and texts of a step."""

    def log(self, step: int, metrics: Mapping[str, float], histograms: Mapping[str, list[float]], texts: Mapping[str, str]) -> None:
        """Record one step."""

    def close(self) -> None:
        """Finish: nothing is logged after it."""


@TRACKER_REGISTRY.register("jsonl")
class JsonlTracker:
    """One JSON object a step in `metrics.jsonl`, flushed at once; histograms as lists of values."""

    def __init__(self, output_dir: Path, name: str | None = None, config: Mapping[str, Any] | None = None, first_step: int = 1) -> None:
        self.path = output_dir / "metrics.jsonl"
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            # A resumed run repeats the steps after its checkpoint: their old lines would count twice.
            write_jsonl(self.path, [row for row in _whole_lines(self.path) if row["step"] < first_step])
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float], histograms: Mapping[str, list[float]], texts: Mapping[str, str]) -> None:
        # A norm that is not finite is null: JSON has no NaN, and other readers would refuse the line.
        numbers = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(masked(json.dumps({"step": step, **numbers, **histograms}, allow_nan=False)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):  # a kill can tear the last line
        write_text_up_to = text.rfind("\n") + 1
        path.write_text(text[:write_text_up_to], encoding="utf-8")
    return read_jsonl(path)


@TRACKER_REGISTRY.register("swanlab")
class SwanLabTracker:
    """SwanLab: cloud with `SWANLAB_API_KEY`, offline files in `output_dir/swanlog` without."""

    def __init__(self, output_dir: Path, name: str | None = None, config: Mapping[str, Any] | None = None, first_step: int = 1) -> None:
        try:
            import swanlab
        except ModuleNotFoundError as error:
            raise ConfigError(f"--report_to swanlab needs the package swanlab. {install('tracking')}") from error
        self._swanlab = swanlab
        load_settings()  # the key may stand in .env
        mode = os.environ.get("SWANLAB_MODE") or ("cloud" if os.environ.get("SWANLAB_API_KEY") else "offline")
        folder = output_dir / "swanlog"
        folder.mkdir(parents=True, exist_ok=True)
        swanlab.init(project="MemFactory", experiment_name=name, config=dict(config or {}), logdir=str(folder), mode=mode)
        log.info("SwanLab logs in %s mode to %s", mode, folder)

    def log(self, step: int, metrics: Mapping[str, float], histograms: Mapping[str, list[float]], texts: Mapping[str, str]) -> None:
        row: dict[str, Any] = dict(metrics)
        row |= {key: self._histogram(key, values) for key, values in histograms.items() if values}
        row |= {key: self._swanlab.Text(text) for key, text in texts.items()}
        self._swanlab.log(row, step=step)

    def _histogram(self, title: str, values: list[float], bins: int = 10) -> Any:
        low, high = min(values), max(values)
        width = (high - low) / bins or 1.0
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int((value - low) / width))] += 1
        chart = self._swanlab.echarts.Bar()
        chart.add_xaxis([f"{low + width * (n + 0.5):.3g}" for n in range(bins)])
        chart.add_yaxis(title, counts)
        return chart

    def close(self) -> None:
        self._swanlab.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        histograms: Mapping[str, list[float]] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Record one step everywhere."""
        for tracker in self._trackers:
            tracker.log(step, metrics, histograms or {}, texts or {})

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check_trackers(names: list[str]) -> None:
    """An unknown tracker, or one whose package is not here, is an error before anything is loaded."""
    for name in names:
        TRACKER_REGISTRY.get(name)
        if name == "swanlab" and importlib.util.find_spec("swanlab") is None:
            raise ConfigError("--report_to swanlab needs the package swanlab: pip install swanlab.")


def build_trackers(names: list[str], output_dir: Path, run_name: str | None, config: Mapping[str, Any], first_step: int) -> Trackers:
    """`metrics.jsonl` and the named ones."""
    keys = dict.fromkeys(["jsonl", *names])
    classes = [TRACKER_REGISTRY.get(key) for key in keys]  # an unknown name fails before anything is touched
    return Trackers([tracker(output_dir, run_name, config, first_step) for tracker in classes])


def tracker_names(report_to: list[str], run_name: str | None) -> list[str]:
    """Those asked for; `--wandb_name` alone means SwanLab, as in the public launchers, if it is installed."""
    names = list(report_to)
    if run_name and not names:
        if importlib.util.find_spec("swanlab") is None:
            log.warning("--wandb_name %s: swanlab is not installed, so only metrics.jsonl is written.", run_name)
        else:
            names.append("swanlab")
    return names
