"""The options of an evaluation, and the jobs they mean: which model on which data set, and how to get what is not here.

Knows names and places, not how a job is run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from memfactory.agents.anchors import KINDS
from memfactory.common.errors import ConfigError, MissingFileError, unknown_name
from memfactory.common.files import looks_local
from memfactory.common.flags import mapping_of, option
from memfactory.common.ranges import check_ranges
from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.formats import HINT
from memfactory.engines.api import PREFIX
from memfactory.engines.load import how_to_get
from memfactory.evaluation.anchors import ALL, kinds_of, with_anchors
from memfactory.evaluation.jobs import ENGINES, Job
from memfactory.evaluation.replay import origin_of

PUBLISHED_MODELS = {
    "Qwen3-1.7B": ("models/Qwen3-1.7B", how_to_get("models/Qwen3-1.7B")),
    "MemoryAgent1.7B": ("output/MemoryAgent1.7B/last", "bash examples/RunMemoryAgent1.7B.sh"),
    "Qwen3-4B-Instruct": ("models/Qwen3-4B-Instruct", how_to_get("models/Qwen3-4B-Instruct")),
    "MemoryAgent4B": ("output/MemoryAgent4B/last", "bash examples/RunMemoryAgent4B.sh"),
}
"""{name: (where it lies, how to get it)}: what a bare evaluation looks for."""

EXPORTS = ("", "lm-eval")

PUBLISHED_SETS = {name: (f"datas/{name}.json", f"memfactory data fetch {name}") for name in ("eval_50", "eval_100", "eval_fwe_16384")}
PUBLISHED_OPTIONS = {"chunk_size": 2500, "max_generate_length": 2048}
"""How the published figures were read."""

_OF_TASKS: dict[str, Any] = {"types": [], "shuffle_seed": 0, "mask": "", "session_words": 0, "instruction": None, "task_options": "{}"}
"""Options that mean nothing without --tasks, as they are when nobody gives them."""


@dataclass
class EvalConfig:
    """Options of `memfactory eval`."""

    ALONE: ClassVar[dict[str, str]] = {"anchors": ALL}

    models: list[str] = option(
        [], "Models, each PATH or NAME=PATH (a folder, a hub name, or api:MODEL); none: the published ones that lie here."
    )
    datasets: list[str] = option([], "Data sets, each PATH or NAME=PATH; none, and no tasks: the published ones that lie here.")
    tasks: list[str] = option([], "Benchmarks, each TASK=PATH, such as locomo=locomo10.json: `memfactory list` shows them.")
    types: list[str] = option([], "Only questions of these types, by the benchmark's number or true name (tasks).")
    shuffle_seed: int = option(0, "Which part of a task --limit takes: another seed is another part.", least=0)
    mask: str = option("", "A file of known label errors: the task's score is given with and without them (tasks).")
    session_words: int = option(0, "Sessions longer than so many words are told in parts; 0: as they are (tasks).", least=0)
    instruction: str | None = option(None, "Put behind each question instead of the task's own words, which '' leaves out (tasks).")
    task_options: str = option("{}", "Options of the tasks' own, as JSON.")
    anchors: list[str] = option(
        [], f"Rows that need no method, beside each model, with its reader and prompt: {', '.join(KINDS)}; alone: all of them."
    )
    anchor_k: int = option(0, "Items that anchors choose; 0: as many as the agent answers from.", least=0)
    anchor_tokens: int = option(0, "Most tokens of an anchor's prompt; 0: what the model's config.json leaves room for.", least=0)
    output_dir: str = option("output/evaluation", "Where ledgers and the report go; what is in it already is not made again.")
    agent: str = option("", "Which agent: a key of AGENT_REGISTRY. Default: the checkpoint's own, else memagent.")
    agent_options: str = option("{}", "Options of the agent and its slots, as JSON, over the checkpoint's own.")
    chunk_size: int | None = option(None, "Tokens of text per reading turn; short for an entry of agent_options.", least=1)
    max_generate_length: int | None = option(None, "Most tokens sampled in a turn; short for an entry of agent_options.", least=1)
    env: str = option("longcontext", "Which env scores: a key of ENV_REGISTRY.")
    env_options: str = option("{}", 'Options of the env, as JSON, such as {"reward": "llm_judge"}.')
    roles: str = option("{}", "Who answers each stage, {stage: policy | reference | api:NAME}, as JSON.")
    reference: str | None = option(None, "The model of the role reference.")
    memories: str = option("", "Answer from the memories that another evaluation wrote: its folder, or a model's or data set's in it.")
    k: int = option(4, "Sampled attempts per example (avg@k), beside the greedy one; 0: greedy only.", least=0)
    limit: int = option(0, "Only the first examples of each set; of a task so many questions, every type's fair part. 0: all.", least=0)
    temperature: float = option(1.0, "Of the sampled attempts.", least=0)
    top_p: float = option(1.0, "Nucleus of the sampled attempts.", above=0, most=1)
    seed: int = option(0, "Of every random stream.", least=0, below=2**32)
    shown: int = option(
        8, "Of so many first examples of each set the greedy attempt is kept step by step: the report's sample pages.", least=0
    )
    engine: str = option(
        "hf", "hf or vllm (in the worker's process), or api: all models are on an OpenAI-compatible server (api:MODEL always is)."
    )
    engine_options: str = option("{}", 'Options of that engine, as JSON, such as {"max_model_len": 16384} of vllm.')
    api_timeout: float = option(120.0, "Seconds that one try at a server may take.", above=0)
    api_concurrency: int = option(64, "Requests to a server at a time.", least=1)
    tokenizer: str | None = option(None, "Tokenizer that cuts texts into chunks for a model behind an API.")
    export: str = option("", "lm-eval: also in the shape of lm-evaluation-harness's results and samples, in OUTPUT_DIR/lm_eval.")
    gpus: str = option("auto", "GPUs, such as 0,1, a worker on each; none: CPU processes.")
    workers: int = option(0, "CPU processes at a time; 0: as many as there are cores for.", least=0)
    threads: int = option(0, "CPU threads of a worker; 0: the cores shared out.", least=0)
    engine_slots: int = option(192, "Most requests that decode together in a worker.", least=1)
    api_options: str = option("{}", 'More of every request to a server, as JSON, such as {"reasoning_effort": "low"}.')
    plugins: list[str] = option([], "Python files or modules that register your own parts.", "--import")

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self))
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.export not in EXPORTS:
            raise unknown_name("--export", self.export, [name for name in EXPORTS if name])
        self.anchors = kinds_of(self.anchors)
        if self.temperature == 0 and self.k:
            raise ConfigError(f"--temperature {self.temperature}: sampled attempts need one above 0; --k 0 is greedy only.")
        for name, unset in _OF_TASKS.items():
            if not self.tasks and getattr(self, name) != unset:
                raise ConfigError(f"--{name} is for --tasks; what --datasets asks is an option of its env (--env_options).")


@dataclass
class ReportConfig:
    """Options of `memfactory report`."""

    export: str = option("", "lm-eval: also in the shape of lm-evaluation-harness's results and samples, in FOLDER/lm_eval.")
    plugins: list[str] = option([], "Python files or modules that register your own parts, which judged answers need.", "--import")


def jobs_of(config: EvalConfig) -> tuple[list[Job], list[str]]:
    """(jobs, one text for each published model or set that is not here and how to get it). What was named must exist."""
    models, no_models = _found(config.models, PUBLISHED_MODELS, config.engine == "api")
    sets, no_sets = _sets(config)
    for path in models.values():
        if not path.startswith(PREFIX) and looks_local(path) and not (Path(path) / "config.json").is_file():
            raise MissingFileError(f"--models: no model at {path!r} (no config.json there). Get it: {how_to_get(path)}")
    given: dict[str, Any] = {name: getattr(config, name) for name in ("chunk_size", "max_generate_length")}
    options = {name: value for name, value in given.items() if value is not None} | mapping_of("agent_options", config.agent_options)
    if not config.models:
        options = PUBLISHED_OPTIONS | options  # one way of reading for all of them, whatever they were trained with
    shared = {
        name: getattr(config, name)
        for name in ("agent", "reference", "tokenizer", "k", "limit", "temperature", "top_p", "seed", "shown", "plugins")
    }
    engine_options = mapping_of("engine_options", config.engine_options)
    jobs = [
        Job(
            name, model, held.name, held.path, str(Path(config.output_dir) / slug(name) / slug(held.name)), agent_options=options,
            env=held.env, env_options=held.env_options, roles=mapping_of("roles", config.roles),
            engine=(engine := "api" if model.startswith(PREFIX) else config.engine),
            engine_options=engine_options if engine == config.engine else {}, slots=config.engine_slots, timeout=config.api_timeout,
            concurrency=config.api_concurrency, memories=origin_of(config.memories, name, held.name), **shared,
        )
        for name, model in models.items()
        for held in sets
    ]  # fmt: skip
    of_anchors = {name: value for name, value in (("k", config.anchor_k), ("max_prompt_length", config.anchor_tokens)) if value}
    return with_anchors(jobs, config.anchors, of_anchors), no_models + no_sets


@dataclass(frozen=True, slots=True)
class _Set:
    """What models are evaluated on, and the env that shows it."""

    name: str
    path: str
    env: str
    env_options: dict[str, Any]


def _sets(config: EvalConfig) -> tuple[list[_Set], list[str]]:
    """(data sets and tasks, what is missing of the published ones)."""
    datasets, missing = _found(config.datasets, PUBLISHED_SETS, False) if config.datasets or not config.tasks else ({}, [])
    for name, path in datasets.items():
        if not Path(path).is_file():
            raise MissingFileError(f"--datasets {name}: no such file {path}. {HINT}")
    sets = [_Set(name, path, config.env, mapping_of("env_options", config.env_options)) for name, path in datasets.items()]
    sets += _tasks(config)
    names = [held.name for held in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two sets are called {', '.join(twice)}. Name the files apart.")
    return sets, missing


def _tasks(config: EvalConfig) -> list[_Set]:
    """The tasks, each with its file; one that is named twice is called by its file too."""
    pairs = [(key, path) for key, _, path in (spec.partition("=") for spec in config.tasks)]
    keys = [key for key, _ in pairs]
    options = {
        "types": list(config.types), "limit": config.limit, "shuffle_seed": config.shuffle_seed, "mask": config.mask,
        "session_words": config.session_words, "instruction": config.instruction,
        "options": mapping_of("task_options", config.task_options),
    }  # fmt: skip
    for key, path in pairs:
        TASK_REGISTRY.get(key)
        if not Path(path).is_file():
            missing = f"no such file {path}" if path else "which file?"
            raise MissingFileError(f"--tasks {key}: {missing}. Give TASK=PATH, such as {key}=datas/{key}.json.")
    if config.mask and not Path(config.mask).is_file():
        raise MissingFileError(f"--mask: no such file {config.mask}.")
    return [
        _Set(key if keys.count(key) == 1 else f"{key}-{Path(path).stem}", path, "task", {"task": key, **options}) for key, path in pairs
    ]


def _found(given: list[str], published: dict[str, tuple[str, str]], api: bool) -> tuple[dict[str, str], list[str]]:
    """({name: path}, what is missing): those given, or the published ones that are here."""
    if given:
        pairs = [spec.split("=", 1) if "=" in spec and not Path(spec).exists() else [_name(spec), spec] for spec in given]
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"Two are called {', '.join(twice)}; name them apart: NAME=PATH.")
        return {name: f"{PREFIX}{path}" if api and not path.startswith(PREFIX) else path for name, path in pairs}, []
    if api:
        return {"LLM_MODEL": PREFIX}, []
    here = {name: path for name, (path, _) in published.items() if Path(path).exists()}
    return here, [f"{name} ({path}). Get it: {how}" for name, (path, how) in published.items() if name not in here]


def _name(path: str) -> str:
    """What tables call a path: a file's stem, a model folder's name, and RUN for RUN/last or RUN/checkpoint-000010."""
    parts = Path(path) if Path(path).name else Path(path).resolve()
    if parts.suffix in (".json", ".jsonl", ".parquet"):
        return parts.stem
    inner = re.fullmatch(r"last|best|checkpoint-\d+", parts.name)
    return f"{parts.parent.name}-{parts.name}" if inner and parts.parent.name else parts.name or path


def slug(name: str) -> str:
    """A name as a folder: what a path cannot hold becomes a dash, and a few digits keep unlike names apart."""
    safe = re.sub(r"[^\w.@+-]+", "-", name).strip("-.")
    return safe if safe == name else f"{safe or 'unnamed'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
