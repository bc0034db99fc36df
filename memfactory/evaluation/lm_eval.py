"""An evaluation in the shape of lm-evaluation-harness (0.4): `results_DATE.json` and `samples_SET_DATE.jsonl` of each model.

A metric is the set's scorer; its filters are `greedy` and `avg@K`, so that both kinds of attempts stand side by side as the harness's
filters do. What is scored, a task's question or a set's example, is a document. Numbers are the report's own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from memfactory.common.files import read_json, write_json, write_jsonl
from memfactory.common.parsing import final_answer
from memfactory.evaluation.compare import Row
from memfactory.evaluation.html.samples import about_examples
from memfactory.evaluation.jobs import load_scores
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt
from memfactory.evaluation.report import result_row

_Answer = tuple[str, float | None]
METRIC = "score"
"""What the reward of a set without a named scorer is called."""


def write_lm_eval(folder: Path) -> list[Path]:
    """Write `lm_eval/MODEL/` of an evaluation's folder; returns the results files, a model each."""
    models: dict[Path, list[Path]] = {}
    for job in sorted(folder.glob("*/*/job.json")):
        models.setdefault(job.parent.parent, []).append(job.parent)
    return [_write_model(folder / "lm_eval" / model.name, places) for model, places in models.items()]


def _write_model(target: Path, places: Sequence[Path]) -> Path:
    held = [_Held(place) for place in places]
    ended = [attempt.finished for one in held for attempt in one.scores.attempts.values()] or [0.0]
    date = datetime.fromtimestamp(max(ended), timezone.utc).strftime("%Y-%m-%dT%H-%M-%S.%f")
    hashes = {}
    for one in held:
        rows = one.samples()
        write_jsonl(target / f"samples_{one.name}_{date}.jsonl", rows)
        hashes[one.name] = _hash("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
    path = target / f"results_{date}.json"
    write_json(path, _results(held, hashes, min(ended), max(ended)))
    return path


def _results(held: Sequence[_Held], hashes: Mapping[str, str], first: float, last: float) -> dict[str, Any]:
    """The results file of one model's sets."""
    job, prints = held[0].job, held[0].prints
    generation = {"temperature": job["temperature"], "top_p": job["top_p"], "do_sample": bool(job["k"])}
    return {
        "results": {one.name: one.result() for one in held},
        "group_subtasks": {one.name: [] for one in held},
        "configs": {one.name: one.config(generation) for one in held},
        "versions": {one.name: job.get("versions", {}).get("memfactory") for one in held},
        "n-shot": {one.name: 0 for one in held},
        "higher_is_better": {one.name: {one.metric: True} for one in held},
        "n-samples": {one.name: {"original": one.original, "effective": len(one.scores.examples)} for one in held},
        "config": {
            "model": f"memfactory-{job['engine']}",
            "model_args": {"pretrained": job["model"], "agent": prints.get("agent", {}).get("type")},
            "model_sha": str(prints.get("model") or ""), "batch_size": None, "batch_sizes": [], "device": job["device"], "use_cache": None,
            "limit": job["limit"] or None, "bootstrap_iters": 0, "gen_kwargs": generation, "random_seed": job["seed"],
            "numpy_seed": job["seed"], "torch_seed": job["seed"], "fewshot_seed": job["seed"],
        },
        "git_hash": str(prints.get("code") or ""), "date": first, "transformers_version": job.get("versions", {}).get("transformers", ""),
        "task_hashes": dict(hashes), "model_source": "memfactory", "model_name": job["model_name"],
        "model_name_sanitized": held[0].place.parent.name, "system_instruction": None, "system_instruction_sha": None,
        "fewshot_as_multiturn": None, "chat_template": None, "chat_template_sha": None,
        "total_evaluation_time_seconds": f"{last - first:.3f}",
    }  # fmt: skip


class _Held:
    """A job's folder, read once."""

    def __init__(self, place: Path) -> None:
        self.place, self.job, self.scores = place, read_json(place / "job.json"), load_scores(place)
        path = place / "fingerprint.json"
        self.prints: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.name: str = place.name
        self.row: Row = result_row(self.job["model_name"], self.scores)
        self.metric: str = self.row.get("metric", METRIC)
        by_example = not self.scores.asked_in
        self.original = self.prints.get("data", {}).get("examples", len(self.scores.examples)) if by_example else len(self.scores.examples)

    def result(self) -> dict[str, Any]:
        """`metric,filter` and `metric_stderr,filter` of the attempts there are."""
        row = self.row
        found: dict[str, Any] = {"name": self.name, "alias": self.job["dataset"], "sample_len": row["n"]}
        whole = self.scores.greedy_mean.se if self.scores.coverage == 1 else math.nan
        pairs = [(GREEDY, row["greedy"], None if math.isnan(whole) else round(whole, 4))]
        pairs += [(f"avg@{row['k']}", row["avg_at_k"], row["se"])] if row["k"] else []
        for name, value, error in pairs:
            if value is None:  # nothing was scored
                continue
            found |= {f"{self.metric},{name}": value, f"{self.metric}_stderr,{name}": "N/A" if error is None else error}
        return found

    def config(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """A task's configuration as far as it is one of the harness's; the rest is its metadata."""
        job, prints = self.job, self.prints
        return {
            "task": self.name, "dataset_path": job["data_path"], "output_type": "generate_until", "num_fewshot": 0,
            "repeats": job["k"] or 1, "generation_kwargs": dict(generation),
            "metric_list": [{"metric": self.metric, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"env": prints.get("env"), "agent": prints.get("agent"), "data_sha256": prints.get("data", {}).get("sha256")},
        }  # fmt: skip

    def samples(self) -> list[dict[str, Any]]:
        """A row for each document and filter."""
        about = about_examples(self.place)
        ids = {q["id"]: (name, at) for name, held in about.items() for at, q in enumerate(held["questions"]) if "id" in q}
        rows = []
        for number, document in enumerate(self.scores.examples):
            example, at = ids.get(document, (document, None))
            asked = about.get(example, {}).get("questions", [])
            told = asked[at] if at is not None else asked[0] if len(asked) == 1 else {"question": [q["question"] for q in asked],
                                                                                     "answers": [q["answers"] for q in asked]}  # fmt: skip
            rows += [self._sample(number, document, told, kind, self._answers(example, at, kind)) for kind in self._kinds()]
        return rows

    def _kinds(self) -> list[str]:
        return [GREEDY, SAMPLED] if self.job["k"] else [GREEDY]

    def _answers(self, example: str, at: int | None, kind: str) -> list[_Answer]:
        """(reply, score) of each attempt; of an example with several questions the replies as a JSON list."""
        numbers = range(self.job["k"] if kind == SAMPLED else 1)
        found = [a for number in numbers if (a := self.scores.attempts.get((example, kind, number))) is not None]
        return [(_reply(attempt, at), _score(attempt, at)) for attempt in found]

    def _sample(
        self, number: int, name: str, told: Mapping[str, Any], kind: str, answers: list[tuple[str, float | None]]
    ) -> dict[str, Any]:
        question, golds = told.get("question", ""), told.get("answers", [])
        drawn = kind == SAMPLED
        prompt, target = _text(question), _text(golds[0] if len(golds) == 1 else golds)
        finals = [final_answer(reply) or "" for reply, _ in answers]
        scores = [0.0 if score is None else score for _, score in answers]  # what infrastructure lost counts as wrong, as in the report
        return {
            "doc_id": number, "doc": {"id": name, **told}, "target": target,
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"temperature": self.job["temperature"] if drawn else 0.0}}},
            "resps": [[reply for reply, _ in answers]], "filtered_resps": [finals] if drawn else finals,
            "filter": f"avg@{self.job['k']}" if drawn else GREEDY, "metrics": [self.metric], "doc_hash": _hash(_text(dict(told))),
            "prompt_hash": _hash(prompt), "target_hash": _hash(target), self.metric: sum(scores) / len(scores) if scores else 0.0,
        }  # fmt: skip


def _reply(attempt: Attempt, at: int | None) -> str:
    answers = attempt.answers
    if at is not None:
        return answers[at] if at < len(answers) else ""
    return answers[0] if len(answers) == 1 else _text(answers)


def _score(attempt: Attempt, at: int | None) -> float | None:
    if at is None:
        return attempt.score
    return attempt.questions[at] if at < len(attempt.questions) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
