"""What a model server says when it refuses: for good or for now, and which parameter it does not take. Knows no client."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_FOR_NOW = {408, 409, 425, 429}
"""Client errors that the same request may not meet again."""
_NO_QUOTA = re.compile(
    r"insufficient_quota|billing_hard_limit|billing_not_active|exceeded your current quota|insufficient balance|out of credits", re.I
)
_TOO_LONG = re.compile(
    r"context_length_exceeded|context[ _](?:length|window|size)|maximum model len|prompt is too long|context too long|too many tokens", re.I
)
_WITHHELD = re.compile(r"content[ _-]?(?:filter|policy|management)|responsible ?ai|safety|flagged|invalid_prompt|moderation", re.I)
_NOT_TAKEN = re.compile(
    r"unsupported|unknown_parameter|extra_forbidden|not support|unrecogni[sz]ed|unknown (?:name|param|field|arg)"
    r"|not permitted|not allowed|unexpected (?:keyword|param|field|arg)|deprecated|cannot find field|cannot both be",
    re.I,
)
"""Words that refuse a parameter as such, not a value that is too large or a prompt that is too long."""
_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
"""What newer models call it."""


def no_quota(text: str) -> bool:
    """True if a body says that the account is out of money: a 429 that waiting does not mend."""
    return _NO_QUOTA.search(text) is not None


def for_good(status: int, text: str = "") -> bool:
    """True for an answer that the same request gets again, however often it is sent; `text` is the body, which only a 429 needs."""
    return 400 <= status < 500 and (status not in _FOR_NOW or (status == 429 and no_quota(text)))


def too_long(text: str) -> bool:
    """True if a refusal is for the length of the prompt."""
    return _TOO_LONG.search(text) is not None


def withheld(text: str) -> bool:
    """True if a refusal is for what this prompt says."""
    return _WITHHELD.search(text) is not None


def refused_parameter(text: str, named: object, sent: Collection[str]) -> str | None:
    """The parameter of those `sent` that a refusal says is not taken; None if it says something else.

    `named`: what the error itself calls its parameter. What a server takes only under another name is one it does not take.
    """
    if not _NOT_TAKEN.search(text) or _TOO_LONG.search(text):
        return None
    if isinstance(named, str) and named in sent:
        return named
    # "`temperature` and `top_p` cannot both be specified": the one that matters less is the one to go.
    order = sorted(sent, key=lambda name: (name in ("temperature", *_OTHER_NAME), name))
    return next((name for name in order if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)), None)


def without(request: Mapping[str, Any], refused: Collection[str]) -> dict[str, Any]:
    """The request as a server takes it: without what it `refused`, or with that under its other name."""
    fitted = {name: value for name, value in request.items() if name not in refused}
    return fitted | {other: request[name] for name, other in _OTHER_NAME.items() if name in refused and name in request}
