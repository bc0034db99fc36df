"""An evaluation's folder without a model: ledgers as `memfactory eval` leaves them, to make reports of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memfactory.common.files import write_json
from memfactory.evaluation.jobs import Job
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger

COST = {"writing": {"extraction": [2, 100, 20, 0.5], "update": [2, 60, 10, 0.25]}, "answering": {"answer": [2, 40, 6, 0.2]}}


def attempt(example: str, kind: str, number: int, score: float | None, questions: int = 2, **given: Any) -> Attempt:
    """An attempt at an example whose questions all got `score`; greedy ones keep two steps of a bank."""
    made = questions if score is not None else 0
    told: dict[str, Any] = {
        "questions": [score] * made, "marks": {"em_squad@1": [score] * made, "abstain@1": [0.0] * made},
        "answers": ["pet leo . **Answer:** beagle"] * made, "memory": "0: pet leo beagle\n1: city ann rome",
        "report": {"facts": 3}, "cost": COST if score is not None else {}, "turns": 6, "prompt_tokens": 200, "completion_tokens": 36,
        "finished": 1.7e9 + number, "error": None if score is not None else "TimeoutError: no reply",
    }  # fmt: skip
    if kind == GREEDY:
        told |= {
            "steps": [["Date: day 1\nann: pet leo mouse .", "0: pet leo mouse"],
                      ["ann: pet leo beagle .", "0: pet leo beagle\n1: city ann rome"]],
            "given": [["0: pet leo beagle", "1: city ann rome"]] * questions,
        }  # fmt: skip
    return Attempt(example, kind, number, "ok" if score is not None else "failed", score, **(told | given))


def evaluation(
    folder: Path, models: Sequence[str] = ("base", "new"), sets: Sequence[str] = ("talks",), *, examples: int = 4, k: int = 2,
    questions: int = 2, task: bool = True, **given: Any,
) -> Path:  # fmt: skip
    """Ledgers of every model on every set: the first model is right at one example of four, the others at all but one of four."""
    for number, model in enumerate(models):
        for dataset in sets:
            place = folder / model / dataset
            names = [f"{dataset}/{at}" for at in range(examples)]
            job = Job(model, f"models/{model}", dataset, f"datas/{dataset}.json", str(place), env="task" if task else "memory_bank", k=k)
            write_json(place / "job.json", asdict(job) | {"examples": names, "versions": {"memfactory": "0.1.0", "torch": "2"}})
            write_json(place / "fingerprint.json", {
                "data": {"sha256": "abc", "examples": examples}, "env": {"type": "task"}, "model": model * 9,
                "agent": {"type": "memory_r1_agent", "near": 3}, "prompts": "p", "code": "c",
            })  # fmt: skip
            asked = {name: [_question(name, at, task) for at in range(questions)] for name in names}
            write_json(place / "examples.json", {name: {"questions": rows} for name, rows in asked.items()})
            if task:
                about = {"task": dataset, "headline": "em_squad@1", "beside": [], "names": {"1": "multi-hop"}, "repaired": {}}
                write_json(place / "questions.json", about | {"examples": asked})
            with Ledger(place) as ledger:
                for at, name in enumerate(names):
                    score = float(at % 4 == 0) if number == 0 else float(at % 4 != 0)
                    ledger.append([attempt(name, GREEDY, 0, score, questions, **given)])
                    ledger.append([attempt(name, SAMPLED, n, score, questions, **given) for n in range(k)])
    return folder


def _question(name: str, at: int, task: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {"question": f"pet leo {at} ?", "answers": ["beagle"]}
    more = {"id": f"{name}/q{at}", "type": "12"[at % 2], "cluster": name, "abstain": at == 3, "scorer": "em_squad@1", "evidence": ["D1:1"],
            "date": "", "labels": [], "label_error": ""}  # fmt: skip
    return asked | (more if task else {})
