"""The public MemFactory's own code as one more trainer of the speed benchmarks.

What is changed of the public code, which is read from the path given and is no part of this repository:
1. Its package is imported under the name `public_memfactory`; what the path lacks of `common/registry.py`,
   `agents/base.py` and `envs/base.py` is replaced by the few lines below. `swanlab` and `openai` are empty modules.
2. Its two prompt templates are ours, since the tiny tokenizer has a token for each of their fixed pieces.
3. Its LLM judge is our reward rule. Its own prints and progress bars go nowhere.
4. Its `train` is called on a file with the questions of one step. `public` has our micro-batch rows, where they are an option, and
   no gradient checkpointing; `public_defaults` has its own defaults (micro-batches of one row, later of four; checkpointing on).

Known are the commits of `KNOWN`; another is tried as the newest of them, and said to be unknown.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from arms import Work

from memfactory.common.prompts import MEMORY_ANSWER, MEMORY_UPDATE

KNOWN = {
    "12bddd2": "micro-batches are options, the agent's key is `naive`, the reward is a list",
    "de026d8": "micro-batches are 4 rows (2 for log-probs), the agent's key is `memagent`, losses go to swanlab",
}
"""Commits of the public repository that this file was run on, and how they differ."""


class Public:
    """The public MemFactory's `MemGRPOTrainer` with its `MemoryAgent`."""

    def __init__(self, work: Work, code: types.SimpleNamespace, examples: Any, defaults: bool) -> None:
        """`examples(at)`: the questions of step `at`."""
        self.name = "public_defaults" if defaults else "public"
        self.work, self.code, self.examples = work, code, examples
        args = code.trainer.MemGRPOArguments(
            device="cpu", lr=0.0, beta=0.0, save_steps=1 << 30, agent_type="memagent",
            batch_size=work.questions, num_generations=work.attempts,
            chunk_size=work.chunk_size, max_chunk_number=1 << 20, max_generate_length=work.max_tokens,
        )  # fmt: skip
        if not defaults:
            for name in ("train_micro_batch_size", "logprob_batch_size"):
                if hasattr(args, name):
                    setattr(args, name, work.rows)
            args.gradient_checkpointing = False
        model, tokenizer = work.load()
        if work.full_length:
            model.generation_config.min_new_tokens = work.max_tokens
        self.trainer = code.trainer.MemGRPOTrainer(model, args, tokenizer)
        self.file = Path(tempfile.mkdtemp()) / "step.json"

    def prepare(self, at: int) -> None:
        rows = [{"context": e["context"], "input": e["question"], "answers": list(e["answers"])} for e in self.examples(at)]
        self.file.write_text(json.dumps(rows))
        self.code.generated.clear()

    def rollout(self, at: int) -> None:
        work, trainer = self.work, self.trainer
        env = self.code.env.LongContextMemoryEnv(str(self.file), trainer.tokenizer)
        agent = self.code.agent.MemoryAgent(
            trainer.tokenizer, "cpu", chunk_size=work.chunk_size, max_chunk_number=1 << 20, num_generations=work.attempts,
            max_generate_length=work.max_tokens,
        )  # fmt: skip
        model = getattr(trainer, "policy_model", None) or trainer.model
        model.eval()
        with patch.dict(sys.modules, swanlab=self.code.swanlab):
            agent.module.rollout(model, env.collate_fn(env.data), reward_fn=env.compute_reward)

    def step(self, at: int) -> None:
        with patch.dict(sys.modules, swanlab=self.code.swanlab):  # the newest imports it in its rollout
            self.trainer.train(str(self.file))

    def sampled(self) -> int:
        stop = self.trainer.tokenizer.eos_token_id
        rows = [row for ids in self.code.generated for row in ids.tolist()]
        return sum(row.index(stop) + 1 if stop in row else len(row) for row in rows)


