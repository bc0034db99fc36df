"""Promise: the documentation's links lead somewhere, its Python parses, its API page names every public name, and the site builds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import memfactory

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_python_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(code)


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: memfactory\.[\w.]+\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*named, "__version__"]) == sorted(memfactory.__all__)


def test_the_site_shows_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    shown = [page for part in nav for pages in part.values() for page in pages]
    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "G attempts at each of B views" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
