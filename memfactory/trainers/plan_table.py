"""`memfactory plan`: whether a training run fits a GPU, why, and what else would: tables over `memory_plan`. Loads no weights.

Knows no trainer: everything is arithmetic on a configuration and a model's shape.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memfactory.common.config import PLAN_USAGE, TrainConfig, read_config
from memfactory.common.errors import ConfigError, UserError
from memfactory.trainers.held import Held, held_by
from memfactory.trainers.memory_plan import CACHE, MemoryPlan, bytes_per_parameter, lengths, plan_memory, slots_wanted
from memfactory.trainers.model_shapes import KNOWN, Shape, shape_of
from memfactory.trainers.setup import required_model

USABLE = 0.94
"""Of a GPU's memory: the rest is CUDA's own and what allocating in pieces wastes."""

SCHEMES: dict[str, dict[str, object]] = {
    "fp32 weights": {"master_weights": "fp32", "moments": "fp32"},
    "split weights": {"master_weights": "split", "moments": "fp32"},
    "split weights, 8-bit moments": {"master_weights": "split", "moments": "8bit"},
    "the same, state on the CPU": {"master_weights": "split", "moments": "8bit", "offload_optimizer": True},
    "LoRA": {"lora_r": 32},
}
"""Ways to hold the weights, from the plainest to the smallest: what is set over what a configuration leaves open."""

_SHARDED: dict[str, dict[str, object]] = {
    "a whole model on each GPU": {"parallel": "ddp", "master_weights": "fp32", "moments": "fp32"},
    "shards": {"parallel": "fsdp2", "master_weights": "fp32", "moments": "fp32"},
    "LoRA": {"parallel": "ddp", "lora_r": 32},
}
"""The same for several GPUs: docs/scaling.md says what has been tried there."""

_PLAIN: dict[str, object] = {"master_weights": None, "moments": None, "offload_optimizer": False, "lora_r": 0}

_WHY = {
    "weights (fp32)": "masters, which the sampler reads too",
    "weights (bf16)": "read by sampler and update: there is no other copy",
    "moments": "running means of the gradient and of its square",
    "residual (int16)": "the lower halves of the fp32 masters",
    "gradients (fp32)": "added up over micro-batches; freed before the rollout",
    "gradients (bf16)": "added up over micro-batches, coarsely; freed before the rollout",
    "weights in bf16": "what fp32 weights are cast to while a pass lasts",
    "activations": "what the backward pass needs of one micro-batch",
    "logits": "from the trained positions' hidden states to log-probs and back",
    "reference": "the starting weights, for the KL (beta above 0) or a role",
}


MIN_SLOTS = 8
"""Requests from which decoding together is worth its name."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run, and whether it fits."""

    name: str
    config: TrainConfig
    plan: MemoryPlan
    slots: int
    """Requests that decode together in what the GPU has."""
    room: float
    """GiB that can be used."""
    gpus: int = 1

    @property
    def update(self) -> float:
        """GiB at the update's peak."""
        return self.plan.stays + sum(self.plan.update.values())

    @property
    def fits(self) -> bool:
        """True if the update has room, and the rollout for a useful number of slots."""
        return self.update <= self.room and self.slots >= min(MIN_SLOTS, slots_wanted(self.config, self.gpus))


def plan(arguments: Sequence[str], console: Console, read: Callable[[Sequence[str]], TrainConfig] = read_config) -> int:
    """Print the tables; 1 if nothing fits. `read` makes a configuration of training flags."""
    model, gpu, gpus, rest = _taken(arguments)
    config = read(rest)
    config.model_name_or_path = model or config.model_name_or_path
    shape = shape_of(required_model(config))
    given = _option("as given", config, shape, gpu, gpus)
    options = list(_options(config, shape, gpu, gpus))
    best = given if given.fits else next((option for option in options if option.fits), None)
    console.print(_parts(given, shape, gpu))
    console.print(_schemes([given, *_shown(options)], shape))
    console.print(_verdict(given, best, gpu), highlight=False, soft_wrap=True)
    if best is not None:
        console.print(command(best, shape, rest, changed=best is not given), highlight=False, soft_wrap=True, markup=False)
    return 0 if best is not None else 1