class _Registry:
    """Stand-in for the public registry: a decorator that keeps, and a look-up."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def register(self, name: str) -> Any:
        return lambda part: self.parts.setdefault(name, part)

    def get(self, name: str) -> Any:
        return self.parts.get(name) or self.parts[{"memagent": "naive"}.get(name, name)]


class _PublicAgent:
    def __init__(self, tokenizer: Any, device: str = "cuda", **_: Any) -> None:
        self.tokenizer, self.device = tokenizer, device


class _PublicEnv(torch.utils.data.Dataset):
    def __init__(self, data_path: str, tokenizer: Any, **_: Any) -> None:
        self.data_path, self.tokenizer = data_path, tokenizer

    def collate_fn(self, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {key: [row[key] for row in rows] for key in rows[0]}


def load_public(path: Path, work: Work) -> types.SimpleNamespace:
    """The public code at `path`, with the changes that the module's docstring lists."""
    root, folder = "public_memfactory", path / "memfactory"
    if not (folder / "trainers/mem_grpo_trainer.py").is_file():
        raise SystemExit(f"--public {path}: there is no memfactory/trainers/mem_grpo_trainer.py.")
    for name in ("", ".common", ".modules", ".envs", ".agents", ".trainers"):
        sys.modules[root + name] = package = types.ModuleType(root + name)
        package.__path__ = [str(folder / name[1:])]  # its own __init__ files import what is not needed here
    kinds = {f"{kind}_REGISTRY": _Registry() for kind in ("MODULE", "ENV", "AGENT", "TRAINER")}
    stand_ins: dict[str, dict[str, Any]] = {
        "common.registry": {**kinds}, "agents.base": {"BaseAgent": _PublicAgent}, "envs.base": {"BaseEnv": _PublicEnv},
    }  # fmt: skip
    for name, parts in stand_ins.items():
        if not (folder / (name.replace(".", "/") + ".py")).is_file():
            sys.modules[f"{root}.{name}"] = module = types.ModuleType(name)
            vars(module).update(parts)
    stubs: dict[str, Any] = {"swanlab": types.ModuleType("swanlab"), "openai": types.ModuleType("openai"), "dotenv": None}  # no key is read
    vars(stubs["openai"])["OpenAI"] = object
    vars(stubs["swanlab"])["log"] = lambda *_: None
    kept = {name: sys.modules.get(name) for name in stubs}
    try:
        for name, stub in stubs.items():
            sys.modules[name] = stub
        names = {"trainer": "trainers.mem_grpo_trainer", "module": "modules.memory_agent"}
        names |= {"env": "envs.longcontext_memory", "agent": "agents.memory_agent"}
        code = types.SimpleNamespace(**{key: importlib.import_module(f"{root}.{name}") for key, name in names.items()}, generated=[])
    finally:
        for name, before in kept.items():
            del sys.modules[name]
            if before is not None:
                sys.modules[name] = before
    code.swanlab = stubs["swanlab"]
    _patch(code, work)
    return code


def _patch(code: types.SimpleNamespace, work: Work) -> None:
    """Our templates, our rule for the judge, and a note of what was generated."""

    def braced(template: str, **slots: str) -> str:
        text = template.replace("{", "{{").replace("}", "}}")
        for slot, name in slots.items():
            text = text.replace(f"<<{slot}>>", f"{{{name}}}")
        return text

    code.module.TEMPLATE = braced(MEMORY_UPDATE, question="prompt", memory="memory", section="chunk")
    code.module.TEMPLATE_FINAL_BOXED = braced(MEMORY_ANSWER, question="prompt", memory="memory")
    code.trainer.LLMClient = object
    code.env.LongContextMemoryEnv.compute_reward = lambda self, predictions, ground_truths, questions, **_: [
        work.reward(text, [gold], at) for at, (text, gold) in enumerate(zip(predictions, ground_truths, strict=True))
    ]
    generate = code.module.RecurrentMemoryModule._generate_with_pytorch

    def noted(self: Any, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = generate(self, model, input_ids, attention_mask)
        code.generated.append(out[:, input_ids.shape[1] :])
        return out

    code.module.RecurrentMemoryModule._generate_with_pytorch = noted
