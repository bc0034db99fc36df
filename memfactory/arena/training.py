"""One training of the arena in a process of its own, `memfactory train` that stops when the arena is gone. Knows only the command line."""

from __future__ import annotations

import sys

from memfactory.cli import main as memfactory
from memfactory.common.processes import end_with


def main() -> int:
    """`training CONFIG.yaml PARENT`: from the last checkpoint, if there is one."""
    config, parent = sys.argv[1:]
    end_with(int(parent))
    return memfactory(["train", config, "--resume", "True"])


if __name__ == "__main__":
    sys.exit(main())
