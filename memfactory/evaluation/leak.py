"""The leak guard: gold that reaches a prompt or a memory makes every score worthless, so it is looked for before any is made.

A random text is planted as the gold answer of an example; the agent then reads what the env shows of that example, with a
chat model that writes down all it is told. Works for any env and agent, also a user's own. Knows no scores.

One agent may see one kind of gold: the oracle anchor, which turns are the evidence. `view_of` is the only place that hands it over,
and even the oracle's view, prompts and memory are searched for all other gold.
"""

from __future__ import annotations

import secrets
from dataclasses import fields, replace
from typing import Any

from memfactory.agents.anchors import OracleAnchor, OracleView
from memfactory.agents.base import BaseAgent
from memfactory.common.errors import DataError, NotApplicableError
from memfactory.common.types import Messages, View
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.base import BaseEnv

_ASKED = 4
"""Of this many first questions of an example the prompts are looked at."""


def view_of(agent: BaseAgent, env: BaseEnv, example: dict[str, Any], gold: dict[str, Any] | None = None) -> View:
    """What the agent is shown of an example: `observe`, and for the oracle anchor, no subclass included, the evidence (that of `gold`)."""
    view = env.observe(example)
    if type(agent) is not OracleAnchor:
        return view
    plain = {f.name: getattr(view, f.name) for f in fields(View)}
    return OracleView(**plain, evidence=env.evidence(gold or example))


def refuse_without_evidence(agent: BaseAgent, env: BaseEnv) -> None:
    """`NotApplicableError` for the oracle anchor on data that does not say where the answers are."""
    if type(agent) is OracleAnchor and not any(env.evidence(env[at]) for at in range(len(env))):
        raise NotApplicableError(f"{env.data_path} names no evidence, so there is no oracle.")


def check_no_leak(agent: BaseAgent, env: BaseEnv) -> None:
    """Raise `DataError` if gold reaches the view, a prompt or the memory: tries one example of each form in the env, four at most."""
    forms: dict[str, dict[str, Any]] = {}
    for at in range(len(env)):
        gold = {key: value for key, value in env[at].items() if key in env.gold_columns}
        forms.setdefault(repr({key: sorted(value) if isinstance(value, dict) else "" for key, value in gold.items()}), env[at])
    for example in list(forms.values())[:4]:
        _check_example(agent, env, example)


def _check_example(agent: BaseAgent, env: BaseEnv, example: dict[str, Any]) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    planted = {key: _planted(value, canary) if key in env.gold_columns else value for key, value in example.items()}
    view = view_of(agent, env, planted, example)
    seen = {f"the view's {field.name}": str(getattr(view, field.name)) for field in fields(view)}

    def answer(messages: Messages, stage: str) -> str:
        seen.setdefault(f"a prompt of the stage {stage}", "")
        seen[f"a prompt of the stage {stage}"] += "\n".join(message["content"] for message in messages)
        return "nothing"

    stages = dict.fromkeys(agent.stages, "policy")
    few = replace(view, questions=view.questions[:_ASKED])  # the view is looked at whole; a conversation can have 200 questions
    for trajectory in agent.inference([few], Models({"policy": ScriptedChat(answer)}, stages)):
        seen["the memory"] = str(trajectory.memory)
    for where, text in seen.items():
        if canary in text:
            raise DataError(
                f"{type(env).__name__} shows gold to the agent: a text planted in {', '.join(env.gold_columns)} turned up in {where}. "
                "`observe` must return only what the agent may know; no score of this env means anything until it does."
            )


def _planted(value: Any, canary: str) -> Any:
    """The same structure with every text replaced."""
    if isinstance(value, dict):
        return {key: _planted(inner, canary) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_planted(inner, canary) for inner in value] or [canary]
    return canary if isinstance(value, (str, int, float, type(None))) else value
