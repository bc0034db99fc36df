"""One job: one model on one data set, from names to a finished ledger. What a worker process does, and the quick start too.

A job's folder holds `job.json` (what was asked), `fingerprint.json`, `memories.jsonl`, `attempts.jsonl`, `examples.json` (the questions
with gold; of a task also `questions.json`) and, of the first examples, `examples.txt` for people. Knows no other job.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from memfactory.agents.anchors import beside
from memfactory.agents.base import BaseAgent
from memfactory.agents.build import build_agent, check_agent, context_window, device_of, open_models, options_over, trained_as
from memfactory.common.errors import ConfigError, MissingFileError, unknown_name
from memfactory.common.files import write_json, write_text
from memfactory.common.redaction import learn, without_secrets
from memfactory.common.registry import AGENT_REGISTRY, ENV_REGISTRY, build_options, import_plugins
from memfactory.common.version import __version__
from memfactory.engines.api import PREFIX, APIChat
from memfactory.engines.chat import Models
from memfactory.engines.load import load_tokenizer, model_hash
from memfactory.envs.base import BaseEnv
from memfactory.evaluation.fingerprint import fingerprint
from memfactory.evaluation.harness import SHOWN, Scores, evaluate, planned, scores_of
from memfactory.evaluation.leak import check_no_leak, refuse_without_evidence
from memfactory.evaluation.ledger import GREEDY, Ledger, read_attempts, read_job
from memfactory.evaluation.memories import Memories
from memfactory.evaluation.questions import read_questions, scores_by_question, write_questions
from memfactory.evaluation.replay import Replay
from memfactory.evaluation.tasks import env as _env  # noqa: F401 - registers the tasks and their env
from memfactory.evaluation.transcript import questions_of, transcript

log = logging.getLogger(__name__)

ENGINES = ("hf", "vllm", "api")


@dataclass(frozen=True)
class Job:
    """One model on one data set."""

    model_name: str
    """What the tables call it."""
    model: str
    """A folder, a hub name, or api:NAME."""
    dataset: str
    """What the tables call it."""
    data_path: str
    folder: str
    """Where the ledger is, or goes."""
    agent: str = ""
    """A key of AGENT_REGISTRY; empty: the checkpoint's own, else memagent."""
    agent_options: dict[str, Any] = field(default_factory=dict)
    """Over the checkpoint's own."""
    env: str = "longcontext"
    env_options: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    """The model of the role reference."""
    engine: str = "hf"
    engine_options: dict[str, Any] = field(default_factory=dict)
    """Over what is said below of slots, timeout and concurrency."""
    tokenizer: str | None = None
    """Of an API's model: what cuts texts into chunks."""
    timeout: float = 120.0
    """Seconds that one try at an API may take."""
    concurrency: int = 64
    """Requests to an API at a time."""
    k: int = 4
    limit: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    memories: str = ""
    """Folder of the job whose memories are answered from; empty: they are written."""
    shown: int = SHOWN
    """Of so many first examples the greedy attempt is kept step by step."""
    device: str = "auto"
    threads: int = 0
    slots: int = 192
    plugins: list[str] = field(default_factory=list)
    anchor: str = ""
    """One of `anchors.KINDS`, which stands beside the agent and reads with its reader; empty: the agent itself."""
    anchor_of: str = ""
    """What the tables call the model that it is an anchor of."""
    anchor_options: dict[str, Any] = field(default_factory=dict)
    """The anchor's own: k, max_prompt_length."""


def check_names(jobs: Iterable[Job]) -> None:
    """Refuse what nobody knows (an agent, its modules and options, roles, an env, its scorer) before a worker starts."""
    for job in jobs:
        import_plugins(job.plugins)
        env: Any = ENV_REGISTRY.get(job.env)
        env.check_options(build_options(env.__name__, env.Options, job.env_options))
        about = trained_as(job.model)
        name = job.agent or about.get("agent", "memagent")
        own = about.get("agent_options", {}) if about.get("agent") == name else {}
        if "reference" in job.roles.values() and not job.reference:
            raise ConfigError("roles names the reference: say which model it is with --reference.")
        check_agent(name, {**own, **job.agent_options}, job.roles)


