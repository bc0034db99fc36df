"""The design, enforced: layers, budgets, typed signatures, names that users' code and published papers rely on."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import memfactory
from memfactory.common.registry import AGENT_REGISTRY, ENV_REGISTRY, MODULE_REGISTRY, REGISTRIES, TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "memfactory"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[set[str]] = [
    {"common"},
    {"algorithms", "memory", "data"},
    {"engines"},
    {"judges"},
    {"modules", "envs"},
    {"agents"},
    {"evaluation"},
    {"trainers", "serving", "arena"},
    {"cli"},
]
"""From left to right; those of one set do not import each other."""

BROAD: dict[str, int] = {}
"""Broad `except` clauses, each justified by a comment: the engine hands any error to every caller."""

SKIPPED_FOLDERS = {"tests", "output", "build", "dist", "swanlog"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> set[str]:
    return {module_of(file) for file in FILES}


def imports_of(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Every module of the package that a file imports, as `memfactory.x.y`."""
    nodes = tree_of(path).body if top_level_only else ast.walk(tree_of(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "memfactory")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports are absolute"
            if node.module and node.module.split(".")[0] == "memfactory":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in modules() else node.module


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    return next(at for at, names in enumerate(LAYERS) if part in names)


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_the_package_is_found() -> None:
    assert len(FILES) > 30 and PACKAGE / "cli.py" in FILES


def test_every_folder_is_a_known_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= set().union(*LAYERS)


@pytest.mark.parametrize("path", [p for p in FILES if p != PACKAGE / "__init__.py"], ids=name_of)
def test_imports_go_leftwards(path: Path) -> None:
    own = module_of(path)
    for imported in imports_of(path):
        if imported == "memfactory":
            pytest.fail(f"{own} imports the package's own top level")
        same_part = imported.split(".")[1] == own.split(".")[1]
        assert same_part or layer_of(imported) < layer_of(own), f"{own} imports {imported}"


def test_the_top_level_imports_no_layer_before_it_is_asked() -> None:
    assert list(imports_of(PACKAGE / "__init__.py")) == []


def test_there_is_no_import_cycle() -> None:
    graph = {module_of(path): set(imports_of(path, top_level_only=True)) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                if imported != module:
                    visit(imported, (*above, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    assert done >= set(graph)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 350, f"{lines} lines"
    docstring = ast.get_docstring(tree_of(path))
    assert docstring and len(docstring.split()) >= 5


def test_functions_are_short() -> None:
    long = {}
    for path in FILES:
        for function in functions_of(path):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > 60:
                long[f"{name_of(path)}:{function.name}"] = length
    assert not long


def test_every_signature_is_typed() -> None:
    untyped = []
    for path in FILES:
        for function in functions_of(path):
            a = function.args
            arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            bare = [x.arg for x in arguments if x.annotation is None and x.arg not in ("self", "cls")]
            if bare or function.returns is None:
                untyped.append(f"{name_of(path)}:{function.lineno} {function.name} {bare}")
    assert not untyped


def test_the_package_never_prints() -> None:
    calls = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint", "breakpoint")
    ]
    assert not calls


def test_no_except_is_broad_without_a_reason() -> None:
    found: dict[str, int] = {}
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
                reraised = bool(node.body) and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if names & {"Exception", "BaseException"} and not reraised:
                    found[name_of(path)] = found.get(name_of(path), 0) + 1
                    assert "#" in lines[node.lineno - 1], f"{name_of(path)}:{node.lineno} gives no reason"
    assert found == BROAD


def test_arbitrary_options_are_taken_only_where_users_pass_them() -> None:
    mandated = {"__init__", "compute_reward"}
    taking = {f"{name_of(path)}:{f.name}" for path in FILES for f in functions_of(path) if f.args.kwarg and f.name not in mandated}
    # A template's slots, an option's metadata, the signatures of transformers' cache and attention, and an agent's options.
    assert taking <= {
        "memfactory/common/prompts.py:fill",
        "memfactory/common/config.py:_option",
        "memfactory/engines/slot_cache.py:update",
        "memfactory/algorithms/tree_attention.py:_paths",
        "memfactory/algorithms/tree_attention.py:_flash",
        "memfactory/algorithms/tree_attention.py:_flex",
        "memfactory/agents/use.py:load",
    }


@pytest.mark.parametrize(
    ("registry", "key", "name"),
    [
        (MODULE_REGISTRY, "recurrent_memory_module", "RecurrentMemoryModule"),
        (AGENT_REGISTRY, "memagent", "MemoryAgent"),
        (ENV_REGISTRY, "longcontext", "LongcontextEnv"),
        (TRAINER_REGISTRY, "mem_grpo", "MemTrainer"),
        (TRAINER_REGISTRY, "mem_sft", "MemSFTTrainer"),
    ],
)
def test_published_names_stay(registry: object, key: str, name: str) -> None:
    assert registry.get(key) is getattr(memfactory, name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [memfactory.RecurrentMemoryModule, memfactory.MemoryAgent, memfactory.BaseModule, memfactory.BaseAgent])
def test_modules_and_agents_are_made_from_tokenizer_device_and_options(cls: type) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    assert [(p.name, p.kind) for p in parameters] == [
        ("tokenizer", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ("device", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        ("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
    assert parameters[1].default == "cuda"


@pytest.mark.parametrize("cls", [memfactory.LongcontextEnv, memfactory.BaseEnv])
def test_envs_are_made_from_data_path_tokenizer_and_options(cls: type) -> None:
    parameters = inspect.signature(cls).parameters
    assert list(parameters) == ["data_path", "tokenizer", "kwargs"]
    assert parameters["kwargs"].kind == inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("cls", [memfactory.LongcontextEnv, memfactory.BaseEnv])
def test_rewards_are_computed_from_the_published_arguments(cls: type) -> None:
    parameters = inspect.signature(cls.compute_reward).parameters  # type: ignore[attr-defined]
    assert list(parameters) == ["self", "predictions", "ground_truths", "num_generations", "kwargs"]
    assert parameters["kwargs"].kind == inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("name", ["generate", "rollout", "inference"])
def test_modules_keep_the_papers_three_interfaces(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(memfactory.BaseModule, name))


def test_every_part_is_registered_by_a_home_of_its_registry() -> None:
    """`from memfactory import ENV_REGISTRY; ENV_REGISTRY.get("longcontext")` works before anything else is imported."""
    graph = {module_of(path): set(imports_of(path, top_level_only=True)) for path in FILES}

    def reached(homes: Iterable[str]) -> set[str]:
        seen: set[str] = set()
        waiting = list(homes)
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                waiting += graph.get(module, ())
        return seen

    named = {name: value for name, value in vars(memfactory.common.registry).items() if value in REGISTRIES}
    assert len(named) == len(REGISTRIES)
    missing, found = [], set()
    for path in FILES:
        for name in re.findall(r"^[ @]*(\w+_REGISTRY)\.register\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.add(name)
            if name in named and module_of(path) not in reached(named[name].homes) | {"memfactory.common.registry"}:
                missing.append((name, module_of(path)))
    assert not missing and found == set(named)


def test_registries_register_by_decorator() -> None:
    for registry in ("MODULE_REGISTRY", "AGENT_REGISTRY", "ENV_REGISTRY", "TRAINER_REGISTRY", "LOSS_REGISTRY", "STORE_REGISTRY"):
        assert callable(getattr(memfactory, registry).register("a_name_that_is_not_filed"))


@pytest.mark.parametrize("name", memfactory.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from memfactory import {name}", namespace)
    assert namespace[name] is not None


def test_the_docs_list_every_public_name() -> None:
    listed = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## Public names")[2].partition("\n## ")[0]
    assert set(re.findall(r"\w+", listed)) >= set(memfactory.__all__)


def test_an_unknown_public_name_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'MemTrainr'; public names: .*MemTrainer"):
        memfactory.MemTrainr  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("memfactory.nothing")


def test_importing_the_package_or_asking_for_help_loads_no_heavy_library() -> None:
    heavy = "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib') if m in sys.modules])"
    code = f"import sys, memfactory; {heavy}; from memfactory.cli import main; main(['--help']); {heavy}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == "[]" and "memfactory train" in result.stdout, result.stdout + result.stderr


def test_libraries_that_few_commands_need_are_imported_where_they_are_needed() -> None:
    """Together they take four seconds, which every command would pay. Of transformers it is the models' base class."""
    late = {"matplotlib", "neo4j", "nltk", "openai", "pymilvus", "scipy", "sentence_transformers", "sklearn", "swanlab"}
    found = []
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names}
                modules_of = names if isinstance(node, ast.Import) else {node.module or ""}
                if {name.split(".")[0] for name in modules_of} & late or "PreTrainedModel" in names:
                    found.append(f"{name_of(path)}:{node.lineno}")
    assert not found


def test_no_file_mentions_a_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.~}/-])/(?:work|tmp|home|root|Users|mnt)(?:/|\b)")
    endings = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cfg", ".example"}
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part not in (".ci", ".github", ".env.example") for part in parts)
        if hidden or parts[0] in SKIPPED_FOLDERS or "egg-info" in parts[0] or path.suffix not in endings or not path.is_file():
            continue
        if path.stat().st_size < 1 << 20:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{'/'.join(parts)}:{number}: {line.strip()[:80]}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found


def test_every_install_line_installs_this_project() -> None:
    """The name `memfactory` on the package index is another's: 0.1.0, and empty."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^name = "memfactory-rl"', project, re.MULTILINE)
    assert tuple(int(part) for part in memfactory.__version__.split(".")) > (0, 1, 0)
    extras = set(re.findall(r"^([\w-]+) = \[", project.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.MULTILINE))
    wrong, named = [], set()
    for path in [*FILES, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.*")]:
        if path.suffix in (".py", ".md", ".sh", ".yaml"):
            text = path.read_text(encoding="utf-8")
            wrong += [(name_of(path), line) for line in re.findall(r"pip install[ '\"]+memfactory.*|memfactory\[.*", text)]
            named |= {*re.findall(r'-e "\.\[([\w-]+)\]"', text), *re.findall(r"\binstall\(['\"]([\w-]+)", text)}
    assert not wrong and named <= extras and {"milvus", "graph", "vllm", "lora", "parquet"} <= named


def test_entry_points_of_the_launchers_are_there() -> None:
    for name in (
        "examples/train_mem_grpo.py",
        "examples/RunMemoryAgent1.7B.sh",
        "examples/RunMemoryAgent4B.sh",
        "examples/run_MemAgent.sh",
        "examples/run_MemR1.sh",
        "examples/run_RMM.sh",
        "evaluation/evaluate_orchestrator.py",
        "evaluation/evaluate_worker.py",
        "evaluation/summarize_results.py",
        "examples/quickstart.sh",
        "tests/run.sh",
    ):
        assert (ROOT / name).is_file(), name
