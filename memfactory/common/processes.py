"""Processes that start others. Knows nothing of what they do.

`python -m memfactory.common.processes PARENT MODULE ARGUMENT...` is `python -m MODULE ARGUMENT...` that ends with its parent.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time


def end_with(parent: int, every: float = 0.5) -> None:
    """End this process soon after `parent`, whatever ended that: a second start must not meet a first one's orphans."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run a module that ends with its parent."""
    parent, *sys.argv = sys.argv[1:]
    end_with(int(parent))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
