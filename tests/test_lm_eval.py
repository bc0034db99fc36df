"""The export has the shape of lm-evaluation-harness 0.4: what its own readers look for, and the report's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_helpers import attempt, evaluation
from rich.console import Console

from memfactory.common.errors import UnknownNameError
from memfactory.common.files import read_json, read_jsonl
from memfactory.evaluation.config import EvalConfig
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Ledger
from memfactory.evaluation.orchestrator import report_folder

SHAPE = {
    "results": dict, "group_subtasks": dict, "configs": dict, "versions": dict, "n-shot": dict, "higher_is_better": dict,
    "n-samples": dict, "config": dict, "git_hash": str, "date": float, "transformers_version": str, "task_hashes": dict,
    "model_source": str, "model_name": str, "model_name_sanitized": str, "total_evaluation_time_seconds": str,
}  # fmt: skip
"""`EvalResults` of lm_eval/result_schema.py, 0.4.13, as far as it says anything of an evaluation that is not its own."""
SAMPLE = {
    "doc_id": int, "doc": dict, "target": str, "arguments": dict, "resps": list, "filtered_resps": list, "filter": str, "metrics": list,
    "doc_hash": str, "prompt_hash": str, "target_hash": str,
}  # fmt: skip


def exported(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(results, {set: samples}) of the model `new`, found as the harness finds them: by what is between the underscores."""
    report_folder(folder, "lm-eval", Console(quiet=True))
    (path,) = (folder / "lm_eval" / "new").glob("results_*.json")
    date = path.stem[path.stem.rfind("_") + 1 :]
    names = [file.name for file in path.parent.glob("samples_*.jsonl")]
    assert all(name.endswith(f"_{date}.jsonl") for name in names)
    return read_json(path), {name[name.find("_") + 1 : name.rfind("_")]: read_jsonl(path.parent / name) for name in names}


def test_results_of_tasks_and_sets_have_the_harness_s_shape_and_the_report_s_numbers(tmp_path: Path) -> None:
    results, samples = exported(evaluation(tmp_path, sets=["talks", "more_talks"], questions=4))
    assert {name: type(results[name]) for name in SHAPE} == SHAPE
    assert set(results["results"]) == set(results["configs"]) == set(results["n-samples"]) == set(samples) == {"talks", "more_talks"}
    row = next(r for r in read_json(tmp_path / "report.json")["results"] if (r["model"], r["dataset"]) == ("new", "talks"))
    assert results["results"]["talks"] == {
        "name": "talks", "alias": "talks", "sample_len": 12, "em_squad@1,greedy": row["greedy"], "em_squad@1_stderr,greedy": row["se"],
        "em_squad@1,avg@2": row["avg_at_k"], "em_squad@1_stderr,avg@2": row["se"],
    }  # fmt: skip
    assert results["higher_is_better"] == dict.fromkeys(samples, {"em_squad@1": True}) and results["n-shot"]["talks"] == 0
    assert results["n-samples"]["talks"] == {"original": 12, "effective": 12} and results["config"]["random_seed"] == 0
    assert results["versions"]["talks"] == "0.1.0" and results["date"] == 1.7e9 and results["total_evaluation_time_seconds"] == "1.000"


def test_samples_are_one_a_document_and_filter_and_average_to_the_results(tmp_path: Path) -> None:
    results, samples = exported(evaluation(tmp_path, questions=4))
    rows = samples["talks"]
    assert len(rows) == 12 * 2 and {name: type(rows[0][name]) for name in SAMPLE} == SAMPLE
    for kind in ("greedy", "avg@2"):
        scores = [row[metric] for row in rows if row["filter"] == kind for metric in row["metrics"]]
        assert sum(scores) / len(scores) == results["results"]["talks"][f"em_squad@1,{kind}"] == 0.75
    greedy, drawn = rows[:2]
    assert greedy["filtered_resps"] == ["beagle"] and drawn["filtered_resps"] == [["beagle", "beagle"]] and len(drawn["resps"][0]) == 2
    assert greedy["arguments"]["gen_args_0"]["arg_0"] == greedy["doc"]["question"] == "pet leo 0 ?" and greedy["target"] == "beagle"
    assert "abstain" not in {row["doc"]["id"] for row in rows if row["doc"]["abstain"]}  # those to abstain on are in no score


def test_a_set_without_questions_is_exported_example_by_example(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, task=False, questions=2)
    with Ledger(folder / "new" / "talks") as ledger:
        ledger.append([attempt("talks/1", SAMPLED, 0, None)])
    results, samples = exported(folder)
    held = results["results"]["talks"]
    assert held["score,greedy"] == 0.75 and held["score_stderr,greedy"] == "N/A" and held["score,avg@2"] == 0.625
    assert results["n-samples"]["talks"] == {"original": 4, "effective": 4}
    rows = samples["talks"]
    assert len(rows) == 8 and json.loads(rows[0]["arguments"]["gen_args_0"]["arg_0"]) == ["pet leo 0 ?", "pet leo 1 ?"]
    assert [row["score"] for row in rows if row["filter"] == "avg@2"] == [0.0, 0.5, 1.0, 1.0]  # what is lost counts as wrong
    assert rows[0]["filter"] == GREEDY and json.loads(rows[0]["resps"][0][0])[0].endswith("beagle")


def test_another_shape_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'lm-eval'\?"):
        EvalConfig(export="lm_eval")
