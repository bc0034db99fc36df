"""Promise: `memfactory chat` remembers across restarts, shows what it made of every line, and goes on when something fails."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Server, says, serving
from rich.console import Console

from memfactory.agents.build import local_models
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.cli import main
from memfactory.common.errors import InfrastructureError
from memfactory.common.types import Messages
from memfactory.data.generators.bank_player import rule_player
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.engines.chat import Models
from memfactory.engines.load import load_model
from memfactory.engines.scripted import ScriptedChat
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores import open_store
from memfactory.serving.chat import HELP, Terminal, place_of

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "models" / "tiny-bank")
ORACLE = rule_player("oracle")

pytestmark = pytest.mark.usefixtures("forgotten_parts")

RULES = '''"""An engine that plays Memory-R1's stages by rules."""

from memfactory import ENGINE_REGISTRY, ScriptedChat
from memfactory.data.generators.bank_player import rule_player


@ENGINE_REGISTRY.register("rules")
class Rules(ScriptedChat):
    def __init__(self, model):
        super().__init__(rule_player("oracle"))
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLM_MODEL", "MILVUS_URI", "NEO4J_URI"):
        monkeypatch.delenv(name, raising=False)


class Session:
    """A terminal without a terminal: lines in, what was printed out."""

    def __init__(self, answer: Callable[[Messages, str], str] = ORACLE, *, user: str = "alice", **options: Any) -> None:
        agent = MemoryR1Agent(None, "cpu", style="lines", **options)
        agent.attach(Models({"policy": ScriptedChat(answer)}))
        self.agent, self.out = agent.use(user=user), io.StringIO()
        self.terminal = Terminal(self.agent, Console(file=self.out, width=40, highlight=False), "May 1")

    def say(self, *lines: str) -> str:
        """What is printed while these lines are read."""
        self.out.truncate(self.out.seek(0))
        left = [*lines]

        def read(prompt: str) -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        self.terminal.converse(read)
        return self.out.getvalue().rstrip("\n")


def test_every_line_shows_what_was_made_of_it() -> None:
    session = Session()
    assert session.say("city alice paris . pet bob cat .") == "+ 0  city alice paris\n+ 1  pet bob cat"
    assert session.say("city alice rome . pet bob unknown .") == "~ 0  city alice paris -> city alice rome\n- 1  pet bob cat"
    assert session.say("joke alice dog .", "", "  ") == "nothing new"
    assert session.say("city alice ?", "/ask city alice ?", "pet bob ?") == "rome\nrome\nunknown"
    assert session.say("/memories") == "0  [May 1] city alice rome"
    assert session.say("/history 0", "/history 7") == (
        "1  city alice paris\n2  city alice rome\nno memory ever had the id '7'; /memories lists them"
    )
    assert session.say("/forget 0", "/memories") == "- 0  city alice rome\nnothing yet"
    assert session.say("/help") == HELP and session.say("/quit", "city alice oslo .") == ""
    assert session.agent.memories() == ()


def test_why_shows_what_was_read_and_written() -> None:
    def distils(messages: Messages, stage: str) -> str:
        return "city alice paris . **Answer:** paris" if stage == "answer" else ORACLE(messages, stage)

    session = Session(distils)
    assert session.say("/why") == "nothing was told or asked yet"
    assert "[extraction] city alice paris . pet bob cat .\n[update] city alice new ADD .\npet bob new ADD .\nfacts 2, operation_ADD 2" in (
        session.say("city alice paris . pet bob cat .", "/why")
    )
    assert session.say("city alice ?", "/why") == (
        "paris\nmemories shown  (* named as useful)\n* 0  [May 1] city alice paris\n  1  [May 1] pet bob cat\n"
        "[answer] city alice paris . **Answer:** paris"
    )


def test_what_went_wrong_is_said_and_the_conversation_goes_on() -> None:
    broken = {"extraction": False, "update": ""}

    def shaky(messages: Messages, stage: str) -> str:
        if stage == "extraction" and broken["extraction"]:
            raise InfrastructureError("api:x at [somewhere]\nis down")
        return broken["update"] if stage == "update" and broken["update"] else ORACLE(messages, stage)

    session = Session(shaky)
    broken["extraction"] = True
    assert session.say("city alice paris .") == "Failed: api:x at [somewhere] is down"
    broken["extraction"] = False
    broken["update"] = "city alice 5 UPDATE ."
    assert session.say("city alice paris .") == "! not done: UPDATE city alice paris (unknown id)"
    broken["update"] = "I would rather not."
    assert session.say("city alice paris .").split("\n") == [
        "! not taken from update: I would rather not. (no list)",
        "! not taken from update: city alice paris (no operation for it could be read)",
        "! what the model wrote for update could not be read: /why",
    ]
    broken["update"] = ""
    assert session.say("city alice paris .", "/forget 9") == (
        "+ 0  city alice paris\nError: User 'alice' has no live memory with the id '9'; it has 1. `list` shows them with their ids."
    )
    assert session.say("/wy") == (
        "Error: Unknown command '/wy'. Did you mean '/why'? Known: /ask, /forget, /help, /history, /memories, /quit, /tell, /why."
    )
    assert session.say("/ask") == "Error: The question is blank."


