"""Which anchors are evaluated beside a model, as further jobs with names of their own. Knows names and places, not how a job is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memfactory.agents.anchors import KINDS
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job

ALL = "all"


def kinds_of(given: Iterable[str]) -> list[str]:
    """The anchors asked for, in the order of tables; `all` is all of them."""
    names = [name for name in given if name != ALL]
    for name in names:
        if name not in KINDS:
            raise unknown_name("anchor", name, (*KINDS, ALL))
    return [kind for kind in KINDS if kind in names or len(names) < len(list(given))]


def name_of(model: str, kind: str) -> str:
    """What tables call an anchor."""
    return f"{model} + {kind}"


def with_anchors(jobs: Sequence[Job], kinds: Sequence[str], options: Mapping[str, Any]) -> list[Job]:
    """Each job, and behind it one for each anchor beside it; `options`: k and max_prompt_length, as far as they were given."""
    names = {job.model_name for job in jobs}
    for twice in (name_of(name, kind) for name in names for kind in kinds if name_of(name, kind) in names):
        raise ConfigError(f"--models: {twice!r} is what an anchor is called. Give it another name: NAME=PATH.")
    return [each for job in jobs for each in (job, *(_beside(job, kind, options) for kind in kinds))]


def _beside(job: Job, kind: str, options: Mapping[str, Any]) -> Job:
    folder = Path(job.folder)
    return replace(
        job, model_name=name_of(job.model_name, kind), folder=str(folder.parent.with_name(f"{folder.parent.name}+{kind}") / folder.name),
        anchor=kind, anchor_of=job.model_name, anchor_options=dict(options), roles={} if kind == "abstain" else job.roles,
        memories="",  # it keeps what was said, not what a model made of it
    )  # fmt: skip


def anchor_notes(model: str, scores: Scores) -> list[str]:
    """What did not fit into an anchor's prompts: a full context that was cut is no full context."""
    reports = [attempt.report for attempt in scores.attempts.values()]
    cut, items = (sum(report.get(name, 0) for report in reports) for name in ("shortened_prompts", "items_that_did_not_fit"))
    prompts = sum(len(attempt.answers) for attempt in scores.attempts.values())
    if not cut:
        return []
    return [
        f"{model} on {scores.dataset}: {cut} of {prompts} prompts were too long for the model; {items / cut:.1f} items of each were left "
        "out, the least wanted (of a full context: the oldest) first."
    ]
