"""A worker process: one job, then the end. It stops when the process that started it is gone. Knows only `jobs`."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType

import transformers

from memfactory.common.errors import NotApplicableError, UserError
from memfactory.common.files import read_json
from memfactory.common.processes import end_with
from memfactory.evaluation.jobs import Job, run_job

LEFT_OUT = 4
"""The exit code for a job that has no meaning on its data."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`worker JOB.json [--parent PID]`; exit code 0 done, 4 left out, 2 a user's mistake (its message is the log's last line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    if "--parent" in words:
        at = words.index("--parent")
        end_with(int(words[at + 1]))
        del words[at : at + 2]
    try:
        if len(words) != 1:
            raise UserError(f"A worker takes one job file, got {words}. `memfactory eval` writes it and starts workers.")
        asked = read_json(Path(words[0]))
        run_job(Job(**{field.name: asked[field.name] for field in fields(Job) if field.name in asked}))
    except NotApplicableError as error:
        logging.getLogger(__name__).info("Left out: %s", error)
        return LEFT_OUT
    except UserError as error:
        logging.getLogger(__name__).error("Error: %s", error)
        return 2
    return 0


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A bug's traceback is the log's last word: threads that still run must not add to it while the interpreter goes down."""
    traceback.print_exception(kind, error, trace)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.excepthook = _fail
    sys.exit(main())
