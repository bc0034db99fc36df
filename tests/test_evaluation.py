"""The harness scores through inference, never scores what a server lost, and what was scored is read again, not made again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.common.errors import ConfigError
from memfactory.common.files import write_json
from memfactory.data.generators.synth_facts import synth_facts
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.evaluation.compare import comparison, score_model
from memfactory.evaluation.harness import Scores, headline
from memfactory.evaluation.report import markdown, result_row, table, write_report


def scores(sampled: list[list[float]], greedy: list[float]) -> Scores:
    return Scores("facts", sampled, [[g] for g in greedy], [])


def test_the_headline_is_default_then_answer_then_the_mean_of_the_stages() -> None:
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert headline({"memory": two, "default": one, "default/f1": two}) is one
    assert headline({"memory": two, "answer": one}) is one
    assert headline({"update": one, "extraction": two}).tolist() == [0.5, 0.0]


def test_nothing_that_pays_is_an_error() -> None:
    with pytest.raises(ConfigError, match="default/f1"):
        headline({"default/f1": torch.tensor([1.0])})


def test_scores_survive_json_with_their_lost_attempts() -> None:
    made = scores([[1.0, math.nan], [0.0, 1.0]], [1.0, math.nan])
    back = Scores.from_dict(made.to_dict())
    assert repr(back.sampled) == repr(made.sampled) and repr(back.greedy) == repr(made.greedy)
    assert result_row("base", back)["unscorable"] == 2


def test_a_report_of_one_question_has_null_for_what_one_question_cannot_tell(tmp_path: Path) -> None:
    results, paired = comparison({"facts": scores([[1.0]], [1.0])}, {"facts": scores([[0.0]], [1.0])})
    write_report(tmp_path, results, paired, {}, "# One")
    assert results[0]["se"] is None and paired[0]["ci_low"] is None and paired[0]["diff"] == -1.0
    assert "–" in markdown(results, paired) and table(results, paired).row_count == 3


def test_what_was_scored_is_not_scored_again_unless_the_data_changed(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny_qwen3(), tmp_path / "facts.json"
    made = []
    for seed in (1, 1, 2):
        write_json(data, synth_facts(2, seed=seed, chunks=(1,)))
        env = LongcontextEnv(str(data), tiny_tokenizer)
        options = {"chunk_size": 16, "max_generate_length": 4}
        made.append(score_model("base", model, tiny_tokenizer, "memagent", options, {"facts": env}, tmp_path, k=2)["facts"])
        made[-1] = (made[-1], "evaluate base" in capsys.readouterr().err)
    assert [scored for _, scored in made] == [True, False, True]
    assert made[0][0].sampled == made[1][0].sampled
    assert (tmp_path / "trajectories" / "base-facts.txt").read_text().startswith("Question: ")
