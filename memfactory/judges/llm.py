"""An LLM as a judge: is this answer right? Its verdict is parsed strictly, and its failures are NaN, never a score.

The answer is quoted as a JSON text, so nothing in it can pass for an instruction's end; what it claims about itself is for
the judge to disbelieve. Report a rule's score beside it: a judge's leniency decides more than most methods do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Sequence

from memfactory.common.errors import InfrastructureError
from memfactory.common.parsing import strip_thinking
from memfactory.common.prompts import JUDGE, fill, user
from memfactory.common.types import Sampling
from memfactory.engines.api import APIChat
from memfactory.engines.base import run, stream_key
from memfactory.engines.chat import ChatModel
from memfactory.judges.exact import boxed_answer

log = logging.getLogger(__name__)

LLM_JUDGE = "llm_judge"
VERDICTS = {"correct": 1.0, "wrong": 0.0}
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_MOST = 2000
"""Characters of an answer without a box that are judged: its end."""


class LLMJudge:
    """Judges answers with a chat model, greedily. `name` is `api:MODEL`; tests and other servers hand in a `chat` of their own."""

    def __init__(self, name: str = "api:", chat: ChatModel | None = None, max_tokens: int = 512) -> None:
        self.name, self.max_tokens = name, max_tokens
        self.chat: ChatModel = chat if chat is not None else APIChat(name)
        self._told = False

    def scores(self, questions: Sequence[str], golds: Sequence[Sequence[str]], answers: Sequence[str]) -> list[float]:
        """[n] scores, 1 right and 0 wrong; NaN where the judge failed or gave no verdict. What is empty is wrong, unasked."""

        async def every() -> list[float]:
            return list(await asyncio.gather(*(self._score(*case) for case in zip(questions, golds, answers, strict=True))))

        return run(every())

    async def _score(self, question: str, golds: Sequence[str], answer: str) -> float:
        visible = strip_thinking(answer) or ""
        boxed = boxed_answer(answer)
        judged = visible[-_MOST:] if boxed is None else boxed
        if not judged.strip():
            return 0.0
        text = fill(JUDGE, question=json.dumps(question, ensure_ascii=False), golds=json.dumps(list(golds), ensure_ascii=False),
                    answer=json.dumps(judged, ensure_ascii=False))  # fmt: skip
        try:
            turn = await self.chat.chat(user(text), "judge", Sampling(self.max_tokens, 0.0, stream=(stream_key(text),)))
        except InfrastructureError as error:
            return self._lost(str(error))
        score = verdict(turn.text)
        return self._lost(f"no verdict in {turn.text!r:.120}") if score is None else score

    def _lost(self, reason: str) -> float:
        log.log(logging.DEBUG if self._told else logging.WARNING, "The judge %s failed; the attempt has no score: %s", self.name, reason)
        self._told = True  # the first failure is told, all are counted as NaN
        return math.nan


def verdict(text: str) -> float | None:
    """1 or 0 from a reply that is `{"verdict": "correct" | "wrong"}`, bare or fenced, with a reason beside if it likes; else None."""
    visible = strip_thinking(text)
    if visible is None:
        return None
    fenced = _FENCE.fullmatch(visible)
    try:
        reply = json.loads(fenced.group(1) if fenced else visible, object_pairs_hook=_once)
    except ValueError:
        return None
    said = reply.get("verdict") if isinstance(reply, dict) else None
    return VERDICTS.get(said.strip().lower()) if isinstance(said, str) else None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object that says each thing once: two verdicts are none."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
