"""The one training configuration: every option with its meaning, read from flags or YAML, saved beside each checkpoint.

Knows names and ranges, not the parts that use them. `read_config(["run.yaml", "--lr", "1e-4"])`: flags win over the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import read_yaml
from memfactory.common.flags import FlagParser, at_home, gathered, mapping_of, option
from memfactory.common.ranges import check_ranges
from memfactory.common.redaction import without_secrets

ENGINE_GRAPHS = ("auto", "on", "off")
DECODE_ATTENTIONS = ("auto", "model", "sdpa", "flash", "triton")

_MAPPINGS = ("agent_options", "api_options", "env_options", "roles", "trainer_options", "loss_options", "engine_options")

_CHOICES = {
    "master_weights": ("fp32", "split"),
    "gradients": ("fp32", "bf16"),
    "moments": ("fp32", "8bit"),
    "reference": ("copy", "cpu", "lora"),
}

_FREE_ON_RESUME = frozenset(
    "dry_run max_lost_steps max_idle_steps output_dir resume max_steps max_cpu_minutes max_rollout_tokens epoch save_steps "
    "save_total_limit eval_steps eval_samples eval_k eval_data_path report_to wandb_name threads device engine_graphs "
    "parallel profile_steps rollout_servers".split()
)
"""Options that do not decide what a step computes: they may differ between a run and its resumption."""


@dataclass
class TrainConfig:
    """Options of `memfactory train`. One *step* is one rollout batch of `batch_size * gradient_accumulation_steps` examples."""

    # What
    trainer: str = option("mem_grpo", "Which trainer: a key of TRAINER_REGISTRY.")
    model_name_or_path: str | None = option(None, "Model folder or hub name to start from. Required.")
    data_path: str | None = option(None, "Training data: a JSON list in the env's format (mem_sft: a JSONL of turns). Required.")
    eval_data_path: list[str] = option([], "Held-out data sets, each PATH or NAME=PATH.")
    output_dir: str = option("output/run", "Where checkpoints, metrics and curves go.")
    agent_type: str = option("memagent", "Which agent: a key of AGENT_REGISTRY. Its slots are flags too: --SLOT module.")
    env_type: str = option("longcontext", "Which env: a key of ENV_REGISTRY.")
    agent_options: str = option("{}", "Options of the agent and its slots: JSON on the command line, a mapping in YAML.")
    env_options: str = option("{}", "Options of the env: JSON on the command line, a mapping in YAML.")
    trainer_options: str = option("{}", "Options of the trainer that no other has (mem_reinforce): JSON, or a mapping in YAML.")
    roles: str = option("{}", "Who answers each stage, {stage: policy | policy_nograd | reference | api:NAME}: JSON, or a mapping in YAML.")
    api_options: str = option("{}", 'More of every request to models behind an API, as JSON, such as {"reasoning_effort": "low"}.')
    plugins: list[str] = option([], "Python files or modules that register your own parts.", "--import")

    # Rollout
    batch_size: int = option(1, "Examples per rollout batch, before gradient_accumulation_steps multiplies them.", least=1)
    gradient_accumulation_steps: int = option(1, "Multiplies batch_size: all these examples are rolled out together.", least=1)
    num_generations: int = option(8, "Attempts per example (G), the group that rewards are compared in.", least=1)
    temperature: float = option(1.0, "Sampling temperature; the log-probs of training use it too.", above=0)
    frozen_temperature: float | None = option(
        None, "Of stages that roles give to other models, as a frozen reader: 0 is greedy. Default: temperature.", least=0
    )
    chunk_size: int | None = option(None, "Tokens of text per reading turn (memagent).", least=1)
    max_chunk_number: int | None = option(None, "Most chunks in training; longer texts lose their middle (counted).", least=1)
    max_prompt_length: int | None = option(None, "Most tokens of any prompt; an example over it is left out and counted.", least=1)
    max_generate_length: int | None = option(None, "Most tokens sampled in a turn.", least=1)
    train_extraction: bool | None = option(None, "Role of the stage extraction: True is policy, False policy_nograd.")
    train_update: bool | None = option(None, "Role of the stage update: True is policy, False policy_nograd.")
    engine_slots: int = option(192, "Most requests that decode together; on a GPU as many of them as the free memory holds.", least=1)
    engine_graphs: str = option("auto", "Decode steps as recorded CUDA graphs: auto (on a GPU), on or off.")
    decode_attention: str = option("auto", "Decode steps: auto, model (transformers' forward), or fused with sdpa, flash or triton.")
    share_prefixes: bool = option(True, "Compute long common beginnings of prompts once in the rollout's prefill.")
    engine: str = option(
        "hf", "What samples in rollouts: hf (over the trained weights themselves) or vllm (over a copy, renewed after every step)."
    )
    engine_options: str = option("{}", "Options of an engine that is not hf: JSON on the command line, a mapping in YAML.")
    rollout_servers: list[str] = option([], "vLLM servers to sample from, http://HOST:PORT each, instead of in this process.")

    # Credit and loss
    advantage: str = option("mean", "Normalisation: mean, std or leave_one_out within a group, or batch (its mean, the batch's std).")
    credit: str = option("trajectory", "Which turns are paid: trajectory (all) or final_turn (an ablation).")
    loss: str = option("grpo", "Which loss, a key of LOSS_REGISTRY; it brings defaults for aggregation and clips (docs/losses.md).")
    loss_options: str = option("{}", "Options of the loss that have no flag: JSON on the command line, a mapping in YAML.")
    aggregation: str = option("token", "What weighs alike: token, sequence (turn), trajectory, prompt, or constant (Dr. GRPO).")
    clip_low: float = option(0.2, "The ratio is clipped below at 1 - clip_low.", least=0, most=1)
    clip_high: float = option(0.2, "The ratio is clipped above at 1 + clip_high.", least=0)
    dual_clip: float = option(3.0, "Bound of the loss for negative advantages, in multiples of them; 0 switches it off.", least=0)
    beta: float = option(0.0, "Weight of the KL to the starting weights; 0 keeps no reference.", least=0)
    kl: str = option("k3", "Estimator of that KL: k1, k2 or k3.")
    kl_gradient: str = option("plain", "Its gradient: plain (its own), straight_through (k2's, exact) or ratio (times the ratio).")
    truncated: str = option("train", "What a response cut off at its limit gets: train, mask or penalize.")
    truncated_penalty: float = option(0.5, "Taken from the advantage of truncated turns under penalize.", least=0)
    old_logprobs: str = option(
        "auto",
        "Behaviour log-probs: sampler, frozen (the trainer's, of the weights that sampled) or recompute (an ablation). auto: sampler, but "
        "frozen for an engine other than hf.",
    )
    tis: str = option(
        "auto",
        "Truncated importance sampling for a sampler that is not the trainer: none, token or sequence. auto: token for an engine other "
        "than hf whose old log-probs are not the sampler's.",
    )
    tis_cap: float = option(2.0, "Largest weight of that.", above=0)
    num_minibatches: int = option(1, "Optimizer updates per pass over a rollout batch.", least=1)
    num_iterations: int = option(1, "Passes over a rollout batch.", least=1)

    # Optimizer
    optimizer: str = option("adamw", "adamw, or muon (hidden matrices by Muon, the rest by AdamW).")
    lr: float = option(1e-6, "Peak learning rate.", least=0)
    weight_decay: float = option(0.01, "Decay of the hidden matrices.", least=0)
    adam_beta1: float = option(0.9, "AdamW's first beta.", least=0, below=1)
    adam_beta2: float = option(0.99, "AdamW's second beta.", least=0, below=1)
    warmup_updates: int = option(10, "Optimizer updates of linear warm-up.", least=0)
    lr_schedule: str = option("constant", "constant, linear, cosine or trapezoid, counted in optimizer updates.")
    max_grad_norm: float = option(1.0, "Gradient-norm clip; 0 switches it off.", least=0)
    tokens_per_micro_batch: int = option(16384, "Most padded tokens in one forward and backward pass.", least=1)
    logprob_chunks: str = option("auto", "Logits of trained tokens: dense (whole), chunked (tile by tile, small), auto (by their number).")
    packing: str = option("tree", "What the update computes: tree (what turns share at their beginning, once) or rows (each turn alone).")
    attention_backend: str = option("auto", "How packing tree attends: auto, sdpa4d, paths, flash or flex (docs/performance.md).")
    share_prompts: bool = option(True, "Older spelling: False means --packing rows.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass.")
    master_weights: str | None = option(
        None, "fp32, or split: bf16 weights, which the sampler reads too, and 16 bits each that restore fp32. Default: split on a GPU."
    )
    gradients: str = option("fp32", "What the gradients of split weights are added up in: fp32, or bf16 (coarse over many micro-batches).")
    moments: str | None = option(None, "AdamW's moments: fp32 or 8bit. Default: 8bit on a GPU from 3e9 parameters, else fp32.")
    offload_optimizer: bool = option(False, "Keep AdamW's moments, and the 16 bits of split weights, on the CPU.")
    lora_r: int = option(0, "Rank of LoRA adapters, which are then all that is trained (needs peft); 0: all weights are trained.", least=0)
    lora_alpha: int = option(64, "What adapters add is multiplied by lora_alpha / lora_r.", least=1)
    lora_dropout: float = option(0.0, "Dropout in front of adapters; only mem_sft allows it, since the sampler has none.", least=0, below=1)
    lora_targets: list[str] = option(["all-linear"], "Layers with adapters: ends of names such as q_proj, or all-linear (but the head).")
    reference: str | None = option(
        None, "Starting weights, if needed: copy (on the device), cpu (layers streamed in) or lora (adapters off). Default: what fits best."
    )
    bf16: bool | None = option(None, "bf16 arithmetic over fp32 weights. Default: on a GPU, yes; on a CPU, no (slower there).")

    # Run
    epoch: int = option(1, "Passes over the training data; max_steps, if given, decides instead.", least=1)
    max_steps: int | None = option(None, "Stop after this many steps (rollout batches).", least=1)
    max_cpu_minutes: float | None = option(None, "Stop after this many CPU minutes of training, held-out checks not counted.", least=0)
    max_rollout_tokens: int | None = option(
        None, "Stop after this many sampled tokens; without max_steps as many steps as they last.", least=1
    )
    max_lost_steps: int = option(3, "Stop after so many steps in a row without a scored attempt; 0: never.", least=0)
    max_idle_steps: int = option(100, "Stop after so many steps in a row without an update; 0: never.", least=0)
    dry_run: bool = option(False, "Check everything that can be checked without the weights, say what would be done, and end.")
    seed: int = option(0, "Seed of data order and of every random stream.", least=0, below=2**32)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    parallel: str = option("auto", "Several processes: ddp (each has the model), fsdp2 (each a shard), auto (as accelerate's file says).")
    profile_steps: int = option(0, "Write a torch.profiler trace of the first so many steps to output_dir/trace.", least=0)
    threads: int = option(0, "CPU threads of torch; 0 leaves torch's choice.", least=0)
    eval_steps: int = option(0, "Held-out check every so many steps; 0: none.", least=0)
    eval_samples: int = option(64, "Examples of each held-out set in a check; 0 is all.", least=0)
    eval_k: int = option(1, "Sampled attempts per example in a check, beside the greedy one.", least=0)
    save_steps: int = option(50, "Checkpoint every so many steps; one is always saved at the end.", least=0)
    save_total_limit: int = option(2, "Checkpoints kept, beside the best and the last.", least=0)
    resume: bool = option(False, "Go on from the last checkpoint in output_dir, if there is one.")
    report_to: list[str] = option([], "Trackers beside metrics.jsonl: keys of TRACKER_REGISTRY, such as swanlab.")
    wandb_name: str | None = option(None, "Name of the run in the tracker; given alone it turns on swanlab, as in the public launchers.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            setattr(self, name, at_home(value) if isinstance(value, str) else value)
        for name in _MAPPINGS:
            setattr(self, name, json.dumps(mapping_of(name, getattr(self, name)), sort_keys=True))
        if self.temperature == 0:
            raise ConfigError(f"--temperature {self.temperature}: training samples, so it must be above 0.")
        check_ranges(type(self), vars(self))
        if self.aggregation == "constant" and not self.max_generate_length:
            raise ConfigError(
                f"--aggregation constant divides by the most tokens of a turn, and --max_generate_length is {self.max_generate_length}. "
                "Give it, for example --max_generate_length 1024."
            )
        self._settle_correction()
        for name, known in _CHOICES.items():
            if getattr(self, name) not in (*known, getattr(type(self), name)):
                raise unknown_name(name, str(getattr(self, name)), known)

    def _settle_correction(self) -> None:
        """What `auto` means, and that the mismatch of sampler and trainer is corrected once: by the ratio, or by TIS."""
        copies = self.engine != "hf" or bool(self.rollout_servers)
        if self.old_logprobs == "auto":
            self.old_logprobs = "frozen" if copies and self.tis != "none" or self.tis in ("token", "sequence") else "sampler"
        if self.old_logprobs not in ("sampler", "frozen", "recompute"):
            raise unknown_name("old_logprobs", self.old_logprobs, ("auto", "sampler", "frozen", "recompute"))
        if self.tis == "auto":
            self.tis = "token" if copies and self.old_logprobs != "sampler" else "none"
        if self.tis != "none" and self.old_logprobs == "sampler":
            raise ConfigError(
                f"--tis {self.tis} --old_logprobs sampler corrects twice: the ratio is to the sampler already. Give --old_logprobs frozen, "
                "or --tis none."
            )
        if self.tis == "none" and copies and self.old_logprobs == "frozen":
            raise ConfigError(
                f"--engine {self.engine} --old_logprobs frozen --tis none leaves the sampler's own rounding uncorrected. Give --tis token, "
                "or --old_logprobs sampler."
            )

    def mapping(self, name: str) -> dict[str, Any]:
        """`agent_options`, `env_options`, `trainer_options` or `roles` as a mapping."""
        return mapping_of(name, getattr(self, name))

    @property
    def examples_per_step(self) -> int:
        """Examples in one rollout batch (DESIGN section 5)."""
        return self.batch_size * self.gradient_accumulation_steps

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values and mappings, as they are saved beside a checkpoint: without secrets."""
        return without_secrets(dataclasses.asdict(self) | {name: self.mapping(name) for name in _MAPPINGS})

    def changes(self, saved: dict[str, Any], moved: Collection[str] = ()) -> list[str]:
        """`option: old -> new` for what decides a run and differs from a saved `to_dict`; an option it lacks had its default.

        `moved`: paths that may differ, since what is there is the same.
        """
        # A schedule that falls with the length of the run makes that length part of what each step computes.
        free = _FREE_ON_RESUME - ({"max_steps", "max_rollout_tokens", "epoch"} if self.lr_schedule != "constant" else set())
        old = TrainConfig().to_dict() | saved
        return [
            f"{name}: {old[name]!r} -> {value!r}"
            for name, value in self.to_dict().items()
            if name not in {*free, *moved} and old[name] != value
        ]


