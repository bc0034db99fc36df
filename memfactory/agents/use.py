"""Memory an application can use: what it says is written into a user's bank in a store, what it asks is read from there.

The verbs run `BaseAgent.run`, the very coroutine of training and evaluation, on one event or one question at a time; the memory
comes from the store and goes back to it. Knows no checkpoint (`load.py`), no terminal and no database.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from memfactory.agents.line import Line
from memfactory.agents.line import shows as shows  # its home of old
from memfactory.agents.told import TOLD, Answer, Change, Said, in_halves, in_pieces, named, turns_of
from memfactory.common.errors import ConfigError, DataError, PromptTooLong
from memfactory.common.parsing import final_answer
from memfactory.common.text import mend
from memfactory.common.types import Sampling, Trajectory, View
from memfactory.engines.base import event_loop, on_own_loop, stream_key
from memfactory.engines.base import run as run_on_loop
from memfactory.engines.chat import MENDED, Models, Session
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import Embedder
from memfactory.memory.items import MemoryItem, MemoryOp, as_date
from memfactory.memory.merge import Edit, Merged
from memfactory.memory.stores import MemoryStore, open_store
from memfactory.memory.stores.stored_bank import stored

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U", bound="Usable")

DEFAULT_USER = "default"


@dataclass(slots=True)
class Kept:
    """What the agents of several users share: the store, and how is sampled."""

    store: MemoryStore
    mine: bool
    """Whether it was opened here, and so is closed here."""
    sampling: Sampling
    seed: int
    calls: Iterator[int] = field(default_factory=itertools.count)
    """Numbers of the random streams; greedy sampling draws nothing."""
    locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    loop: asyncio.AbstractEventLoop | None = None
    """The package's loop, on which the locks are; a forked child has another."""

    def lock(self, user: str) -> asyncio.Lock:
        """Held by one writer of a user at a time; on the package's loop."""
        if self.loop is not event_loop():
            self.loop, self.locks = event_loop(), WeakValueDictionary()
        lock = self.locks.get(user)
        if lock is None:
            lock = self.locks[user] = asyncio.Lock()
        return lock


