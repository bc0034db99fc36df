#!/usr/bin/env python3
"""CPU time of log-probs and their gradient, chunked over dense, by the number of logits: where `--logprob_chunks auto` should change over.

Both from fp32 hidden states and a head, forward and backward, in turns; the least of the rounds each, of which the first is not kept.
No model around them.

    OMP_NUM_THREADS=1 python benchmarks/logprob_chunks.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from side_by_side import versions
from torch import Tensor

from memfactory.algorithms.chunked_logprobs import chunked_logprobs
from memfactory.algorithms.logprobs import dense_logprobs
from memfactory.common.files import write_json

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = (64, 256, 1024)
SHAPES = ((1024, 512), (2048, 2048), (512, 8192), (32, 151_936), (1024, 8192), (512, 16384), (64, 151_936), (512, 32768))
"""(tokens, words), by the number of logits."""


def seconds(op: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    hidden.grad = weight.grad = None
    start = time.process_time()
    op(hidden, weight, targets)[0].sum().backward()
    return time.process_time() - start


def measure(width: int, tokens: int, words: int, rounds: int) -> dict[str, Any]:
    """The least CPU seconds of each."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = (torch.randn(words, width, generator=generator) * width**-0.5).requires_grad_()
    targets = torch.randint(words, (tokens,), generator=generator)
    ops = {"dense": lambda h, w, t: dense_logprobs(h @ w.t(), t, 1.0), "chunked": chunked_logprobs}
    times: dict[str, list[float]] = {name: [] for name in ops}
    for _ in range(rounds + 1):
        for name, op in ops.items():
            times[name].append(seconds(op, hidden, weight, targets))
    return {"hidden": width, "tokens": tokens, "words": words} | {name: min(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "output/benchmarks/logprob_chunks.json", help="where the raw numbers go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| tokens x words | millions of logits | " + " | ".join(f"hidden {width}" for width in HIDDEN) + " |")
    print("| --: " * (2 + len(HIDDEN)) + "|")
    rows = []
    for tokens, words in SHAPES:
        here = [measure(width, tokens, words, args.rounds) for width in HIDDEN]
        rows += here
        ratios = " | ".join(f"{row['chunked'] / row['dense']:.2f}" for row in here)
        print(f"| {tokens} x {words} | {tokens * words / 1e6:.1f} | {ratios} |", flush=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(args.output.resolve(), {"what": "logprob_chunks", "date": now, "versions": versions(), "calls": rows})
    print(f"Raw numbers: {args.output}")


if __name__ == "__main__":
    main()
