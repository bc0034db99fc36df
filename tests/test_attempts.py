"""`agent.attempts` gives out every attempt once, as it ends, the same as `inference` makes, and leaves nothing running."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.base import BaseAgent, Request
from memfactory.agents.build import local_models
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError, InfrastructureError
from memfactory.common.types import Messages, Sampling, Trajectory, Turn, View
from memfactory.engines.base import event_loop
from memfactory.engines.chat import Models, Session
from memfactory.engines.scripted import ScriptedChat

FACTS = ["city alice paris .", "job bob pilot .", "pet alice cat .", "boss bob carol .", "city bob rome ."]


class Waits(BaseAgent):
    """Asks once; the chat model decides how long that takes."""

    stages = ("answer",)

    def initial(self, view: View) -> None:
        return None

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> Any:
        return memory

    async def read(self, model: Session, memory: Any, question: str) -> str:
        return (await model.chat([{"role": "user", "content": question}], stage="answer", max_tokens=8)).text


class Slow:
    """A chat model that yields `turns(question)` times before it answers, and counts who is asking at once."""

    def __init__(self, turns: Callable[[str], int], fails: dict[str, Exception] | None = None) -> None:
        self.turns, self.fails = turns, fails or {}
        self.now = self.most = 0
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        question = messages[0]["content"]
        self.asked.append(question)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            turns = self.turns(question)
            while turns:
                turns -= 1
                await asyncio.sleep(0 if turns < 1000 else 0.001)
            if question in self.fails:
                raise self.fails[question]
        except asyncio.CancelledError:
            self.cancelled.append(question)
            raise
        finally:
            self.now -= 1
        return Turn(stage, (), (), (), f"to {question}", "stop", trainable=False)


FOR_EVER = 1 << 40


def asks(*names: str) -> list[Request]:
    return [Request(View(name, (name,))) for name in names]


def everything(ended: Iterator[list[tuple[int, Trajectory]]]) -> list[tuple[int, Trajectory]]:
    return [item for batch in ended for item in batch]


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within five seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def told(trajectory: Trajectory) -> tuple:
    return (trajectory.turns, trajectory.answers, trajectory.memory, trajectory.report, trajectory.outputs, trajectory.error)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.integers(0, 30), max_size=25), in_flight=st.integers(1, 8))
def test_every_request_is_given_out_once_and_no_more_run_than_are_let(turns: list[int], in_flight: int) -> None:
    names = [str(at) for at in range(len(turns))]
    chat = Slow(lambda question: turns[int(question)])
    ended = everything(Waits(None).attempts(asks(*names), Models({"policy": chat}), in_flight=in_flight))
    assert sorted(at for at, _ in ended) == list(range(len(turns)))
    assert all(trajectory.answers == [f"to {at}"] for at, trajectory in ended)
    assert chat.most <= in_flight and chat.now == 0 and chat.asked == names, "started in order, the next when one ends"


@pytest.mark.parametrize("in_flight", [1, 3, 20])
def test_as_many_run_together_as_are_let(in_flight: int) -> None:
    chat = Slow(lambda _: 40)
    everything(Waits(None).attempts(asks(*"abcdefghij"), Models({"policy": chat}), in_flight=in_flight))
    assert chat.most == min(in_flight, 10)


def test_a_short_attempt_is_given_out_while_a_long_one_runs() -> None:
    chat = Slow({"short": 0, "long": FOR_EVER}.__getitem__)
    ended = Waits(None).attempts(asks("long", "short"), Models({"policy": chat}))
    first = next(ended)
    assert [at for at, _ in first] == [1] and chat.now == 1
    ended.close()


def test_no_requests_are_no_attempts() -> None:
    assert list(Waits(None).attempts([], Models({"policy": Slow(lambda _: 0)}))) == []


def test_the_same_request_twice_is_given_out_twice() -> None:
    twice = asks("a", "b", "a")
    ended = dict(everything(Waits(None).attempts(twice, Models({"policy": Slow(lambda _: 1)}))))
    assert {at: trajectory.answers for at, trajectory in ended.items()} == {0: ["to a"], 1: ["to b"], 2: ["to a"]}
    assert ended[0] is not ended[2]


def test_scripted_attempts_equal_those_of_inference(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    agent = MemoryAgent(tiny_tokenizer, "cpu", chunk_size=4)
    views = [View(f"x/{n}", ("city alice ?",), context=" ".join(FACTS[:n])) for n in (1, 3, 5)]

    def answer(messages: Messages, stage: str) -> str:
        return f"{stage} {len(messages[0]['content'])}"

    expected = agent.inference(views, Models({"policy": ScriptedChat(answer)}))
    ended = dict(everything(agent.attempts([Request(v) for v in views], Models({"policy": ScriptedChat(answer)}), in_flight=1)))
    assert [told(ended[at]) for at in range(3)] == [told(trajectory) for trajectory in expected]


@pytest.mark.parametrize(("temperature", "top_p", "in_flight"), [(0.0, 1.0, 512), (1.0, 1.0, 2), (0.8, 0.9, 1)])
def test_attempts_of_a_real_model_equal_those_of_inference_whatever_runs_beside_them(
    tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, temperature: float, top_p: float, in_flight: int
) -> None:
    models = local_models(tiny_qwen3(), tiny_tokenizer)
    agent = MemoryAgent(tiny_tokenizer, "cpu", chunk_size=4, max_generate_length=5).attach(models)
    views = [View(f"x/{n}", ("city alice ?",), context=" ".join(FACTS[:n])) for n in (1, 3, 2)]
    expected = agent.inference(views, num_attempts=2, temperature=temperature, top_p=top_p, seed=3)
    requests = [Request(view, attempt, temperature, top_p) for view in views for attempt in range(2)]
    order = [5, 0, 3, 1, 4, 2]
    found = dict(everything(agent.attempts([requests[at] for at in order], seed=3, in_flight=in_flight)))
    tokens = [[turn.response_ids for turn in found[order.index(at)].turns] for at in range(6)]
    assert tokens == [[turn.response_ids for turn in trajectory.turns] for trajectory in expected]
    assert [found[order.index(at)].answers for at in range(6)] == [trajectory.answers for trajectory in expected]
    if temperature:
        assert tokens[0] != tokens[1], "two attempts of an example have streams of their own"
        other = dict(everything(agent.attempts(requests, seed=4)))
        assert [[turn.response_ids for turn in other[at].turns] for at in range(6)] != tokens, "the seed decides"


def test_a_request_keeps_its_own_temperature(tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    agent = MemoryAgent(tiny_tokenizer, "cpu", chunk_size=4, max_generate_length=5).attach(local_models(tiny_qwen3(), tiny_tokenizer))
    view = View("x", ("city alice ?",), context=FACTS[0])
    found = dict(everything(agent.attempts([Request(view), Request(view, 0, 1.0), Request(view, 0, 0.0)])))
    assert found[0].turns == found[2].turns != found[1].turns


def test_infrastructure_that_fails_loses_its_own_attempt_only() -> None:
    chat = Slow(lambda _: 2, {"b": InfrastructureError("down")})
    ended = dict(everything(Waits(None).attempts(asks("a", "b", "c"), Models({"policy": chat}))))
    assert [ended[at].error for at in range(3)] == [None, "InfrastructureError: down", None]


@pytest.mark.parametrize("error", [ConfigError("no such model"), ZeroDivisionError("a bug")])
def test_any_other_failure_is_raised_after_what_ended_before_and_cancels_the_rest(error: Exception) -> None:
    chat = Slow(lambda question: {"a": 0, "b": 50}.get(question, FOR_EVER), {"b": error})
    seen = []
    with pytest.raises(type(error), match=str(error)):
        for batch in Waits(None).attempts(asks(*"abcdefghijkl"), Models({"policy": chat}), in_flight=4):
            seen += batch
    assert [at for at, _ in seen] == [0], "what was finished is not lost with the rest"
    assert {"c", "d", "e"} <= set(chat.cancelled) == set(chat.asked) - {"a", "b"} and chat.now == 0 and len(chat.asked) <= 6


@pytest.mark.parametrize("stop", ["break", "close", "throw"])
def test_stopping_early_cancels_what_runs_and_starts_nothing_more(stop: str) -> None:
    chat = Slow({"a": 0, "b": FOR_EVER, "c": FOR_EVER}.__getitem__)
    ended = Waits(None).attempts(asks("a", "b", "c"), Models({"policy": chat}), in_flight=2)
    assert [at for at, _ in next(ended)] == [0]
    assert until(lambda: chat.now == 2)
    if stop == "throw":
        with pytest.raises(KeyboardInterrupt):
            ended.throw(KeyboardInterrupt)
    elif stop == "close":
        ended.close()
    else:
        del ended
    assert until(lambda: chat.now == 0) and sorted(chat.cancelled) == ["b", "c"]


def test_an_iterator_nobody_looks_at_starts_nothing() -> None:
    chat = Slow(lambda _: 0)
    Waits(None).attempts(asks("a"), Models({"policy": chat}))
    done = threading.Event()
    event_loop().call_soon_threadsafe(done.set)
    assert done.wait(5) and chat.asked == []


def test_nothing_runs_any_more_when_an_iterator_was_closed() -> None:
    class Tidies(Slow):
        async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
            try:
                return await super().chat(messages, stage, sampling)
            except asyncio.CancelledError:
                self.now += 1
                await asyncio.sleep(0.05)
                self.now -= 1
                raise

    chat = Tidies({"a": 0, "b": FOR_EVER}.__getitem__)
    ended = Waits(None).attempts(asks("a", "b"), Models({"policy": chat}))
    next(ended)
    ended.close()
    running = chat.now
    assert until(lambda: chat.cancelled == ["b"] and chat.now == 0)
    assert running == 0


def test_it_works_beside_a_running_event_loop() -> None:
    async def notebook() -> list[tuple[int, Trajectory]]:
        return everything(Waits(None).attempts(asks("a", "b"), Models({"policy": Slow(lambda _: 3)})))

    assert sorted(at for at, _ in asyncio.run(notebook())) == [0, 1]


def test_it_works_from_two_threads_at_once() -> None:
    chat = Slow(lambda _: 20)
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        ended = everything(Waits(None).attempts(asks(*"abcde"), Models({"policy": chat}), in_flight=2))
        found[number] = sorted(at for at, _ in ended)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]} and chat.most <= 4


def test_without_a_model_it_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="attach"):
        next(Waits(None).attempts(asks("a")))


HANGS = """
import threading, sys
sys.path.insert(0, {tests!r})
from test_attempts import Models, Slow, Waits, asks, everything, event_loop
import asyncio
limit = threading.Timer({seconds}, lambda: __import__("os")._exit(7))
limit.daemon = True
limit.start()
{body}
__import__("os")._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "everything(Waits(None).attempts(asks('a'), Models({'policy': Slow(lambda _: 0)}), in_flight=0))",
            id="in_flight_0",
        ),
        pytest.param(
            "async def inside():\n    everything(Waits(None).attempts(asks('a'), Models({'policy': Slow(lambda _: 0)})))\n"
            "asyncio.run_coroutine_threadsafe(inside(), event_loop()).result()",
            id="on_the_packages_loop",
        ),
    ],
)
def test_what_cannot_work_is_an_error_and_does_not_hang(body: str) -> None:
    code = HANGS.format(tests=str(Path(__file__).parent), seconds=6, body=body)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.returncode == 1 and "Error" in result.stderr, "an exception, neither success nor a hang"
