"""What every trainer needs and no algorithm decides: device, optimizers, schedule, checkpoints, resume, metrics.

A trainer supplies `num_steps` (how many steps its data holds), `training_step` and, if it has held-out data, `evaluate`.
A *step* is one rollout batch (or one supervised batch); an *update* is one optimizer step; a step may take several.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from memfactory.algorithms.credit import CREDITS
from memfactory.algorithms.optim import OPTIMIZERS, SCHEDULES, build_optimizers, clip_and_step, lr_scale, set_lr
from memfactory.algorithms.packing import AGGREGATIONS, TRUNCATED
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import file_hash
from memfactory.common.registry import TRAINER_REGISTRY, build_options
from memfactory.common.tracking import build_trackers
from memfactory.common.version import __version__
from memfactory.engines.load import load_causal_lm, load_tokenizer
from memfactory.evaluation.report import plot_curves
from memfactory.trainers import checkpoint as ckpt

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A trainer without options of its own."""


class BaseTrainer(ABC):
    """The loop around `training_step`, with everything that makes it resumable."""

    def __init__(self, config: TrainConfig, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        _check_choices(config)
        self.config = config
        self.options: Any = build_options(f"the trainer {config.trainer}", self.Options, config.mapping("trainer_options"))
        self.output_dir = Path(config.output_dir)
        self.device = device_of(config.device)
        self.bf16 = config.bf16 if config.bf16 is not None else self.device.type == "cuda"
        if config.threads:
            torch.set_num_threads(config.threads)
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        self._resume_from = self._find_checkpoint()
        model, tokenizer = self.load(model, tokenizer)
        self.model: PreTrainedModel = model.to(str(self.device))  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        if config.gradient_checkpointing:
            # transformers 5.23 renamed it and warns of the old name; older versions have only that.
            enable = getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.optimizers = build_optimizers(
            self.model, config.optimizer, config.lr, config.weight_decay, (config.adam_beta1, config.adam_beta2)
        )
        self.step = 0
        self.updates = 0
        self.skipped_updates = 0
        self.cpu_seconds = 0.0
        self.rollout_tokens = 0
        self._updates_in_step = 0
        self.best_score = -float("inf")

    # What a trainer supplies

    Options: type = NoOptions
    """What `trainer_options` may hold."""
    defaults: dict[str, Any] = {}
    """Options of TrainConfig for which this trainer has another default: the command line's, and `configured`'s."""
    saved: tuple[str, ...] = ("step", "updates", "skipped_updates", "cpu_seconds", "rollout_tokens", "best_score")
    """Attributes that a checkpoint keeps and a resumed run takes up again."""
    checkpoints_are_for = "transformers and vLLM load it"

    def load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """What is trained and its tokenizer: a causal LM, unless overridden. Each as given, or loaded if it is None."""
        if tokenizer is None:
            tokenizer = load_tokenizer(required_model(self.config))
        if model is None:
            model = load_causal_lm(required_model(self.config), str(self.device))
        return model, tokenizer

    def weights_of(self, folder: Path) -> dict[str, torch.Tensor]:
        """The weights of a checkpoint of this trainer."""
        return ckpt.load_weights(folder)

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps that the configured epochs over the data hold."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step, for the schedule."""
        return 1

    @abstractmethod
    def training_step(self) -> dict[str, Any]:
        """One step; returns metrics: numbers, lists (histograms) and texts."""

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of a periodic check; `score` decides which checkpoint is best. Nothing by default."""
        return {}

    def about(self) -> dict[str, Any]:
        """What memfactory.json says of a checkpoint."""
        return {
            "format": ckpt.FORMAT,
            "memfactory": __version__,
            "trainer": self.config.trainer,
            "step": self.step,
            "updates": self.updates,
            "config": self.config.to_dict(),
        }

    @classmethod
    def configured(cls, options: Mapping[str, Any]) -> TrainConfig:
        """A configuration with this trainer's defaults, as the command line makes it, for use from Python."""
        return TrainConfig(**({"trainer": TRAINER_REGISTRY.name_of(cls)} | cls.defaults | dict(options)))

    # The loop

    @property
    def total_steps(self) -> int:
        """Where the run ends, if CPU minutes do not end it first; of a budget of tokens what they will last for, judged by those spent."""
        limit = self.config.max_rollout_tokens
        if self.config.max_steps is not None or limit is None:
            return self.num_steps if self.config.max_steps is None else self.config.max_steps
        return math.ceil(self.step * limit / self.rollout_tokens) if self.rollout_tokens else sys.maxsize

    def train(self) -> Path:
        """Run to the end (or go on from the last checkpoint) and return the last checkpoint's folder."""
        config = self.config
        if self._resume_from is not None:
            self._restore(self._resume_from)
        trackers = build_trackers(_tracker_names(config), self.output_dir, config.wandb_name, config.to_dict(), self.step + 1)
        saved = self._resume_from
        try:
            with tqdm(total=self._known_total(), initial=self.step, desc=config.trainer, unit="step", dynamic_ncols=True) as bar:
                while self.step < self.total_steps and not self._spent():
                    metrics = self._timed_step()
                    saved = None
                    if config.eval_steps and self.step % config.eval_steps == 0:
                        metrics |= self.evaluate()
                        saved = self._save_if_best(metrics.get("eval/score"))
                    self._track(trackers, metrics)
                    bar.update()
                    bar.total = self._known_total()
                    bar.set_postfix({name: f"{metrics[name]:.3f}" for name in self.bar_metrics if name in metrics})
                    if config.save_steps and self.step % config.save_steps == 0 and saved is None:
                        saved = self.save()
            saved = saved or self.save()
        finally:
            trackers.close()
        if (self.output_dir / "metrics.jsonl").stat().st_size:
            plot_curves(
                self.output_dir / "metrics.jsonl", self.output_dir / "learning_curve.png", f"{config.trainer}: {self.output_dir.name}"
            )
        return saved

    bar_metrics: tuple[str, ...] = ("loss",)

    def _timed_step(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self._updates_in_step = 0
        metrics = self.training_step()
        self.step += 1
        self.cpu_seconds += time.process_time() - cpu
        self.rollout_tokens += metrics.get("rollout_tokens", 0)
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds_total": self.cpu_seconds}
        return metrics | times | {"updates": self.updates, "skipped_updates": self.skipped_updates}

    def _known_total(self) -> int | None:
        return None if self.total_steps == sys.maxsize else self.total_steps

    def _spent(self) -> bool:
        minutes, tokens = self.config.max_cpu_minutes, self.config.max_rollout_tokens
        return (minutes is not None and self.cpu_seconds >= 60 * minutes) or (tokens is not None and self.rollout_tokens >= tokens)

    def _track(self, trackers: Any, metrics: dict[str, Any]) -> None:
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        trackers.log(
            self.step,
            numbers,
            {k: v for k, v in metrics.items() if isinstance(v, list)},
            {k: v for k, v in metrics.items() if isinstance(v, str)},
        )

    def optimizer_update(self) -> tuple[float, float]:
        """Clip, step, count; returns (gradient norm, learning rate). A non-finite gradient is skipped and counted."""
        config = self.config
        # Warm-up counts updates that were made; the rest of the schedule counts planned ones, so that it ends with the run
        # also when some steps had nothing to learn from.
        planned = self.step * self.updates_per_step + self._updates_in_step
        self._updates_in_step += 1
        warming = self.updates < config.warmup_updates
        total = self.total_steps * self.updates_per_step
        if config.max_rollout_tokens and config.max_steps is None:  # the schedule is of the tokens: how many updates they make is not known
            total = 1_000_000
            planned = max(config.warmup_updates, int(total * self.rollout_tokens / config.max_rollout_tokens))
        lr = config.lr * lr_scale(self.updates if warming else planned, config.warmup_updates, total, config.lr_schedule)
        set_lr(self.optimizers, lr)
        norm, finite = clip_and_step(self.model, self.optimizers, config.max_grad_norm)
        self.updates += finite
        self.skipped_updates += not finite
        return norm, lr

    # Checkpoints

    def save(self) -> Path:
        """Write a checkpoint of this moment (between steps, so that nothing is in flight)."""
        state = {
            "config": self.config.to_dict(),
            "data": file_hash(self.config.data_path),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": {name: getattr(self, name) for name in self.saved},
            "random": ckpt.random_states(),
        }
        folder = ckpt.save_checkpoint(self.output_dir, self.step, self.model, self.tokenizer, self.about(), state)
        ckpt.prune(self.output_dir, self.config.save_total_limit)
        return folder

    def _save_if_best(self, score: float | None) -> Path | None:
        if score is None or not score > self.best_score:  # written so that NaN is never the best
            return None
        self.best_score = score
        folder = self.save()
        ckpt.mark_best(self.output_dir, folder)
        return folder

    def _find_checkpoint(self) -> Path | None:
        found = ckpt.checkpoints(self.output_dir)
        if found and not self.config.resume:
            raise ConfigError(
                f"{self.output_dir} already holds {found[-1].name}. Pass --resume True to go on from it, "
                "or another --output_dir; nothing was touched."
            )
        return found[-1] if found else None

    def _restore(self, folder: Path) -> None:
        state = ckpt.load_state(folder)
        changes = self.config.changes(state["config"])
        if (new := file_hash(self.config.data_path)) != state["data"]:
            changes.append(f"content of {self.config.data_path}: {state['data']} -> {new}")
        if changes:
            raise ConfigError(
                f"{folder} was trained with other options, so a resumed run would be neither: {'; '.join(changes)}. "
                "Give the same options, or another --output_dir."
            )
        self.model.load_state_dict(self.weights_of(folder))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state["counters"].items():
            setattr(self, name, value)
        ckpt.restore_random_states(state["random"])
        log.info("Resumed from %s at step %d", folder, self.step)


def _check_choices(config: TrainConfig) -> None:
    """Names that are read in the first step, checked before anything is loaded or written."""
    choices = {
        "aggregation": AGGREGATIONS, "truncated": TRUNCATED, "credit": CREDITS, "lr_schedule": SCHEDULES, "optimizer": OPTIMIZERS,
    }  # fmt: skip
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise unknown_name(name, getattr(config, name), known)


def batch_numbers(seed: int, step: int, size: int, total: int) -> list[int]:
    """Which of `total` examples a step has: a new seeded order for each pass over them, so a resumed run needs no cursor."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for number in range(step * size, (step + 1) * size):
        epoch, at = divmod(number, total)
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}/{epoch}").sample(range(total), total)
        chosen.append(orders[epoch][at])
    return chosen


def required_model(config: TrainConfig) -> str:
    """The model to start from; a missing one is an error that says what to give."""
    if not config.model_name_or_path:
        raise ConfigError("--model_name_or_path is required: a model folder (models/tiny ships with the project) or a hub name.")
    return config.model_name_or_path


def device_of(name: str) -> torch.device:
    """The device that --device names; one that is not here is an error that says what is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda") or (name.startswith("cuda") and not torch.cuda.is_available()):
        here = "cpu, cuda, cuda:N" if torch.cuda.is_available() else "cpu (this torch sees no GPU)"
        raise ConfigError(f"--device {name}: not usable here. Known: auto, {here}.")
    return torch.device(name)


def _tracker_names(config: TrainConfig) -> list[str]:
    """Those asked for; `--wandb_name` alone means SwanLab, as in the public launchers, if it is installed."""
    names = list(config.report_to)
    if config.wandb_name and not names:
        if importlib.util.find_spec("swanlab") is None:
            log.warning("--wandb_name %s: swanlab is not installed, so only metrics.jsonl is written.", config.wandb_name)
        else:
            names.append("swanlab")
    return names
