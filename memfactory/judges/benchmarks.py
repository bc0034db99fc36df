"""Scorers of the benchmarks that need more than an answer and its golds, or that no paper gives: each with a version in its key.

A rule that takes `question` or `labels` is handed them by `mark`: the question's text, and what the benchmark says can be
answered at all. Knows no benchmark's file and no average.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache

from memfactory.common.parsing import final_answer, normalize_squad
from memfactory.common.registry import SCORER_REGISTRY

ABSTAIN = "abstain@1"
"""The rule that tells an abstention from an answer."""

_NOT_KNOWN = {"unknown", "not known", "noanswer", "no answer", "unanswerable", "no information"}
"""What is an abstention if it is all that is said, in SQuAD's normal form."""
_NOT_SAID = re.compile(
    r"no information (?:is )?(?:available|provided|given|about|on)|(?:not|never|n['’]t|no) (?:been |explicitly |ever )?"
    r"(?:mention(?:ed)?|stated?|specified|provided|discussed?)\b|not enough information|insufficient information"
    r"|(?:do not|don['’]t|does not|doesn['’]t|did not|didn['’]t) (?:know|say|mention|contain|provide|specify)\b"
    r"|(?:cannot|can not|can['’]t|could not|couldn['’]t) (?:be )?(?:determined?|answer(?:ed)?|known|tell)\b",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\(([a-z])\)|(?<![\w'’])([A-Z])(?=[).:,]|\s*$)|^\s*([a-z])(?=[).:,]|\s*$)")
"""An option: (c) anywhere; C before a bracket, a full stop, a colon, a comma or the end; c, so, where the answer begins with it."""


def mark(name: str, text: str, golds: Sequence[str], question: str = "", labels: Sequence[str] = ()) -> float:
    """What the scorer called `name` gives an answer; it is handed `question` and `labels` if it takes them."""
    rule = SCORER_REGISTRY.get(name)
    given = {"question": question, "labels": labels}
    return rule(text, golds, **{key: given[key] for key in _takes(rule)})


@cache
def _takes(rule: Callable) -> tuple[str, ...]:
    parameters = inspect.signature(rule).parameters
    return tuple(key for key in ("question", "labels") if key in parameters)


@SCORER_REGISTRY.register("sub_em_oneway@1")
def sub_em_oneway(text: str, golds: Sequence[str]) -> float:
    """1 if a gold answer stands in the final answer, in SQuAD's normal form and as whole words.

    One way only: MemAgent's public code also takes an answer that stands in the gold, and so an empty one (arXiv 2507.02259).
    """
    said = f" {normalize_squad(final_answer(text) or '')} "
    return float(any(wanted in said for gold in golds if (wanted := f" {normalize_squad(str(gold))} ").strip()))


@SCORER_REGISTRY.register(ABSTAIN)
def abstain(text: str, golds: Sequence[str]) -> float:
    """1 if the final answer says that it cannot be known: all of it is `unknown` or the like, or it says `not mentioned` or the like.

    Ours: wider than LoCoMo's two phrases (`abstain_locomo@1`), blind to the gold. Silence is no abstention.
    """
    said = final_answer(text) or ""
    return float(normalize_squad(said) in _NOT_KNOWN or bool(_NOT_SAID.search(said)))


@SCORER_REGISTRY.register("babilong@1")
def babilong(text: str, golds: Sequence[str], labels: Sequence[str] = (), question: str = "") -> float:
    """BABILong's accuracy (arXiv 2406.10149): 1 if the first sentence names the gold answer and no other label of the task.

    Labels that stand in the question do not count. A gold answer of several, between commas, is right if just these are named.
    """
    said = (final_answer(text) or "").lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    asked = question.lower()
    found = {label for label in map(str.lower, labels) if label in said and label not in asked}
    return float(any(found == _parts(gold) for gold in golds))


def _parts(gold: str) -> set[str]:
    """The answers in one: a list of things has commas, `n,w` of qa19 is one answer."""
    wanted = str(gold).lower()
    return set(wanted.split(",")) if "," in wanted and len(wanted) > 3 else {wanted}


@SCORER_REGISTRY.register("option_set@1")
def option_set(text: str, golds: Sequence[str]) -> float:
    """1 if the options that the final answer names are just the gold one, such as `(c)`: to name two is wrong (PersonaMem's rule)."""
    said = final_answer(text) or ""
    named = {next(filter(None, groups)).lower() for groups in _OPTION.findall(said)}
    wanted = [set(re.findall(r"[a-z]", str(gold).lower())) for gold in golds]
    return float(bool(named) and named in wanted)
