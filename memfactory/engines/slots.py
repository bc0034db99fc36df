"""What the device knows of each slot between two decode steps, in tensors that keep their addresses. Knows no model and no request.

A row that is not alive stands at position 0 and stays there: what it computes is thrown away, and what it writes is
overwritten by the next prefill of its slot before anything reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memfactory.engines.sampling import sample


class SlotState:
    """One entry per slot; rows 0..n-1 take part in a decode step."""

    def __init__(self, slots: int, width: int, device: torch.device, readers: int = 1) -> None:
        """`width`: most tokens that any request may sample. `readers`: results that may be on their way to the host at once."""
        self.device, self.width = device, width
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        """The token to feed next."""
        self.positions = torch.zeros_like(self.tokens)
        """Its position, which is also the number of keys before it."""
        self.steps = torch.zeros_like(self.tokens)
        """Tokens sampled so far."""
        self.alive = torch.zeros_like(self.tokens)
        """1 for a row that is being sampled, else 0."""
        self.temperatures = torch.ones(slots, device=device)
        self.top_ps = torch.ones(slots, device=device)
        self.uniforms = torch.zeros(slots, width, dtype=torch.float64, device=device)
        """Each row's stream: one number per token to come."""
        self.sampled = torch.zeros(2, slots, dtype=torch.float64, device=device)
        """The last step's tokens and log-probs: in one tensor, for one copy to the host."""
        self._on_gpu = device.type == "cuda"
        self._host = [torch.zeros(2, slots, dtype=torch.float64, pin_memory=True) for _ in range(readers)] if self._on_gpu else []

    def tensors(self) -> tuple[Tensor, ...]:
        """All that a slot's move takes along."""
        return self.tokens, self.positions, self.steps, self.alive, self.temperatures, self.top_ps, self.uniforms

    def upload(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        """A tensor on the device; the host does not wait for it."""
        made = torch.tensor(values, dtype=dtype, pin_memory=self._on_gpu)
        return made.to(self.device, non_blocking=True)

    def admit(
        self, rows: Tensor, tokens: list[int], positions: list[int], temperatures: list[float], top_ps: list[float], streams: Tensor
    ) -> None:
        """Give slots `rows` [m] to new requests: their last prompt token, its position, and their streams [m, <= width]."""
        self.tokens[rows] = self.upload(tokens, torch.int64)
        self.positions[rows] = self.upload(positions, torch.int64)
        self.temperatures[rows] = self.upload(temperatures, torch.float32)
        self.top_ps[rows] = self.upload(top_ps, torch.float32)
        self.uniforms[rows, : streams.shape[1]] = (streams.pin_memory() if self._on_gpu else streams).to(self.device, non_blocking=True)
        self.steps.index_fill_(0, rows, 0)
        self.alive.index_fill_(0, rows, 1)

    def widen(self, width: int) -> None:
        """Make room for longer streams; they move, so a recorded step does not know them."""
        self.uniforms = torch.nn.functional.pad(self.uniforms, (0, width - self.width))
        self.width = width

    def retire(self, rows: list[int]) -> None:
        """Park slots whose requests ended."""
        where = self.upload(rows, torch.int64)
        self.alive.index_fill_(0, where, 0)
        self.positions.index_fill_(0, where, 0)

    def move(self, target: Tensor, source: Tensor) -> None:
        """Copy slots onto others, and park those that were copied."""
        for state in self.tensors():
            state[target] = state[source]
        self.alive.index_fill_(0, source, 0)
        self.positions.index_fill_(0, source, 0)

    def advance(self, n: int, logits: Tensor, nucleus: bool) -> None:
        """Sample the next token of rows 0..n-1 from logits [n, V]; rows that are not alive stay as they are. Device work only."""
        alive = self.alive[:n]
        at = self.steps[:n, None].clamp(max=self.width - 1)
        uniform = self.uniforms[:n].gather(1, at)[:, 0]
        token, logprob = sample(logits, uniform, self.temperatures[:n], self.top_ps[:n] if nucleus else None)
        self.sampled[0, :n] = token
        self.sampled[1, :n] = logprob
        self.tokens[:n] = torch.where(alive > 0, token, self.tokens[:n])
        self.positions[:n] += alive
        self.steps[:n] += alive

    def idle(self) -> Callable[[], None]:
        """Park every row, so that steps leave no trace; what is returned puts them back."""
        alive = self.alive.clone()
        self.alive.zero_()

        def resume() -> None:
            self.alive.copy_(alive)

        return resume

    def fetch(self, n: int, reader: int) -> Callable[[], tuple[list[int], list[float]]]:
        """Start reading the last step's (tokens, log-probs) of rows 0..n-1; calling what is returned waits for them."""
        if not self._on_gpu:
            kept = self.sampled[:, :n].clone()
            return lambda: _as_lists(kept)
        host = self._host[reader]
        host.copy_(self.sampled, non_blocking=True)  # whole: only contiguous memory is copied without a stop
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> tuple[list[int], list[float]]:
            arrived.synchronize()
            return _as_lists(host[:, :n])

        return wait


def _as_lists(sampled: Tensor) -> tuple[list[int], list[float]]:
    tokens, logprobs = sampled
    return tokens.long().tolist(), logprobs.tolist()