USAGE = "memfactory train [CONFIG.yaml] [--flag value ...]     flags win over the file"

PLAN_USAGE = """memfactory plan --model PATH_OR_NAME --gpu GIB [--gpus N] [CONFIG.yaml] [training flags]

  --model   a folder, or a known name such as Qwen3-4B
  --gpu     GiB of a GPU, such as 24, 40, 80 or 141
  --gpus    how many there are, each with a process (default 1)

What the flags say of how weights are held (--lora_r, --master_weights, ...)
is kept. It ends with the command to copy."""


SlotsOf = Callable[[TrainConfig], Iterable[str]]
DefaultsOf = Callable[[TrainConfig], Mapping[str, Any]]


def read_config(arguments: Sequence[str], slots_of: SlotsOf | None = None, defaults_of: DefaultsOf | None = None) -> TrainConfig:
    """Build the configuration from `[FILE.yaml] --flag value ...`; an unknown flag or key names the nearest known one.

    `slots_of(config)` names the slots of the chosen agent: `--SLOT module_key` is then a flag too, short for an entry of
    `agent_options`. `defaults_of(config)` are options for which the chosen trainer has another default.
    """
    arguments = list(arguments)
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    file = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    arguments = gathered(arguments, ("--import", "--plugins"))
    if file is not None:
        # The file's values go through the same parser as flags, so they are checked alike, and flags, coming later, win.
        arguments = [*_yaml_flags(Path(file).expanduser(), known), *arguments]
    parser = FlagParser(TrainConfig, prog="memfactory train", usage=USAGE, allow_abbrev=False)
    config, extra = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    if defaults_of and (defaults := defaults_of(config)):
        # Before what was given, so that it wins, as flags do over the file.
        arguments = [*_as_flags(defaults), *arguments]
        config, extra = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    slots = list(slots_of(config)) if extra and slots_of else []
    left = _take_slots(config, list(map(str, extra)), slots)
    known |= set(slots)
    if left:
        raise unknown_name("flag", left[0], [f"--{name}" for name in known | {"import"}], "`memfactory train --help` explains them.")
    return config


def _take_slots(config: TrainConfig, extra: list[str], slots: list[str]) -> list[str]:
    """Move `--SLOT key` from the flags that are left over into `agent_options`; returns what is still left."""
    options, left = config.mapping("agent_options"), list(extra)
    for slot in slots:
        if f"--{slot}" in left[:-1]:
            at = left.index(f"--{slot}")
            given = options.get(slot)
            nested = given if isinstance(given, dict) else {}
            options[slot] = {**nested, "type": left[at + 1]}
            del left[at : at + 2]
    config.agent_options = json.dumps(options, sort_keys=True)
    return left


def _yaml_flags(path: Path, known: set[str]) -> list[str]:
    values = read_yaml(path, "configuration file")
    for key, value in values.items():
        if key not in known:
            raise unknown_name(f"key of {path}", str(key), known)
        if value is None and getattr(TrainConfig(), key) is not None:
            raise ConfigError(f"{path}: {key} is null, but it must have a value. Leave the key out for its default.")
    return _as_flags(values)


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            value = json.dumps(value)
        items = value if isinstance(value, list) else [value]
        if value is not None and items:
            flags += [f"--{key}", *map(str, items)]
    return flags
