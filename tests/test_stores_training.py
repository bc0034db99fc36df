"""Promise: training cannot reach a configured database: it imports none, and its rollouts work where no connection is possible."""

from __future__ import annotations

import ast
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

import memfactory
from memfactory.agents.build import local_models
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.files import write_json
from memfactory.common.registry import STORE_REGISTRY
from memfactory.common.settings import load_settings
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.envs.memory_bank import MemoryBankEnv
from memfactory.memory.bank import MemoryBank

PACKAGE = Path(memfactory.__file__).parent
STORES, STORES_FOLDER = "memfactory.memory.stores", PACKAGE / "memory" / "stores"
LIBRARIES = {"pymilvus", "milvus_lite", "grpc", "neo4j", "arcadedb_embedded"}


def imports_of(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Every module that a file names in an import, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def reachable(roots: list[str]) -> set[str]:
    """The package's modules that these import, and what those import, with the packages that hold them."""
    files = {
        ".".join(["memfactory", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    seen: set[str] = set()
    waiting = [name for name in files if name.startswith(tuple(roots))]
    while waiting:
        name = waiting.pop()
        parents = [name.rsplit(".", n)[0] for n in range(1, name.count("."))]
        fresh = {name, *parents} & files.keys() - seen
        seen |= fresh
        waiting += [found for part in fresh for found in imports_of(files[part]) if found in files]
    return seen


@pytest.mark.slow
def test_nothing_that_trains_imports_a_database() -> None:
    databases = {home for home in STORE_REGISTRY.homes if home != f"{STORES}.in_memory"}
    databases |= {f"{STORES}.{path.stem}" for path in STORES_FOLDER.glob("*.py") if LIBRARIES & {n.split(".")[0] for n in imports_of(path)}}
    assert f"{STORES}.milvus_connection" in reachable([f"{STORES}.milvus"]) & databases, "the search sees what there is"
    found = reachable(["memfactory.trainers"])
    assert {"memfactory.agents.memory_r1_agent", "memfactory.memory.bank", "memfactory.engines.hf"} <= found
    assert not found & databases


def test_a_rollout_works_where_no_connection_is_possible(
    tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("training opened a connection")

    for name in ("NEO4J", "MILVUS"):
        monkeypatch.setenv(f"{name}_URI", "http://192.0.2.1:1")
        monkeypatch.setenv(f"{name}_PASSWORD", "secret")
    assert load_settings().milvus_uri and load_settings().neo4j_uri
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket.socket, "connect_ex", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    for library in LIBRARIES:
        monkeypatch.setitem(sys.modules, library, None)  # importing it fails
    write_json(tmp_path / "dialogues.json", list(synth_dialog(2, seed=5, rendering="triples")))
    env = MemoryBankEnv(str(tmp_path / "dialogues.json"))
    agent = MemoryR1Agent(tiny_tokenizer, "cpu", style="lines", max_generate_length=6)
    models = local_models(tiny_qwen3(max_position_embeddings=4096), tiny_tokenizer)
    groups = agent.rollout(models, [env.observe(env[0])], 2, seed=3, step=0)
    attempts = [attempt for group in groups for attempt in group.trajectories]
    assert len(attempts) == 2 and all(isinstance(a.memory, MemoryBank) and a.turns and a.error is None for a in attempts)


def test_a_backend_costs_no_library_until_it_is_opened() -> None:
    for path in STORES_FOLDER.glob("*.py"):
        assert not LIBRARIES & {name.split(".")[0] for name in imports_of(path, top_level_only=True)}, path
