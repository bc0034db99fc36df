"""Sample pages as plain dicts: of the attempts whose steps the ledger kept, what was told, the memory after each, what was asked.

The diffs are of whole memories; how much of them is shown is the page's affair. Knows no markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from memfactory.common.files import read_json
from memfactory.common.parsing import normalize_squad
from memfactory.evaluation.html.diffs import bank_parts, items_of, text_parts
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt
from memfactory.evaluation.questions import FILE as QUESTIONS
from memfactory.evaluation.questions import read_questions

Sample = dict[str, Any]
Attempts = Mapping[tuple[str, str, int], Attempt]


def samples_of(folder: Path, job: Mapping[str, Any], attempts: Attempts, most: int) -> list[Sample]:
    """The first `most` examples of a job's folder whose greedy attempt the ledger kept for people."""
    about = about_examples(folder)
    kept = [(at, attempts[name, GREEDY, 0]) for at, name in enumerate(job["examples"]) if (name, GREEDY, 0) in attempts]
    told = [attempt for at, attempt in kept if attempt.steps or attempt.given or at < job.get("shown", 0)]
    return [_sample(job, attempt, about.get(attempt.example, {}), attempts) for attempt in told[:most]]


def about_examples(folder: Path) -> dict[str, dict[str, Any]]:
    """{example: {"start", "questions"}} as far as the folder says: those of before have no `examples.json`."""
    about: dict[str, dict[str, Any]] = read_json(folder / "examples.json") if (folder / "examples.json").is_file() else {}
    asked = read_questions(folder) if (folder / QUESTIONS).is_file() else None
    if asked is not None:
        for name, rows in asked.examples.items():
            about.setdefault(name, {})["questions"] = [
                {"question": q.question, "answers": q.answers, "type": asked.names.get(q.type, q.type), "id": q.id, "abstain": q.abstain,
                 "label_error": q.label_error, "scorer": q.scorer, "evidence": q.evidence}
                for q in rows
            ]  # fmt: skip
    return about


def _sample(job: Mapping[str, Any], attempt: Attempt, about: Mapping[str, Any], attempts: Attempts) -> Sample:
    others = [a for number in range(job["k"]) if (a := attempts.get((attempt.example, SAMPLED, number))) is not None]
    return {
        "model": job["model_name"], "dataset": job["dataset"], "example": attempt.example, "score": attempt.score,
        "sampled": [other.score for other in others], "status": attempt.status, "error": attempt.error, "report": attempt.report,
        "cost": attempt.cost, "tokens": [attempt.turns, attempt.prompt_tokens, attempt.completion_tokens],
        "steps": steps_of(attempt.steps, about.get("start", "")), "memory": attempt.memory or "",
        "questions": _questions(attempt, about.get("questions", []), others),
    }  # fmt: skip


def steps_of(steps: Sequence[Sequence[str]], start: str) -> list[dict[str, Any]]:
    """[{"event", "bank": True, "items": [(kind, id, parts)]} or {"event", "bank": False, "parts"}] of [event, memory after it] pairs."""
    memories = [start, *(memory for _, memory in steps)]
    banks = [items_of(memory) for memory in memories]
    shown: list[dict[str, Any]] = []
    for at, (event, _) in enumerate(steps):
        old, new = banks[at], banks[at + 1]
        if any(banks) and None not in banks and old is not None and new is not None:
            shown.append({"event": event, "bank": True, "items": bank_parts(old, new)})
        else:
            shown.append({"event": event, "bank": False, "parts": text_parts(memories[at], memories[at + 1])})
    return shown


def _questions(attempt: Attempt, asked: Sequence[Mapping[str, Any]], others: Sequence[Attempt]) -> list[dict[str, Any]]:
    found = []
    for at, answer in enumerate(attempt.answers):
        question: dict[str, Any] = dict(asked[at]) if at < len(asked) else {"question": "", "answers": []}
        single = attempt.score if len(attempt.answers) == 1 else None
        given = attempt.given[at] if at < len(attempt.given) else []
        found.append(question | {
            "answer": answer, "score": attempt.questions[at] if at < len(attempt.questions) else single,
            "marks": {name: row[at] for name, row in attempt.marks.items() if at < len(row) and row[at] is not None},
            "given": [{"text": text, "gold": holds_gold(text, question["answers"])} for text in given],
            "sampled": [other.questions[at] for other in others if at < len(other.questions)],
        })  # fmt: skip
    return found


def holds_gold(text: str, golds: Sequence[str]) -> bool:
    """Whether an accepted answer stands in a text, word by word (case, articles and punctuation aside)."""
    words = f" {_words(text)} "
    return any(f" {gold} " in words for gold in map(_words, map(str, golds)) if gold)


@lru_cache(1 << 14)
def _words(text: str) -> str:
    """Normal words of a text; the questions of a sample are given the same memories over and over."""
    return normalize_squad(text)


def anchor(taken: set[str], *names: str) -> str:
    """`sample/MODEL/DATASET/EXAMPLE` in characters that an address holds as they are; never one that is taken."""
    base = "/".join(["sample", *(re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "-" for name in names)])
    found, number = base, 2
    while found in taken:
        found, number = f"{base}~{number}", number + 1
    taken.add(found)
    return found
