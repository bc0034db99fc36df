"""`MemReinforceTrainer` (`mem_reinforce`): REINFORCE on citations for RMM's linear reranker (arXiv 2503.08026, section 4).

One step: for each question of a batch the embedder's K nearest memories are fetched, M of them are drawn from the reranker's
scores, a citer says which of the M an answer would use, each is paid +1 (cited) or -1 (not), and one update follows.

Differences from the paper: (1) Plackett-Luce's log-probability of what was drawn, with tau as the temperature of the draw, and the
paper's formula as the mode `paper_literal` (algorithms/plackett_luce.py says why); (2) Adam with clipped gradients, since the
paper names no optimizer; (3) a moving baseline can take the place of b. Trains no language model and asks none itself.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memfactory.algorithms.plackett_luce import (
    BASELINES,
    MODES,
    Choice,
    baseline,
    choice_logprobs,
    gumbel_top_m,
    moved,
    reinforce_loss,
    selection_entropy,
    top_m,
)
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, unknown_name
from memfactory.common.files import file_hash
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY, TRAINER_REGISTRY
from memfactory.data.rerank import Citer, GoldCiter, RerankExample, load_rerank
from memfactory.evaluation.statistics import Paired, clustered_mean, paired_difference, scored_share
from memfactory.memory.items import MemoryItem
from memfactory.modules.rmm_reranker import RMMReranker, read_weights
from memfactory.trainers.base import BaseTrainer
from memfactory.trainers.setup import batch_numbers

log = logging.getLogger(__name__)

NOBODY = "Nobody said whether a shown memory is of use: the citer gave no verdict."


@dataclass(frozen=True, slots=True)
class ReinforceOptions:
    """`trainer_options`; the defaults are RMM's (appendix A)."""

    reranker: dict[str, Any] = field(default_factory=dict)
    """Options of the module: embedder, candidates (K), tau, rank, weights to start from."""
    shown: int = ranged(5, least=1)
    """M: memories drawn for a question, and in a held-out check its best."""
    mode: str = "plackett_luce"
    """plackett_luce, paper_literal or independent_softmax."""
    baseline: str = "fixed"
    """fixed, ema (a running mean of the rewards) or leave_one_out (the question's other rewards)."""
    b: float = 0.5
    """The fixed baseline, and the running one's first value."""
    ema_decay: float = ranged(0.95, least=0, below=1)
    """How much of the running mean a step keeps."""
    citer_noise: float = ranged(0.0, least=0, most=1)
    """How likely the rule that cites the file's useful memories errs in training, for each memory."""

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, MODES), ("baseline", self.baseline, BASELINES)):
            if value not in known:
                raise unknown_name(name, value, known)


@dataclass(frozen=True, slots=True)
class Check:
    """Usefulness (share of the shown memories that are cited) on held-out questions."""

    reranker: float
    retriever: float
    gain: Paired
    """Reranker less retriever, paired by question, with its 95 % interval."""
    scored: float
    """The share of the questions for which somebody could say what was useful."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The K nearest memories of B questions."""

    queries: Tensor
    """[B, d]."""
    memories: Tensor
    """[B, K, d]; rows of zeros where a question has fewer."""
    cosines: Tensor
    """[B, K] float64."""
    mask: Tensor
    """[B, K] bool: where there is a memory."""
    places: list[list[int]]
    """For each question its candidates' places among its memories, nearest first."""

    def shown(self, choice: Choice) -> list[list[int]]:
        """Places of what was chosen, in the order chosen."""
        rows = zip(self.places, choice.order.tolist(), choice.shown.tolist(), strict=True)
        return [[places[at] for at, there in zip(order, shown, strict=True) if there] for places, order, shown in rows]


