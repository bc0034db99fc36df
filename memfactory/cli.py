"""`memfactory train | plan | eval | report | compare | judge | chat | data | list`: the command line. Prints; a user's mistake is one line.

Knows the commands, not what they do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from memfactory.common.errors import InfrastructureError, UserError, unknown_name
from memfactory.common.progress import line_format
from memfactory.common.registry import AGENT_REGISTRY, REGISTRIES, TRAINER_REGISTRY, describe_options, import_plugins
from memfactory.common.settings import load_settings
from memfactory.common.terminal import Terminal, log_to_stderr
from memfactory.common.version import __version__

if TYPE_CHECKING:
    from memfactory.common.config import TrainConfig

USAGE = """memfactory: train agents that manage their own memory

  memfactory train [CONFIG.yaml] [--flag value ...]    --help lists the flags
  memfactory doctor MODEL                              does it run here as it is
  memfactory plan --model M --gpu 80 [--flag value ...] what fits a GPU
  memfactory eval --models M ... --datasets D ...      models x data sets
  memfactory eval --models M ... --tasks TASK=FILE ... models x benchmarks
  memfactory report FOLDER [--export lm-eval]          the report made again
  memfactory compare A B                               two models, paired
  memfactory judge FOLDER --judge api:MODEL            an LLM judges, measured
  memfactory chat CHECKPOINT [--store S] [--user U]    it remembers
  memfactory data build | fetch NAME ...               data sets
  memfactory list [--import my_parts.py ...]           what is registered
  memfactory new agent | env | module | task NAME      a file to start from
  memfactory COMMAND --help                            its flags
  memfactory --version

train, eval, judge, chat, data build and list take --import FILE.py
(or a module) to make your own parts known."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[Sequence[str]], int | None]] = {
        "train": train, "eval": evaluate, "report": report_again, "compare": compare_two, "judge": judge, "chat": chat_with,
        "data": data, "list": list_parts, "plan": plan, "new": start_part, "doctor": doctor,
    }  # fmt: skip

    if arguments[:1] in ([], ["-h"], ["--help"], ["help"]):
        Terminal().print(USAGE, highlight=False)
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        Terminal().print(version_line(), highlight=False, soft_wrap=True)
        return 0
    if arguments[0] in HELP and {"-h", "--help"} & set(arguments[1:] if arguments[0] != "data" else arguments[1:2]):
        Terminal().print(HELP[arguments[0]](), highlight=False, soft_wrap=True, markup=False)
        return 0

    def command() -> int | None:
        if arguments[0] not in commands:
            raise unknown_name("command", arguments[0], commands)
        return commands[arguments[0]](arguments[1:])

    return guarded(command)