class Usable(ABC):
    """The verbs of an agent in use. Those with an `a` before them are for programs with an event loop of their own."""

    slots: dict[str, str]
    question_aware: bool
    kept: Kept | None = None
    user: str = DEFAULT_USER
    _lent = False
    """True for an agent made by `for_user`: it closes nothing."""

    # What an agent is, as far as the verbs know it.

    @abstractmethod
    def initial(self, view: View) -> Any: ...

    @abstractmethod
    async def run(self, view: View, model: Session) -> None: ...

    @abstractmethod
    def _models(self, given: Models | None) -> Models: ...

    # Where the memory is.

    @classmethod
    def load(
        cls: type[U], path: str, *, store: str | MemoryStore = "in_memory", user: str = DEFAULT_USER,
        store_options: Mapping[str, Any] | None = None, engine: str = "hf", engine_options: Mapping[str, Any] | None = None,
        device: str = "auto", roles: Mapping[str, str] | None = None, reference: str | None = None, tokenizer: str | None = None,
        temperature: float = 0.0, seed: int = 0, **agent_options: Any,
    ) -> U:  # fmt: skip
        """An agent ready for use: its model, its memory, and the options that its checkpoint was trained with.

        `path`: a checkpoint's folder, a hub name, or `api:NAME` (an OpenAI-compatible server; also `engine="api"` with the
        folder that a server serves under its path). `BaseAgent.load` takes the agent that the checkpoint's memfactory.json
        names, memory_r1_agent if there is none; another class must be that agent's. `agent_options` go over the checkpoint's.
        `store`: see `use`; `engine_options`: see `open_models`.
        """
        # Here, not above: what builds agents knows this class.
        from memfactory.agents.load import load_agent

        opened = {"store": store, "user": user, "store_options": store_options, "temperature": temperature, "seed": seed}
        models = {"engine": engine, "options": engine_options, "roles": roles, "reference": reference}
        return load_agent(cls, path, opened, models, agent_options, device=device, tokenizer=tokenizer)

    def use(
        self: U, store: str | MemoryStore = "in_memory", user: str = DEFAULT_USER, *,
        store_options: Mapping[str, Any] | None = None, temperature: float = 0.0, seed: int = 0,
    ) -> U:  # fmt: skip
        """Keep what is told in a store, for this user; returns the agent. `store`: a name, which is opened, or an open store."""
        if not self.question_aware and not isinstance(memory := self.initial(View(user, ())), MemoryBank):
            raise ConfigError(
                f"{type(self).__name__} keeps its memory as a {type(memory).__name__}, and stores keep banks. Let `initial` return a "
                "MemoryBank; or set question_aware, and what is told is kept as it was said and read anew for each question."
            )
        if not isinstance(store, str) and not isinstance(own := self._embedder(), str) and store.embedder.name != own.name:
            log.warning(
                "The store's vectors are of the embedder %s, and the agent searches with %s: it is not asked what is near, and every "
                "search embeds its memories. Open it with that embedder (open_store(..., embedder=...)), or give the agent the store's.",
                store.embedder.name, own.name,
            )  # fmt: skip
        self._close_store()
        opened = open_store(store, store_options, embedder=self._embedder()) if isinstance(store, str) else store
        self.kept, self.user, self._lent = Kept(opened, opened is not store, Sampling(0, temperature), seed), user, False
        return self

    def _embedder(self) -> Embedder | str:
        """What the store is opened with: the retriever's own, so that a text is embedded once; agents without one take hashes."""
        modules = [getattr(self, slot) for slot in sorted(self.slots, key=lambda slot: slot != "retriever")]
        return next((found for module in modules if (found := getattr(module, "embedder", None)) is not None), "hashed")

    @property
    def store(self) -> MemoryStore:
        """The store; `ConfigError` if there is none yet."""
        if self.kept is None:
            name = type(self).__name__
            raise ConfigError(f"This {name} has no store: make it with {name}.load(PATH, store=...), or call use(store=...) first.")
        return self.kept.store

    def for_user(self: U, user: str) -> U:
        """The same agent for another user: model and store are shared. Close the first one."""
        other = copy.copy(self)
        other.user, other._lent = user, True
        return other

    def close(self) -> None:
        """Let go of the store that was opened here, of connections to servers and of engines with processes or memory of their own.

        What was kept stays.
        """
        if self.kept is not None and not self._lent:
            self._close_store()
            models: Models | None = getattr(self, "models", None)
            if models is not None:
                models.close()

    def _close_store(self) -> None:
        if self.kept is not None and self.kept.mine and not self._lent:
            self.kept.store.close()

    def __enter__(self: U) -> U:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # What an application does.

    def add(self, said: Said, *, date: str = "", speaker: str | None = None) -> Change:
        """Tell the agent something; returns what it made of it, which is kept by then.

        `date`: when it was said, as text. `speaker`: of turns that name none; the user, unless said. An agent that reads with
        the question in hand keeps what it is told word for word. A failing engine or store raises `InfrastructureError`, and
        then nothing was kept. What is said to one user at the same time is written one after the other.
        """
        return run_on_loop(self._add(said, date, speaker))

    async def aadd(self, said: Said, *, date: str = "", speaker: str | None = None) -> Change:
        """`add`, awaited on any event loop."""
        return await _elsewhere(self._add(said, date, speaker))

    def ask(self, question: str) -> Answer:
        """Ask a question: answered from the user's memory as it is now, which stays as it is."""
        return run_on_loop(self._ask(question))

    async def aask(self, question: str) -> Answer:
        """`ask`, awaited on any event loop."""
        return await _elsewhere(self._ask(question))

    def memories(self, closed: bool = False) -> tuple[MemoryItem, ...]:
        """The user's memories in the order they came; with `closed` also those whose validity has ended."""
        return self.store.list(self.user, closed=closed)

    def forget(self, id: str, *, date: str = "") -> MemoryItem:
        """Delete a memory and return it; `UnknownNameError` if there is none of that id. `store.purge(user)` forgets a person."""
        return self.store.delete(self.user, id, when=as_date(date))

    def history(self, id: str) -> tuple[str, ...]:
        """Every text that a memory ever had, oldest first, also of a forgotten one; () for an unknown id."""
        return self.store.history(self.user, id)

    def event(self, turns: Sequence[Mapping[str, Any]], date: str) -> Any:
        """What `write` is given for what was said; an agent with other events than sessions overrides it."""
        return {"date": date, "turns": list(turns)}

    # How it is done.

    async def _add(self, said: Said, date: str, speaker: str | None) -> Change:
        store, user = self.store, self.user
        date = as_date(date)
        assert self.kept is not None
        heard = Line(self._models(None), self.kept.sampling, (), False, Trajectory())
        turns = turns_of(said, speaker or self._name(), partial(heard.drop, TOLD))
        if not turns:
            return Change((), (), heard.trajectory)
        text = turns[0]["text"] if isinstance(said, str) else "\n".join(f"{turn['speaker']}: {turn['text']}" for turn in turns)
        turns = in_pieces(turns)
        if self.question_aware:
            return await self._keep(turns, date, heard)
        async with self.kept.lock(user):
            before = await asyncio.to_thread(stored, store, user)
            line = await self._written(View(user, (), text, memory=before), turns, date)
            line.trajectory.dropped[:0] = heard.trajectory.dropped
            line.trajectory.report.update(heard.trajectory.report)
            after = line.trajectory.memory
            if not isinstance(after, MemoryBank):
                raise ConfigError(f"{type(self).__name__}.write returned {after!r:.80}, not a MemoryBank: stores keep banks.")
            done = Merged(before) if after == before else await asyncio.to_thread(store.commit, user, before, after)
        refused = [rejection for applied in before.asked for rejection in applied.rejected]
        return Change(done.edits, (*refused, *done.rejected), line.trajectory)

    def _name(self) -> str:
        """Who speaks where nobody is named."""
        return "user" if self.user == DEFAULT_USER else self.user

    async def _keep(self, turns: Sequence[Mapping[str, Any]], date: str, line: Line) -> Change:
        """Turns word for word, of others than the user with their speaker as the owner."""
        own = self._name()
        ops = [MemoryOp("ADD", None, turn["text"], "" if turn["speaker"] == own else str(turn["speaker"])) for turn in turns]
        done = await asyncio.to_thread(self.store.apply, self.user, ops, when=date)
        return Change(tuple(map(Edit, done.applied)), done.rejected, line.trajectory)

    def _heard(self, bank: MemoryBank) -> tuple[str, tuple[Any, ...]]:
        """(text, events) of what was kept word for word: who said it, where it was not the user alone, and when."""
        own, several = self._name(), any(item.owner for item in bank)
        said = [f"{item.owner or own}: {item.text}" if several else item.text for item in bank]
        text = "\n".join(f"[{item.created}] {words}" if item.created else words for item, words in zip(bank, said, strict=True))
        days = itertools.groupby(bank, key=lambda item: item.created)
        return text, tuple(self.event([{"speaker": one.owner or own, "text": one.text} for one in items], day) for day, items in days)

    async def _ask(self, question: str) -> Answer:
        if not question.strip():
            raise DataError("The question is blank.")
        question, broken = mend(question)
        bank = await asyncio.to_thread(stored, self.store, self.user)
        view = View(self.user, (question,), memory=bank)
        if self.question_aware:
            view = View(self.user, (question,), *self._heard(bank))
        line = await self._fitted(view)
        if broken:
            line.count(MENDED, broken)
        (whole,) = line.trajectory.answers
        shown = tuple(line.shown)
        return Answer(final_answer(whole) or "", whole, shown, named(whole, shown), line.trajectory)

    async def _written(self, view: View, turns: list[dict[str, Any]], date: str) -> Line:
        """The session in which the turns were written: at once, or one half after the other where they do not fit the model."""
        view, halves = replace(view, events=(self.event(turns, date),)), in_halves(turns)
        if halves is None:
            return await self._fitted(view)
        try:
            return await self._tried(view, self._line())
        except PromptTooLong:
            first = await self._written(view, halves[0], date)
        second = await self._written(replace(view, memory=first.trajectory.memory), halves[1], date)
        first.join(second)
        first.trajectory.memory = second.trajectory.memory
        first.count("split_events")
        return first

    async def _fitted(self, view: View) -> Line:
        """The session in which this was run, with fewer memories before the model if all do not fit."""
        line = self._line()
        while True:
            try:
                return await self._tried(view, line)
            except PromptTooLong:
                offered = line.offered[-1] if line.offered else 0
                if not offered and not line.whole:
                    raise
                line = replace(self._line(), most=offered // 2 if offered else line.most, whole=bool(offered))

    async def _tried(self, view: View, line: Line) -> Line:
        asked: list[Any] = getattr(view.memory, "asked", [])
        before, fitted = len(asked), False
        try:
            await self.run(view, line)
            fitted = True
        finally:
            if not fitted:  # what it asked for on the way is asked again
                del asked[before:]
        return line

    def _line(self) -> Line:
        assert self.kept is not None
        stream = (self.kept.seed, 0, stream_key(self.user), next(self.kept.calls))
        return Line(self._models(None), self.kept.sampling, stream, False, Trajectory())


async def _elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that lives on the package's loop, from there or from any other."""
    if on_own_loop():
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, event_loop()))