@TRAINER_REGISTRY.register("mem_reinforce")
class MemReinforceTrainer(BaseTrainer):
    """Trains `rmm_reranker` on questions with memories; who cites is the file's gold, or a `Citer` of one's own."""

    Options = ReinforceOptions
    defaults = {
        "batch_size": 4, "lr": 1e-3, "weight_decay": 0.0, "adam_beta2": 0.999, "warmup_updates": 0, "max_grad_norm": 1.0,
        "eval_steps": 100, "eval_samples": 0, "save_steps": 250,
    }  # fmt: skip
    saved = (*BaseTrainer.saved, "mean_reward")
    trains_lm = False
    checkpoints_are_for = "a retriever: --retriever rmm_reranker with it as the option weights"
    bar_metrics = ("usefulness_so_far", "entropy")

    def __init__(self, config: TrainConfig, *, citer: Citer | None = None) -> None:
        if not config.data_path:
            raise ConfigError("--data_path is required: questions with memories, as `memfactory data build synth_topics` makes them.")
        if config.gradient_checkpointing:
            raise ConfigError("--gradient_checkpointing True: a reranker of two matrices has no layers to recompute. Leave it out.")
        self.examples = load_rerank(Path(config.data_path))
        named = [spec.rpartition("=") for spec in config.eval_data_path]
        if same := [path for _, _, path in named if file_hash(path) == file_hash(config.data_path)]:
            raise ConfigError(f"--data_path {config.data_path} is the held-out set {same[0]}. Train on another file.")
        self.eval_sets = {name or Path(path).stem: load_rerank(Path(path)) for name, _, path in named}
        super().__init__(config)
        self.citer: Citer = citer or GoldCiter(self.options.citer_noise, config.seed)
        self.eval_citer: Citer = citer or GoldCiter()
        self.mean_reward = math.nan

    def prepare(self, model: Any, tokenizer: Any) -> None:
        self.reranker = RMMReranker(None, str(self.device), **self.options.reranker)
        if self.options.shown > self.reranker.options.candidates:
            raise ConfigError(f"shown={self.options.shown} is more than the {self.reranker.options.candidates} candidates.")

    def load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        return self.reranker.scores, None

    def weights_of(self, folder: Path) -> dict[str, Tensor]:
        return read_weights(folder)[0]

    @property
    def num_steps(self) -> int:
        return max(1, self.config.epoch * len(self.examples) // self.config.examples_per_step)

    # One step

    def training_step(self) -> dict[str, Any]:
        options, config = self.options, self.config
        numbers = batch_numbers(config.seed, self.step, config.examples_per_step, len(self.examples))
        examples = [self.examples[number] for number in numbers]
        batch = self.candidates(examples)
        logits = self.scores(batch) / self.reranker.options.tau
        # The step names the noise, so a resumed run needs no state of a generator.
        generator = torch.Generator().manual_seed(random.Random(f"{config.seed}/{self.step}/gumbel").getrandbits(63))
        scale = 1 / self.reranker.options.tau if options.mode == "paper_literal" else 1.0
        choice = gumbel_top_m(logits, min(options.shown, logits.shape[1]), generator, batch.mask, scale)
        rewards = self._rewards(examples, batch.shown(choice), choice)
        logprobs = choice_logprobs(options.mode, logits, choice, batch.mask)
        value = options.b if options.baseline == "fixed" or math.isnan(self.mean_reward) else self.mean_reward
        loss = reinforce_loss(logprobs, rewards, baseline(options.baseline, rewards, value))
        self.mean_reward = moved(self.mean_reward, rewards, options.ema_decay)
        metrics = self._metrics(rewards, choice, selection_entropy(logits.detach(), choice.order, batch.mask))
        self.watch.failed([NOBODY] * metrics["unscorable"])
        if metrics["scored"] == 0:  # Adam's momentum would move the weights without a reason
            return metrics
        loss.backward()
        norm, lr = self.optimizer_update()
        return metrics | {"loss": float(loss.detach()), "grad_norm": norm, "lr": lr, "baseline": value}

    def candidates(self, examples: Sequence[RerankExample]) -> Candidates:
        """What the frozen embedder fetches for these questions."""
        found = [self.reranker.candidates(e.query, [MemoryItem(str(at), text) for at, text in enumerate(e.memories)]) for e in examples]
        cosines = [row for _, _, _, row in found]
        return Candidates(
            queries=torch.stack([query for _, query, _, _ in found]).to(self.device),
            memories=pad_sequence([vectors for _, _, vectors, _ in found], batch_first=True).to(self.device),
            cosines=pad_sequence(cosines, batch_first=True).to(self.device),
            mask=pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in cosines], batch_first=True).to(self.device),
            places=[[int(item.id) for item in items] for items, _, _, _ in found],
        )

    def scores(self, batch: Candidates) -> Tensor:
        """[B, K], before the temperature."""
        return self.reranker.scores(batch.queries, batch.memories, batch.cosines)

    def _rewards(self, examples: Sequence[RerankExample], shown: list[list[int]], choice: Choice) -> Tensor:
        """[B, M]: +1 for a cited memory, -1 for another; NaN where nothing was shown, or nobody can say."""
        rewards = torch.full(choice.order.shape, math.nan, dtype=torch.float64)
        for row, (places, cited) in enumerate(zip(shown, self.citer.cite(examples, shown), strict=True)):
            if cited is not None:
                rewards[row, : len(places)] = torch.tensor([1.0 if at in cited else -1.0 for at in range(len(places))])
        return rewards.to(self.device)

    def _metrics(self, rewards: Tensor, choice: Choice, entropy: Tensor) -> dict[str, Any]:
        known = rewards[~rewards.isnan()]
        metrics: dict[str, Any] = {
            "entropy": float(entropy.sum() / choice.shown.sum()),  # nats of a draw
            "scored": len(known),
            "unscorable": int(choice.shown.sum()) - len(known),
        }
        if len(known):
            reward = float(known.mean())
            metrics |= {"reward": reward, "usefulness": (reward + 1) / 2, "usefulness_so_far": (self.mean_reward + 1) / 2}
        return metrics

    # Held-out checks

    def evaluate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        scores: dict[str, tuple[float, float]] = {}
        for name, examples in self.eval_sets.items():
            check = self.check(examples[: self.config.eval_samples or None])
            scores[name] = check.reranker, check.scored
            metrics |= {
                f"eval/{name}/usefulness": check.reranker, f"eval/{name}/retriever": check.retriever,
                f"gain/{name}": check.gain.diff, f"gain/{name}/low": check.gain.ci_low, f"gain/{name}/high": check.gain.ci_high,
            }  # fmt: skip
        return metrics | self.watch.deciding(scores)

    def check(self, examples: Sequence[RerankExample], size: int = 50) -> Check:
        """Usefulness of the reranker's best M beside that of the retriever's, on the same questions; `size` of them at a time."""
        ours: list[float] = []
        base: list[float] = []
        m = self.options.shown
        for at in range(0, len(examples), size):
            part = examples[at : at + size]
            batch = self.candidates(part)
            with torch.no_grad():
                scores = self.scores(batch)
            ours += self._usefulness(part, batch.shown(top_m(scores, min(m, scores.shape[1]), batch.mask)))
            base += self._usefulness(part, [places[:m] for places in batch.places])
        pairs = [[value] for value in ours], [[value] for value in base]
        ours_mean, base_mean = (clustered_mean(side).value for side in pairs)
        return Check(ours_mean, base_mean, paired_difference(pairs[1], pairs[0]), scored_share(pairs[0]))

    def _usefulness(self, examples: Sequence[RerankExample], shown: list[list[int]]) -> list[float]:
        verdicts = zip(self.eval_citer.cite(examples, shown), shown, strict=True)
        return [math.nan if cited is None else sum(at in cited for at in range(len(places))) / len(places) for cited, places in verdicts]

    def about(self) -> dict[str, Any]:
        return super().about() | {"module": MODULE_REGISTRY.name_of(RMMReranker), "module_options": asdict(self.reranker.options)}

    def train(self) -> Path:
        """As any trainer, with the held-out usefulness said before and after."""
        if self._resume_from is None:
            self._say("before")
        folder = super().train()
        self._say("after")
        return folder

    def _say(self, when: str) -> None:
        for name, examples in self.eval_sets.items():
            check = self.check(examples)
            log.info(
                "%s, %s training: usefulness %.3f, the retriever's %.3f, gain %+.3f [%+.3f, %+.3f] over %d questions",
                name, when, check.reranker, check.retriever, check.gain.diff, check.gain.ci_low, check.gain.ci_high, check.gain.n,
            )  # fmt: skip
