"""What an evaluation cost, per question: tokens, calls and seconds, writing and answering apart. Knows only the ledger's lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfactory.evaluation.harness import Scores
from memfactory.evaluation.record import ANSWERING, WRITING

TOGETHER = "writing and answering"
"""Of ledgers that did not tell the two apart."""
_MEASURES = ("calls", "prompt_tokens", "completion_tokens", "seconds")


def cost_rows(scores: Mapping[str, Mapping[str, Scores]]) -> list[dict[str, Any]]:
    """A row for each stage and one (`stage` "") for writing and for answering, of every model on every set of {model: {set: scores}}.

    Measures are means per question over the attempts that were not lost, greedy and sampled: what was written once for several
    questions is shared out among them. `seconds` are those from asking a model to having its reply, summed: with many requests at a time
    they are not the wall clock's.
    """
    datasets = dict.fromkeys(name for sets in scores.values() for name in sets)
    return [row for dataset in datasets for model, sets in scores.items() if dataset in sets for row in _rows(model, sets[dataset])]


def _rows(model: str, scores: Scores) -> list[dict[str, Any]]:
    made = [attempt for attempt in scores.attempts.values() if attempt.status != "failed"]
    questions = sum(max(len(attempt.answers), 1) for attempt in made)
    sums: dict[tuple[str, str], list[float]] = {}
    for attempt in made:
        parts = attempt.cost or {TOGETHER: {"": [attempt.turns, attempt.prompt_tokens, attempt.completion_tokens]}}
        for part, stages in parts.items():
            for stage, measures in stages.items():
                for key in {(part, ""), (part, stage)}:
                    known = sums.setdefault(key, [0.0] * len(measures))
                    sums[key] = [a + b for a, b in zip(known, measures, strict=False)]
    order = [WRITING, ANSWERING, TOGETHER]
    return [
        {"dataset": scores.dataset, "model": model, "part": part, "stage": stage, "attempts": len(made), "questions": questions}
        | {name: round(value / questions, 3) for name, value in zip(_MEASURES, values, strict=False)}
        for (part, stage), values in sorted(sums.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
