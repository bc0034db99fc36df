#!/usr/bin/env python3
"""The arena: three paradigms trained and scored on the same dialogues, by the same reader, in one table (docs/arena.md).

Run by `bash examples/arena.sh`. A second start goes on where the first stopped; `--agents memagent rmm --seeds 0` runs a part.
"""

from __future__ import annotations

import sys
from pathlib import Path

from memfactory.arena.plan import ArenaConfig, read_plan
from memfactory.arena.report import printed, write_report
from memfactory.arena.work import Place, evaluate, make_data, train_all
from memfactory.cli import guarded
from memfactory.common.files import alone
from memfactory.common.flags import parse_flags
from memfactory.common.terminal import Terminal

console = Terminal()


def main() -> int:
    """Data, trainings, evaluations, report."""
    config, rest = parse_flags(ArenaConfig, sys.argv[1:], "examples/arena.sh")
    if rest:
        raise SystemExit(f"examples/arena.sh takes no {rest[0]!r}; --help lists its options.")
    plan, place = read_plan(config), Place(Path(config.output_dir))
    with alone(place.root):
        make_data(plan, place)
        train_all(plan, place, config.workers, console)
        code = evaluate(plan, place, config.workers, console)
        report = write_report(plan, place)
    console.print(printed(report))
    console.print(
        f"Look at {place.root / 'report.html'}, scores.png, types.png and learning.png; every attempt: {place.scores / 'report.html'}.",
        soft_wrap=True,
    )
    return code


if __name__ == "__main__":
    sys.exit(guarded(main))
