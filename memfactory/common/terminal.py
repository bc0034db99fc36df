"""What reaches a terminal: consoles, log lines and tracebacks without secrets and without what a terminal would obey.

Servers, data files and models write names, keys and messages; a terminal takes some of their characters for commands (to set the
clipboard, to move, to answer). Only the package's own colours pass. Knows no command.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from memfactory.common.redaction import masked, redacted

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters of both kinds but tab and line feed, marks that reverse a line, and halves of pairs, which no stream takes."""


def harmless(text: str) -> str:
    """A text with U+FFFD for each character that a terminal would obey."""
    return _OBEYED.sub("\ufffd", text)


class Terminal(Console):
    """A rich console whose texts are `harmless`; its own colours and bars pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(masked(segment.text)), segment.style)


class Plainly(logging.Formatter):
    """A formatter whose lines are `harmless` and `redacted`, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(redacted(super().format(record)))


def log_to_stderr(level: int = logging.INFO, form: str = "%(message)s") -> None:
    """Send log lines of this process, transformers' among them, to stderr; what ends it by surprise is written there as safely."""
    import transformers  # not above: importing it takes a second

    handler = logging.StreamHandler()
    handler.setFormatter(Plainly(form, "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    sys.excepthook = write_traceback


def write_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` writes, as safely."""
    sys.stderr.write(harmless(redacted("".join(traceback.format_exception(kind, error, trace)))))
