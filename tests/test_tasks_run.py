"""Promise: `memfactory eval --tasks` scores by question and by type, tells abstention apart, and keeps what scoring anew needs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tasks_helpers import DIALOG, Scripted, file_of, gold_of, locomo

from memfactory.cli import main
from memfactory.common.errors import ConfigError, DataError, UserError
from memfactory.common.files import read_json, write_json
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.engines.chat import Models
from memfactory.evaluation import jobs as jobs_module
from memfactory.evaluation.by_type import all_type_rows, interval_of, task_notes, type_markdown, type_rows, type_table
from memfactory.evaluation.compare import paired_rows
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job, load_scores, run_job
from memfactory.evaluation.ledger import Ledger
from memfactory.evaluation.questions import read_questions, rows_of
from memfactory.evaluation.report import result_row
from memfactory.evaluation.tasks.env import TaskEnv
from memfactory.judges.benchmarks import mark

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "models" / "tiny-bank")
Answer = Callable[[str, int], str]

pytestmark = pytest.mark.usefixtures("forgotten_parts")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """Evaluate an agent that answers by a function on LoCoMo's two small conversations, without a model."""
    monkeypatch.setattr(jobs_module, "models_of", lambda *_: Models({}))
    write_json(tmp_path / "errors.json", [{"question_id": "locomo_0_qa4", "error_type": "TEMPORAL_ERROR"}])
    file_of(tmp_path, "locomo")

    def go(answer: Answer | None = None, folder: str = "out", **changes: Any) -> Scores:
        options = {"task": "locomo"} | changes.pop("env_options", {})
        env = TaskEnv(str(tmp_path / "locomo.json"), None, **options)
        AGENT_REGISTRY._parts["plays"] = type("Plays", (Scripted,), {"answer": staticmethod(answer or gold_of(env))})
        job = Job(
            "m", MODEL, "locomo", str(tmp_path / "locomo.json"), str(tmp_path / folder), "plays", env="task", env_options=options, k=0
        )
        return run_job(replace(job, **changes))

    return go


SAID = ["cats, dogs", "May", "Yes", "three", "unknown", "not mentioned", "a cat"]
"""What one agent says to each of a conversation's seven questions: .4 or so of category 2, and it abstains once too often."""


def test_scores_are_by_question_with_types_and_clusters_and_abstention_apart(run: Any, tmp_path: Path) -> None:
    scores = run(lambda _, number: SAID[number])
    assert scores.examples[:2] == ["conv-1/0", "conv-1/1"] and len(scores.examples) == 10
    assert scores.clusters == ["conv-1"] * 5 + ["conv-2"] * 5 and scores.types == ["1", "2", "3", "4", "4"] * 2
    assert [row[0] for row in scores.greedy[:5]] == pytest.approx([1, 0.5, 1, 0, 0]) and scores.k == 0
    assert scores.abstention is not None and [row[0] for row in scores.abstention.greedy] == [1, 0, 1, 0]
    row = result_row("m", scores)
    assert (row["n"], row["greedy"], row["metric"]) == (10, 0.5, "f1_locomo@1")
    assert (row["abstention_n"], row["abstention_recall"], row["abstention_precision"]) == (4, 0.5, 0.5)
    assert row["overall"] == pytest.approx((2.5 + 1) / 7, abs=1e-4)
    notes = " ".join(task_notes("m", scores))
    assert "2 x answer that is a number made a text" in notes and "50.0% abstained" in notes and "would be 0.5000" in notes


def test_gold_wins_silence_loses_and_always_to_abstain_gets_the_share_of_abstentions(run: Any) -> None:
    gold, silent, never = run(), run(lambda *_: "", "silent"), run(lambda *_: "not mentioned", "never")
    assert gold.greedy_mean.value >= 0.99 and gold.about["abstention_recall"] == gold.about["abstention_precision"] == 1
    assert silent.greedy_mean.value == 0 == silent.about["abstention_recall"] and silent.about["abstention_precision"] is None
    assert never.greedy_mean.value == 0 and never.about["abstention_recall"] == 1
    assert never.about["overall"] == never.about["abstention_precision"] == 4 / 14


def test_the_folder_keeps_what_scoring_anew_needs(run: Any, tmp_path: Path) -> None:
    run(lambda _, number: SAID[number])
    rows = rows_of(tmp_path / "out")
    asked = read_questions(tmp_path / "out")
    assert asked is not None and asked.task == "locomo" and asked.names["1"] == "multi-hop" and len(asked.all()) == len(rows) == 14
    for row in rows:
        assert row.score == pytest.approx(mark(row.asked.scorer, row.answer or "", row.asked.answers, row.asked.question, row.asked.labels))
        for name, score in row.marks.items():
            assert score is None or score == pytest.approx(mark(name, row.answer or "", row.asked.answers, row.asked.question))
    assert {row.asked.cluster for row in rows} == {"conv-1", "conv-2"} and rows[0].asked.evidence == ["D1:1"]


