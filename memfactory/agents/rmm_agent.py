"""`MemoryRMMAgent` (`memory_rmm_agent`): learn what to retrieve. Reflective Memory Management, Tan et al., 2025, arXiv 2503.08026.

At the end of each session its topics are noted and merged into the memory (prospective reflection); for a question the nearest
memories are reranked, and the answer cites those it used, which is what pays the reranker (retrospective reflection). The
reranker is a language model here (`rerank_retriever`); the paper's linear one is `rmm_reranker`, in the same slot.
"""

from __future__ import annotations

from dataclasses import dataclass

from memfactory.agents.memory_r1_agent import MemoryR1Agent, MemoryR1Options
from memfactory.common.ranges import ranged
from memfactory.common.registry import AGENT_REGISTRY


@dataclass(frozen=True, slots=True)
class MemoryRMMOptions(MemoryR1Options):
    """Sizes of what is shown: RMM's where it gives them."""

    near: int = ranged(5, least=1)
    """Memories that a new topic may be merged into."""
    answer_from: int = ranged(5, least=1)
    """M: memories that are kept for an answer."""


@AGENT_REGISTRY.register("memory_rmm_agent")
class MemoryRMMAgent(MemoryR1Agent):
    """RMM: reflect, rerank, answer with citations. Its slots take Memory-R1's parts, and Memory-R1's take these."""

    Options = MemoryRMMOptions
    slots = {
        "extractor": "prospective_reflector", "finder": "naive_retriever", "updater": "topic_updater",
        "retriever": "rerank_retriever", "answerer": "cited_answerer",
    }  # fmt: skip
    stages = ("reflection", "rerank", "answer")
