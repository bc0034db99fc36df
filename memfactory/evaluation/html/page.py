"""The whole page in one file: its parts, the style sheet and the script, and a policy that lets nothing be loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from memfactory.common.files import read_json, write_text
from memfactory.evaluation.html.data import page_of
from memfactory.evaluation.html.front import front
from memfactory.evaluation.html.markup import Html, clean, tag
from memfactory.evaluation.html.sample import Room, sample_page

FILE, REPORT = "report.html", "report.json"


def write_html(folder: Path) -> Path:
    """Write `report.html` of an evaluation's folder from its `report.json` and ledgers; returns its path."""
    write_text(folder / FILE, render(page_of(folder, read_json(folder / REPORT))))
    return folder / FILE


def render(page: Mapping[str, Any]) -> str:
    """The page as a document."""
    room = Room.of(len(page["samples"]))
    return document(f"{page['title']}: evaluation", front(page), [sample_page(page, sample, room) for sample in page["samples"]])


def document(title: str, *parts: Any) -> str:
    """A whole document of parts, `<main id="front">` first, that loads nothing from elsewhere."""
    script = _asset("page.js")
    # The one script is known by its hash: markup that slipped in could run nothing and load nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head", tag("meta", {"charset": "utf-8"}), tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", clean(title)), tag("style", Html(_asset("page.css"))),
    )  # fmt: skip
    theme = tag("button", {"id": "theme", "type": "button", "hidden": True}, "theme")
    body = tag("body", theme, list(parts), tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
