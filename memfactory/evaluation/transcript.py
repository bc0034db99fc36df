"""A trajectory as text that a person reads: question, each event, the memory after it, answer, reward."""

from __future__ import annotations

from typing import Any

from memfactory.common.types import Trajectory


def transcript(example: dict[str, Any], trajectory: Trajectory, reward: float) -> str:
    """One whole trajectory; what is shown of the example is its question and its gold answers, if it has them."""
    lines = [f"Question: {example.get('question', '')}", f"Gold: {' | '.join(example.get('answers', []))}", ""]
    for number, (event, memory) in enumerate(trajectory.steps, 1):
        lines += [f"[{number}] reads:  {event}", f"    memory: {memory}"]
    lines += ["", f"Answer: {' | '.join(trajectory.answers)}", f"Reward: {reward:g}"]
    if trajectory.report:
        lines.append("Report: " + ", ".join(f"{name} {number}" for name, number in sorted(trajectory.report.items())))
    if trajectory.error:
        lines.append(f"Lost to infrastructure: {trajectory.error}")
    return "\n".join(lines)
