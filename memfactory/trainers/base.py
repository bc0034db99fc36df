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
from collections.abc import Mapping
from contextlib import nullcontext
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
from memfactory.common.files import alone, check_place, file_hash
from memfactory.common.progress import Lines
from memfactory.common.registry import TRAINER_REGISTRY, build_options
from memfactory.common.tracking import Trackers, build_trackers, check_trackers, tracker_names
from memfactory.common.version import __version__
from memfactory.engines.load import check_vocabulary, embedded_tokens, load_causal_lm, load_config, load_tokenizer, model_hash
from memfactory.evaluation.report import plot_curves
from memfactory.modules.base import NoOptions
from memfactory.trainers import checkpoint as ckpt
from memfactory.trainers.distributed import Ranks, device_of
from memfactory.trainers.health import Clock
from memfactory.trainers.held import PLAIN, HeldModel, loading_type
from memfactory.trainers.profiling import StepProfiler
from memfactory.trainers.setup import check_choices, required_model
from memfactory.trainers.sharding import sharded, spread
from memfactory.trainers.watch import Watch, explaining

if TYPE_CHECKING:  # importing it takes two seconds
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


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
        self._trackers = tracker_names(config.report_to, config.wandb_name)
        check_trackers(self._trackers)
        check_place(self.output_dir)
        self._resume_from = ckpt.newest(self.output_dir, config.resume)
        self.ranks.same(f"the last checkpoint in {self.output_dir}", self._resume_from and self._resume_from.name)
        self.watch = Watch(config, quiet=not self.ranks.main)
        self.step = self.updates = self.skipped_updates = self.rollout_tokens = self._updates_in_step = 0
        self.cpu_seconds = 0.0
        self.best_score = -float("inf")
        self.best_step: int | None = None
        self.prepare(model, tokenizer)
        if config.dry_run:
            return
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

    # What a trainer supplies

    Options: type = NoOptions
    """What `trainer_options` may hold."""
    defaults: dict[str, Any] = {}
    """Options of TrainConfig for which this trainer has another default: the command line's, and `configured`'s."""
    saved: tuple[str, ...] = ("step", "updates", "skipped_updates", "cpu_seconds", "rollout_tokens", "best_score", "best_step")
    """Attributes that a checkpoint keeps and a resumed run takes up again."""
    checkpoints_are_for = "transformers and vLLM load it"
    trains_lm = True
    """What is trained is a causal LM: split weights and adapters are for that."""
    distributed = False
    """Whether several processes can train together."""

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Check and build what takes no weights, before they are loaded: all that --dry_run does. `model`, `tokenizer`: if given."""
        if self.trains_lm and model is None:
            load_config(required_model(self.config))
            if tokenizer is None:
                load_tokenizer(required_model(self.config))

    def load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """What is trained and its tokenizer: a causal LM, unless overridden. Each as given, or loaded if it is None."""
        if tokenizer is None:
            tokenizer = load_tokenizer(required_model(self.config))
        if model is None:
            dtype = loading_type(self.config, self._own_gpu, self.bf16)
            model = load_causal_lm(required_model(self.config), str(self.device), dtype)
            check_vocabulary(required_model(self.config), embedded_tokens(model), tokenizer)
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
        """Run to the end (or go on from the last checkpoint) and return the last checkpoint's folder.

        A run that scores or learns nothing ends with an error (`Watch`); so does a second process in the same folder.
        """
        with alone(self.output_dir) if self.ranks.main else nullcontext():
            if ckpt.newest(self.output_dir, self.config.resume) != self._resume_from:
                raise ConfigError(f"Another run wrote to {self.output_dir} since this one began. Start again with --resume True.")
            return self._train()

    def _train(self) -> Path:
        config = self.config
        if self._resume_from is not None:
            self._restore(self._resume_from)
        names, main = self._trackers, self.ranks.main
        trackers = build_trackers(names, self.output_dir, config.wandb_name, config.to_dict(), self.step + 1) if main else Trackers([])
        saved = self._resume_from
        shown: dict[str, Any] = {"desc": config.trainer, "unit": "step", "initial": self.step, "dynamic_ncols": True}
        shown["disable"] = None if main else True
        guard = explaining(self.clock, config, self.device, self.ranks)
        self.clock.start()
        lines = Lines(bar=sys.stderr.isatty() or not main, every=10)
        try:
            with guard, tqdm(total=self._known_total(), **shown) as bar:
                while self.step < self.total_steps and not self._spent():
                    metrics = self._timed_step()
                    saved = None
                    if config.eval_steps and self.step % config.eval_steps == 0:
                        with self.clock.part("evaluation"):
                            metrics |= self.evaluate()
                        saved = self._save_if_best(metrics.get("eval/score"))
                        self.watch.tell(self.step, metrics, saved is not None)
                    self._track(trackers, metrics | self.clock.shares())
                    bar.update()
                    bar.total = self._known_total()
                    told = {name: f"{metrics[name]:.3f}" for name in self.bar_metrics if name in metrics}
                    bar.set_postfix(told)
                    numbers = "".join(f", {name} {number}" for name, number in told.items())
                    lines.tell(f"step {self.step} of {self._known_total() or '?'}{numbers}", now=self.step == self.total_steps)
                    if (why := self.watch.stop(self.step)) is not None:
                        raise self._stopped(why)
                    if config.save_steps and self.step % config.save_steps == 0 and saved is None and not self.watch.lost:
                        saved = self.save()
                if (why := self.watch.at_end(self.step, self.updates)) is not None:
                    raise self._stopped(why)
                saved = saved or self.save()
        finally:
            trackers.close()
        metrics_file = self.output_dir / "metrics.jsonl"
        if main and metrics_file.stat().st_size:
            plot_curves(metrics_file, self.output_dir / "learning_curve.png", f"{config.trainer}: {self.output_dir.name}")
        return saved

    bar_metrics: tuple[str, ...] = ("loss",)

    def _timed_step(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self._updates_in_step, before = 0, self.updates
        with self._profiler.step(self.step + 1):
            metrics = self.training_step()
        self.step += 1
        self.cpu_seconds += sum(self.ranks.gather(time.process_time() - cpu))
        self.rollout_tokens += metrics.get("rollout_tokens", 0)
        self.watch.step(metrics, self.updates > before)
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds_total": self.cpu_seconds}
        return metrics | times | {"updates": self.updates, "skipped_updates": self.skipped_updates}

    def _stopped(self, why: Exception) -> Exception:
        """The same error, when what was learned is saved: as of before the lost steps, which a resumed run makes again."""
        self.step -= self.watch.lost
        if self.updates and not (self.output_dir / ckpt.folder_name(self.step)).is_dir():
            self.save()
        return why

    def _known_total(self) -> int | None:
        return None if self.total_steps == sys.maxsize else self.total_steps

    def _spent(self) -> bool:
        minutes, tokens = self.config.max_cpu_minutes, self.config.max_rollout_tokens
        return (minutes is not None and self.cpu_seconds >= 60 * minutes) or (tokens is not None and self.rollout_tokens >= tokens)

    def _track(self, trackers: Any, metrics: dict[str, Any]) -> None:
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        lists, texts = ({k: v for k, v in metrics.items() if isinstance(v, kind)} for kind in (list, str))
        trackers.log(self.step, numbers, lists, texts)

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
                folder = ckpt.save_checkpoint(self.output_dir, self.step, whole, self.tokenizer, self.about(), state)
                ckpt.mark(self.output_dir, folder, self.best_step)  # before older ones are deleted
                ckpt.prune(self.output_dir, self.config.save_total_limit)
            self.ranks.wait()
        return self.output_dir / ckpt.folder_name(self.step)

    @cached_property
    def _started_from(self) -> str | None:
        """The content of the model that training starts from, wherever it lies."""
        return model_hash(self.config.model_name_or_path) if self.config.model_name_or_path else None

    def _save_if_best(self, score: float | None) -> Path | None:
        # Written so that NaN is never the best; nor are the starting weights, which nothing was learned for.
        if score is None or not score > self.best_score or not self.updates:
            return None
        self.best_score, self.best_step = score, self.step
        return self.save()

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
        if self.ranks.main:
            ckpt.mark(self.output_dir, folder, self.best_step)
