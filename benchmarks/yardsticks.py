#!/usr/bin/env python3
"""What a skill is worth with the same reader: rules that keep the bank (Memory-R1) or choose among memories (RMM), beside a trained policy.

Memory-R1: every manager of `dialog_bank.POLICIES`, with perfect extraction, writes the bank of the held-out dialogues. RMM: a rule keeps
the memories that the answer rests on (oracle), all candidates or none; and the retriever alone keeps its nearest. The questions are
then answered by a rule (the oldest item of a key is believed) and by each model given. The oracle's row is what is lost in reading alone.

    python benchmarks/yardsticks.py --readers base=models/tiny-bank grpo=output/tiny_bank/last
    python benchmarks/yardsticks.py --skill rmm
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skills import MEMORY_R1, RMM, Skill

from memfactory.agents.build import build_agent, local_models
from memfactory.common.registry import ENV_REGISTRY
from memfactory.common.types import Messages
from memfactory.data.generators.bank_player import chooser, rule_player
from memfactory.data.generators.dialog_bank import POLICIES
from memfactory.engines.chat import Models
from memfactory.engines.load import load_causal_lm, load_tokenizer
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.base import BaseEnv
from memfactory.evaluation.harness import Scores, evaluate

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Yardstick:
    """A rule in a skill's place."""

    play: Callable[[Messages, str], str]
    options: dict[str, Any] = field(default_factory=dict)
    """Over the agent's options."""


SETS: dict[str, tuple[Skill, tuple[str, ...], dict[str, Yardstick]]] = {
    "memory_r1": (MEMORY_R1, ("extraction", "update"), {name: Yardstick(rule_player(name)) for name in POLICIES}),
    "rmm": (
        RMM,
        ("rerank",),
        {
            "oracle": Yardstick(chooser("oracle")),
            "retriever only": Yardstick(chooser("all"), {"retriever": "naive_retriever"}),
            # As many as there are candidates may stay.
            "all candidates": Yardstick(chooser("all"), {"answer_from": 12}),
            "none": Yardstick(chooser("none")),
        },
    ),
}
"""{skill: (its sets and agent, the stages that a rule plays, the rules)}."""


def by_rule(skill: Skill, stages: tuple[str, ...], rule: Yardstick, reader: str | None, env: BaseEnv, k: int) -> Scores:
    """The stages are played by a rule, the questions are answered by a model folder, or by rule too."""
    options = skill.job["agent_options"] | rule.options
    rules = ScriptedChat(rule.play)
    if reader is None:
        return evaluate(build_agent(skill.job["agent"], None, "cpu", options), Models({"policy": rules}), env, name="rule", k=0)
    tokenizer = load_tokenizer(reader)
    agent = build_agent(skill.job["agent"], tokenizer, "cpu", options)
    chats = local_models(load_causal_lm(reader, "cpu"), tokenizer, slots=192).chats
    models = Models({**chats, "rules": rules}, {stage: "rules" for stage in stages if stage in agent.stages})
    return evaluate(agent, models, env, name="rule", k=k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skill", default="memory_r1", choices=list(SETS))
    parser.add_argument("--readers", nargs="*", help="name=model folder; default: the skill's base")
    parser.add_argument("--k", type=int, default=4)
    args = parser.parse_args()
    skill, stages, rules = SETS[args.skill]
    given = args.readers if args.readers is not None else [f"base={skill.base}"]
    readers: dict[str, str | None] = {"rule": None} | dict(entry.split("=", 1) for entry in given)
    print("| set | rule | " + " | ".join(f"read by {name}" for name in readers) + " |")
    print("|---|---|" + "--:|" * len(readers))
    for name in skill.sets:
        env = ENV_REGISTRY.get(skill.job["env"])(str(ROOT / skill.data / f"{name}.json"), None)
        for label, rule in rules.items():
            cells = []
            for reader in readers.values():
                scores = by_rule(skill, stages, rule, reader, env, args.k)
                cells.append(
                    f"{scores.avg_at_k.value:.3f} / {scores.greedy_mean.value:.3f}" if scores.k else f"{scores.greedy_mean.value:.3f}"
                )
            print(f"| {name} | {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
