"""Rules that score an answer text against the gold answers: pure functions to [0, 1], no server, no opinion.

`boxed_*` look at the last box of the answer, as MemAgent's reward does (arXiv 2507.02259); `ruler_*` at the whole visible
answer, as RULER does (arXiv 2404.06654). A thought is never looked at; what has no visible answer scores 0. Nothing is
rounded: two of three is 2/3 (MemAgent's evaluation rounds each item to .67 before it averages).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from memfactory.common.parsing import final_answer, last_boxed, normalize_math, normalize_squad, strip_thinking
from memfactory.common.registry import SCORER_REGISTRY

Rule = TypeVar("Rule", bound=Callable[..., float])


def asks_for_all(rule: Rule) -> Rule:
    """Decorator: the scorer wants all of the gold answers, not any one; a judge is then told them as one answer."""
    rule.all_golds = True  # type: ignore[attr-defined]
    return rule


def needs_all(scorer: str) -> bool:
    """Whether the scorer of that name wants all of the gold answers; False for one that nobody registered."""
    return scorer in SCORER_REGISTRY and getattr(SCORER_REGISTRY.get(scorer), "all_golds", False)


TAIL = 300
"""Only this many last characters of an answer are searched for a box, as in MemAgent's reward."""

_CLOSED = {"yes", "no", "noanswer"}
"""Answers that earn all or nothing in HotpotQA's F1."""


def boxed_answer(text: str) -> str | None:
    """What the answer's last box holds, after thinking is removed; None without a box."""
    visible = strip_thinking(text)
    return None if visible is None else last_boxed(visible[-TAIL:])


@SCORER_REGISTRY.register("boxed_em")
@SCORER_REGISTRY.register("boxed_em@1")
def boxed_em(text: str, golds: Sequence[str]) -> float:
    """1 if the last box equals a gold answer in MemAgent's normal form; no box is 0 (arXiv 2507.02259)."""
    answer = normalize_math(boxed_answer(text) or "")
    return float(bool(answer) and any(answer == normalize_math(gold) for gold in golds))


@SCORER_REGISTRY.register("boxed_f1")
def boxed_f1(text: str, golds: Sequence[str]) -> float:
    """Best token F1 of the last box with a gold answer (HotpotQA's: SQuAD's normal form, yes and no count whole); no box is 0."""
    return best_of(token_f1, boxed_answer(text), golds)


@SCORER_REGISTRY.register("boxed_sub_em")
def boxed_sub_em(text: str, golds: Sequence[str]) -> float:
    """1 if a gold answer stands in the last box, in SQuAD's normal form and as whole words. One way only: an empty box is 0."""
    answer = boxed_answer(text)
    if answer is None:
        return 0.0
    said = f" {normalize_squad(answer)} "
    return float(any(wanted in said for gold in golds if (wanted := f" {normalize_squad(gold)} ").strip()))


@SCORER_REGISTRY.register("boxed_all")
@asks_for_all
def boxed_all(text: str, golds: Sequence[str]) -> float:
    """The share of the gold answers that occur in the last box, letter case ignored; no box is 0."""
    return _present(boxed_answer(text), golds)


@SCORER_REGISTRY.register("ruler_all")
@SCORER_REGISTRY.register("ruler_all@1")
@asks_for_all
def ruler_all(text: str, golds: Sequence[str]) -> float:
    """RULER's string_match_all: the share of the gold answers that occur in the answer, letter case ignored (arXiv 2404.06654)."""
    return _present(strip_thinking(text), golds)


@SCORER_REGISTRY.register("ruler_part")
@SCORER_REGISTRY.register("ruler_part@1")
def ruler_part(text: str, golds: Sequence[str]) -> float:
    """RULER's string_match_part: 1 if any gold answer occurs in the answer, letter case ignored (arXiv 2404.06654)."""
    return float(_present(strip_thinking(text), golds) > 0)


@SCORER_REGISTRY.register("answer_em")
def answer_em(text: str, golds: Sequence[str]) -> float:
    """1 if the final answer (after **Answer:**, in a box, or the whole text) equals a gold answer in SQuAD's normal form; empty is 0."""
    said = normalize_squad(final_answer(text) or "")
    return float(bool(said) and any(said == normalize_squad(gold) for gold in golds))


@SCORER_REGISTRY.register("answer_f1")
def answer_f1(text: str, golds: Sequence[str]) -> float:
    """Best token F1 of the final answer with a gold answer (HotpotQA's: yes and no count whole)."""
    return best_of(token_f1, final_answer(text), golds)


def best_of(rule: Callable[[str, str], float], said: str | None, golds: Sequence[str]) -> float:
    """The best `rule(said, gold)` over the gold answers; 0 where `said` is None or no gold answer is given."""
    # As text: files have numbers among their gold answers, and not every loader mends them.
    return 0.0 if said is None else max((rule(said, str(gold)) for gold in golds), default=0.0)


def token_f1(said: str, gold: str) -> float:
    """HotpotQA's F1 of the words in SQuAD's normal form; a yes, no or noanswer on one side alone is 0 (arXiv 1809.09600)."""
    answer, wanted = normalize_squad(said), normalize_squad(gold)
    if answer != wanted and _CLOSED & {answer, wanted}:
        return 0.0
    return overlap_f1(answer.split(), wanted.split())


def overlap_f1(said: Collection[str], wanted: Collection[str]) -> float:
    """F1 of two collections of words: lists count a repeated word as often as both have it, sets once. Nothing in common is 0."""
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _present(said: str | None, golds: Sequence[str]) -> float:
    wanted = [gold.strip().lower() for gold in golds if gold.strip()]  # an empty gold answer occurs everywhere and says nothing
    if not said or not wanted:
        return 0.0
    return sum(gold in said.lower() for gold in wanted) / len(wanted)
