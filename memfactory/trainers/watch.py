"""Whether a run still scores and learns: what was lost is said at once, and a run that only spends time is stopped. Knows no loss.

A step is *lost* if none of its attempts has a score and no update was made, and *idle* if it made no update at all.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from memfactory.common.config import TrainConfig
from memfactory.common.errors import InfrastructureError, UserError, in_one_line
from memfactory.evaluation.statistics import COVERED
from memfactory.trainers.distributed import Ranks, explained
from memfactory.trainers.health import Clock, memory_explained

log = logging.getLogger(__name__)


class Watch:
    """What the steps of one run came to."""

    def __init__(self, config: TrainConfig, quiet: bool = False) -> None:
        """`quiet`: another of several processes says what happened."""
        self._config, self._quiet = config, quiet
        self._failures: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._uncovered: set[str] = set()
        self.steps = self.updated = 0
        self.lost = self.idle = 0
        """Steps in a row, up to now."""
        self._scored = self._attempts = 0
        self._reward: float | None = None

    def failed(self, errors: Iterable[str]) -> None:
        """Count what attempts were lost to; each kind is said when it is first met. Numbers do not make another kind."""
        for error in errors:
            kind = re.sub(r"\d+", "#", error)
            self._failures[kind] += 1
            if kind not in self._first:
                self._first[kind] = error
                if not self._quiet:
                    log.warning("An attempt was lost: %s Others like it are counted.", _sentence(error))

    def step(self, metrics: Mapping[str, Any], updated: bool) -> None:
        """Take one step into account: `scored` attempts and `unscorable` ones, if the trainer counts any."""
        scored, lost = metrics.get("scored"), metrics.get("unscorable", 0)
        self.steps += 1
        self.updated += updated
        self._scored += scored or 0
        self._attempts += (scored or 0) + lost
        self.idle = 0 if updated else self.idle + 1
        self.lost = self.lost + 1 if scored == 0 and not updated else 0
        self._reward = metrics.get("reward", self._reward)

    def deciding(self, scores: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """`eval/score`, the mean over {held-out set: (score, share of its attempts that have one)}, by which a checkpoint is best.

        None where a set has too few scores: the mean over the others would be of something else than at other checks.
        """
        few = {name: share for name, (_, share) in scores.items() if not share >= COVERED}
        for name in few.keys() - self._uncovered:
            self._uncovered.add(name)
            if not self._quiet:
                log.warning(
                    "Held-out %s: %.0f%% of the attempts have a score. Below %.0f%% a check does not decide which checkpoint is best.",
                    name, 100 * few[name], 100 * COVERED,
                )  # fmt: skip
        return {"eval/score": sum(score for score, _ in scores.values()) / len(scores)} if scores and not few else {}

    def tell(self, step: int, metrics: Mapping[str, Any], best: bool) -> None:
        """The held-out scores of a check, on the console."""
        told = [
            f"{name.removeprefix('eval/').replace('/', ' ')} {'without a score' if math.isnan(value) else f'{value:.3f}'}"
            for name, value in metrics.items()
            if name.startswith("eval/")
        ]
        if not self._quiet:
            log.info("Step %d, held-out: %s%s", step, ", ".join(told) or "nothing was scored", " (the best so far)" if best else "")

    def stop(self, step: int) -> Exception | None:
        """Why the run must end here, if it must."""
        config = self._config
        if config.max_lost_steps and self.lost >= config.max_lost_steps:
            return InfrastructureError(
                f"Stopped at step {step}: no attempt of the last {self.lost} step(s) has a score. {self._cause()} {self._advice()} "
                f"(--max_lost_steps {config.max_lost_steps}; 0 never stops.)"
            )
        if config.max_idle_steps and self.idle >= config.max_idle_steps:
            return UserError(
                f"Stopped at step {step}: no update in the last {self.idle} step(s). {self._why_idle()} "
                f"(--max_idle_steps {config.max_idle_steps}; 0 never stops.)"
            )
        return None

    def at_end(self, step: int, updates: int) -> Exception | None:
        """Why a run that came to its end is no success, if it is none; what was lost on the way is said."""
        if self._failures and not self._quiet:
            total = sum(self._failures.values())
            log.warning("%d of %d attempts were lost: %s", total, max(self._attempts, total), self._told())
        if self.steps and self.lost == self.steps:
            return InfrastructureError(f"Ended at step {step} without a score for any attempt. {self._cause()} {self._advice()}")
        if self.steps and not updates:
            return UserError(f"Ended at step {step} without any update: these are still the starting weights. {self._why_idle()}")
        return None

    def _told(self) -> str:
        return "; ".join(f"{count} x {_sentence(self._first[kind])}" for kind, count in self._failures.most_common(3))

    def _cause(self) -> str:
        return f"Lost to: {self._told()}" if self._failures else "Nothing says why: the env or the citer gave no score."

    def _advice(self) -> str:
        if self._failures and "max_prompt_length" in self._failures.most_common(1)[0][0]:
            return f"Give a --max_prompt_length above {self._config.max_prompt_length}, or a smaller --chunk_size."
        return "Mend what failed (the server, the judge, the role, the data), then go on with --resume True."

    def _why_idle(self) -> str:
        config = self._config
        if self.lost:
            return f"{self._cause()} {self._advice()}"
        if self._reward is None:
            return "Every gradient was infinite or no number: lower --lr, or look for such weights in the model."
        return (
            f"All attempts of each group got the same reward (the last mean was {self._reward:.3f}), so nothing says which is better. Give "
            "examples that the model solves sometimes, a reward with more steps, more --num_generations "
            f"(now {config.num_generations}), or a higher --temperature (now {config.temperature:g})."
        )


def _sentence(error: str) -> str:
    text = in_one_line(RuntimeError(error))
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def explaining(clock: Clock, config: TrainConfig, device: torch.device, ranks: Ranks) -> Iterator[None]:
    """What ends a run for want of memory or of another process is said in words; what is said meanwhile stands above the bar."""
    with memory_explained(clock, config, device), logging_redirect_tqdm():
        try:
            yield
        except RuntimeError as error:
            if (in_words := explained(error, ranks)) is not None:
                raise in_words from error
            raise
