"""What every trainer needs and no algorithm decides: device, optimizers, schedule, checkpoints, resume, metrics.

A trainer supplies `num_steps` (how many steps its data holds), `training_step` and, if it has held-out data, `evaluate`.
A *step* is one rollout batch (or one supervised batch); an *update* is one optimizer step; a step may take several.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from memfactory.algorithms.optim import build_optimizers, clip_and_step, lr_scale, set_lr
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError
from memfactory.common.files import file_hash
from memfactory.common.progress import Lines
from memfactory.common.registry import TRAINER_REGISTRY, build_options
from memfactory.common.tracking import Trackers, build_trackers, tracker_names
from memfactory.common.version import __version__
from memfactory.engines.load import check_vocabulary, embedded_tokens, load_causal_lm, load_tokenizer, model_hash
from memfactory.evaluation.report import plot_curves
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.distributed import Ranks, device_of, explained
from memfactory.trainers.health import Clock, memory_explained
from memfactory.trainers.held import PLAIN, HeldModel, loading_type
from memfactory.trainers.profiling import StepProfiler
from memfactory.trainers.setup import check_choices, required_model
from memfactory.trainers.sharding import sharded, spread

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A trainer without options of its own."""


class BaseTrainer(ABC):
    """The loop around `training_step`, with everything that makes it resumable."""

    def __init__(self, config: TrainConfig, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        check_choices(config)
        self.config = config
        self.options: Any = build_options(f"the trainer {config.trainer}", self.Options, config.mapping("trainer_options"))
        self.output_dir = Path(config.output_dir)
        self.device = device_of(config.device)
        self.ranks = Ranks.start(self.device)
        self._profiler = StepProfiler(self.output_dir / "trace", config.profile_steps if self.ranks.main else 0)
        if self.ranks.size > 1 and not self.distributed:
            raise ConfigError(f"--trainer {config.trainer} trains in one process, and {self.ranks.size} were started. Start it alone.")
        self.clock = Clock(self.device)
        # The defaults that save memory on one GPU are not for weights that several share out.
        self._own_gpu = self.device.type == "cuda" and not sharded(config.parallel, self.ranks)
        self.bf16 = config.bf16 if config.bf16 is not None else self.device.type == "cuda"
        if config.threads:
            torch.set_num_threads(config.threads)
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        self._resume_from = self._find_checkpoint()
        self.ranks.same(f"the last checkpoint in {self.output_dir}", self._resume_from and self._resume_from.name)
        model, tokenizer = self.load(model, tokenizer)
        self.model: PreTrainedModel = model.to(str(self.device))  # type: ignore[arg-type]
        self.held = HeldModel(self.model, config, self._own_gpu) if self.trains_lm else None
        self.tokenizer = tokenizer
        if config.gradient_checkpointing:
            # transformers 5.23 renamed it and warns of the old name; older versions have only that.
            enable = getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.parallel = spread(self.model, self.ranks, config, self.held is None or self.held.held == PLAIN)
        self.optimizers = build_optimizers(
            self.model, config.optimizer, config.lr, config.weight_decay, (config.adam_beta1, config.adam_beta2),
            self.held.lean if self.held is not None else None,
        )  # fmt: skip
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
    trains_lm = True
    """What is trained is a causal LM: split weights and adapters are for that."""
    distributed = False
    """Whether several processes can train together."""

    def load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """What is trained and its tokenizer: a causal LM, unless overridden. Each as given, or loaded if it is None."""
        if tokenizer is None:
            tokenizer = load_tokenizer(required_model(self.config))
        if model is None:
            dtype = loading_type(self.config, self._own_gpu, self.bf16)
            model = load_causal_lm(required_model(self.config), str(self.device), dtype)
        check_vocabulary(self.config.model_name_or_path or type(model).__name__, embedded_tokens(model), tokenizer)
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
    def defaults_for(cls, loss: str) -> dict[str, Any]:
        """This trainer's defaults when it optimises `loss`, which may bring its own."""
        return cls.defaults

    @classmethod
    def configured(cls, options: Mapping[str, Any]) -> TrainConfig:
        """A configuration with this trainer's and its loss's defaults, as the command line makes it, for use from Python."""
        loss = options.get("loss", TrainConfig.loss)
        return TrainConfig(**({"trainer": TRAINER_REGISTRY.name_of(cls)} | cls.defaults_for(loss) | dict(options)))

    # The loop

    @property
    def total_steps(self) -> int:
        """Where the run ends, if CPU minutes do not end it first; of a budget of tokens what they will last for, judged by those spent."""
        steps, limit = self.config.max_steps, self.config.max_rollout_tokens
        if steps is not None:
            return steps
        if limit is None:
            return self.num_steps
        return math.ceil(self.step * limit / self.rollout_tokens) if self.rollout_tokens else sys.maxsize

    def train(self) -> Path:
        """Run to the end (or go on from the last checkpoint) and return the last checkpoint's folder."""
        config = self.config
        if self._resume_from is not None:
            self._restore(self._resume_from)
        names, main = tracker_names(config.report_to, config.wandb_name), self.ranks.main
        trackers = build_trackers(names, self.output_dir, config.wandb_name, config.to_dict(), self.step + 1) if main else Trackers([])
        saved = self._resume_from
        shown: dict[str, Any] = {"desc": config.trainer, "unit": "step", "dynamic_ncols": True, "disable": None if main else True}
        self.clock.start()
        lines = Lines(bar=sys.stderr.isatty() or not main, every=10)
        try:
            with self._explaining(), tqdm(total=self._known_total(), initial=self.step, **shown) as bar:
                while self.step < self.total_steps and not self._spent():
                    metrics = self._timed_step()
                    saved = None
                    if config.eval_steps and self.step % config.eval_steps == 0:
                        with self.clock.part("evaluation"):
                            metrics |= self.evaluate()
                        saved = self._save_if_best(metrics.get("eval/score"))
                    self._track(trackers, metrics | self.clock.shares())
                    bar.update()
                    bar.total = self._known_total()
                    told = {name: f"{metrics[name]:.3f}" for name in self.bar_metrics if name in metrics}
                    bar.set_postfix(told)
                    numbers = "".join(f", {name} {number}" for name, number in told.items())
                    lines.tell(f"step {self.step} of {self._known_total() or '?'}{numbers}", now=self.step == self.total_steps)
                    if config.save_steps and self.step % config.save_steps == 0 and saved is None:
                        saved = self.save()
                saved = saved or self.save()
        finally:
            trackers.close()
        if main and (self.output_dir / "metrics.jsonl").stat().st_size:
            plot_curves(
                self.output_dir / "metrics.jsonl", self.output_dir / "learning_curve.png", f"{config.trainer}: {self.output_dir.name}"
            )
        return saved

    bar_metrics: tuple[str, ...] = ("loss",)

    def _timed_step(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self._updates_in_step = 0
        with self._profiler.step(self.step + 1):
            metrics = self.training_step()
        self.step += 1
        self.cpu_seconds += sum(self.ranks.gather(time.process_time() - cpu))
        self.rollout_tokens += metrics.get("rollout_tokens", 0)
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds_total": self.cpu_seconds}
        return metrics | times | {"updates": self.updates, "skipped_updates": self.skipped_updates}

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """What ends a run for want of memory or of another process is said in words."""
        with memory_explained(self.clock, self.config, self.device):
            try:
                yield
            except RuntimeError as error:
                if (in_words := explained(error, self.ranks)) is not None:
                    raise in_words from error
                raise

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
        warmup, total = config.warmup_updates, self.total_steps * self.updates_per_step
        if self.updates < warmup:
            planned = self.updates
        elif config.max_rollout_tokens and config.max_steps is None:  # how many updates the tokens will make is not known
            warmup, planned, total = 0, self.rollout_tokens, config.max_rollout_tokens
        lr = config.lr * lr_scale(planned, warmup, total, config.lr_schedule)
        set_lr(self.optimizers, lr)
        with self.clock.part("exchange"):
            self.parallel.sum_gradients()
        with self.clock.part("optimizer"):
            norm, finite = clip_and_step(self.model, self.optimizers, config.max_grad_norm)
        self.updates += finite
        self.skipped_updates += not finite
        return norm, lr

    # Checkpoints

    def save(self) -> Path:
        """Write a checkpoint of this moment (between steps, so that nothing is in flight)."""
        with self.clock.part("save"), self.parallel.gathered():
            state = {
                "config": self.config.to_dict(),
                "data": file_hash(self.config.data_path),
                "model": self._started_from,
                "held": self.held.state() if self.held is not None else None,
                "optimizers": [self.parallel.state_of(o) for o in self.optimizers],
                "counters": {name: getattr(self, name) for name in self.saved},
                "random": ckpt.random_states(),
            }
            if self.ranks.main:
                whole = self.parallel.sampler if self.parallel.sampler is not self.model else self.held or self.model
                ckpt.save_checkpoint(self.output_dir, self.step, whole, self.tokenizer, self.about(), state)
                ckpt.prune(self.output_dir, self.config.save_total_limit)
            self.ranks.wait()
        return self.output_dir / ckpt.folder_name(self.step)

    @cached_property
    def _started_from(self) -> str | None:
        """The content of the model that training starts from, wherever it lies."""
        return model_hash(self.config.model_name_or_path) if self.config.model_name_or_path else None

    def _save_if_best(self, score: float | None) -> Path | None:
        if score is None or not score > self.best_score:  # written so that NaN is never the best
            return None
        self.best_score = score
        folder = self.save()
        if self.ranks.main:
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
        with ckpt.damage_explained(folder, self.output_dir):
            self._take_up(folder, ckpt.load_state(folder))
        log.info("Resumed from %s at step %d", folder, self.step)

    def _take_up(self, folder: Path, state: dict[str, Any]) -> None:
        ckpt.refuse_changes(folder, self.config, state, self._started_from)
        if self.held is None:
            self.parallel.load(self.weights_of(folder))
        else:
            self.held.restore(folder, state.get("held"), self.weights_of, self.parallel.load)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            self.parallel.load_state(optimizer, saved)
        for name, value in state["counters"].items():
            setattr(self, name, value)
        ckpt.restore_random_states(state["random"])
