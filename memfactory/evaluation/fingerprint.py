"""What decides an attempt, as short hashes and plain values: two attempts may be mixed only if these agree.

Data, env, model, agent with its slots, prompts, decoding and the code that turns them into attempts. How many attempts
(k, limit) is not part of it: more of them may be added later. Knows no ledger.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memfactory.agents.base import BaseAgent
from memfactory.common.bank_prompts import BANK_PROMPTS
from memfactory.common.files import file_hash
from memfactory.common.prompts import PROMPTS
from memfactory.common.redaction import without_secrets
from memfactory.common.registry import AGENT_REGISTRY, ENV_REGISTRY, REGISTRIES
from memfactory.engines.template import rendered
from memfactory.envs.base import BaseEnv

ATTEMPTS_FORMAT = 1
"""Stands for the package's own code: raise it when the same model, data and options may give another attempt or score than before.

A number and not a hash of files, so that moving or rewording code leaves finished evaluations valid. tests/test_attempts_format.py
pins attempts of every paradigm and says when it is due.
"""


def _own_code(*parts: object) -> dict[str, str | None]:
    """Hashes of the files of a user's own classes and of all that they registered (a scorer, say); the package's is `ATTEMPTS_FORMAT`."""
    registered = [part for registry in REGISTRIES for part in registry.filed()]
    own = [part for part in [*(type(part) for part in parts), *registered] if not part.__module__.startswith("memfactory.")]
    return {f"{part.__module__}.{part.__qualname__}": _source_hash(part) for part in own}


def _source_hash(part: Any) -> str | None:
    try:
        return file_hash(inspect.getsourcefile(part))
    except (TypeError, OSError):  # made in a notebook or at run time: there is no file to look at
        return None


def fingerprint(agent: BaseAgent, env: BaseEnv, *, model: str, decoding: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the attempts of `agent` with `model` (a hash or an API's name) on `env` under `decoding`."""
    modules = [getattr(agent, slot) for slot in agent.slots]
    # Without secrets: a new password is no other evaluation.
    return without_secrets({
        "data": {"sha256": file_hash(env.data_path), "examples": len(env)},
        "env": {"type": ENV_REGISTRY.name_of(type(env)), **asdict(env.options), **env.identity()},
        "model": model,
        "agent": {"type": AGENT_REGISTRY.name_of(type(agent)), **agent.describe()},
        "prompts": hashlib.sha256(repr(sorted((PROMPTS | BANK_PROMPTS).items())).encode()).hexdigest()[:16],
        "rendered": hashlib.sha256((rendered(agent.tokenizer) or "").encode()).hexdigest()[:16],
        "decoding": dict(decoding),
        "code": ATTEMPTS_FORMAT,
        "own_code": _own_code(agent, env, *modules),
    })  # fmt: skip


def write_fingerprint(agent: BaseAgent, whole: Mapping[str, Any]) -> str:
    """16 hex digits over what decides the written memories, of the `whole` fingerprint: all but what only answering uses.

    An agent says which of its slots, options and stages those are (`read_only`); with none, everything decides. What each example tells is
    looked at apart, so the env is no part of it.
    """
    of_slots = {slot: set(getattr(agent, slot).stages) for slot in agent.slots}
    writing = set[str]().union(*(stages for slot, stages in of_slots.items() if slot not in agent.read_only))
    only_read = set(agent.read_only).union(*(stages for slot, stages in of_slots.items() if slot in agent.read_only)) - writing
    decoding, model = dict(whole["decoding"]), whole["model"]
    roles, reference = decoding.pop("roles", {}), decoding.pop("reference", None)
    known = {"policy": model, "policy_nograd": model, "reference": reference}
    role_of = {stage: roles.get(stage, "policy") for stage in agent.stages if stage not in only_read}
    parts = {
        "data": whole["data"],
        "agent": {name: value for name, value in whole["agent"].items() if name not in agent.read_only},
        "writers": {stage: known.get(role, role) for stage, role in role_of.items()},
        "decoding": decoding,
        **{name: whole[name] for name in ("prompts", "rendered", "code", "own_code")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