def run_job(job: Job, on_progress: Callable[[int], Any] | None = None) -> Scores:
    """Make the attempts that are missing and return the scores of all."""
    learn(asdict(job))
    import_plugins(job.plugins)
    if job.engine not in ENGINES:
        raise unknown_name("engine", job.engine, ENGINES)
    if job.engine != "api" and job.model.startswith(PREFIX):
        raise ConfigError(f"{job.model} is behind an API: evaluate it with --engine api.")
    if job.threads:
        torch.set_num_threads(job.threads)
    device = device_of(job.device)
    tokenizer_of = job.tokenizer if job.engine == "api" else job.model
    tokenizer = load_tokenizer(tokenizer_of) if tokenizer_of else None
    agent_type, options = agent_of(job)
    agent = build_agent(agent_type, tokenizer, device, options)  # type: ignore[arg-type]
    env: BaseEnv = ENV_REGISTRY.get(job.env)(job.data_path, tokenizer, **job.env_options)
    refuse_without_evidence(agent, env)
    check_no_leak(agent, env)
    folder = Path(job.folder)
    on_gpu = device.startswith("cuda")
    decoding = {
        "temperature": job.temperature, "top_p": job.top_p, "seed": job.seed, "engine": job.engine, "bf16": on_gpu,
        "roles": {stage: str(APIChat(role)) if role.startswith(PREFIX) else role for stage, role in job.roles.items()},
        "reference": model_hash(job.reference) if job.reference else None,
        "tokenizer": model_hash(job.tokenizer) if job.engine == "api" and job.tokenizer else None,
    }  # fmt: skip
    if job.engine == "vllm":  # numbers of another type, or shorter prompts, are other answers
        decoding["engine_options"] = job.engine_options
    name = str(APIChat(job.model)) if job.engine == "api" else model_hash(job.model)
    decides = fingerprint(agent, env, model=name, decoding=decoding)
    replay = Replay(Path(job.memories), folder, agent, decides) if job.memories else None
    with (
        Ledger(folder, decides | (replay.about if replay else {})) as ledger,
        replay or Memories(folder, agent, decides) as memories,
    ):
        examples = [env[at]["example_id"] for at in range(min(job.limit or len(env), len(env)))]
        write_json(folder / "job.json", without_secrets(asdict(job)) | {"examples": examples, "versions": versions()})
        write_questions(folder, env.questions(), examples)
        write_json(folder / "examples.json", {name: _about(env, env[at], at < job.shown) for at, name in enumerate(examples)})
        unasked = job.anchor == "abstain" or ledger.done().issuperset(planned(examples, job.k))
        models = Models({}) if unasked else models_of(job, agent, device)
        with closing(models):
            scores = evaluate(
                agent, models, env, name=job.dataset, k=job.k, limit=job.limit, temperature=job.temperature, top_p=job.top_p,
                seed=job.seed, ledger=ledger, shown=job.shown, on_progress=on_progress, memories=memories,
            )  # fmt: skip
    for chat in models.chats.values():
        if isinstance(chat, APIChat):
            log.info("%s: %s", chat, ", ".join(f"{count} {what}" for what, count in sorted(chat.stats.items())) or "not asked")
    shown = [(env[at], scores.attempts[example, GREEDY, 0]) for at, example in enumerate(examples[: job.shown])]
    texts = [transcript(example, attempt, attempt.score) for example, attempt in shown]
    write_text(folder / "examples.txt", f"\n\n{'=' * 60}\n\n".join(texts) + "\n")
    return load_scores(folder)


def _about(env: BaseEnv, example: dict[str, Any], shown: bool) -> dict[str, Any]:
    """What an example asks, with gold; of one that is shown also the memory it starts from, if any."""
    memory = env.observe(example).memory if shown else None
    asked = [{"question": question, "answers": golds} for question, golds in questions_of(example)]
    return {"questions": asked} | ({} if memory is None else {"start": str(memory)})


def versions() -> dict[str, str]:
    """Of what makes attempts: {name: version}."""
    return {
        "memfactory": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def agent_of(job: Job) -> tuple[str, dict[str, Any]]:
    """(agent, options): the job's over those that the checkpoint's memfactory.json gives, if it is of the same agent; or its anchor."""
    agent = job.agent or trained_as(job.model).get("agent", "memagent")
    AGENT_REGISTRY.get(agent)
    options = options_over(job.model, agent, job.agent_options)
    return beside(job.anchor, agent, options, _limits(job, options)) if job.anchor else (agent, options)


def _limits(job: Job, options: dict[str, Any]) -> dict[str, Any]:
    """An anchor's options; a prompt may fill the model's window as far as the answer leaves room."""
    window = context_window(job.model)
    room = {} if window is None else {"max_prompt_length": max(window - (options.get("max_generate_length") or 1024), window // 2)}
    return room | job.anchor_options


def models_of(job: Job, agent: BaseAgent, device: str) -> Models:
    """Who answers: the job's model as the policy, in this process or behind an API, and what its roles name."""
    flags: dict[str, dict[str, Any]] = {"hf": {"slots": job.slots}, "api": {"timeout": job.timeout, "concurrency": job.concurrency}}
    options = flags.get(job.engine, {}) | job.engine_options
    models = open_models(job.model, agent, engine=job.engine, device=device, roles=job.roles, reference=job.reference, options=options)
    with ExitStack() as failed:
        failed.callback(models.close)
        agent.attach(models)
        failed.pop_all()
    return models


def load_scores(folder: str | Path) -> Scores:
    """The scores of a job's folder (`OUTPUT/MODEL/DATASET`) as they stand, also unfinished ones: all is computed from the ledger.

    `sampled` and `greedy` have a row for each of `examples`; `attempts` are the ledger's own rows by (example, kind, attempt).
    """
    folder = Path(folder).expanduser()
    path = folder / "job.json"
    if not path.is_file():
        raise MissingFileError(f"{folder} is no evaluated data set: it has no job.json. `memfactory eval` makes one.")
    job = read_job(folder)
    attempts = {attempt.key: attempt for attempt in read_attempts(folder)}
    asked = read_questions(folder)
    if asked is None:
        return scores_of(job["dataset"], job["examples"], job["k"], attempts)
    return scores_by_question(job["dataset"], asked, job["k"], attempts)
