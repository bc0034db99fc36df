"""Processes that start others, or are forked. Knows nothing of what they do.

`python -m memfactory.common.processes PARENT MODULE ARGUMENT...` is `python -m MODULE ARGUMENT...` that ends with its parent.
"""

from __future__ import annotations

import datetime
import os
import runpy
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

INHERITED: list[Any] = []
"""What a forked child has of its parent's and must not touch: connections, event loops. Kept, since to collect them would close them."""


class Forkable(Protocol):
    """Something that holds threads, locks, connections or files that a fork does not copy."""

    def _forked(self) -> None:
        """Called in a child that was just forked: let go of the parent's, without a word to anyone, and begin anew or refuse."""


_told: weakref.WeakSet[Any] = weakref.WeakSet()


def tell_of_forks(one: Forkable) -> None:
    """Have `one._forked()` called in every process that is forked from this one."""
    _told.add(one)


def _tell() -> None:
    for one in list(_told):
        one._forked()


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(after_in_child=_tell)


def end_with(parent: int, every: float = 0.5) -> None:
    """End this process soon after `parent`, whatever ended that: a second start must not meet a first one's orphans."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def this_process() -> dict[str, Any]:
    """Who holds a lock, for the one who waits for it: pid, command (no options: a key may be one), since when."""
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:2]]
    command = " ".join(word for word in words if not word.startswith("-") and "=" not in word)
    return {"pid": os.getpid(), "command": command, "since": datetime.datetime.now().isoformat(" ", "seconds")}


def said_of(holder: dict[str, Any]) -> str:
    """`this_process()` of another process, in words."""
    pid = holder.get("pid", "unknown")
    mine = " (this one)" if pid == os.getpid() else ""
    more = ", ".join(f"{word}{holder[name]}" for name, word in (("command", ""), ("since", "since ")) if holder.get(name))
    return f"process {pid}{mine}" + (f" ({more})" if more and not mine else "")


def parent_of(pid: int) -> int | None:
    """The number of a process's parent; None if there is no such process, or it has ended, or nobody says."""
    with suppress(OSError, ValueError):
        if Path("/proc/self").exists():
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            return None if state in "ZX" else int(parent)
        return int(_ps("ppid=", pid))
    return None


def command_of(pid: int) -> str:
    """A process's command line; "" if nobody says."""
    with suppress(OSError):
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        return _ps("command=", pid)
    return ""


def _ps(what: str, pid: int) -> str:
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(["ps", "-o", what, "-p", str(pid)], capture_output=True, text=True, timeout=5).stdout
    return ""


def main() -> None:
    """Run a module that ends with its parent."""
    parent, *sys.argv = sys.argv[1:]
    end_with(int(parent))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