def _taken(arguments: Sequence[str]) -> tuple[str | None, float, int, list[str]]:
    """The model, a GPU's GiB, how many GPUs, and the words that are training flags."""
    words, taken = list(arguments), dict[str, str]()
    for name in ("--model", "--gpu", "--gpus"):
        if name in words[:-1]:
            at = words.index(name)
            taken[name] = words[at + 1]
            del words[at : at + 2]
    if "--gpu" not in taken:
        raise UserError(f"memfactory plan needs the GPU's memory: {PLAN_USAGE.splitlines()[0]}. Models known by name: {', '.join(KNOWN)}.")
    try:
        gpu = float(taken["--gpu"])
    except ValueError as error:
        raise ConfigError(f"--gpu {taken['--gpu']} is not a number of GiB, such as 24, 40, 80 or 141.") from error
    if not 0 < gpu < math.inf:
        raise ConfigError(f"--gpu {taken['--gpu']}: must be above 0.")
    gpus = taken.get("--gpus", "1")
    if not gpus.isdecimal() or int(gpus) < 1:
        raise ConfigError(f"--gpus {gpus}: must be a whole number, at least 1.")
    return taken.get("--model"), gpu, int(gpus), words


def _option(name: str, config: TrainConfig, shape: Shape, gpu: float, gpus: int) -> Option:
    made = plan_memory(config, config.bf16 is not False, on_gpu=True, shape=shape, gpus=gpus)
    wanted, room = slots_wanted(config, gpus), USABLE * gpu
    return Option(name, config, made, min(wanted, made.slots_in(room)), room, gpus)


def _options(config: TrainConfig, shape: Shape, gpu: float, gpus: int) -> Iterator[Option]:
    """Every scheme that goes with what was given, then with checkpointing, then with micro-batches of one row: the first that fits costs
    least."""
    row = sum(lengths(config))
    # What the user said of it stays: LoRA is not exchanged for training all weights, nor moments in fp32 for 8-bit ones.
    said = {name: value for name, plain in _PLAIN.items() if (value := getattr(config, name)) != plain}
    said |= {"parallel": config.parallel} if config.parallel != "auto" else {}
    for name, scheme in (SCHEMES if gpus == 1 else _SHARDED).items():
        other = any(scheme.get(key, value) != value for key, value in said.items() if key != "lora_r")
        only_adamw = config.optimizer != "adamw" and scheme.get("master_weights") != "fp32"
        if other or only_adamw or ("lora_r" in said and "lora_r" not in scheme):
            continue
        scheme = scheme | said
        for help_with in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "tokens_per_micro_batch": row}):
            changed: dict[str, object] = {**_PLAIN, **scheme, **help_with}
            tried = replace(config, **changed)  # type: ignore[arg-type]
            yield _option(name, tried, shape, gpu, gpus)


def _shown(options: list[Option]) -> list[Option]:
    """Of each scheme the first way that fits, else the smallest."""
    by_name: dict[str, list[Option]] = {}
    for option in options:
        by_name.setdefault(option.name, []).append(option)
    return [next((o for o in tried if o.fits), tried[-1]) for tried in by_name.values()]


def _parts(option: Option, shape: Shape, gpu: float) -> Table:
    """What the given configuration needs, part by part."""
    many = f"each of {option.gpus} x " if option.gpus > 1 else ""
    table = Table(
        title=f"{shape.parameters / 1e9:.2f} B parameters on {many}{gpu:g} GiB ({option.room:.1f} usable), as given", title_justify="left"
    )
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("when")
    table.add_column("why")
    plan, config = option.plan, option.config
    for when, parts in (("always", plan.resident), ("rollout", plan.rollout), ("update", plan.update), ("on the CPU", plan.host)):
        for name, gib in parts.items():
            table.add_row(name, f"{gib:.1f}", when, _why(name, option))
    table.add_section()
    prompt, sampled = lengths(config)
    wanted = slots_wanted(config, option.gpus)
    cache = f"{wanted} slots of {prompt + sampled} tokens wanted, {option.slots} fit" if wanted else "on the servers"
    table.add_row("peak of the rollout", f"{plan.stays + sum(plan.rollout.values()):.1f}", "", cache)
    table.add_row("peak of the update", f"{option.update:.1f}", "", "fits" if option.update <= option.room else "does NOT fit")
    return table


