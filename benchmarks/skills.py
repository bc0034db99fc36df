"""What `learning.py` compares for each skill: base, data, configuration, arms. Plain data, and how an arm's supervised control is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memfactory.data.generators.bank_demonstrator import ANSWER_FROM, CARELESS, NEAR, bank_demonstrations
from memfactory.data.generators.bank_demonstrator import CAREFUL as CAREFUL_KEEPER
from memfactory.data.generators.demonstrator import FORGETFUL, MILD, Row, demonstrations
from memfactory.data.generators.rerank_demonstrator import CANDIDATES, KEPT, rerank_demonstrations
from memfactory.data.generators.rerank_demonstrator import CAREFUL as CAREFUL_CHOICE
from memfactory.data.generators.rerank_demonstrator import CARELESS as CARELESS_CHOICE


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    about: str
    flags: dict[str, object] = field(default_factory=dict)
    """Over the skill's configuration."""
    demonstrations: Callable[[int], Iterator[Row]] | None = None
    """seed -> rows: more supervised steps instead of reinforcement learning."""
    roles: dict[str, str] = field(default_factory=dict)
    """Who answers which stage, in training and in evaluation; the reference is the base."""
    beside: str = ""
    """An arm that this one is compared with over all seeds together."""


@dataclass(frozen=True)
class Skill:
    """One agent on one tiny world."""

    config: str
    base: str
    data: str
    """Folder of the sets."""
    sets: tuple[str, ...]
    job: dict[str, Any]
    """Fields of `Job` for its evaluation."""
    steps: int
    """Steps of reinforcement learning."""
    sft_steps: int
    """Steps of the supervised controls: at least the same CPU minutes."""
    arms: dict[str, Arm]


RULES = {"device": "cpu", "threads": 1}
PLAIN = {"packing": "rows", "logprob_chunks": "dense", "share_prefixes": False, "master_weights": "fp32", "moments": "fp32"}
OPTIMISED = {
    "packing": "tree", "logprob_chunks": "chunked", "share_prefixes": True, "master_weights": "split", "moments": "8bit",
    "offload_optimizer": True, "gradient_checkpointing": True,
}  # fmt: skip

MEMAGENT = Skill(
    config="examples/configs/tiny.yaml",
    base="models/tiny",
    data="datas/tiny",
    sets=("eval", "eval_8chunks", "eval_newnames", "eval_16chunks"),
    job=RULES | {"agent": "memagent", "agent_options": {"chunk_size": 16, "max_generate_length": 32}},
    steps=88,
    sft_steps=1600,
    arms={
        "grpo": Arm("the configuration as it ships"),
        "plain": Arm("nothing that saves time or memory is on", PLAIN),
        "optimised": Arm("all that saves time or memory on a CPU is on", OPTIMISED, beside="plain"),
        # Its updates are shorter: more steps for the same minutes.
        "final_turn": Arm("only the answer turn is paid", {"credit": "final_turn", "max_steps": 164}),
        "public_style": Arm(
            "old log-probs recomputed before each update, sequence mean, advantages divided by the group's std",
            {"old_logprobs": "recompute", "aggregation": "sequence", "advantage": "std"},
        ),
        "sft_same": Arm(
            "more supervised steps from the base's own demonstrator", demonstrations=lambda s: demonstrations(1000 + s, FORGETFUL)
        ),
        "sft_mild": Arm(
            "more supervised steps from the more careful demonstrator of its first stage",
            demonstrations=lambda s: demonstrations(1000 + s, MILD),
        ),
    },
)

REST = "; the frozen base answers the rest, in training and in evaluation"

MEMORY_R1 = Skill(
    config="examples/configs/tiny_bank.yaml",
    base="models/tiny-bank",
    data="datas/tiny_bank",
    sets=("eval", "eval_8sessions", "eval_newnames"),
    job=RULES | {
        "agent": "memory_r1_agent", "env": "memory_bank",
        "agent_options": {"style": "lines", "near": NEAR, "answer_from": ANSWER_FROM, "max_generate_length": 48},
    },
    steps=56,
    sft_steps=1800,
    arms={
        "grpo": Arm("the configuration as it ships: all three stages, paid by the outcome"),
        "format_only": Arm(
            "paid for readable output alone, as the public version pays",
            {"env_options": json.dumps({"weights": {"outcome": 0.0, "malformed": -1.0}})},
        ),
        "own_credit": Arm("an answer is paid for its own question alone", {"env_options": json.dumps({"answers_paid": "own"})}),
        "extraction": Arm("extraction alone is trained" + REST, roles={"update": "reference", "answer": "reference"}),
        "update": Arm("the manager's operations alone are trained" + REST, roles={"extraction": "reference", "answer": "reference"}),
        "writing": Arm("extraction and operations are trained" + REST, roles={"answer": "reference"}),
        "answer": Arm("the answer agent alone is trained" + REST, roles={"extraction": "reference", "update": "reference"}),
        "sft_same": Arm(
            "more supervised steps from the base's own demonstrator", demonstrations=lambda s: bank_demonstrations(1000 + s, CARELESS)
        ),
        "sft_mild": Arm(
            "more supervised steps from the careful demonstrator of its first stage",
            demonstrations=lambda s: bank_demonstrations(1000 + s, CAREFUL_KEEPER),
        ),
    },
)  # fmt: skip

RMM = Skill(
    config="examples/configs/tiny_rerank.yaml",
    base="models/tiny-rerank",
    data="datas/tiny_bank",
    sets=("eval", "eval_8sessions", "eval_newnames"),
    job=RULES | {
        "agent": "memory_rmm_agent", "env": "memory_bank", "env_options": {"weights": {"outcome": 1.0}},
        "roles": {"answer": "reference"}, "reference": "models/tiny-rerank",
        "agent_options": {
            "style": "lines", "answer_from": KEPT, "max_generate_length": 32, "extractor": "verbatim_extractor",
            "updater": "append_updater", "retriever": {"type": "rerank_retriever", "candidates": CANDIDATES}, "answerer": "answerer",
        },
    },
    steps=160,
    sft_steps=1600,
    arms={
        "grpo": Arm("the configuration as it ships: the choice is trained, the frozen base answers"),
        "outcome_only": Arm(
            "paid by the answer alone: nothing for keeping little", {"env_options": json.dumps({"weights": {"outcome": 1.0}})}
        ),
        "answer_too": Arm("the answer is trained as well", roles={"answer": "policy"}),
        "sft_same": Arm(
            "more supervised steps from the base's own demonstrator",
            demonstrations=lambda s: rerank_demonstrations(1000 + s, CARELESS_CHOICE),
        ),
        "sft_mild": Arm(
            "more supervised steps from the careful demonstrator of its first stage",
            demonstrations=lambda s: rerank_demonstrations(1000 + s, CAREFUL_CHOICE),
        ),
    },
)  # fmt: skip

SKILLS = {"memagent": MEMAGENT, "memory_r1": MEMORY_R1, "rmm": RMM}
