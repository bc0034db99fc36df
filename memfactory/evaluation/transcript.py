"""A trajectory as text that a person reads: question, each event, the memory after it, answer, reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Told(Protocol):
    """What is told of an attempt: a trajectory has it, and so has a line of the ledger."""

    @property
    def steps(self) -> Sequence[Sequence[Any]]:
        """(event, memory after it)."""

    @property
    def answers(self) -> list[str]:
        """One per question."""

    @property
    def report(self) -> Mapping[str, int]:
        """Counts of what happened on the way."""

    @property
    def error(self) -> str | None:
        """An infrastructure failure, or None."""


def questions_of(example: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(question, its accepted answers) of an example of any env; without gold the answers are []."""
    asked, golds = example.get("question", example.get("query", "")), example.get("answers", [])
    pairs = zip(asked, golds, strict=False) if isinstance(asked, list) else [(asked, golds)]
    return [(str(question), [gold] if isinstance(gold, str) else list(map(str, gold))) for question, gold in pairs]


def transcript(example: dict[str, Any], attempt: Told, reward: float | None) -> str:
    """One whole attempt; what is shown of the example is its question and its gold answers, if it has them."""
    lines = [line for asked, gold in questions_of(example) for line in (f"Question: {asked}", f"Gold: {' | '.join(gold)}")] + [""]
    for number, (event, memory) in enumerate(attempt.steps, 1):
        lines += [f"[{number}] reads:  {event}", f"    memory: {memory}"]
    lines += ["", f"Answer: {' | '.join(attempt.answers)}", "Reward: none" if reward is None else f"Reward: {reward:g}"]
    if attempt.report:
        lines.append("Report: " + ", ".join(f"{name} {number}" for name, number in sorted(attempt.report.items())))
    if attempt.error:
        lines.append(f"Lost to infrastructure: {attempt.error}")
    return "\n".join(lines)
