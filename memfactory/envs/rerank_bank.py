"""`RerankBankEnv` (`rerank_bank`): the memory bank's questions, paid for the answer, for what it cites and for how little was kept.

RMM's rewards (Tan et al., 2025, arXiv 2503.08026): +1 for a shown memory that the answer cites, -1 for one that it does not. Here
they count only with a right answer, so that to cite everything wins nothing by itself, and beside the outcome, which is paid first.
Numbers out of range and repeats never reach the counts: an item is kept once or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from memfactory.common.registry import ENV_REGISTRY
from memfactory.common.types import Trajectory
from memfactory.envs.memory_bank import Asked, MemoryBankEnv


@ENV_REGISTRY.register("rerank_bank")
class RerankBankEnv(MemoryBankEnv):
    """Dialogues or memory-bank rows, as in `memory_bank`, for agents whose retriever is trained."""

    components = (*MemoryBankEnv.components, "kept", "citation")

    @dataclass(frozen=True, slots=True)
    class Options(MemoryBankEnv.Options):
        """What is paid."""

        weights: dict[str, float] = field(
            default_factory=lambda: {"outcome": 1.0, "malformed": -0.1, "operations": 0.0, "kept": -0.02, "citation": 0.1}
        )
        """outcome, malformed, operations: as in memory_bank; kept: memories kept for a question; citation: in [-1, 1], the share of the
        shown memories that were cited less that of the others, if the answer is right. Freeze the answer agent where it pays (roles)."""
        answers_paid: str = "own"
        """own: reranking and answering are paid for their own question; mean: by the whole outcome."""

    def of_questions(self, attempts: list[Trajectory], asked: list[Asked]) -> dict[str, list[torch.Tensor]]:
        parts = super().of_questions(attempts, asked)
        pairs = list(zip(attempts, parts["outcome"], strict=True))
        parts["kept"] = [_counts(attempt, "kept_items", len(right)) for attempt, right in pairs]
        parts["citation"] = [_citation(attempt, right) for attempt, right in pairs]
        return parts


def _counts(attempt: Trajectory, what: str, questions: int) -> torch.Tensor:
    """[questions] how often something happened for each question."""
    reports = attempt.question_reports
    return torch.tensor([float(reports[number][what]) if number in reports else 0.0 for number in range(questions)])


def _citation(attempt: Trajectory, right: torch.Tensor) -> torch.Tensor:
    """[questions] RMM's reward, averaged over what was shown; 0 if nothing was shown, or the answer is wrong."""
    shown, cited = (_counts(attempt, what, len(right)) for what in ("shown_items", "cited_items"))
    return right * torch.where(shown > 0, (2 * cited - shown) / shown.clamp(min=1), torch.zeros(()))
