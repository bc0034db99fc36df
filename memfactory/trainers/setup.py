"""What every run is asked for, checked before anything is loaded, and which examples a step has. Knows no trainer."""

from __future__ import annotations

import logging
import random
import sys

from memfactory.algorithms.credit import CREDITS
from memfactory.algorithms.logprobs import LOGPROB_CHUNKS
from memfactory.algorithms.optim import OPTIMIZERS, SCHEDULES
from memfactory.algorithms.packing import AGGREGATIONS, PACKINGS, TRUNCATED
from memfactory.algorithms.tree_attention import BACKENDS
from memfactory.common.config import DECODE_ATTENTIONS, ENGINE_GRAPHS, TrainConfig
from memfactory.common.errors import ConfigError, unknown_name


def check_choices(config: TrainConfig) -> None:
    """Names that are read in the first step, checked before anything is loaded or written."""
    choices = {
        "aggregation": AGGREGATIONS, "truncated": TRUNCATED, "credit": CREDITS, "lr_schedule": SCHEDULES, "optimizer": OPTIMIZERS,
        "packing": PACKINGS, "attention_backend": BACKENDS, "logprob_chunks": LOGPROB_CHUNKS,
    }  # fmt: skip
    choices |= {"engine_graphs": ENGINE_GRAPHS, "decode_attention": DECODE_ATTENTIONS}
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


def saving(config: TrainConfig, steps: int) -> str:
    """When checkpoints are written."""
    if 0 < config.save_steps < steps:
        return f"A checkpoint every {config.save_steps} steps, and at the end."
    best = ", and where a held-out check is the best so far" if config.eval_data_path and 0 < config.eval_steps <= steps else ""
    why = f"--save_steps {config.save_steps} is past the end" if config.save_steps > steps else f"--save_steps {config.save_steps}"
    advice = f" --save_steps {max(1, steps // 5)} saves on the way." if steps > 1 else ""
    return f"{why}: a checkpoint only of the last step{best}.{advice}"


def checking(config: TrainConfig, steps: int) -> list[str]:
    """What is asked of held-out checks that will not be made."""
    if config.trainer == "mem_sft":
        return ["mem_sft makes no held-out checks: --eval_data_path will not be scored."] if config.eval_data_path else []
    if config.eval_data_path and not config.eval_steps:
        when = "before and after training only" if config.trainer == "mem_reinforce" else "not at all"
        advice = f"--eval_steps {max(1, min(steps, 50) // 5)} scores on the way and marks the best checkpoint."
        return [f"--eval_data_path with --eval_steps 0: the held-out data will be scored {when}. {advice}"]
    if config.eval_data_path and config.eval_steps > steps:
        return [f"--eval_steps {config.eval_steps} is past the end ({steps} steps): no held-out check will be made."]
    return []


def explain(config: TrainConfig, steps: int, updates_per_step: int) -> None:
    """Say in plain words what the counts mean: `gradient_accumulation_steps` and `save_steps` of published runs surprise people."""
    log = logging.getLogger(__name__)
    known = steps < sys.maxsize  # of a budget of tokens nobody knows yet how many steps it lasts
    length = f"{steps} steps" if known else f"as many steps as {config.max_rollout_tokens} sampled tokens last"
    if config.trainer == "mem_grpo":
        log.info(
            "One step: %d x %d = %d examples x %d attempts rolled out together, then %d optimizer update(s); %s.",
            config.batch_size, config.gradient_accumulation_steps, config.examples_per_step, config.num_generations,
            updates_per_step, length,
        )  # fmt: skip
        if config.gradient_accumulation_steps > 1:
            log.info(
                "The public trainer counted a step per %d example(s) and updated once per %d of them: its 250 steps are 10 updates.",
                config.batch_size, config.gradient_accumulation_steps,
            )  # fmt: skip
    log.info("%s", saving(config, steps))
    for text in checking(config, steps):
        log.warning("%s", text)
