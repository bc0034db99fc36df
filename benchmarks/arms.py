"""What the speed benchmarks measure: ours and TRL's `GRPOTrainer` on the same work (the public MemFactory: public_code.py).

Equal for all: the weights (fp32), the tokenizer, attempts per question, most tokens of a turn, temperature 1, the reward
rule, rows of a micro-batch, one thread, one optimizer update per rollout batch, no KL, no gradient checkpointing, and a
learning rate of 0, so that everyone samples from the same weights to the end. The reward has a small part that differs
within each group, so no group is dropped and every sampled token is trained by everyone.

Not equal: TRL has no agent of several conversations. It gets the turns' prompts as they stood in a recorded rollout of
ours on the same questions, one question's turn per group, so nothing of it waits for the turn before: as many turns, in
batches of as many rows as ours decode together. Responses end when the model ends them; times are per sampled token.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from memfactory.common.config import TrainConfig
from memfactory.common.prompts import NO_MEMORY, memory_answer_messages, memory_update_messages
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.judges.exact import boxed_em
from memfactory.trainers.mem_grpo_trainer import MemTrainer

MICRO_BATCH_WIDTH = 64
"""About the tokens of a turn with its prompt: a micro-batch of `rows` rows has rows x 64 padded tokens."""


@dataclass(frozen=True)
class Work:
    """What every trainer is given."""

    model: str = "models/tiny"
    data: str = "datas/tiny/train.json"
    questions: int = 24
    attempts: int = 8
    chunk_size: int = 16
    max_tokens: int = 32
    rows: int = 32
    trl_batches: int = 4
    """TRL's steps beside one of ours: a question has four turns on average, and each of them is a prompt to TRL."""
    full_length: bool = False
    """No response may end before `max_tokens`."""

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), each trainer its own."""
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32), AutoTokenizer.from_pretrained(self.model)

    def reward(self, text: str, golds: list[str], attempt: int) -> float:
        """The rule, and a part that tells two attempts of a group apart."""
        return boxed_em(text, golds) + 0.1 * (attempt % 2)


class Arm(Protocol):
    """One trainer."""

    name: str

    def prepare(self, at: int) -> None:
        """Get ready for step `at`; not timed."""

    def rollout(self, at: int) -> None:
        """Sample the turns of step `at`."""

    def step(self, at: int) -> None:
        """Sample, score and train on step `at`."""

    def sampled(self) -> int:
        """Tokens that the last call sampled; not timed."""


class Ours:
    """`MemTrainer` with `MemoryAgent`."""

    name = "ours"

    def __init__(self, work: Work) -> None:
        model, tokenizer = work.load()

        class Env(LongcontextEnv):
            """The same rule as everyone's."""

            def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> dict[str, torch.Tensor]:
                golds = [gold for gold in ground_truths["answers"] for _ in range(num_generations)]
                pairs = enumerate(zip(predictions["answer"], golds, strict=True))
                return {"default": torch.tensor([work.reward(text, gold, at) for at, (text, gold) in pairs])}

        config = TrainConfig(
            model_name_or_path=work.model, data_path=work.data, output_dir=tempfile.mkdtemp(), batch_size=work.questions,
            num_generations=work.attempts, chunk_size=work.chunk_size, max_generate_length=work.max_tokens, lr=0.0, max_steps=1 << 20,
            tokens_per_micro_batch=work.rows * MICRO_BATCH_WIDTH, engine_slots=work.questions * work.attempts, threads=1, device="cpu",
        )  # fmt: skip
        self.work = work
        self.trainer = MemTrainer(config, model, tokenizer, env=Env(work.data, tokenizer))
        if work.full_length:
            self.trainer.models.chats["policy"].engine.stop_ids = frozenset()  # type: ignore[attr-defined]
        self.parts: dict[str, float] = {}
        """Seconds of the last step's parts, as the trainer logs them."""

    def prepare(self, at: int) -> None:
        pass

    def rollout(self, at: int) -> None:
        trainer, env = self.trainer, self.trainer.env
        views = [env.observe(example) for example in trainer.examples_of(at)]
        self.groups = trainer.agent.rollout(trainer.models, views, self.work.attempts, seed=0, step=at + 1, temperature=1.0)
        self._sampled = sum(len(turn.response_ids) for group in self.groups for t in group.trajectories for turn in t.turns)

    def step(self, at: int) -> None:
        self.trainer.step = at
        metrics = self.trainer._timed_step()
        self._sampled = int(metrics["rollout_tokens"])
        self.parts = {name: metrics[name] for name in ("rollout_seconds", "update_seconds", "seconds")}

    def sampled(self) -> int:
        return self._sampled

    def prompts(self, at: int) -> list[dict[str, Any]]:
        """The turns of each question's first attempt in step `at`, as data for a single-turn trainer."""
        self.rollout(at)
        rows = []
        for example, group in zip(self.trainer.examples_of(at), self.groups, strict=True):
            question, memory, trajectory = example["question"], NO_MEMORY, group.trajectories[0]
            messages = []
            for section, after in trajectory.steps:
                messages.append(memory_update_messages(question, memory, section))
                memory = after
            messages.append(memory_answer_messages(question, memory))
            chat = self.trainer.models.chats["policy"]
            assert [chat.encode(m) for m in messages] == [turn.prompt_ids for turn in trajectory.turns]  # type: ignore[attr-defined]
            rows += [{"prompt": m, "golds": list(example["answers"])} for m in messages]
        return rows


