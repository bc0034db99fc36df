"""Promise: the published records load as they are, with the published counts, and run end to end, by script and with a tiny model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tasks_helpers import gold_of, scripted

from memfactory.data.build import BuildConfig, build
from memfactory.engines.chat import Models
from memfactory.evaluation.harness import evaluate
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.ledger import Ledger
from memfactory.evaluation.questions import rows_of
from memfactory.evaluation.tasks.env import TaskEnv

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parents[2] / "shared" / "benchdata"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="the published records are not there")]

LME = {"temporal-reasoning": 3, "knowledge-update": 3, "multi-session": 3, "single-session-preference": 3, "single-session-user": 2,
       "single-session-assistant": 2}  # fmt: skip
FILES: dict[str, tuple[str, dict[str, int]]] = {
    "locomo/locomo10.json": ("locomo", {"1": 282, "2": 321, "3": 96, "4": 841, "5": 446}),
    "longmemeval/longmemeval_oracle16_reconstructed.json": ("longmemeval", LME),
    "longmemeval/lightmem_longmemeval_single.json": ("longmemeval", {"single-session-user": 1}),
    "longmemeval/memmachine_longmemeval_snippet.json": ("longmemeval", {"temporal-reasoning": 1}),
    "hotpotqa/hotpot_dev_distractor_200.json": ("hotpotqa", {"bridge": 137, "comparison": 63}),
    "hotpotqa/hf_form_20.json": ("hotpotqa", {"bridge": 14, "comparison": 6}),
    "memagent/derived_eval_50.json": ("hotpotqa", {"all": 32}),
    "memagent/derived_eval_fwe_16384.json": ("ruler_fwe", {"all": 8}),
    "2wikimultihop/2wiki_dev_100.json": ("2wiki", {"compositional": 45, "bridge_comparison": 29, "comparison": 16, "inference": 10}),
    "musique/musique_dev_100.json": ("musique", {"2-hop": 100}),
    "musique/musique_full_twins_4.jsonl": ("musique", {"2-hop": 8}),
    "memoryagentbench/factconsolidation_6k_slice.json": ("memoryagentbench", {"factconsolidation_sh_6k": 29, "factconsolidation_mh_6k": 6}),
    "babilong/babi_en/qa1_single-supporting-fact_test.txt": ("babilong", {"qa1": 1000}),
    "babilong/babi_en/qa2_two-supporting-facts_test.txt": ("babilong", {"qa2": 1000}),
    "babilong/babi_en/qa3_three-supporting-facts_test.txt": ("babilong", {"qa3": 1000}),
}
TOO_LONG = "longmemeval/lightmem_longmemeval_single.json"
"""115,000 words: minutes with a tiny model whose tokens are letters."""


def scores(env: TaskEnv, answer: Any) -> dict[bool, list[float]]:
    """{to abstain: headline scores} of an agent that answers by a function."""
    ledger = Ledger()
    evaluate(scripted(answer), Models({}), env, name="real", k=0, ledger=ledger)
    found: dict[bool, list[float]] = {False: [], True: []}
    for example in env.examples:
        attempt = ledger.attempts()[example["example_id"], "greedy", 0]
        for asked, score in zip(example["asked"], attempt.questions, strict=True):
            found[asked["abstain"]].append(score or 0.0)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_record_loads_and_is_scored(name: str) -> None:
    task, types = FILES[name]
    env = TaskEnv(str(DATA / name), None, task=task)
    assert dict(env.loaded.types) == types
    for example in env.examples:
        view = env.observe(example)
        assert view.context and view.events and len(view.questions) == len(example["asked"])
    gold, silent, never = scores(env, gold_of(env)), scores(env, lambda *_: ""), scores(env, lambda *_: "unknown")
    assert sum(gold[False]) / len(gold[False]) >= 0.99
    assert not any(silent[False]) and not any(silent[True]) and not any(never[False]) and all(never[True])
    assert len(never[True]) == {"locomo": 446, "musique": types.get("2-hop", 0) % 100 // 2}.get(task, 0)


def test_the_audits_label_errors_are_99_of_locomos_questions() -> None:
    env = TaskEnv(str(DATA / "locomo" / "locomo10.json"), None, task="locomo", mask=str(DATA / "locomo_audit" / "errors.json"))
    wrong = Counter(asked["label_error"] for example in env.examples for asked in example["asked"])
    assert sum(wrong.values()) - wrong[""] == 99 and wrong["HALLUCINATION"] == 33


@pytest.mark.parametrize("source", ["squad/squad_dev_slice.json", "hotpotqa/hotpot_dev_distractor_200.json"])
def test_rulers_question_answering_is_built_from_the_files(tmp_path: Path, source: str) -> None:
    name = "ruler_qa_1" if source.startswith("squad") else "ruler_qa_2"
    out = tmp_path / "qa.json"
    made = build(BuildConfig("qa", str(out), 6, tokens=12000, tokenizer=str(ROOT / "models" / "tiny"), source=[str(DATA / source)]))
    env = TaskEnv(str(out), None, task=name)
    assert made.number == 6 and made.most <= 12000 < 1.2 * made.mean
    assert all(asked["evidence"] for example in env.examples for asked in example["asked"])
    assert set(scores(env, gold_of(env))[False]) == {1.0}


@pytest.mark.parametrize("name", [name for name in FILES if name != TOO_LONG])
def test_a_tiny_model_runs_on_records_of_every_file(tmp_path: Path, name: str) -> None:
    task = FILES[name][0]
    bank = task in ("locomo", "longmemeval", "memoryagentbench")
    options = {"max_generate_length": 4} | ({} if bank else {"chunk_size": 3000})
    asked = {"task": task, "limit": 1, "session_words": 150}
    model = ROOT / "models" / ("tiny-bank" if bank else "tiny")
    found = run_job(
        Job("m", str(model), task, str(DATA / name), str(tmp_path), agent_options=options, env="task", env_options=asked, k=0, limit=1,
            threads=1, device="cpu")
    )  # fmt: skip
    assert found.coverage == 1 and found.about["metric"]
    (row,) = rows_of(tmp_path)
    assert row.score is not None and row.marks and row.answer is not None
