"""MemFactory: write a memory agent as the paper's pseudo-code for one example; train, evaluate and serve it with that same code.

The public names are loaded on first use, so that `import memfactory` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES: dict[str, list[str]] = {
    "memfactory.common.version": ["__version__"],
    "memfactory.common.registry": [
        "Registry", "MODULE_REGISTRY", "AGENT_REGISTRY", "ENV_REGISTRY", "TRAINER_REGISTRY", "ENGINE_REGISTRY", "LOSS_REGISTRY",
        "ADVANTAGE_REGISTRY", "STORE_REGISTRY", "EMBEDDER_REGISTRY", "TASK_REGISTRY", "SCORER_REGISTRY", "JUDGE_PROMPT_REGISTRY",
        "GENERATOR_REGISTRY", "TRACKER_REGISTRY",
    ],
    "memfactory.common.types": ["Turn", "Trajectory", "RolloutGroup", "View", "Sampling", "Completion", "predictions"],
    "memfactory.common.config": ["TrainConfig", "read_config"],
    "memfactory.common.errors": ["MemFactoryError", "UserError", "ConfigError", "DataError", "MissingFileError", "InfrastructureError"],
    "memfactory.algorithms.credit": ["assign_credit"],
    "memfactory.algorithms.packing": ["TrainBatch", "pack"],
    "memfactory.engines.chat": ["LocalChat", "Models", "Session"],
    "memfactory.engines.hf": ["HFEngine"],
    "memfactory.engines.scripted": ["ScriptedChat", "ScriptedEngine"],
    "memfactory.engines.vllm": ["VLLMEngine"],
    "memfactory.modules.base": ["BaseModule"],
    "memfactory.modules.memory_agent": ["RecurrentMemoryModule"],
    "memfactory.modules.memory_extractor": ["NaiveExtractor"],
    "memfactory.modules.memory_updater": ["NaiveUpdater"],
    "memfactory.modules.memory_retriever": ["NaiveRetriever"],
    "memfactory.modules.reranker": ["RerankRetriever"],
    "memfactory.modules.rmm_reranker": ["RMMReranker"],
    "memfactory.modules.answerer": ["Answerer"],
    "memfactory.memory.bank": ["MemoryBank"],
    "memfactory.memory.items": ["MemoryItem", "MemoryOp"],
    "memfactory.memory.stores": ["open_store"],
    "memfactory.agents.base": ["BaseAgent"],
    "memfactory.agents.build": ["build_agent", "local_models"],
    "memfactory.agents.memory_agent": ["MemoryAgent"],
    "memfactory.agents.memory_r1_agent": ["MemoryR1Agent"],
    "memfactory.agents.rmm_agent": ["MemoryRMMAgent"],
    "memfactory.envs.base": ["BaseEnv"],
    "memfactory.envs.longcontext": ["LongcontextEnv"],
    "memfactory.envs.memory_bank": ["MemoryBankEnv"],
    "memfactory.envs.rerank_bank": ["RerankBankEnv"],
    "memfactory.evaluation.harness": ["evaluate", "Scores"],
    "memfactory.evaluation.jobs": ["load_scores"],
    "memfactory.trainers.mem_grpo_trainer": ["MemTrainer"],
    "memfactory.trainers.mem_reinforce_trainer": ["MemReinforceTrainer"],
    "memfactory.trainers.mem_sft_trainer": ["MemSFTTrainer"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'memfactory' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