class _Turnstile(TrainerCallback):
    """Stops TRL's own training loop between two of its steps."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.go.acquire()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.done.release()
        self.go.acquire()


class Trl:
    """TRL's `GRPOTrainer`, generating with `model.generate`; its `train` runs in a thread that waits between steps."""

    name = "trl"

    def __init__(self, work: Work, rows: list[dict[str, Any]]) -> None:
        """`rows`: prompts and gold answers, `questions` x `trl_batches` for each step of ours."""
        import datasets
        import trl

        def reward(completions: list[Any], golds: list[list[str]], **_: Any) -> list[float | None]:
            return [work.reward(c[0]["content"], gold, at) for at, (c, gold) in enumerate(zip(completions, golds, strict=True))]

        accumulate = work.questions * work.attempts // work.rows
        config = trl.GRPOConfig(
            tempfile.mkdtemp(), num_generations=work.attempts, max_completion_length=work.max_tokens, loss_type="dapo",
            scale_rewards="none", beta=0.0, learning_rate=0.0, lr_scheduler_type="constant", optim="adamw_torch", max_steps=1 << 20,
            per_device_train_batch_size=work.rows, gradient_accumulation_steps=accumulate, steps_per_generation=accumulate,
            shuffle_dataset=False, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, generation_kwargs={"min_new_tokens": work.max_tokens} if work.full_length else None,
        )  # fmt: skip
        model, tokenizer = work.load()
        self.work, self.rows, self.turnstile = work, rows, _Turnstile()
        data = datasets.Dataset.from_list(rows)
        self.trainer: Any = trl.GRPOTrainer(model, reward, config, data, processing_class=tokenizer, callbacks=[self.turnstile])
        self._thread: threading.Thread | None = None
        self._lengths = self.trainer._metrics["train"]["completions/mean_length"]

    def prepare(self, at: int) -> None:
        pass

    def rollout(self, at: int) -> None:
        size = self.work.questions
        self.trainer.model.train()
        for batch in range(at * self.work.trl_batches, (at + 1) * self.work.trl_batches):
            chosen = [self.rows[(batch * size + n) % len(self.rows)]["prompt"] for n in range(size)]
            self.trainer._generate([prompt for prompt in chosen for _ in range(self.work.attempts)])

    def step(self, at: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self.trainer.train, daemon=True)
            self._thread.start()
        for _ in range(self.work.trl_batches):
            self.turnstile.go.release()
            while not self.turnstile.done.acquire(timeout=1):
                if not self._thread.is_alive():
                    raise RuntimeError("TRL's training loop ended early.")

    def sampled(self) -> int:
        return round(sum(self._lengths[-self.work.trl_batches :]) * self.work.questions * self.work.attempts)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What other trainers print goes nowhere."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield
