"""report.html in a real headless browser: nothing complains, nothing is asked of the network, a sample's address opens its page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_helpers import evaluation
from rich.console import Console

from memfactory.evaluation.orchestrator import report_folder

pytestmark = pytest.mark.slow

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None)
HOSTILE = "</script><script>console.log('ran')</script><img src=http://127.0.0.1:9/x onerror=console.log('ran')>"


def opened(address: str, folder: Path, *flags: str) -> tuple[str, str]:
    """(the document after its script ran, what the browser said)."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *flags, address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here: apt-get install chromium")
    folder = evaluation(tmp_path_factory.mktemp("report"), questions=4, steps=[[HOSTILE, HOSTILE]], answers=[HOSTILE] * 4)
    report_folder(folder, "", Console(quiet=True))
    return folder / "report.html"


def test_the_front_page_opens_without_a_complaint_or_a_request(page: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    document, said = opened(page.as_uri(), tmp_path, "--dump-dom", f"--log-net-log={log}")
    assert 'data-page="front"' in document and document.count("<table") >= 6 and "<title>" in document
    assert "CONSOLE" not in said, [line for line in said.splitlines() if "CONSOLE" in line]
    asked = set(re.findall(r'"url":"(\w+://[^"]*)"', log.read_text(errors="replace")))
    assert not [url for url in asked if "127.0.0.1:9" in url]
    assert 'id="find"' in document and "hidden" not in re.findall(r'<button[^>]*id="theme"[^>]*>', document)[0]


def test_a_sample_s_address_opens_its_page(page: Path, tmp_path: Path) -> None:
    name = re.findall(r'id="(sample/[^"]*)"', page.read_text(encoding="utf-8"))[3]
    document, said = opened(f"{page.as_uri()}#{name}", tmp_path, "--dump-dom")
    assert f'data-page="{name}"' in document and "CONSOLE" not in said


@pytest.mark.parametrize("width", [1280, 500])
def test_no_part_of_a_page_is_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    """The page says in its title how wide its content became."""
    name = re.findall(r'id="(sample/[^"]*)"', page.read_text(encoding="utf-8"))[0]
    tell = "document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth])"
    measured = {}
    for at, anchor in enumerate(("front", name)):
        probe = tmp_path / f"probe{at}.html"
        text = page.read_text(encoding="utf-8")
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        probe.write_text(text.replace("</body>", f"<script>addEventListener('load', () => {{ {tell} }})</script></body>"), encoding="utf-8")
        document, _ = opened(f"{probe.as_uri()}#{anchor}", tmp_path, "--dump-dom", f"--window-size={width},900")
        measured[anchor] = json.loads(re.findall("<title>(.*?)</title>", document)[0])
    assert all(content <= window for content, window in measured.values()), measured