def test_what_was_lost_to_infrastructure_counts_as_wrong_and_is_told(run: Any, tmp_path: Path) -> None:
    run()
    with Ledger(tmp_path / "out") as ledger:
        lost = next(attempt for attempt in ledger.attempts().values() if attempt.example == "conv-2")
        ledger.append([replace(lost, status="failed", score=None, questions=[], marks={}, answers=[], error="down")])
    scores = load_scores(tmp_path / "out")
    assert scores.coverage == 0.5 and result_row("m", scores)["greedy"] == 0.5 and scores.greedy_mean.n == 5
    assert "50.0% of the attempts" in scores.lost and scores.about["overall"] == 0.5
    assert [row.score for row in rows_of(tmp_path / "out") if row.asked.example == "conv-2"] == [None] * 7
    assert run().coverage == 1  # it is made again


def test_sampled_attempts_are_averaged_question_by_question(run: Any) -> None:
    counts: dict[tuple[str, int], int] = {}

    def answer(example: str, number: int) -> str:
        counts[example, number] = counts.get((example, number), 0) + 1
        return "cats" if number == 4 and counts[example, number] % 2 else "unknown"

    scores = run(answer, k=2)
    assert scores.k == 2 and len(scores.sampled) == 10 and all(len(row) == 2 for row in scores.sampled)
    (row,) = [row for row in type_rows("m", scores) if row["type"] == "4"]
    assert row["n"] == 4 and 0 < row["score"] < 0.5


# The table by type


def test_the_types_have_a_row_each_with_their_true_names(run: Any) -> None:
    scores = run(lambda _, number: SAID[number])
    rows = type_rows("m", scores)
    assert [(row["type"], row["name"], row["n"], row["score"]) for row in rows] == [
        ("1", "multi-hop", 2, 1), ("2", "temporal", 2, 0.5), ("3", "open-domain", 2, 1), ("4", "single-hop", 4, 0),
        ("to abstain on", "", 4, 0.5),
    ]  # fmt: skip
    assert "| locomo | m | 2 temporal | 2 | 0.500 |" in type_markdown(rows)
    shown = Console(file=io.StringIO(), width=120)
    shown.print(type_table(rows))
    assert "single-hop" in shown.file.getvalue()  # type: ignore[attr-defined]
    assert all_type_rows({"m": {"locomo": scores}}) == rows
    assert all_type_rows({"m": {"d": Scores("d", ["a"], [[1.0]], [[1.0]])}}) == []


def test_the_interval_is_over_clusters() -> None:
    mean, low, high = interval_of([[1.0], [1.0], [0.0], [0.0]], ["a", "a", "b", "b"])
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # two clusters that say the opposite say nothing
    alone = interval_of([[0.2], [0.4], [0.6], [0.8]], ["a", "b", "c", "d"])
    assert alone == pytest.approx((0.5, 0.0891, 0.9109), abs=1e-4)  # Student's, 3 degrees of freedom: 0.5 -+ 3.1824 * 0.1291
    assert interval_of([[1.0]], ["a"])[0] == 1 and interval_of([[1.0]], ["a"])[1] != interval_of([[1.0]], ["a"])[1]
    assert interval_of([], [])[0] != 0
    assert all(map(math.isnan, interval_of([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])[1:])), "no spread is not certainty"
    assert interval_of([[1.0]] * 5, list("abcde")) == (1.0, pytest.approx(0.5655, abs=1e-4), 1.0), "Wilson's: five of five is not certainty"
    assert interval_of([[0.0], [0.0], [1.0], [0.0]], list("abcd"))[1:] == (pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4))


def test_two_models_are_paired_by_question(run: Any) -> None:
    row = next(row for row in paired_rows("a", run(lambda *_: "", "a"), "b", run(folder="b")) if row["metric"] == "greedy")
    assert row["n"] == 10 and row["diff"] == 1 and row["verdict"] == "better"


def test_the_score_is_given_with_and_without_label_errors(run: Any, tmp_path: Path) -> None:
    scores = run(lambda _, number: SAID[number], env_options={"mask": str(tmp_path / "errors.json")})
    assert scores.greedy_mean.value == pytest.approx(0.5)
    assert (scores.about["label_errors"], scores.about["without_label_errors"]) == (1, pytest.approx(5 / 9))
    assert any("0.5556 without 1 questions" in note for note in task_notes("m", scores))


def test_another_limit_on_conversations_is_another_evaluation_and_resuming_is_not(run: Any) -> None:
    first = run(env_options={"limit": 6})
    assert len(first.examples) + len(first.abstention.examples) == 6
    assert run(env_options={"limit": 6}).greedy == first.greedy
    with pytest.raises(ConfigError, match=r"env\.limit: 6 -> 7"):
        run(env_options={"limit": 7})
    with pytest.raises(ConfigError, match=r"env\.instruction: 'Answer in a few words.* -> ''"):
        run(env_options={"limit": 6, "instruction": ""})