def test_ctrl_c_stops_a_turn_and_not_the_conversation() -> None:
    session = Session()
    lines = iter([KeyboardInterrupt(), "city alice paris .", EOFError()])

    def read(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return str(line)

    session.terminal.converse(read)
    assert "Stopped." in session.out.getvalue() and "+ 0  city alice paris" in session.out.getvalue()


def test_a_models_text_cannot_command_the_terminal_and_brackets_are_no_markup() -> None:
    session = Session(lambda messages, stage: '["[bold]x\\u001b[2J\\u0007 [/]"]' if stage == "extraction" else "", user="al\x1bice")
    session.agent.store.add("al\x1bice", [MemoryItem("0", "a\x1b[2Jb\nc [red]"), MemoryItem("1", "old", valid_until="May 0")])
    session.terminal.greet("m\x1bodel")
    greeted = session.out.getvalue()
    shown = session.say("/memories all", "anything", "/why")
    assert "\x1b" not in greeted + shown and "\x07" not in shown
    assert "0  a [2Jb c [red]\n1  old (until May 0)\n" in shown and '[extraction] ["[bold]x' in shown


def test_an_agent_that_keeps_what_it_is_told_shows_that() -> None:
    chat = ScriptedChat(lambda messages, stage: "\\boxed{paris}")
    agent = MemoryAgent(make_tiny_tokenizer(), "cpu", chunk_size=16).attach(Models({"policy": chat})).use()
    out = io.StringIO()
    terminal = Terminal(agent, Console(file=out, highlight=False))
    for line in ("city alice paris .", "/why", "city alice ?"):
        assert terminal.hear(line)
    assert out.getvalue() == "+ 0  city alice paris .\nno model was asked\nparis\n"


def test_the_greeting_says_where_the_memory_is() -> None:
    session = Session()
    session.terminal.greet("models/x")
    assert session.out.getvalue().startswith(
        "MemoryR1Agent models/x\nalice, 0 memories in this process\nIt forgets when you leave. --store milvus keeps a file.\nTell"
    )


@pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="not installed")
def test_the_place_of_a_store_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of(open_store("in_memory")) == ""
    with open_store("milvus", {"uri": str(tmp_path / "m.db")}) as store:
        assert place_of(store) == f"milvus at {tmp_path / 'm.db'}"
        monkeypatch.setattr(
            type(store), "options", property(lambda self: type("O", (), {"uri": "http://me:secret@host:1"})()), raising=False
        )
        del store.__dict__["options"]
        assert place_of(store) == "milvus at http://host:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat"], "memfactory chat takes a checkpoint"),
        (["chat", "models/absent"], "models/absent"),
        (["chat", TINY, "--stor", "milvus"], "Unknown flag of memfactory chat '--stor'. Did you mean '--store'"),
        (["chat", TINY, "--store_options", "{"], "--store_options '{' is not JSON"),
        (["chat", TINY, "--store", "milfus"], "Unknown store 'milfus'"),
        (["chat", TINY, "--engine", "vlm"], "Unknown engine 'vlm'"),
        (["chat", TINY, "--agent", "memagnt"], "Unknown agent 'memagnt'"),
        (["chat", TINY, "--user", ""], "A user is named by a text"),
        (["chat", TINY, TINY], "Unexpected word"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("Error:") == 1 and message in shown, shown


# In a real terminal


in_a_terminal = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pexpect", "milvus_lite")), reason="not installed"
)


