"""Decode steps recorded once and replayed: a CUDA graph per shape, with the number of rows and of columns in buckets.

Launching a step's thousand small kernels one by one takes longer than running them. Knows a step as a function without
arguments whose inputs and outputs are tensors at fixed addresses; what else it reads is frozen into the recording.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

log = logging.getLogger(__name__)

Step = Callable[[], None]

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
"""Numbers of rows that are recorded; above the last, multiples of 32."""

CAPTURE_AFTER = 3
"""A shape runs this often before it is recorded: a recording costs about as much as two steps, and many shapes are rare."""


def row_bucket(rows: int, most: int) -> int:
    """The number of rows that a step of `rows` rows is run with, at most `most`."""
    found = ROWS[bisect_left(ROWS, rows)] if rows <= ROWS[-1] else -(-rows // 32) * 32
    return min(found, most)


class Recorder(Protocol):
    """Makes a recording of a step, which it need not run."""

    def record(self, step: Step) -> Step:
        """What replays the step on the same tensors. RuntimeError if the step cannot be recorded."""


class CudaRecorder:
    """CUDA graphs that share one memory pool: they are replayed one after the other, and nothing in the pool outlives a replay."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Step) -> Step:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            step()  # libraries set themselves up on their first call, which a recording may not contain
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a tracker, an embedder) may use the GPU meanwhile: only what this thread does is recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        return graph.replay


class GraphedSteps:
    """Runs steps by shape: as they are at first, then from a recording. One that cannot be recorded ends recording for all."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder: Recorder | None = recorder
        self.recorded: dict[Hashable, Step] = {}
        self.replays = 0
        self._runs: Counter[Hashable] = Counter()

    def run(self, shape: Hashable, step: Step, idle: Callable[[], Step]) -> None:
        """Run `step`, whose tensors' sizes are said by `shape`. `idle()` makes steps leave no trace until what it returns is called."""
        if shape not in self.recorded and self.recorder is not None and self._runs[shape] >= CAPTURE_AFTER:
            self._record(shape, step, idle)
        if shape in self.recorded:
            self.replays += 1
            self.recorded[shape]()
            return
        self._runs[shape] += 1
        step()

    def _record(self, shape: Hashable, step: Step, idle: Callable[[], Step]) -> None:
        assert self.recorder is not None
        resume = idle()
        try:
            self.recorded[shape] = self.recorder.record(step)
        except RuntimeError as error:
            log.warning("Decode steps run one kernel at a time: they could not be recorded (%s).", str(error).splitlines()[0])
            self.recorder = None
        finally:
            resume()

    def forget(self) -> None:
        """Drop every recording: the tensors they were made on are going."""
        self.recorded.clear()
        self._runs.clear()
