"""Traces of whole steps by torch.profiler, and a table of what took longest. Knows no trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from memfactory.common.files import write_text

log = logging.getLogger(__name__)

_TOP = 12


class StepProfiler:
    """Records the next `steps` steps: `folder/step_K.json.gz` for chrome://tracing or Perfetto, and `step_K.txt`, its longest operations.

    The parts of a step stand in the trace as ranges. What the engine's thread does is recorded too, kernel by kernel: a long rollout
    makes a trace of gigabytes.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.left = folder, steps

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record the block, if there is a step left to record."""
        if self.left < 1:
            yield
            return
        self.left -= 1
        on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        with profile(activities=activities, experimental_config=every_thread, acc_events=True) as recorded:
            yield
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"step_{number}.json.gz"
        recorded.export_chrome_trace(str(trace))
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=key, row_limit=_TOP, max_name_column_width=44)
        write_text(trace.with_name(f"step_{number}.txt"), table)
        log.info("Trace of step %d: %s. The %d longest operations:\n%s", number, trace, _TOP, table)
