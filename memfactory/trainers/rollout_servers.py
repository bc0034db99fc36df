"""Where rollouts are sampled, and how new weights get there: this process, or a list of servers. Knows ranks, no agent and no loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from memfactory.common.config import TrainConfig
from memfactory.common.files import new_folder
from memfactory.engines.chat import LocalChat, Models
from memfactory.engines.servers import ServerPool
from memfactory.engines.weights import save_weights
from memfactory.trainers.distributed import Replicated

log = logging.getLogger(__name__)

FOLDER = "rollout_weights"
"""In output_dir: the weights that the servers load. They must see it under the same path."""


class RolloutWeights:
    """Sees to it that whoever samples for the policy has its current weights."""

    def __init__(self, parallel: Replicated, models: Models, config: TrainConfig, bf16: bool) -> None:
        """With `config.rollout_servers` the policy of `models` is answered by them from now on."""
        self.parallel, self.bf16 = parallel, bf16
        self.folder = Path(config.output_dir).resolve() / FOLDER
        self.servers: ServerPool | None = None
        self._there: int | None = None
        chat = models.chats.get("policy")
        if config.rollout_servers and isinstance(chat, LocalChat):
            self.tokenizer = chat.tokenizer
            self.servers = ServerPool(config.rollout_servers, chat.engine.stop_ids, first=parallel.ranks.rank)  # type: ignore[attr-defined]
            served = replace(chat, engine=self.servers)
            models.chats |= {"policy": served, "policy_nograd": served}

    @contextmanager
    def current(self, version: int) -> Iterator[None]:
        """Inside the block the engine samples from the weights of `version` (the number of updates). All ranks must enter it."""
        if self.servers is None:
            with self.parallel.gathered():
                yield
            return
        if version != self._there:
            self._push()
            self._there = version
        yield

    def _push(self) -> None:
        with self.parallel.gathered():
            if self.parallel.ranks.main and self.servers is not None:
                with new_folder(self.folder) as part:
                    save_weights(self.parallel.sampler, part, torch.bfloat16 if self.bf16 else None)
                    self.tokenizer.save_pretrained(part)
                self.servers.load(self.folder)
        self.parallel.ranks.wait()
