"""The exceptions a user can meet. Knows nothing of what raises them.

Two families, never mixed (DESIGN section 4): `UserError` is a mistake in what was asked for and ends the command with
one clear message; `InfrastructureError` is a failure of a server, a judge or a time-out, and makes one attempt
unscorable. What the policy does wrong is neither: it is an outcome and is scored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from memfactory.common.redaction import redacted


class MemFactoryError(Exception):
    """Base of every error this package raises on purpose. Its message holds no secret, whoever is quoted: it goes to logs and ledgers."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class UserError(MemFactoryError, ValueError):
    """Something in the request is wrong; the message names it and says what to do. Shown without a traceback."""


class ConfigError(UserError):
    """An option or a combination of options that cannot work."""


class DataError(UserError):
    """A data file that is not in the expected form; the message names the file, the record and the field."""


class NotApplicableError(UserError):
    """What was asked for has no meaning here, such as evidence of a data set that names none: left out with a note, no failure."""


class MissingFileError(UserError, FileNotFoundError):
    """A model, a data file or a checkpoint that is not where it was said to be."""

    # FileNotFoundError takes (errno, text) apart when it prints; ours is one sentence.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class OutOfMemory(UserError):
    """The device's memory did not do for what was asked; the message says what for, and which option to lower to what."""


class UnknownNameError(UserError, KeyError):
    """A name that is not in a registry or an option that a component does not have."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InfrastructureError(MemFactoryError, RuntimeError):
    """A failure outside the policy (engine, server, judge, time-out). The attempt is left out, never scored 0."""


class ServerTimeout(InfrastructureError):
    """A server that did not answer in time, after every try."""


class StoreError(InfrastructureError):
    """A memory store's backend that is down, full, damaged or held by another process. Nothing falls back to another store."""


class Refused(InfrastructureError):
    """A server's refusal of this very request, which it would refuse again: not tried again, and not told to be."""


class PromptTooLong(InfrastructureError):
    """A prompt that does not fit: the example is unusable under these limits, which is not the policy's doing."""


def in_one_line(error: BaseException, limit: int = 300) -> str:
    """What an error says, without line breaks and at most `limit` characters; one that says nothing says its type."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str], advice: str = "") -> UnknownNameError:
    """The error for a name that nobody knows: the bad value, the nearest known one, all known ones, the next step."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(names) if names else "none"
    tail = f" {advice}" if advice else ""
    return UnknownNameError(f"Unknown {kind} {name!r}.{guess} Known: {listing}.{tail}")