def _why(name: str, option: Option) -> str:
    config = option.config
    if name == CACHE:
        return f"{option.plan.slot:.2f} a slot; freed before the update"
    if name == "activations":
        kept = (
            "one layer's and each layer's input" if config.gradient_checkpointing else "those of all layers: --gradient_checkpointing True"
        )
        return f"of {max(config.tokens_per_micro_batch, sum(lengths(config)))} tokens, {kept}"
    return _WHY.get("moments" if "moments" in name else name, "")


def _schemes(options: list[Option], shape: Shape) -> Table:
    """The ways to hold the weights beside each other."""
    table = Table(title="Ways to train it", title_justify="left")
    for name in ("scheme", "bytes/param", "always", "update", "slots", "fits", "flags"):
        table.add_column(name, justify="left" if name in ("scheme", "flags") else "right", overflow="fold")
    for option in options:
        held = held_by(option.config, True, shape.parameters, option.gpus)
        shown = " ".join(f"--{name} {value}" for name, value in flags(option.config, held).items())
        table.add_row(
            option.name, f"{_bytes(held, option, shape):.1f}", f"{option.plan.stays:.1f}", f"{option.update:.1f}", str(option.slots),
            "[green]yes[/]" if option.fits else "[red]no[/]", escape(shown),
        )  # fmt: skip
    return table


def _bytes(held: Held, option: Option, shape: Shape) -> float:
    """Bytes on the GPU for each of the model's parameters: weights, the optimizer's state and gradients."""
    gib = option.plan.resident | option.plan.update
    names = [*bytes_per_parameter(held, option.config.optimizer), *(name for name in gib if "frozen" in name)]
    return sum(gib.get(name, 0.0) for name in names) * 2**30 / shape.parameters


def flags(config: TrainConfig, held: Held) -> dict[str, object]:
    """The flags that say how the weights are held, defaults of a GPU spelt out where they matter."""
    said: dict[str, object] = {
        "lora_r": config.lora_r or None,
        "master_weights": held.master_weights if held.master_weights != "lora" else None,
        "moments": held.moments if held.moments != "fp32" else None,
        "offload_optimizer": held.offload_optimizer or None,
        "gradient_checkpointing": config.gradient_checkpointing or None,
        "tokens_per_micro_batch": config.tokens_per_micro_batch,
        "reference": held.reference if config.beta > 0 else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _verdict(given: Option, best: Option | None, gpu: float) -> str:
    """What to do, above the command that does it."""
    if best is None:
        return f"Nothing fits {gpu:g} GiB at these lengths. What is left: a shorter --max_generate_length or --chunk_size, a smaller model."
    if best is given:
        fewer = given.slots < slots_wanted(given.config, given.gpus)
        return f"It fits as given{f', with --engine_slots {given.slots}' if fewer else ''}."
    return f"It does not fit as given. Recommended: {best.name}."


_WIDTH = 80


def command(option: Option, shape: Shape, words: Sequence[str], changed: bool) -> str:
    """The command that trains so: the user's own `words`, with the option's flags for theirs, in lines of at most 80 columns."""
    config = option.config
    own = flags(config, held_by(config, True, shape.parameters, option.gpus)) if changed else {}
    own |= {"model_name_or_path": config.model_name_or_path, "data_path": config.data_path or "DATA.json"}
    own |= {"engine_slots": option.slots} if option.slots < slots_wanted(config, option.gpus) else {}
    own |= {"parallel": config.parallel} if option.gpus > 1 else {}
    start = ["memfactory train"]
    if option.gpus > 1:
        file = f"examples/scale/{'fsdp2' if config.parallel == 'fsdp2' else 'ddp'}.yaml"
        start = ["accelerate launch", f"--config_file {file}", f"--num_processes {option.gpus}", "examples/train_mem_grpo.py"]
    kept: list[list[str]] = [[]]
    for word in words:
        kept += [[word]] if word.startswith("--") else []
        kept[-1] += [] if word.startswith("--") else [word]
    groups = [shlex.join(group) for group in kept if group and group[0].removeprefix("--") not in own]
    lines = [""]
    for group in [*start, *groups, *(f"--{name} {shlex.quote(str(value))}" for name, value in own.items())]:
        if lines[-1].strip() and len(lines[-1]) + len(group) + 3 > _WIDTH:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {group}" if lines[-1] else group
    return " \\\n".join(lines)