def version_line() -> str:
    """The versions that a report of a fault should name."""
    found = []
    for name in ("torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join([f"memfactory {__version__}", *found, f"Python {platform.python_version()}"])


def _plan_usage() -> str:
    from memfactory.common.config import PLAN_USAGE

    return PLAN_USAGE


_REPORT_USAGE = """memfactory report FOLDER [--export lm-eval]

Makes report.html, report.md and report.json of an evaluation again from its
ledgers; nothing is run. --export lm-eval: also in the shape of
lm-evaluation-harness, in FOLDER/lm_eval."""

_COMPARE_USAGE = """memfactory compare A B

Two models on what both were evaluated on, paired by question: their folders,
such as output/evaluation/base output/evaluation/trained."""

_LIST_USAGE = """memfactory list [--import my_parts.py ...]

What is registered, with its options; --import adds your own parts."""

_NEW_USAGE = """memfactory new agent | env | module | task NAME

Writes NAME.py: a part of your own with a passing test, to start from. It says at
its top how to test and to use it."""

_DATA_USAGE = """memfactory data build NAME --output FILE [--flag value ...]
memfactory data fetch NAME [--folder datas]

build makes a data set (`memfactory list` shows the generators), fetch gets a
published one. `memfactory data build --help` lists the flags."""

HELP: dict[str, Callable[[], str]] = {
    "plan": _plan_usage, "report": lambda: _REPORT_USAGE, "compare": lambda: _COMPARE_USAGE, "list": lambda: _LIST_USAGE,
    "data": lambda: _DATA_USAGE, "new": lambda: _NEW_USAGE,
}  # fmt: skip
"""Of the commands whose flags are few: said without loading what they need."""

EVAL_USAGE = "memfactory eval --models M ... (--datasets D ... | --tasks TASK=FILE ...) [--flag value ...]"


def _use_api_options(given: str) -> None:
    """`--api_options`, for this command and the processes that it starts, as if LLM_OPTIONS were set to that."""
    from memfactory.common.flags import mapping_of

    if mapping_of("api_options", given):
        os.environ["LLM_OPTIONS"] = given


def guarded(command: Callable[[], int | None]) -> int:
    """Run a script's body and return its exit code: a user's mistake is one clear message and 2, without a traceback."""
    rank = int(os.environ.get("RANK") or 0)  # of several processes that train together, as the launcher says
    log_to_stderr(logging.WARNING if rank else logging.INFO, line_format())
    for noisy in ("httpx", "httpx2", "matplotlib", "asyncio", "huggingface_hub", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        return command() or 0
    except UserError as error:
        if rank:  # most mistakes are all ranks' own: the first one says it, and its launcher then ends the others
            time.sleep(10)
        Terminal(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        Terminal(stderr=True).print(f"[bold red]Error:[/] {escape(f'{error.strerror or error}{where}')}", highlight=False, soft_wrap=True)
        return 2
    except InfrastructureError as error:
        Terminal(stderr=True).print(f"[bold red]Failed:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        if not rank:
            Terminal(stderr=True).print("\nStopped. What was saved stays: evaluation goes on where it was, training with --resume True.")
        return 130


def explain(config: TrainConfig, steps: int, updates_per_step: int) -> None:
    """Say what the counts of a run mean (`trainers.setup.explain`)."""
    from memfactory.trainers.setup import explain as said

    said(config, steps, updates_per_step)


def train(arguments: Sequence[str]) -> None:
    """`memfactory train`."""
    from memfactory.common.config import read_config

    load_settings()
    config = read_config(arguments, slots_of, defaults_of)
    from memfactory.trainers.base import device_of  # after the flags: --help needs no torch
    from memfactory.trainers.memory_plan import report_memory

    _use_api_options(config.api_options)
    import_plugins(config.plugins)
    trainer_class = TRAINER_REGISTRY.get(config.trainer)
    if config.trainer == "mem_grpo" and config.model_name_or_path and config.data_path:
        report_memory(config, device_of(config.device))
    trainer = trainer_class(config)
    explain(config, trainer.total_steps, trainer.updates_per_step)
    if config.dry_run:
        logging.getLogger(__name__).info("Dry run: all checks passed. Nothing was loaded or written; leave --dry_run out to start.")
        return
    last = trainer.train()
    trainer.ranks.end()
    logging.getLogger(__name__).info("Done. Last checkpoint: %s (%s)", last, trainer.checkpoints_are_for)


def plan(arguments: Sequence[str]) -> int:
    """`memfactory plan`."""
    from memfactory.common.config import read_config
    from memfactory.trainers.plan_table import plan as plan_run

    return plan_run(arguments, Terminal(highlight=False), lambda words: read_config(words, slots_of, defaults_of))


def doctor(arguments: Sequence[str]) -> int:
    """`memfactory doctor`."""
    from memfactory.trainers.doctor import main as examine

    return examine(arguments, Terminal(highlight=False))


def evaluate(arguments: Sequence[str]) -> int:
    """`memfactory eval`."""
    from memfactory.common.flags import parse_flags
    from memfactory.evaluation.config import EvalConfig
    from memfactory.evaluation.orchestrator import evaluate_all

    load_settings()
    config, _ = parse_flags(EvalConfig, arguments, "memfactory eval", EVAL_USAGE)
    _use_api_options(config.api_options)
    import_plugins(config.plugins)
    return evaluate_all(config, Terminal())


def report_again(arguments: Sequence[str]) -> int:
    """`memfactory report`."""
    from memfactory.common.flags import parse_flags
    from memfactory.evaluation.config import ReportConfig
    from memfactory.evaluation.orchestrator import report_folder

    config, words = parse_flags(ReportConfig, arguments, "memfactory report", "memfactory report FOLDER [--export lm-eval]", 1)
    if not words:
        raise UserError("memfactory report takes the folder of an evaluation, such as output/evaluation.")
    import_plugins(config.plugins)
    return report_folder(Path(words[0]), config.export, Terminal())


def compare_two(arguments: Sequence[str]) -> None:
    """`memfactory compare`."""
    from memfactory.evaluation.compare import compare
    from memfactory.evaluation.report import paired_table

    if len(arguments) != 2 or any(word.startswith("-") for word in arguments):
        raise UserError("memfactory compare takes the folders of two evaluated models, such as output/evaluation/A output/evaluation/B.")
    rows, notes = compare(Path(arguments[0]), Path(arguments[1]))
    console = Terminal()
    console.print(paired_table(rows))
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)


def judge(arguments: Sequence[str]) -> int:
    """`memfactory judge`."""
    from memfactory.common.flags import parse_flags
    from memfactory.evaluation.judging import USAGE as JUDGE_USAGE
    from memfactory.evaluation.judging import JudgeConfig, judge_all

    load_settings()
    config, words = parse_flags(JudgeConfig, arguments, "memfactory judge", JUDGE_USAGE, 1)
    if not words:
        raise UserError(f"memfactory judge takes the folder of an evaluation, such as output/evaluation: {JUDGE_USAGE}.")
    _use_api_options(config.api_options)
    return judge_all(Path(words[0]), config, Terminal(highlight=False))


def chat_with(arguments: Sequence[str]) -> int:
    """`memfactory chat`."""
    from memfactory.common.flags import parse_flags
    from memfactory.serving.chat import USAGE as CHAT_USAGE
    from memfactory.serving.chat import ChatConfig, chat

    load_settings()
    config, words = parse_flags(ChatConfig, arguments, "memfactory chat", CHAT_USAGE, 1)
    _use_api_options(config.api_options)
    return chat(words, config, Terminal(highlight=False))


def data(arguments: Sequence[str]) -> None:
    """`memfactory data build NAME ...` and `memfactory data fetch NAME [--folder datas]`."""
    from memfactory.common.flags import parse_flags
    from memfactory.data.build import BuildConfig, build
    from memfactory.data.fetch import PUBLISHED, FetchConfig, fetch

    verb, words = (arguments[0] if arguments else "", list(arguments[1:]))
    if verb == "build":
        config, names = parse_flags(BuildConfig, words, "memfactory data build", "memfactory data build NAME --output FILE ...", 1)
        import_plugins(config.plugins)
        made = build(replace(config, name=names[0] if names else config.name))
        table = Table(box=None, show_header=False, pad_edge=False)
        for label, value in made.rows():
            table.add_row(label, escape(value))
        Terminal(soft_wrap=True, highlight=False).print(table)
    elif verb == "fetch":
        folder, names = parse_flags(FetchConfig, words, "memfactory data fetch", "memfactory data fetch NAME [--folder datas]", 1)
        if not names:
            raise UserError(f"memfactory data fetch takes the name of a data set. Known: {', '.join(PUBLISHED)}.")
        got = fetch(names[0], folder.folder)
        Terminal().print(f"{got.path}{' was here already.' if got.already_there else ''}", soft_wrap=True, highlight=False)
    else:
        raise UserError(f"memfactory data takes build or fetch, not {verb!r}. `memfactory data build --help` explains the flags.")


def start_part(arguments: Sequence[str]) -> None:
    """`memfactory new`."""
    from memfactory.common.scaffold import kinds, new_part

    if len(arguments) != 2:
        raise UserError(f"memfactory new takes a kind and a name, such as `memfactory new agent two_notes`. Kinds: {', '.join(kinds())}.")
    path = new_part(arguments[0], arguments[1], Path())
    Terminal().print(f"{path} is a start that works: python -m pytest {path}", highlight=False, soft_wrap=True, markup=False)


def slots_of(config: TrainConfig) -> list[str]:
    """The slots of the chosen agent, which may be one's own: `--SLOT key` fills them."""
    import_plugins(config.plugins)
    return list(AGENT_REGISTRY.get(config.agent_type).slots)  # type: ignore[attr-defined]


def defaults_of(config: TrainConfig) -> dict[str, Any]:
    """The options for which the chosen trainer or its loss, which may be one's own, has another default."""
    import_plugins(config.plugins)
    return TRAINER_REGISTRY.get(config.trainer).defaults_for(config.loss)  # type: ignore[attr-defined]


def list_parts(arguments: Sequence[str]) -> None:
    """`memfactory list`."""
    flags = ("--import", "--plugins")
    if arguments and arguments[0] not in flags:
        raise unknown_name("flag of memfactory list", arguments[0], ["--import"])
    import_plugins([name for name in arguments if name not in flags])
    console = Terminal(soft_wrap=True, highlight=False)
    for registry in REGISTRIES:
        console.print(f"[bold]{registry.kind}[/]")
        for name, part in registry.items():
            first_line = (part.__doc__ or "").strip().splitlines()
            console.print(f"  {name:<24} {escape(first_line[0]) if first_line else ''}")
            slots = [f"{slot}={module}" for slot, module in getattr(part, "slots", {}).items()] if isinstance(part, type) else []
            if isinstance(part, type) and (stages := getattr(part, "stages", ())):
                console.print(f"  {'':<24} stages: {', '.join(stages)}")
            options = [*slots, *describe_options(part)]
            if options:
                console.print(f"  {'':<24} [dim]{escape(', '.join(options))}[/]")


if __name__ == "__main__":
    sys.exit(main())
