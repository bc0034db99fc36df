"""Progress for people and for files: a bar on a terminal, elsewhere a plain line now and then. Knows nothing of what goes on."""

from __future__ import annotations

import logging
import sys
import time

log = logging.getLogger(__name__)


def line_format() -> str:
    """Of a log's lines: with the time where nobody watches them being written."""
    return "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(message)s"


class Lines:
    """Says what is done in a log line, at most every so many seconds, where a bar would be one line of carriage returns."""

    def __init__(self, bar: bool, every: float = 30.0) -> None:
        """`bar`: True if somebody sees a bar, so that nothing is to be said."""
        self.bar, self.every, self._last = bar, every, time.monotonic()

    def tell(self, text: str, now: bool = False) -> None:
        """Say it, if it is time (or `now`, as at the end)."""
        if not self.bar and (now or time.monotonic() - self._last >= self.every):
            self._last = time.monotonic()
            log.info("%s", text)
