"""Builders shared by the tests of learning: a tiny random Qwen3, turns and groups made of numbers, samples, a trainer."""

from __future__ import annotations

import random
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from memfactory.algorithms.packing import MicroBatch, Sample, TrainBatch
from memfactory.common.config import TrainConfig
from memfactory.common.types import Finish, RolloutGroup, Trajectory, Turn
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.trainers.mem_grpo_trainer import MemTrainer

VOCABULARY = 40


@lru_cache(maxsize=1)
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer, built once; nobody changes it."""
    return make_tiny_tokenizer()


def tiny_qwen3(seed: int = 0, **changes: object) -> Qwen3ForCausalLM:
    """A random fp32 Qwen3 of two layers. No pad token: `nn.Embedding` would hide a gradient that leaks to it."""
    options = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False, "max_position_embeddings": 128,
        "initializer_range": 0.1, "pad_token_id": None, "eos_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**(options | changes)))


def make_trainer(model: Qwen3ForCausalLM, **options: object) -> MemTrainer:
    """A real `MemTrainer` on an empty data set: only its loss and its backward pass are used."""
    config = TrainConfig(output_dir="never_written", device="cpu", bf16=False, **options)
    return MemTrainer(config, model, tiny_tokenizer(), env=[], eval_envs={})


def make_turn(stage: str = "memory", trainable: bool = True, finish: Finish = "stop", prompt: int = 2, response: int = 3) -> Turn:
    """A turn of the given lengths."""
    logprobs = tuple(-0.5 - at for at in range(response))
    return Turn(stage, tuple(range(1, prompt + 1)), tuple(range(20, 20 + response)), logprobs, "", finish, trainable)


def make_group(*turns_of: list[Turn]) -> RolloutGroup:
    """A group with one trajectory for each list of turns."""
    return RolloutGroup([Trajectory(turns=turns) for turns in turns_of], "example")


def make_samples(seed: int, trajectories: list[int], groups: list[int], ref: bool = False) -> list[Sample]:
    """Ragged samples with random ids (never 0, the padding) and random advantages; one per entry of `trajectories`."""
    rng = random.Random(seed)
    samples = []
    for trajectory, group in zip(trajectories, groups, strict=True):
        prompt = tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 6)))
        response = tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 7)))
        # About the log-prob of one in forty, so that some ratios are clipped above, some below, some not.
        old = tuple(rng.uniform(-5, -2.5) for _ in response)
        reference = tuple(rng.uniform(-5, -2.5) for _ in response) if ref else None
        samples.append(Sample(prompt, response, old, rng.choice([-1, 1]) * rng.uniform(0.2, 1.5), trajectory, group, "memory", reference))
    return samples


def one_micro_batch(samples: list[Sample]) -> MicroBatch:
    """All samples in one micro-batch."""
    (micro,) = TrainBatch(samples).micro_batches(1 << 20)
    return micro
