"""What must not be written: keys, passwords, and them inside addresses. Every writer of the package goes through here.

A secret is known by where it stood: a variable of the environment or an option whose name says so, or an address that carries a
password. `redacted` is for what the package says itself (errors, logs, configurations), `masked` for files that also hold what
people and models said: there only what cannot be an ordinary word is taken out. Knows no writer.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"

_SECRET_NAME = re.compile(r"(?:^|[_-])(?:(?:api|access|secret|private|auth)[_-]?key|password|passwd|pwd|secret|token|authorization)$", re.I)
_VARIABLE = re.compile(r"(?:KEY|TOKEN|PASSWORD|SECRET)$")
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s\"'<>|]+)@")
_PLACEHOLDERS = {"empty", "none", "dummy", "token", "password", "neo4j", "not-needed", "no-key-required", "sk-no-key-required"}
"""Values that servers without keys are given."""

_told: set[str] = set()
"""Secrets of options, of this process."""


def learn(value: Any, name: str = "") -> None:
    """Take note of the secrets in options: of texts under names such as `api_key`, and of addresses that carry a password."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            learn(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            learn(inner, name)
    elif isinstance(value, str):
        if _SECRET_NAME.search(name):
            _told.add(value)
        _told.update(_passwords(value))


def redacted(text: str) -> str:
    """A text of the package's own without secrets, and without logins in addresses."""
    return _without(_LOGIN.sub(rf"\1{MASK}@", text) if "://" in text else text, _secrets())


def masked(text: str) -> str:
    """A text that may be anybody's without those secrets that cannot be ordinary words."""
    return _without(text, [secret for secret in _secrets() if _strong(secret)])


def without_login(address: str) -> str:
    """An address without user and password."""
    return _LOGIN.sub(r"\1", address)


def without_secrets(value: Any) -> Any:
    """Options as they are written down: a secret is None, which means the environment's to whoever reads it; texts are `redacted`."""
    if isinstance(value, Mapping):
        hidden = {key for key, inner in value.items() if isinstance(inner, str) and _SECRET_NAME.search(str(key))}
        return {key: None if key in hidden else without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_secrets, value)) if type(value) in (list, tuple) else value
    return redacted(value) if isinstance(value, str) else value


def _secrets() -> list[str]:
    """All known ones, the longest first: one may contain another."""
    known = set(_told)
    for name, value in os.environ.items():
        if _VARIABLE.search(name):
            known.add(value.strip())
        elif "://" in value:
            known |= _passwords(value)
    real = (secret for secret in known if len(secret) >= (6 if _mixed(secret) else 8) and secret.lower() not in _PLACEHOLDERS)
    return sorted(real, key=len, reverse=True)


def _passwords(text: str) -> set[str]:
    """Those in the addresses of a text, as they stand, decoded, and as clients send them (base64 of user and password)."""
    found = set[str]()
    for _, login in _LOGIN.findall(text):
        user, _, password = login.partition(":")
        found |= {password, unquote(password)} if password else set()
        found.add(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    return found


def _strong(secret: str) -> bool:
    """Whether it can stand in no text by chance: long, or letters and digits together."""
    return not secret.startswith("/") and len(secret) >= (8 if _mixed(secret) else 12)


def _mixed(secret: str) -> bool:
    return any(map(str.isdigit, secret)) and any(map(str.isalpha, secret))


def _without(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            if form in text:
                text = text.replace(form, MASK)
    return text
