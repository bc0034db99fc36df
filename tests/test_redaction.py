"""No key, no password and no terminal command leaves the package: canaries in every setting, then everything written is searched."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from openai_server import Handler, serving
from rich.table import Table
from rich.text import Text

from memfactory.cli import main
from memfactory.common.config import TrainConfig
from memfactory.common.errors import InfrastructureError, UserError, unknown_name
from memfactory.common.files import read_json, write_json, write_text
from memfactory.common.redaction import _told, learn, masked, redacted, without_login, without_secrets
from memfactory.common.terminal import Plainly, Terminal, harmless
from memfactory.common.tracking import JsonlTracker
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.ledger import Attempt, Ledger, read_attempts
from memfactory.memory.embedders import OpenAIEmbedder
from memfactory.trainers.checkpoint import save_checkpoint

ROOT = Path(__file__).parent.parent
VARIABLES = [line.split("=")[0] for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines() if re.match(r"[A-Z]", line)]
SECRET_ONES = [name for name in VARIABLES if re.search("KEY|PASSWORD", name)]
ADDRESSES = [name for name in VARIABLES if re.search("UR[IL]$", name)]
HOSTILE = "a\x1b]52;c;aGk=\x07b\x1b[2Jc\x9b31md\x1b]0;t\x1b\\\\e\x08\x7f\r\x85\u202e\ud800[/x]"
"""Sets the clipboard, clears the screen, and more; and breaks rich's markup."""
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every variable of .env.example holds one; so do addresses of proxies."""
    before = set(_told)
    found = []
    for name in [*SECRET_ONES, "HF_TOKEN"]:
        monkeypatch.setenv(name, f"canary-of-{name.lower()}-17")
        found.append(f"canary-of-{name.lower()}-17")
    for name in [*ADDRESSES, "HTTPS_PROXY_OF_NOBODY"]:
        monkeypatch.setenv(name, f"http://user:canary-in-{name.lower()}-17@127.0.0.1:9/v1")
        found.append(f"canary-in-{name.lower()}-17")
    yield found
    _told.clear()
    _told.update(before)


def everything(folder: Path) -> str:
    """All names and contents of files under a folder."""
    return "\n".join(f"{path}\n{path.read_bytes().decode(errors='replace')}" for path in folder.rglob("*") if path.is_file())


def test_every_writer_leaves_canaries_out(tmp_path: Path, canaries: list[str], caplog: pytest.LogCaptureFixture) -> None:
    said = " ".join(canaries)
    given = {"api_key": "canary-of-an-option-17", "nested": [{"password": "canary-of-a-store-17"}], "uri": "http://u:canary17@h/x?y=1"}
    config = TrainConfig(agent_options=given, engine_options=given, rollout_servers=["http://u:canary17@h:1"])  # type: ignore[arg-type]
    canaries += ["canary-of-an-option-17", "canary-of-a-store-17", "canary17"]
    write_text(tmp_path / "text", said + str(given))
    write_json(tmp_path / "json", {"said": said, 'quo"ted': said})
    save_checkpoint(tmp_path, 1, Nothing(), None, {"config": config.to_dict(), "agent_options": given}, {"config": config.to_dict()})
    with Ledger(tmp_path / "ledger", {"agent": given}) as ledger:
        ledger.append([Attempt("e", "greedy", 0, "failed", None, error=str(InfrastructureError(said)), answers=[said])])
    tracker = JsonlTracker(tmp_path / "run")
    tracker.log(1, {f"reward/{said}": 1.0}, {}, {})
    tracker.close()
    assert OpenAIEmbedder(model="m", base_url="http://u:canary17@h/v1").name == "openai:m@http://h/v1"
    written = everything(tmp_path)
    assert len(written) > 2000 and [canary for canary in canaries if canary in written] == []


class Nothing:
    def save_pretrained(self, save_directory: Path, /) -> None:
        """Nothing to write."""


def echo(handler: Handler, body: dict[str, Any]) -> None:
    """A server that quotes the request's key in its refusal."""
    handler.send({"error": {"message": f"Incorrect key {handler.headers['Authorization']}"}}, 500)


