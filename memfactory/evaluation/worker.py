"""A worker process: one job, then the end. It stops when the process that started it is gone. Knows only `jobs`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType

from memfactory.common.errors import NotApplicableError, UserError
from memfactory.common.files import read_json
from memfactory.common.guarded_json import loads
from memfactory.common.processes import end_with
from memfactory.common.terminal import log_to_stderr, write_traceback
from memfactory.evaluation.jobs import Job, run_job

LEFT_OUT = 4
"""The exit code for a job that has no meaning on its data."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`worker JOB.json [--parent PID] [--stdin]`; 0 is done, 4 left out, 2 a user's mistake (its message is the log's last line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    log_to_stderr()
    for noisy in ("httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if "--parent" in words:
        at = words.index("--parent")
        end_with(int(words[at + 1]))
        del words[at : at + 2]
    # The file has no secrets; who starts a worker hands it the job with them.
    if whole := "--stdin" in words:
        words.remove("--stdin")
    try:
        if len(words) != 1:
            raise UserError(f"A worker takes one job file, got {words}. `memfactory eval` writes it and starts workers.")
        asked = loads(sys.stdin.read()) if whole else read_json(Path(words[0]))
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
    write_traceback(kind, error, trace)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.excepthook = _fail
    sys.exit(main())
