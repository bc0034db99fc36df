"""Promise: attempts that are mixed in one ledger were made by code that makes the same attempts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from memfactory.agents.build import build_agent, local_models, trained_as
from memfactory.common.registry import ENV_REGISTRY
from memfactory.engines.load import load_model
from memfactory.evaluation.fingerprint import ATTEMPTS_FORMAT
from memfactory.evaluation.harness import evaluate

ROOT = Path(__file__).resolve().parent.parent

PINNED = {
    ("tiny", "longcontext", "tiny/eval.json"): "aed7f55cc2f3",
    ("tiny-bank", "memory_bank", "tiny_bank/eval.json"): "7481b353c3b8",
    ("tiny-rerank", "rerank_bank", "tiny_bank/eval.json"): "141a023a72f6",
}
"""(base, env, data): the first digits of the hash of what its greedy attempts at two examples said and scored."""


@pytest.mark.slow
@pytest.mark.parametrize("case", PINNED, ids=lambda case: case[0])
def test_the_number_in_the_fingerprint_stands_for_these_attempts(case: tuple[str, str, str]) -> None:
    base, env_type, data = case
    folder = ROOT / "models" / base
    model, tokenizer = load_model(str(folder))
    about = trained_as(str(folder))
    agent = build_agent(about["agent"], tokenizer, "cpu", about["agent_options"])
    env = ENV_REGISTRY.get(env_type)(str(ROOT / "datas" / data), tokenizer)
    scores = evaluate(agent, local_models(model, tokenizer), env, name="pinned", k=0, limit=2)
    kept = [[attempt.answers, attempt.score] for _, attempt in sorted(scores.attempts.items())]
    made = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:12]
    assert made == PINNED[case], (
        f"Attempts of {base} are no longer what ATTEMPTS_FORMAT {ATTEMPTS_FORMAT} stands for ({made}). If it is meant, "
        "raise the number in memfactory/evaluation/fingerprint.py, so that old ledgers are not mixed with new attempts, and pin this hash."
    )
