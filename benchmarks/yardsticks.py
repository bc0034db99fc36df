#!/usr/bin/env python3
"""What a manager is worth with the same reader: rules that keep the bank, with perfect extraction, beside a trained policy.

Every manager of `dialog_bank.POLICIES` writes the bank of the held-out dialogues; the questions are answered from it by a rule
(the oldest item of a key is believed) and by each model given. The oracle's row is what is lost in reading alone.

    python benchmarks/yardsticks.py --readers base=models/tiny-bank grpo=output/tiny_bank/last
"""

from __future__ import annotations

import argparse
from pathlib import Path

from skills import MEMORY_R1

from memfactory.agents.build import build_agent, local_models
from memfactory.data.generators.bank_player import rule_player
from memfactory.data.generators.dialog_bank import POLICIES
from memfactory.engines.chat import Models
from memfactory.engines.load import load_causal_lm, load_tokenizer
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.memory_bank import MemoryBankEnv
from memfactory.evaluation.harness import Scores, evaluate

ROOT = Path(__file__).resolve().parent.parent
WRITING = ("extraction", "update")


def kept_by_rule(policy: str, reader: str | None, env: MemoryBankEnv, k: int) -> Scores:
    """The bank is kept by a rule, the questions are answered by a model folder, or by rule too."""
    rules = ScriptedChat(rule_player(policy))
    if reader is None:
        agent = build_agent("memory_r1_agent", None, "cpu", MEMORY_R1.job["agent_options"])
        return evaluate(agent, Models({"policy": rules}), env, name=policy, k=0)
    tokenizer = load_tokenizer(reader)
    agent = build_agent("memory_r1_agent", tokenizer, "cpu", MEMORY_R1.job["agent_options"])
    chats = local_models(load_causal_lm(reader, "cpu"), tokenizer, slots=192).chats
    models = Models({**chats, "rules": rules}, dict.fromkeys(WRITING, "rules"))
    return evaluate(agent, models, env, name=policy, k=k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", nargs="*", default=[f"base={MEMORY_R1.base}"], help="name=model folder")
    parser.add_argument("--k", type=int, default=4)
    args = parser.parse_args()
    readers: dict[str, str | None] = {"rule": None} | dict(entry.split("=", 1) for entry in args.readers)
    print("| set | manager | " + " | ".join(f"read by {name}" for name in readers) + " |")
    print("|---|---|" + "--:|" * len(readers))
    for name in MEMORY_R1.sets:
        env = MemoryBankEnv(str(ROOT / MEMORY_R1.data / f"{name}.json"), None)
        for policy in POLICIES:
            cells = []
            for reader in readers.values():
                scores = kept_by_rule(policy, reader, env, args.k)
                cells.append(
                    f"{scores.avg_at_k.value:.3f} / {scores.greedy_mean.value:.3f}" if scores.k else f"{scores.greedy_mean.value:.3f}"
                )
            print(f"| {name} | {policy} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
