"""An LLM as a judge: is this answer right? Its verdict is parsed strictly, and its failures are NaN, never a score.

The answer is quoted as a JSON text, so nothing in it can pass for an instruction's end; what it claims about itself is for
the judge to disbelieve. Report a rule's score beside it: a judge's leniency decides more than most methods do. What it is
asked is in `judge_prompts`; `memfactory judge` measures what it accepts.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from memfactory.common.errors import ConfigError, InfrastructureError, ServerTimeout
from memfactory.common.guarded_json import loads
from memfactory.common.parsing import strip_thinking
from memfactory.common.prompts import user
from memfactory.common.types import Sampling
from memfactory.engines.api import APIChat
from memfactory.engines.base import run, stream_key
from memfactory.engines.chat import ChatModel
from memfactory.judges.exact import boxed_answer
from memfactory.judges.judge_prompts import DEFAULT, judge_prompt
from memfactory.judges.judgment import Case, Judgment, Vote

log = logging.getLogger(__name__)

LLM_JUDGE = "llm_judge"
VERDICTS = {"correct": 1.0, "wrong": 0.0}
READER = "verdict@1"
"""How replies are read: `verdict` below. A reader that reads otherwise gets another name."""

_FENCE = "```"
_MOST = 2000
"""Characters of an answer without a box that are judged: its end."""


class LLMJudge:
    """Judges answers with a chat model. `name` is `api:MODEL`; tests and other servers hand in a `chat` of their own.

    `prompt`: a key of JUDGE_PROMPT_REGISTRY. `votes`: how often each answer is judged, an odd number; each vote has its own random
    stream, so more than one says something only above temperature 0 or of a server that is not deterministic.
    """

    def __init__(
        self, name: str = "api:", chat: ChatModel | None = None, max_tokens: int = 512,
        *, prompt: str = DEFAULT, votes: int = 1, temperature: float = 0.0,
    ) -> None:  # fmt: skip
        if votes < 1 or votes % 2 == 0:
            raise ConfigError(f"A judge takes an odd number of votes, got {votes}: an even one can be tied.")
        if temperature < 0:
            raise ConfigError(f"A judge's temperature must not be negative, got {temperature}.")
        self.name, self.max_tokens, self.votes, self.temperature = name, max_tokens, votes, temperature
        self.prompt = judge_prompt(prompt)
        self.chat: ChatModel = chat if chat is not None else APIChat(name)
        self._told = False

    def identity(self) -> dict[str, Any]:
        """What decides a verdict besides the case: two judgments may be compared or mixed only if these agree."""
        return {
            "model": str(self.chat) if isinstance(self.chat, APIChat) else self.name,
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            "votes": self.votes,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "reader": READER,
        }

    def scores(
        self, questions: Sequence[str], golds: Sequence[Sequence[str]], answers: Sequence[str], types: Sequence[str] | None = None
    ) -> list[float]:
        """[n] scores, 1 right and 0 wrong; NaN where the judge failed or gave no verdict. What is empty is wrong, unasked."""
        cases = zip(questions, golds, answers, types or [""] * len(questions), strict=True)
        return [judgment.score for judgment in self.judge([Case(q, tuple(g), a, t) for q, g, a, t in cases])]

    def judge(self, cases: Sequence[Case], on_done: Callable[[int, Judgment], Any] | None = None) -> list[Judgment]:
        """[n] judgments with every vote as it came. `on_done` is told of each as it is there, on the engine's thread."""

        async def one(at: int) -> Judgment:
            judgment = await self._judgment(cases[at])
            if on_done:
                on_done(at, judgment)
            return judgment

        async def every() -> list[Judgment]:
            asked = [asyncio.create_task(one(at)) for at in range(len(cases))]
            try:
                return list(await asyncio.gather(*asked))
            finally:
                for task in asked:  # a refused key ends the command: nobody waits for the other answers
                    task.cancel()

        return run(every())

    async def _judgment(self, case: Case) -> Judgment:
        judged = judged_part(case.answer)
        if not judged:
            return Judgment(())
        text = self.prompt.text(case, judged)
        return Judgment(tuple(await asyncio.gather(*(self._vote(text, number) for number in range(self.votes)))))

    async def _vote(self, text: str, number: int) -> Vote:
        stream = (stream_key(text), number) if number else (stream_key(text),)
        try:
            turn = await self.chat.chat(user(text), "judge", Sampling(self.max_tokens, self.temperature, stream=stream))
        except InfrastructureError as error:
            return self._lost(str(error), "timeout" if isinstance(error, ServerTimeout) else "server")
        score = verdict(turn.text)
        if score is None:
            return self._lost(turn.text, "cut" if turn.finish == "length" else "no_verdict")
        return Vote(turn.text, score)

    def _lost(self, reply: str, failure: str) -> Vote:
        reason = f"no verdict in {reply!r:.120}" if failure in ("cut", "no_verdict") else reply
        log.log(logging.DEBUG if self._told else logging.WARNING, "The judge %s failed; the attempt has no score: %s", self.name, reason)
        self._told = True  # the first failure is told, all are counted as NaN
        return Vote(reply, math.nan, failure)


def judged_part(answer: str) -> str:
    """What of an answer is judged: its last box, else the end of what is visible; empty if it says nothing."""
    boxed = boxed_answer(answer)
    judged = (strip_thinking(answer) or "")[-_MOST:] if boxed is None else boxed
    return judged if judged.strip() else ""


def verdict(text: str) -> float | None:
    """1 or 0 from a reply that is `{"verdict": "correct" | "wrong"}`, bare or fenced, with a reason beside if it likes; else None."""
    visible = strip_thinking(text)
    if visible is None:
        return None
    fenced = len(visible) >= 2 * len(_FENCE) and visible.startswith(_FENCE) and visible.endswith(_FENCE)
    try:
        reply = loads(visible[3:-3].removeprefix("json").strip() if fenced else visible, object_pairs_hook=_once)
    except ValueError:
        return None
    said = reply.get("verdict") if isinstance(reply, dict) else None
    return VERDICTS.get(said.strip().lower()) if isinstance(said, str) else None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object that says each thing once: two verdicts are none."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