def test_a_folder_that_is_no_tasks_says_so(tmp_path: Path) -> None:
    assert read_questions(tmp_path) is None
    with pytest.raises(DataError, match="holds no questions.json"):
        rows_of(tmp_path)
    write_json(tmp_path / "questions.json", {"task": "x"})
    with pytest.raises(DataError, match="questions.json is not what"):
        read_questions(tmp_path)


# The command line


def asked(folder: Path, **options: Any) -> EvalConfig:
    return EvalConfig(**({"models": [MODEL], "tasks": [f"locomo={file_of(folder, 'locomo')}"]} | options))


def test_tasks_become_jobs_beside_data_sets(tmp_path: Path) -> None:
    two = tmp_path / "two.json"
    write_json(two, [locomo("conv-9")])
    tasks = [f"locomo={file_of(tmp_path, 'locomo')}", f"locomo={two}", f"synth_dialog={file_of(tmp_path, 'synth_dialog')}"]
    options = {"types": ["1"], "limit": 3, "shuffle_seed": 4, "task_options": "{}"}
    jobs, missing = jobs_of(asked(tmp_path, tasks=tasks, datasets=[str(ROOT / "datas" / "tiny" / "eval.json")], **options))
    assert [(job.dataset, job.env) for job in jobs] == [
        ("eval", "longcontext"), ("locomo-locomo", "task"), ("locomo-two", "task"), ("synth_dialog", "task")
    ]  # fmt: skip
    kept = {"types": ["1"], "limit": 3, "shuffle_seed": 4, "mask": "", "session_words": 0, "instruction": None, "options": {}}
    assert not missing and jobs[1].env_options == {"task": "locomo"} | kept
    assert [job.dataset for job in jobs_of(asked(tmp_path))[0]] == ["locomo"]  # no published set is looked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["locomoo=x.json"]}, "task 'locomoo'.*Did you mean 'locomo'.*memfactory list"),
        ({"tasks": ["locomo=nowhere.json"]}, "--tasks locomo: no such file nowhere.json"),
        ({"tasks": ["locomo"]}, "--tasks locomo: which file.*locomo=datas/locomo.json"),
        ({"mask": "nowhere.json"}, "--mask: no such file nowhere.json"),
        ({"tasks": [], "types": ["1"]}, "--types is for --tasks"),
        ({"tasks": [], "instruction": ""}, "--instruction is for --tasks"),
        ({"task_options": "[1]"}, "--task_options"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs_of(asked(tmp_path, **options))


def test_list_shows_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert (
        re.search(r"task\n  2wiki +2WikiMultiHopQA.*\n +aliases='auto'\n  babilong", shown)
        and "ruler_niah_multikey_3" in shown
        and "sub_em_oneway@1" in shown
    )


# The page on adding a task


def test_the_task_of_the_documentation_works_as_it_stands(tmp_path: Path, run: Any) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "my_task.py").write_text(code, encoding="utf-8")
    easy, hard = {"ask": "What has Ann?", "golds": ["a cat"], "kind": "easy"}, {"ask": "Who has a dog?", "golds": [], "kind": "hard"}
    page = {"page": "Ann has a cat.", "questions": [easy, hard]}
    write_json(tmp_path / "trivia.json", [page])
    data, plugins = str(tmp_path / "trivia.json"), [str(tmp_path / "my_task.py")]
    job = Job("m", MODEL, "trivia", data, str(tmp_path / "t"), "plays", env="task", env_options={"task": "trivia"}, k=0, plugins=plugins)
    AGENT_REGISTRY._parts["plays"] = type("Plays", (Scripted,), {"answer": staticmethod(lambda *_: "A cat")})
    scores = run_job(job)
    assert scores.greedy == [[1.0]] and scores.about["abstention_recall"] == 0
    assert rows_of(tmp_path / "t")[0].marks == {"abstain@1": 0, "em_squad@1": 1, "f1_squad@1": 1, "starts@1": 1}
    write_json(tmp_path / "trivia.json", [page, {"questions": []}])
    with pytest.raises(DataError, match="record 1: `page` must be a text"):
        TaskEnv(str(tmp_path / "trivia.json"), None, task="trivia")


@pytest.mark.slow
def test_the_command_runs_to_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "dialogs.json", [DIALOG, DIALOG | {"dialog_id": "d2"}])
    words = ["eval", "--models", MODEL, "--tasks", f"synth_dialog={tmp_path / 'dialogs.json'}", "--k", "0", "--gpus", "none"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    report = read_json(tmp_path / "out" / "report.json")
    assert report["results"][0]["metric"] == "em_squad@1" and report["results"][0]["abstention_n"] == 2
    assert [row["type"] for row in report["by_type"]] == ["plain", "to abstain on"]
    assert "## By type of question" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Score by type of question" in capsys.readouterr().out