class Chat:
    """`memfactory chat` in a terminal of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        import pexpect

        (folder / "rules.py").write_text(RULES, encoding="utf-8")
        here = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb", "COLUMNS": "200"}
        store = ["--store", "milvus", "--store_options", '{"uri": "alice.db"}', "--user", "alice", "--date", "May 1"]
        self.process = pexpect.spawn(
            sys.executable, ["-m", "memfactory.cli", "chat", TINY, *store, *arguments], cwd=str(folder), env=os.environ | here | variables,
            encoding="utf-8", timeout=120, dimensions=(50, 200), echo=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would leave Ctrl-C ignored
        )  # fmt: skip
        self.greeting = self._until_prompt()

    def _until_prompt(self) -> str:
        self.process.expect("alice> ")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.process.before).replace("\r", "").strip()

    def say(self, line: str) -> str:
        """What is shown for a line."""
        self.process.sendline(line)
        return self._until_prompt()

    def interrupt(self) -> str:
        """Press Ctrl-C. Python's readline can miss one that comes while the prompt is being drawn; people press again."""
        import pexpect

        for _ in range(5):
            self.process.sendintr()
            if self.process.expect(["Stopped", pexpect.TIMEOUT], timeout=5) == 0:
                return "Stopped" + self._until_prompt()
        raise AssertionError("Ctrl-C was not heard")

    def leave(self) -> int:
        """Press Ctrl-D; the exit code."""
        self.process.sendeof()
        self.process.read()
        self.process.close()
        return int(self.process.exitstatus)


@pytest.fixture
def rules(tmp_path: Path) -> list[str]:
    return ["--engine", "rules", "--import", str(tmp_path / "rules.py")]


@pytest.mark.slow
@in_a_terminal
def test_what_was_told_in_a_terminal_is_known_in_the_next_one(tmp_path: Path, rules: list[str]) -> None:
    first = Chat(tmp_path, *rules)
    assert "MemoryR1Agent" in first.greeting and "alice, 0 memories in milvus at alice.db" in first.greeting
    assert first.say("city alice paris .") == "+ 0  city alice paris"
    assert first.say("pet bob cat .") == "+ 1  pet bob cat"
    assert first.say("job carol chef .") == "+ 2  job carol chef"
    assert first.say("city alice rome .") == "~ 0  city alice paris -> city alice rome"
    assert first.leave() == 0
    second = Chat(tmp_path, *rules)
    assert "alice, 3 memories" in second.greeting
    assert second.say("city alice ?") == "rome"
    assert [second.say("/ask pet bob ?"), second.say("job carol ?"), second.say("city bob ?")] == ["cat", "chef", "unknown"]
    assert second.say("/history 0") == "1  city alice paris\n2  city alice rome"
    assert second.say("/forget 1") == "- 1  pet bob cat"
    assert second.say("/memories") == "0  [May 1] city alice rome\n2  [May 1] job carol chef"
    assert "Stopped." in second.interrupt()
    second.process.kill(9)  # nothing is said: what was acknowledged is kept
    second.process.wait()
    third = Chat(tmp_path, *rules)
    assert "alice, 2 memories" in third.greeting and third.say("pet bob ?") == "unknown"
    command = [sys.executable, "-m", "memfactory.cli", "chat", TINY, "--store", "milvus", "--store_options", '{"uri": "alice.db"}']
    other = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert other.returncode == 1 and "in use by another process" in other.stderr and "Traceback" not in other.stderr
    assert third.leave() == 0


def converses(chat: Chat) -> None:
    """A session of whatever quality: every line is answered with something, and nothing ends it."""
    told = [chat.say(line) for line in ("city alice paris .", "pet bob cat .", "job carol chef .", "city alice rome .")]
    assert all(told) and any(line.startswith("+ ") for line in told)
    assert chat.say("city alice ?") and "[answer]" in chat.say("/why")
    assert "city alice" in chat.say("/memories")
    assert chat.leave() == 0


@pytest.mark.slow
@in_a_terminal
def test_the_tiny_model_converses(tmp_path: Path) -> None:
    converses(Chat(tmp_path, "--device", "cpu"))


@pytest.fixture
def served() -> Iterator[Server]:
    model, tokenizer = load_model(TINY)
    with serving(local_models(model, tokenizer).chats["policy"], name=TINY) as server:
        yield server


@pytest.mark.slow
@in_a_terminal
def test_a_server_converses_and_its_failure_is_one_line(tmp_path: Path, served: Server) -> None:
    chat = Chat(tmp_path, "--engine", "api", OPENAI_BASE_URL=served.url, OPENAI_API_KEY=served.key)
    served.script.extend([says({"error": {"message": "out of memory"}}, 500)] * 6)
    failed = chat.say("city alice paris .")
    assert failed.splitlines()[-1].startswith("Failed: api:") and "Traceback" not in failed and len(failed.splitlines()) <= 2
    assert chat.say("/memories") == "nothing yet"
    converses(chat)
