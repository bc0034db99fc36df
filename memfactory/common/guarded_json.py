"""JSON from outside, read with one kind of failure: whatever is wrong with a text is `ValueError`. Knows nothing of what it holds."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads`; nesting deeper than the interpreter's stack is `ValueError`, like every other text that cannot be read."""
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it nests too deep") from None