def test_a_key_that_a_server_echoes_reaches_no_ledger(tmp_path: Path, canaries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    canaries.append("canary-of-the-command-line-17")
    with serving() as server:
        server.always = echo
        address = server.url.replace("//", "//user:canary-in-address-17@")
        canaries.append("canary-in-address-17")
        options = {"api_key": "canary-of-the-command-line-17", "base_url": address, "max_retries": 0}
        job = Job(
            "m", "api:x", "eval", str(ROOT / "datas/tiny/eval.json"), str(tmp_path / "job"), agent="memagent", engine="api", k=0, limit=1,
            engine_options=options, tokenizer=str(ROOT / "models/tiny"), device="cpu",
        )  # fmt: skip
        run_job(job)
        run_job(job)  # the fingerprint that was written is the one that is compared
    attempt = read_attempts(tmp_path / "job")[-1]
    assert attempt.status == "failed" and "***" in (attempt.error or "")
    written = everything(tmp_path)
    assert "Incorrect key" in written and [canary for canary in canaries if canary in written] == []
    assert read_json(tmp_path / "job" / "job.json")["engine_options"]["api_key"] is None


@pytest.mark.slow
def test_commands_show_neither_canaries_nor_what_a_terminal_obeys(
    tmp_path: Path, canaries: list[str], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = f"{HOSTILE} {' '.join(canaries)}"
    (tmp_path / "job.json").write_text("{" + HOSTILE.replace("\ud800", ""), encoding="utf-8")
    write_json(tmp_path / "bad.json", [{"context": "c", HOSTILE: bad}])
    write_text(tmp_path / "bad.yaml", f'"{HOSTILE[:3]}": 1')
    for words in (
        [bad], ["train", f"--{bad}", "x"], ["train", bad], ["train", "bad.yaml"], ["train", "--agent_type", bad], ["plan", "--model", bad],
        ["eval", "--models", f"x={bad}"], ["eval", "--models", "x=api:m", "--tasks", f"{bad}=bad.json"], ["report", bad], ["report", "."],
        ["compare", bad, "."], ["judge", bad], ["judge", "."], ["chat", bad], ["chat", "api:m", "--store", bad], ["data", bad],
        ["data", "fetch", bad], ["data", "build", bad], ["list", bad], ["list", "--import", bad],
        ["chat", "api:m", "--store", "neo4j", "--store_options", '{"uri": "http://u:canary17@h"}'],
    ):  # fmt: skip
        assert main(words) != 0, words
        out, err = capfd.readouterr()
        assert err and not OBEYED.search(out + err), words
        assert not [canary for canary in [*canaries, "canary17"] if canary in out + err], words


@pytest.mark.parametrize("shown", [HOSTILE, Text(HOSTILE), f"[bold]{HOSTILE[:-4]}[/]"], ids=["text", "rich", "markup"])
def test_a_terminal_gets_its_own_colours_only(shown: Any) -> None:
    out = StringIO()
    console = Terminal(file=out, force_terminal=True, color_system="truecolor", width=80)
    console.print(shown, markup="bold" in str(shown))
    table = Table("head", title=Text(HOSTILE))
    table.add_row(Text(HOSTILE))
    console.print(table)
    with console.status(Text(HOSTILE)):
        console.print(Text(HOSTILE))
    rest = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AGK]|\r", "", out.getvalue())
    assert not OBEYED.search(rest) and "\x1b[2J" not in out.getvalue() and "31m" in rest, "what was meant to be obeyed is text"


def test_log_lines_and_tracebacks_are_plain(canaries: list[str]) -> None:
    try:
        raise ValueError(HOSTILE + canaries[0])
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.INFO, "f", 1, "%s\n\tat http://u:pw@h", (HOSTILE,), (ValueError, error, error.__traceback__)
        )
    line = Plainly("%(message)s").format(record)
    assert not OBEYED.search(line) and canaries[0] not in line and "\n\tat http://***@h" in line


def test_every_console_and_log_handler_of_the_package_is_the_safe_one() -> None:
    for path in [*(ROOT / "memfactory").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if path.name != "terminal.py":
            made = [
                found
                for found in re.findall(r"\bConsole\(.*|basicConfig\(|StreamHandler\(", text)
                if not found.startswith("Console(file=told")
            ]
            assert made == [], f"{path}: use common/terminal.py"


def test_what_is_a_secret_and_what_is_a_word(monkeypatch: pytest.MonkeyPatch, canaries: list[str]) -> None:
    monkeypatch.setenv("NEO4J_PASSWORD", "correct horse")
    monkeypatch.setenv("MILVUS_PASSWORD", "password")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert redacted("correct horse, EMPTY password at bolt://u:p@ss@host:1/x") == "***, EMPTY password at bolt://***@host:1/x"
    assert masked("a password, an EMPTY http://bob@example.org") == "a password, an EMPTY http://bob@example.org"
    monkeypatch.setenv("OPENAI_API_KEY", 'sk-"quoted"-é-1234')
    assert masked('{"a": "sk-\\"quoted\\"-\\u00e9-1234"}') == '{"a": "***"}'
    options = {
        "max_tokens": 5,
        "tokenizer": "x",
        "api_key": None,
        "headers": {"Authorization": "Bearer t"},
        "uri": "http://u:p@h",
        "n": (1,),
    }
    learn(options)
    assert without_secrets(options) == options | {"headers": {"Authorization": None}, "uri": "http://***@h"}
    assert without_login("http://u:p@ss@h:1/p") == "http://h:1/p" and without_login("a@b.c") == "a@b.c"
    assert str(unknown_name("key", canaries[1], ["x"])) == "Unknown key '***'. Known: x." and UserError(3).args == (3,)
    assert harmless("naïve 恵子 \u200c a\tb\n") == "naïve 恵子 \u200c a\tb\n"
