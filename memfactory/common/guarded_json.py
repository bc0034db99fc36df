"""JSON from outside, read with one kind of failure: whatever is wrong with a text is `ValueError`. Knows nothing of what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def loads(text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """`json.loads`; nesting deeper than the interpreter's stack is `ValueError`, like every other text that cannot be read."""
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("it nests too deep") from None
