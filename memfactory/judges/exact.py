"""Rules that score an answer text against all accepted answers: pure functions to [0, 1], no server, no opinion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memfactory.common.parsing import last_boxed, normalize_math, normalize_squad, strip_thinking
from memfactory.common.registry import SCORER_REGISTRY

TAIL = 300
"""Only this many last characters of an answer are searched for a box, as in MemAgent's reward."""


def boxed_answer(text: str) -> str | None:
    """What the answer's last box holds, after thinking is removed; None without a box."""
    visible = strip_thinking(text)
    return None if visible is None else last_boxed(visible[-TAIL:])


@SCORER_REGISTRY.register("boxed_em")
def boxed_em(text: str, golds: Sequence[str]) -> float:
    """1 if the last box equals a gold answer in MemAgent's normal form; no box is 0 (arXiv 2507.02259)."""
    answer = boxed_answer(text)
    if answer is None:
        return 0.0
    return float(any(normalize_math(answer) == normalize_math(gold) for gold in golds))


@SCORER_REGISTRY.register("boxed_f1")
def boxed_f1(text: str, golds: Sequence[str]) -> float:
    """Best token F1 (SQuAD's normal form, multiset overlap) of the last box with a gold answer; no box is 0."""
    answer = boxed_answer(text)
    return 0.0 if answer is None else max((_f1(answer, gold) for gold in golds), default=0.0)


def _f1(answer: str, gold: str) -> float:
    said, wanted = normalize_squad(answer).split(), normalize_squad(gold).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0
