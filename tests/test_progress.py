"""A log that goes to a file is plain lines with times; on a terminal it is a bar."""

from __future__ import annotations

import logging

import pytest

from memfactory.common.progress import Lines, line_format


def test_lines_come_now_and_then_and_at_the_end_where_there_is_no_bar(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("memfactory.common.progress.time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    lines, silent = Lines(bar=False, every=30), Lines(bar=True)
    for second in range(100):
        now[0] = float(second)
        lines.tell(f"{second} of 100")
        silent.tell("never")
    lines.tell("100 of 100", now=True)
    silent.tell("never", now=True)
    assert [record.getMessage() for record in caplog.records] == ["30 of 100", "60 of 100", "90 of 100", "100 of 100"]


def test_times_stand_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, found in ((True, "%(message)s"), (False, "%(asctime)s %(message)s")):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        assert line_format() == found
