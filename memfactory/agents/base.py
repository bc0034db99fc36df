"""What an agent is, and the one runtime over it: training rolls it out, evaluation and applications run inference.

An author writes two coroutines over one example, `write` (an event into the memory) and `read` (an answer from it); the
factory makes B*G of them, whose requests meet in the engine's pool. There is no second loop for evaluation or serving.
Knows no gold answer, reward or algorithm.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from memfactory.agents.use import Usable
from memfactory.common.errors import ConfigError, InfrastructureError, UserError
from memfactory.common.porting import refuse_old_style
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY, build_options
from memfactory.common.types import RolloutGroup, Sampling, Trajectory, View
from memfactory.engines.base import event_loop, on_own_loop, stream_key
from memfactory.engines.base import run as run_on_loop
from memfactory.engines.chat import Models, Session
from memfactory.engines.prompt import cut
from memfactory.memory.items import MemoryItem

T = TypeVar("T")

_UNSET = object()


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """The lengths that the launchers' flags set, in tokens; the defaults are MemAgent's."""

    chunk_size: int = ranged(5000, least=1)
    """Size of the pieces that `chunks` cuts a text into."""
    max_chunk_number: int | None = ranged(8, least=1)
    """Most events in training; longer examples lose their middle. Evaluation and use have no limit."""
    max_generate_length: int | None = ranged(None, least=1)
    """Budget of every turn, for agents that hand it to their modules."""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt to run without training."""

    view: View
    attempt: int = 0
    """Its number: attempts of one example have random streams of their own."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    written: Trajectory | None = None
    """What the attempt wrote earlier (`in_stages`): it is only asked, and this record goes on. For one use."""
    keep: Callable[[Trajectory], Any] | None = None
    """Given the record once the memory is written, before the questions, which wait for it; called outside the event loop."""


class BaseAgent(Usable):
    """Base of all agents, constructed as `(tokenizer, device="cuda", **kwargs)`.

    `kwargs` are the fields of `Options` and the names in `slots`; a slot takes the key of a module, or a mapping
    `{"type": key, option: value}`. A built module is the attribute of the slot's name. Its verbs in an application (`load`,
    `add`, `ask`, ...) are `Usable`'s.
    """

    Options: type = AgentOptions
    slots: dict[str, str] = {}
    """{slot: key of its default module}."""
    stages: tuple[str, ...] = ()
    """The stages this agent's turns can have, those of its slots' modules included: what `roles` may name."""
    question_aware = False
    """True if writing needs the question: the memory is then written once for each question."""
    read_only: tuple[str, ...] = ()
    """Slots, options and stages that only `read` uses: with others of them the same memory would be written."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method in ("rollout", "inference"):
            refuse_old_style(cls, method, ("batch_data", "reward_fn"), "An agent is `initial`, `events`, `write` and `read`.")

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.models: Models | None = None
        chosen = {slot: kwargs.pop(slot, default) for slot, default in self.slots.items()}
        self.options: Any = build_options(type(self).__name__, self.Options, kwargs)
        for slot, choice in chosen.items():
            options = dict(choice) if isinstance(choice, dict) else {"type": choice}
            module = MODULE_REGISTRY.get(options.pop("type", self.slots[slot]))
            known = {f.name for f in fields(module.Options)}  # type: ignore[attr-defined]
            handed = {name: value for name, value in self.slot_options(slot).items() if name in known}
            setattr(self, slot, module(tokenizer, device, **(handed | options)))
        own = (stage for slot in self.slots for stage in getattr(self, slot).stages)
        self.stages = tuple(dict.fromkeys([*self.stages, *own]))

    def slot_options(self, slot: str) -> dict[str, Any]:
        """Options that the agent's own hand down to a slot, as far as its module has them; what is said of the slot itself wins."""
        return {}

    def describe(self) -> dict[str, Any]:
        """All options with their values, those of the slots nested: what the constructor takes to make this agent again.

        What a slot has from the agent's own options is left out there, so that it still follows them when they are changed.
        """
        nested = {}
        for slot in self.slots:
            module, handed = getattr(self, slot), self.slot_options(slot)
            own = {name: value for name, value in asdict(module.options).items() if handed.get(name, _UNSET) != value}
            nested[slot] = {"type": MODULE_REGISTRY.name_of(type(module)), **own}
        return asdict(self.options) | nested

    # What an author writes

    @abstractmethod
    def initial(self, view: View) -> Any:
        """The memory before the first event."""

    def events(self, view: View) -> Sequence[Any]:
        """What is written, in order."""
        return view.events

    @abstractmethod
    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> Any:
        """One event into the memory; returns the new memory."""

    @abstractmethod
    async def read(self, model: Session, memory: Any, question: str) -> str:
        """The answer to a question from the memory alone."""

    async def read_items(self, model: Session, items: Sequence[MemoryItem], question: str) -> str:
        """The answer from memories that were chosen already: what anchors hand to this agent's reader (`anchors.py`)."""
        raise ConfigError(
            f"{type(self).__name__} has no `read_items(model, items, question)`, its answer from chosen memories: no anchor can stand "
            "beside it. Write that coroutine, or leave --anchors out."
        )

    @property
    def max_training_events(self) -> int | None:
        """Most events of an example in training; None for no limit."""
        return getattr(self.options, "max_chunk_number", None)

    async def run(self, view: View, model: Session) -> None:
        """Fold `write` over the events, then `read` each question, into the session's trajectory."""
        trajectory = model.trajectory
        if not self.question_aware:
            await self._write_stage(view, model)
            await self._read_stage(view, model)
            return
        events = self._within_limit(list(self.events(view)), model)
        for number, question in enumerate(view.questions):
            model.question = number
            trajectory.memory = await self._write_all(view, model, events, question)
            trajectory.answers.append(await self.read(model, trajectory.memory, question))

    async def _write_stage(self, view: View, model: Session) -> None:
        events = self._within_limit(list(self.events(view)), model)
        model.trajectory.memory = await self._write_all(view, model, events, None)

    async def _read_stage(self, view: View, model: Session) -> None:
        trajectory = model.trajectory
        branches = [model.branch(number) for number in range(len(view.questions))]
        reads = [self.read(branch, trajectory.memory, question) for branch, question in zip(branches, view.questions, strict=True)]
        trajectory.answers.extend(await _all(reads))
        for branch in branches:
            model.join(branch)

    async def _write_all(self, view: View, model: Session, events: list[Any], question: str | None) -> Any:
        memory = self.initial(view) if view.memory is None else view.memory
        for event in events:
            memory = await self.write(model, memory, event, question)
            model.note(event, memory)
        return memory

    def _within_limit(self, events: list[Any], model: Session) -> list[Any]:
        """Centre truncation, in training only: the first and the last events stay (MemAgent), what is lost is counted."""
        limit = self.max_training_events
        if limit is not None and limit < 1:
            raise ConfigError(f"max_chunk_number {limit}: must be at least 1.")
        if not model.training or limit is None or len(events) <= limit:
            return events
        model.count("dropped_events", len(events) - limit)
        first = (limit + 1) // 2
        return events[:first] + events[len(events) - (limit - first) :]

    @property
    def in_stages(self) -> bool:
        """Whether all is written before anything is asked, so that what was written can be kept and asked another time."""
        return not self.question_aware and type(self).run is BaseAgent.run

    # What the factory makes of it

    def attach(self, models: Models) -> BaseAgent:
        """Say which models answer when `inference` is not told; returns the agent."""
        for stage in models.roles:
            if stage not in self.stages:
                raise ConfigError(f"roles names the stage {stage!r}; {type(self).__name__} has {', '.join(self.stages) or 'none'}.")
        self.models = models
        return self

    def rollout(
        self, model: Models, batch: Sequence[View], num_generations: int, *, seed: int = 0, step: int = 0, temperature: float = 1.0
    ) -> list[RolloutGroup]:
        """G attempts at each of B views for training: B groups, in the order of the batch."""
        trajectories = self._attempts(model, batch, num_generations, Sampling(0, temperature), (seed, step), training=True)
        groups = [trajectories[at : at + num_generations] for at in range(0, len(trajectories), num_generations)]
        return [RolloutGroup(group, view.example_id) for view, group in zip(batch, groups, strict=True)]

    def inference(
        self,
        batch: Sequence[View],
        model: Models | None = None,
        *,
        num_attempts: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Trajectory]:
        """Run without training: [B * num_attempts] trajectories, example-major; greedy unless a temperature is given."""
        return self._attempts(self._models(model), batch, num_attempts, Sampling(0, temperature, top_p), (seed, 0), training=False)

    def attempts(
        self, requests: Sequence[Request], model: Models | None = None, *, seed: int = 0, in_flight: int = 512
    ) -> Iterator[list[tuple[int, Trajectory]]]:
        """The same attempts as `inference` makes, given out as they finish: all that ended since the last look, with their places.

        At most `in_flight` run together; the next starts when one ends. What is sampled depends on neither.
        """
        models = self._models(model)
        if in_flight < 1:
            raise ConfigError(f"in_flight {in_flight}: at least one attempt must run.")
        if on_own_loop():
            raise RuntimeError("attempts() was called on the package's own event loop (from inside write, read or act).")
        finished: queue.SimpleQueue[tuple[int, Trajectory] | None] = queue.SimpleQueue()

        async def one(at: int, gate: asyncio.Semaphore) -> None:
            request = requests[at]
            stream = (seed, 0, stream_key(request.view.example_id), request.attempt)
            async with gate:
                sampling = Sampling(0, request.temperature, request.top_p)
                session = models.session(sampling=sampling, stream=stream, training=False, trajectory=request.written)
                finished.put((at, await self._attempt(request.view, session, request)))

        over = threading.Event()

        async def every() -> None:
            try:
                gate = asyncio.Semaphore(in_flight)
                await _all([one(at, gate) for at in range(len(requests))])
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(every(), event_loop())
        future.add_done_callback(lambda _: finished.put(None))
        try:
            running = True
            while running:
                ended = [finished.get()]
                while not finished.empty():
                    ended.append(finished.get())
                running = None not in ended
                if batch := [item for item in ended if item is not None]:
                    yield batch
            future.result()
        finally:
            if not future.done():  # the caller went away: the engine must be idle before anything else is done with it
                future.cancel()
                over.wait(timeout=60)

    def _models(self, given: Models | None) -> Models:
        models = given or self.models
        if models is None:
            raise ConfigError(f"This {type(self).__name__} has no model: give one to this call, or attach(models) first.")
        return models

    def _attempts(
        self, models: Models, batch: Sequence[View], attempts: int, sampling: Sampling, stream: tuple[int, int], training: bool
    ) -> list[Trajectory]:
        sessions = []
        seen: Counter[str] = Counter()
        for view in batch:
            # An example that occurs twice in a batch gets further attempts, not the same ones again.
            first = attempts * seen[view.example_id]
            seen[view.example_id] += 1
            for attempt in range(first, first + attempts):
                key = (*stream, stream_key(view.example_id), attempt)
                sessions.append((view, models.session(sampling=sampling, stream=key, training=training)))

        async def every() -> list[Trajectory]:
            return await _all([self._attempt(view, session) for view, session in sessions])

        return run_on_loop(every())

    async def _attempt(self, view: View, session: Session, request: Request | None = None) -> Trajectory:
        # An example's id can tell of its gold (`…_abs`, `2hop__…`): the agent is shown the number that names its streams.
        view = replace(view, example_id=f"{stream_key(view.example_id):016x}")
        try:
            if request is None or not self.in_stages:
                await self.run(view, session)
            else:
                await self._staged(replace(request, view=view), session)
        except InfrastructureError as error:
            session.trajectory.error = f"{type(error).__name__}: {error}"
        return session.trajectory

    async def _staged(self, request: Request, session: Session) -> None:
        """`run`, which lays the written memory by and takes it up where an earlier attempt left it."""
        if request.written is None:
            await self._write_stage(request.view, session)
            if request.keep is not None:
                await asyncio.to_thread(request.keep, session.trajectory)
        await self._read_stage(request.view, session)

    # Help for authors

    def chunks(self, text: str, size: int | None = None) -> list[str]:
        """Cut a text into pieces of `size` tokens (the option `chunk_size`) at token borders; no character is broken or lost."""
        size = self.options.chunk_size if size is None else size
        if size < 1:
            raise ConfigError(f"chunk_size {size}: must be at least 1 token.")
        if self.tokenizer is None or not self.tokenizer.is_fast:
            raise UserError(
                f"{type(self).__name__} cuts text at token offsets and needs a fast tokenizer (tokenizer.json); "
                "for a model behind an API give one: --tokenizer FOLDER."
            )
        return cut(self.tokenizer, text, size)


async def _all(coroutines: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; if one fails (or Ctrl-C comes), the others are cancelled and do not linger in the engine."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
