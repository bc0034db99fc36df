"""`memfactory chat`: a conversation in a terminal that the agent remembers, and shows what it made of every line.

Knows the verbs of an agent in use (`agents/use.py`) and how to show what they return; no model, and of stores only their place.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from memfactory.agents.base import BaseAgent
from memfactory.agents.load import load_agent
from memfactory.agents.told import LEFT_OUT, Answer, Change
from memfactory.common.errors import InfrastructureError, UserError, unknown_name
from memfactory.common.flags import mapping_of, option
from memfactory.common.questions import is_question
from memfactory.common.redaction import without_login
from memfactory.common.registry import import_plugins
from memfactory.common.settings import load_settings
from memfactory.common.types import Dropped
from memfactory.engines.chat import MENDED
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores import MemoryStore
from memfactory.memory.stores.hybrid import HybridStore
from memfactory.memory.stores.in_memory import InMemoryStore
from memfactory.memory.stores.milvus import DEFAULT_FILE, MilvusStore
from memfactory.memory.stores.neo4j import DEFAULT_PATH, Neo4jStore

USAGE = "memfactory chat CHECKPOINT [--store NAME] [--user NAME] ...     CHECKPOINT: a folder, a hub name, or api:MODEL"

HELP = """What you tell is remembered; a question, in whatever language, is answered. To say which of the two a line is:
/tell TEXT     remember it, also if it looks like a question
/ask TEXT      answer it, also without a question mark
/memories      what is remembered, with ids (/memories all: closed ones too)
/forget ID     delete a memory
/history ID    every text that a memory ever had
/why           what the last line made the agent read and write
/quit          end, like Ctrl-D"""

MARKS = {"ADD": ("+", "green"), "UPDATE": ("~", "yellow"), "DEL": ("-", "red"), "NONE": ("=", "dim")}
UNREADABLE, CUT = "unreadable_", "truncated_"


@dataclass
class ChatConfig:
    """Options of `memfactory chat`."""

    store: str = option("in_memory", "Where memories are kept: in_memory (forgets at the end), milvus, neo4j, hybrid, or one of your own.")
    store_options: str = option("{}", 'Options of the store, as JSON, such as {"uri": "alice.db"}.')
    user: str = option("default", "Whose memory: users never see each other's.")
    date: str = option("today", 'When it is said: a text; today: the date of this day; "" for none.')
    engine: str = option("hf", "hf or vllm (in this process), api (a server; api:MODEL always is), or a chat model of your own.")
    engine_options: str = option("{}", 'Options of the engine, as JSON, such as {"base_url": "http://localhost:8000/v1"} of api.')
    device: str = option("auto", "Of the engines hf and vllm: auto, cpu, cuda, cuda:N (hf).")
    agent: str = option("", "Which agent: a key of AGENT_REGISTRY. Default: the checkpoint's own, else memory_r1_agent.")
    agent_options: str = option("{}", "Options of the agent and its slots, as JSON, over the checkpoint's own.")
    embedder: str = option("", 'What embeds memories: a key of EMBEDDER_REGISTRY, or JSON such as {"type": "openai", "model": "bge-m3"}.')
    roles: str = option("{}", "Who answers each stage, {stage: policy | reference | api:NAME}, as JSON.")
    reference: str | None = option(None, "The model of the role reference.")
    tokenizer: str | None = option(None, "Tokenizer that cuts texts into chunks for a model behind an API.")
    api_options: str = option("{}", 'More of every request to a server, as JSON, such as {"reasoning_effort": "low"}.')
    plugins: list[str] = option([], "Python files or modules that register your own parts.", "--import")


def chat(words: Sequence[str], config: ChatConfig, console: Console) -> int:
    """Open what the options name and converse until the end of input."""
    if not words:
        raise UserError("memfactory chat takes a checkpoint: a folder such as models/tiny-bank, a hub name, or api:MODEL.")
    import_plugins(config.plugins)
    logging.getLogger("openai").setLevel(logging.WARNING)  # each try again would be a line between the user's
    opened = {"store": config.store, "user": config.user, "store_options": mapping_of("store_options", config.store_options)}
    models = {
        "engine": config.engine, "options": mapping_of("engine_options", config.engine_options),
        "roles": mapping_of("roles", config.roles), "reference": config.reference,
    }  # fmt: skip
    options = mapping_of("agent_options", config.agent_options)
    if config.embedder:
        options["embedder"] = mapping_of("embedder", config.embedder) if config.embedder.startswith("{") else config.embedder
    date = datetime.date.today().isoformat() if config.date == "today" else config.date
    where: dict[str, Any] = {"device": config.device, "tokenizer": config.tokenizer, "agent": config.agent}
    with load_agent(BaseAgent, words[0], opened, models, options, **where) as agent:
        terminal = Terminal(agent, console, date)
        terminal.greet(words[0])
        terminal.converse()
    return 0


class Terminal:
    """One user's conversation."""

    def __init__(self, agent: BaseAgent, console: Console, date: str = "") -> None:
        self.agent, self.console, self.date = agent, console, date
        self.last: Change | Answer | None = None

    def greet(self, model: str) -> None:
        """Say who is here, and where the memory is."""
        agent = self.agent
        place = place_of(agent.store)
        self._say((f"{type(agent).__name__} ", "bold"), (_plain(model), "dim"))
        count = len(agent.memories())
        self._say((_plain(agent.user), "bold"), f", {count} {'memory' if count == 1 else 'memories'} in {place or 'this process'}")
        if not place:
            self._say(("It forgets when you leave. --store milvus keeps a file.", "yellow"))
        self._say(("Tell something, or ask. /help lists the commands, Ctrl-D ends.", "dim"))

    def converse(self, read: Callable[[str], str] = input) -> None:
        """Lines until the end of input; what fails is said in one line, and the next one is read."""
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # the arrow keys, where there are such
        prompt = f"{_one_line(self.agent.user)}> " if sys.stdin.isatty() else ""
        going = True
        while going:
            try:
                going = self.hear(read(prompt))
            except EOFError:
                self._say()
                going = False
            except KeyboardInterrupt:
                self._say(("\nStopped. What was not shown as remembered may be: /memories. Ctrl-D ends.", "yellow"))
            except (UserError, InfrastructureError) as error:
                kind = "Error" if isinstance(error, UserError) else "Failed"
                self._say((f"{kind}: ", "bold red"), " ".join(_plain(str(error)).split()))

    def hear(self, line: str) -> bool:
        """One line: a command, a question or something told. False if it ends the conversation."""
        word, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], Any]] = {
            "/ask": self.ask, "/tell": self.tell,
            "/memories": self.memories, "/forget": self.forget, "/history": self.history, "/why": self.why,
            "/help": lambda _: self._say(HELP),
        }  # fmt: skip
        if word in ("/quit", "/exit"):
            return False
        if word.startswith("/"):
            if word not in commands:
                raise unknown_name("command", word, {*commands, "/quit"})
            commands[word](rest.strip())
        elif is_question(line):
            self.ask(line.strip())
        elif word:
            self.tell(line.strip())
        return True

    def tell(self, text: str) -> None:
        """Something to remember, and what became of it."""
        with self._busy("remembering"):
            self.last = change = self.agent.add(text, date=self.date)
        for edit in change.edits:
            mark, colour = MARKS[edit.op.kind]
            told = {"ADD": edit.op.text, "UPDATE": f"{edit.old} -> {edit.op.text}", "DEL": edit.old, "NONE": f"{edit.old} (again)"}[
                edit.op.kind
            ]
            self._say((f"{mark} ", f"bold {colour}"), (f"{edit.op.id}  ", "dim"), (_one_line(told), colour))
        for refused in change.rejected:
            wanted = " ".join(filter(None, (refused.op.kind, refused.op.id, refused.op.text)))
            self._say(("! ", "bold magenta"), (f"not done: {_one_line(wanted)} ({refused.reason})", "magenta"))
        for lost in change.dropped:
            self._say(("! ", "bold magenta"), (f"not taken from {lost.stage}: {_lost(lost)}", "magenta"))
        self._complain(change)
        if not change.edits and not change.rejected and not change.dropped and not _unread(change):
            self._say(("nothing new", "dim"))

    def ask(self, question: str) -> None:
        """A question, and its answer."""
        with self._busy("recalling"):
            self.last = answer = self.agent.ask(question)
        self._say((_plain(answer.text) or "(no answer; /why shows what was written)", "bold cyan"))
        self._complain(answer)

    def memories(self, which: str) -> None:
        """The user's memories."""
        items = self.agent.memories(closed=which == "all")
        for item in items:
            self._show(item)
        if not items:
            self._say(("nothing yet", "dim"))

    def forget(self, id: str) -> None:
        """Delete one."""
        gone = self.agent.forget(id, date=self.date)
        self._say(("- ", "bold red"), (f"{gone.id}  ", "dim"), (_one_line(gone.text), "red"))

    def history(self, id: str) -> None:
        """What one ever said."""
        texts = self.agent.history(id)
        for number, text in enumerate(texts, 1):
            self._say((f"{number}  ", "dim"), _one_line(text))
        if not texts:
            self._say((f"no memory ever had the id {_plain(id)!r}; /memories lists them", "dim"))

    def why(self, _: str) -> None:
        """What was read and written for the last line."""
        if self.last is None:
            return self._say(("nothing was told or asked yet", "dim"))
        if isinstance(self.last, Answer):
            self._say(("memories shown" if self.last.shown else "no memories shown", "bold"), ("  (* named as useful)", "dim"))
            for item in self.last.shown:
                self._show(item, "* " if item in self.last.useful else "  ")
        trajectory = self.last.trajectory
        for turn in trajectory.turns:
            cut = "" if turn.finish == "stop" else ", cut off"
            self._say((f"[{turn.stage}{cut}] ", "bold"), _plain(turn.text))
        counts = ", ".join(f"{name} {count}" for name, count in sorted(trajectory.report.items()) if count)
        return self._say((counts if trajectory.turns else "no model was asked", "dim"))

    def _show(self, item: MemoryItem, mark: str = "") -> None:
        date = item.updated or item.created
        until = f" (until {item.valid_until or 'an unknown time'})" if item.valid_until is not None else ""
        self._say(mark, (f"{item.id}  ", "bold"), (f"[{date}] " if date else "", "dim"), _one_line(item.text), (until, "dim"))

    def _complain(self, done: Change | Answer) -> None:
        if broken := done.trajectory.report[MENDED]:
            self._say(("! ", "bold magenta"), (f"{broken} half characters (lone surrogates) became \ufffd", "magenta"))
        if left := done.trajectory.report[LEFT_OUT]:
            self._say(("! ", "bold magenta"), (f"{left} found memories did not fit the model and were left out", "magenta"))
        for name in _unread(done):
            for prefix, problem in ((UNREADABLE, "could not be read"), (CUT, "was cut off at its limit of tokens")):
                if name.startswith(prefix):
                    self._say(("! ", "bold magenta"), (f"what the model wrote for {name.removeprefix(prefix)} {problem}: /why", "magenta"))

    def _busy(self, what: str) -> contextlib.AbstractContextManager[Any]:
        return self.console.status(what) if self.console.is_terminal else contextlib.nullcontext()

    def _say(self, *parts: str | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=True)


def _unread(done: Change | Answer) -> list[str]:
    """Counts of what a model wrote and could not be read."""
    return sorted(name for name in done.trajectory.report if name.startswith((UNREADABLE, CUT)))


def _lost(lost: Dropped) -> str:
    return f"{_one_line(lost.what)[:200]} ({_one_line(lost.why)})"


def place_of(store: MemoryStore) -> str:
    """Where one of the project's stores keeps its memories; "" for the one that does not, the name of any other."""
    options, settings = store.options, load_settings()
    if isinstance(store, InMemoryStore):
        return ""
    if isinstance(store, MilvusStore):
        name, where = "milvus", options.uri or settings.milvus_uri or DEFAULT_FILE
    elif isinstance(store, Neo4jStore):
        server = options.uri or (settings.neo4j_uri if options.path is None else None)
        name, where = "hybrid" if isinstance(store, HybridStore) else "neo4j", server or options.path or DEFAULT_PATH
    else:
        return type(store).__name__
    return f"{name} at {_plain(without_login(where))}"


def _plain(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _one_line(text: str) -> str:
    return " ".join(_plain(text).split())
