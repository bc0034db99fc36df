"""GRPO for an agent that manages its own memory, on one page. Read it from top to bottom; then run it:

    python recipes/grpo_loop.py                    # MemAgent on the tiny model, a minute on one CPU core
    python recipes/grpo_loop.py --steps 88         # the quick start's length

This is the whole algorithm of `MemTrainer` (`memfactory train`): with the same settings it makes the same weights, bit for bit
(tests/test_grpo_loop.py). What `MemTrainer` adds is what a long run needs and an algorithm does not: checkpoints and resuming,
several GPUs, micro-batches that share prefixes, other losses, a KL term, metrics.

The pseudo-code, from GRPO (Shao et al., 2024, arXiv 2402.03300) and its form for memory agents, Multi-Conv DAPO of MemAgent
(Yu et al., 2025, arXiv 2507.02259); numbers in brackets are the differences listed below:

    repeat:
        sample B examples from the env
        for each example, G attempts: the agent reads its events one by one, writing memory, then answers        [1]
        for each attempt, a reward r from the env
        A = r - mean of r over the attempts at the same example                                                   [2]
        every turn of an attempt gets the attempt's A                                                             [3]
        for each of M minibatches of the attempts:                                                                [4]
            ratio = pi(token | its own turn's prompt) / pi_old(token | its own turn's prompt)                     [5]
            loss = - mean over tokens of min(ratio A, clip(ratio, 1 - low, 1 + high) A), bounded for A < 0        [6]
            one optimizer step

Differences from the GRPO paper:
[1] An attempt is not one response but many independent conversations ("turns"): one for each event, one for each question.
    The memory travels between them as text in the next prompt. Only sampled tokens are trained; nothing is decoded and encoded again.
[2] No division by the standard deviation (Dr. GRPO, arXiv 2503.20783; MemAgent): it would make a group with one lucky attempt count
    most. A group whose rewards are all equal teaches nothing and is left out. An attempt that a server lost is left out as well.
[3] The baseline is of attempts, before A is copied to turns: an attempt with more turns weighs no more in it.
[4] M = 2 updates for each rollout batch; attempts are split, never the turns of one attempt.
[5] pi_old are the log-probs that the sampler reported, at the sampling temperature. Sampler and trainer share the weights, so at the
    first update the ratio is 1 to rounding.
[6] The mean is over all tokens of the minibatch with one denominator (DAPO, arXiv 2503.14476), and the ratio is bounded also from the
    other side where A < 0 ("dual clip", arXiv 1912.09729). No KL term.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace

import torch

from memfactory import (
    BaseAgent,
    BaseEnv,
    LongcontextEnv,
    MemoryAgent,
    Models,
    RolloutGroup,
    TrainBatch,
    assign_credit,
    evaluate,
    local_models,
    pack,
    predictions,
)
from memfactory.algorithms.logprobs import response_logprobs
from memfactory.algorithms.losses import clipped_surrogate
from memfactory.engines.load import load_model


@dataclass(frozen=True)
class Settings:
    """What decides the result; the defaults are those of examples/configs/tiny.yaml, for a short run."""

    model: str = "models/tiny"
    train: str = "datas/tiny/train.json"
    held_out: str = "datas/tiny/eval.json"
    steps: int = 10
    examples: int = 24
    """B: examples a step."""
    attempts: int = 8
    """G: attempts at each."""
    chunk_size: int = 16
    """Tokens of an event: MemAgent cuts its text into pieces of this size."""
    response: int = 32
    """Most tokens of a turn."""
    temperature: float = 1.0
    minibatches: int = 2
    """M: optimizer updates a step."""
    lr: float = 4e-4
    warmup: int = 5
    """Updates over which the learning rate grows to `lr`."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    max_grad_norm: float = 1.0
    micro_batch: int = 2048
    """Most tokens of a forward pass; the gradient does not depend on it."""
    seed: int = 0


def train(settings: Settings, show: bool = True) -> torch.nn.Module:
    """Run the algorithm and return the trained model."""
    torch.manual_seed(settings.seed)
    model, tokenizer = load_model(settings.model)
    env = LongcontextEnv(settings.train, tokenizer)
    agent = MemoryAgent(tokenizer, "cpu", chunk_size=settings.chunk_size, max_generate_length=settings.response)
    models = local_models(model, tokenizer)  # the sampler works on `model` itself: there is no second copy to keep in step
    optimizer = adamw(model, settings.lr)
    updates = 0
    if show:
        report(f"{settings.model}, untrained", agent, models, tokenizer, settings)
    for step in range(settings.steps):
        batch = rollout(env, agent, models, step, settings)
        for part in batch.data.minibatches(settings.minibatches, random.Random(f"{settings.seed}/{step}/0")):
            warm = min(1.0, (updates + 1) / (settings.warmup + 1))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * warm
            gradient(model, part, settings)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
        models.weights_changed()  # what the sampler remembers of prompts was computed by the old weights
        if show:
            print(f"step {step + 1:>3}: reward {batch.reward:.3f}, groups that teach {batch.informative:.0%}", flush=True)
    if show:
        report(f"after {settings.steps} steps", agent, models, tokenizer, settings)
    return model


@dataclass(frozen=True)
class Rollout:
    """One batch of attempts, paid and packed."""

    data: TrainBatch
    reward: float
    informative: float


def rollout(env: BaseEnv, agent: BaseAgent, models: Models, step: int, settings: Settings) -> Rollout:
    """B x G attempts, their rewards, and an advantage for every turn."""
    order = random.Random(f"{settings.seed}/0").sample(range(len(env)), len(env))
    examples = [env[order[at % len(env)]] for at in range(step * settings.examples, (step + 1) * settings.examples)]
    views = [env.observe(example) for example in examples]  # what the agent may see: no gold answer
    groups: list[RolloutGroup] = agent.rollout(
        models, views, settings.attempts, seed=settings.seed, step=step + 1, temperature=settings.temperature
    )
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = env.compute_reward(predictions(groups), env.collate_fn(examples), settings.attempts, trajectories=trajectories)
    credit = assign_credit(groups, rewards)  # [2] and [3]
    return Rollout(pack(groups, credit), float(rewards["default"].nanmean()), credit.informative)


def gradient(model: torch.nn.Module, part: TrainBatch, settings: Settings) -> None:
    """Add up the gradient of one update, micro-batch by micro-batch: their weights sum to 1 over the whole update."""
    model.train()
    for micro in part.micro_batches(settings.micro_batch):
        logprobs, _ = response_logprobs(model, micro, settings.temperature)
        token = clipped_surrogate(
            logprobs, micro.old, micro.advantages,
            clip_low=settings.clip_low, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        )  # fmt: skip
        (token.loss * micro.weights).sum().backward()


def adamw(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW without weight decay. Its second beta is .98 because a short run is too short for .99 or .999 to settle."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)


def report(name: str, agent: BaseAgent, models: Models, tokenizer: object, settings: Settings) -> None:
    """Greedy exact match on examples that training never sees, with its 95 % interval."""
    scores = evaluate(agent, models, LongcontextEnv(settings.held_out, tokenizer), name="held out", k=0)
    mean = scores.greedy_mean
    low, high = mean.interval()
    print(f"{name}: {mean.value:.3f} [{low:.3f}, {high:.3f}] on {mean.n} held-out questions", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO for a memory agent, on one page")
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    torch.set_num_threads(1)  # at this size more threads only wait for each other
    train(replace(Settings(), **vars(parser.parse_args())))
