"""Figures on their way to a file: written after each, so that whatever stops a part later costs none that it had."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Figures:
    """One part's figures, in OUT/PART.json: {"figures": {name: {...}}, "failed": {name: why}, "seconds": ...}."""

    def __init__(self, path: Path, **about: Any) -> None:
        self.path, self.started = path, time.perf_counter()
        self.content: dict[str, Any] = {"about": about, "figures": {}, "failed": {}, "seconds": 0.0}
        self.save()

    def add(self, name: str, **values: Any) -> None:
        """Keep a figure, and say it."""
        self.content["figures"].setdefault(name, {}).update(values)
        self.save()
        shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
        print(f"  {name}: {shown}", flush=True)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails inside is noted and costs only itself."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no figure may cost the others, whatever becomes of it
            trace = traceback.format_exc().splitlines()
            self.content["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.content.setdefault("traces", {})[name] = trace[-12:]
            print(f"  {name} failed: {self.content['failed'][name]}", flush=True)
            # The frames of the error hold the tensors of what failed: the next figure needs their memory.
            traceback.clear_frames(error.__traceback__)
        finally:
            self.save()
            gc.collect()
            _empty_cache()

    def save(self) -> None:
        """Replace the file by what there is."""
        self.content["seconds"] = time.perf_counter() - self.started
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def _empty_cache() -> None:
    import torch  # after the part has it

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
