"""What decides an attempt, as short hashes and plain values: two attempts may be mixed only if these agree.

Data, env, model, agent with its slots, prompts, decoding and the code that turns them into attempts. How many attempts
(k, limit) is not part of it: more of them may be added later. Knows no ledger.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from memfactory.agents.base import BaseAgent
from memfactory.common.bank_prompts import BANK_PROMPTS
from memfactory.common.files import file_hash
from memfactory.common.prompts import PROMPTS
from memfactory.common.redaction import without_secrets
from memfactory.common.registry import AGENT_REGISTRY, ENV_REGISTRY, REGISTRIES
from memfactory.common.rmm_prompts import RMM_PROMPTS
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
    """Of the file that defines a part, with those beside it that it imports: a rule may stand in one and its words in another."""
    try:
        file = Path(inspect.getsourcefile(part) or "")
        hashes = [str(file_hash(path)) for path in _imported(file)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
    except (TypeError, OSError):  # made in a notebook or at run time: there is no file to look at
        return None


_INSTALLED = [Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "purelib", "platlib")]
"""What Python brings, and what is installed: their versions are no part of an attempt, and they import half of themselves."""


def _imported(file: Path) -> list[Path]:
    """The file and what it imports from its own folder, directly or not, in the order of their names."""
    found, left = {file}, [] if any(map(file.is_relative_to, _INSTALLED)) else [file]
    while left:
        try:
            tree = ast.parse(left.pop().read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # changed since it was imported: its own hash says so
            continue
        nodes = list(ast.walk(tree))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {f"{node.module or ''}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        for name in sorted(names | {name.rpartition(".")[0] for name in names}):
            path = file.parent.joinpath(*filter(None, name.split("."))).with_suffix(".py")
            if path.is_file() and path not in found:
                found.add(path)
                left.append(path)
    return sorted(found)


def _read(value: Any) -> Any:
    """Options with the content of every file or folder that they name in place of its path: a file that changed is another option."""
    if isinstance(value, Mapping):
        return {key: _read(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_read(inner) for inner in value]
    if isinstance(value, str) and ("/" in value or "." in value):
        with contextlib.suppress(OSError, ValueError):  # no path at all: a prompt, say
            path = Path(value).expanduser()
            if path.is_file():
                return f"file {file_hash(path)}"
            if path.is_dir():
                hashes = [f"{file.relative_to(path)} {file_hash(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
                return f"folder {hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]}"
    return value


def _agent(agent: BaseAgent) -> dict[str, Any]:
    """Its options; with a slot's those that its embedder has from elsewhere, a model's name in the environment, say."""
    options = _read(agent.describe())
    for slot in agent.slots:
        name = getattr(getattr(getattr(agent, slot), "embedder", None), "name", None)
        if name is not None:
            options[slot] = {**options[slot], "embeds": hashlib.sha256(str(name).encode()).hexdigest()[:16]}
    return {"type": AGENT_REGISTRY.name_of(type(agent)), **options}


def asked_hash(env: BaseEnv) -> str:
    """16 hex digits over all that the env made of its files, whichever it read: texts, questions, gold answers."""
    digest = hashlib.sha256()
    for example in env.contents():
        digest.update(json.dumps(example, sort_keys=True, ensure_ascii=True, default=_plain).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def fingerprint(agent: BaseAgent, env: BaseEnv, *, model: str, decoding: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the attempts of `agent` with `model` (a hash or an API's name) on `env` under `decoding`."""
    modules = [getattr(agent, slot) for slot in agent.slots]
    # Without secrets: a new password is no other evaluation.
    return without_secrets({
        "data": {"sha256": file_hash(env.data_path), "examples": len(env)},
        "env": {"type": ENV_REGISTRY.name_of(type(env)), **_read(asdict(env.options) | env.identity()), "asked": asked_hash(env)},
        "model": model,
        "agent": _agent(agent),
        "prompts": hashlib.sha256(repr(sorted((PROMPTS | BANK_PROMPTS | RMM_PROMPTS).items())).encode()).hexdigest()[:16],
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
        **{name: whole.get(name) for name in ("prompts", "rendered", "code", "own_code")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
