"""The harness scores through the agent's own runtime, never scores what a server lost, and makes nothing twice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from memfactory.common.errors import ConfigError
from memfactory.evaluation.harness import Scores, headline
from memfactory.evaluation.report import markdown, result_row, summary, table, write_results


def scores(sampled: list[list[float]], greedy: list[float]) -> Scores:
    return Scores("facts", [f"facts/{at}" for at in range(len(greedy))], sampled, [[g] for g in greedy])


def test_the_headline_is_default_then_answer_then_the_mean_of_the_stages() -> None:
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert headline({"memory": two, "default": one, "default/f1": two}) is one
    assert headline({"memory": two, "answer": one}) is one
    assert headline({"update": one, "extraction": two}).tolist() == [0.5, 0.0]


def test_nothing_that_pays_is_an_error() -> None:
    with pytest.raises(ConfigError, match="default/f1"):
        headline({"default/f1": torch.tensor([1.0])})


def test_what_infrastructure_lost_counts_as_wrong_and_is_shown_without_it_beside() -> None:
    row = result_row("base", scores([[1.0, math.nan], [0.0, 1.0]], [1.0, math.nan]))
    assert (row["avg_at_k"], row["greedy"], row["coverage"]) == (0.5, 0.5, 0.6667)
    assert (row["avg_at_k_completed_only"], row["greedy_completed_only"]) == (0.75, 1.0)


def test_a_report_of_one_question_has_null_for_what_one_question_cannot_tell(tmp_path: Path) -> None:
    results, paired = summary({"base": {"facts": scores([[1.0]], [1.0])}, "trained": {"facts": scores([[0.0]], [1.0])}})
    write_results(tmp_path, results, paired, {}, "# One")
    assert results[0]["se"] is None and paired[0]["ci_low"] is None and paired[0]["diff"] == -1.0 and paired[0]["verdict"] == "unknown"
    assert "–" in markdown(results, paired) and table(results, paired).row_count == 3
