"""`RMMReranker`: RMM's reranker (Tan et al., 2025, arXiv 2503.08026, section 4): two residual linear maps over a frozen embedder.

    q' = q + W_q q        m' = m + W_m m        s = q' . m'        (equation 1; the appendix's "MLP" is this formula)

The embedder fetches the K nearest memories, s orders them. Both maps start at zero, where s is the cosine, so an untrained
reranker is the retriever. Ranking is deterministic; `MemReinforceTrainer` draws from the scores. Asks no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from memfactory.common.errors import ConfigError, MissingFileError
from memfactory.common.ranges import ranged
from memfactory.common.registry import MODULE_REGISTRY
from memfactory.engines.chat import Session
from memfactory.memory.embedders import CachedEmbedder, make_embedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import DIGITS, Searchable, search
from memfactory.modules.base import BaseModule
from memfactory.modules.memory_retriever import note_order

FILE = "reranker.safetensors"
"""The name of the weights in a checkpoint's folder."""


class ResidualMap(nn.Module):
    """x -> W x, W [d, d] of zeros; or of rank r, W = U V with U [d, r] drawn at random and V [r, d] of zeros."""

    def __init__(self, dim: int, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.zeros(rank or dim, dim))
        self.outer = None if rank is None else nn.Parameter(torch.randn(dim, rank, generator=generator) * rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d] by W."""
        mapped = x @ self.inner.T
        return mapped if self.outer is None else mapped @ self.outer.T

    def transposed(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d] by W's transpose."""
        return (x if self.outer is None else x @ self.outer) @ self.inner


class LinearScores(nn.Module):
    """Equation 1, written as the cosine and what the maps add to it: with W = 0 the scores are the retriever's to the last bit."""

    def __init__(self, dim: int, rank: int | None = None, embedder: str = "", seed: int = 0) -> None:
        """`embedder`: the name of the function whose vectors it is for, kept in its file; `seed`: of the low-rank maps."""
        super().__init__()
        if rank is not None and not 1 <= rank <= dim:
            raise ConfigError(f"rank={rank}: a map of {dim} x {dim} has a rank from 1 to {dim}; None keeps it whole.")
        generator = torch.Generator().manual_seed(seed)
        self.dim, self.rank, self.embedder = dim, rank, embedder
        self.query_map, self.memory_map = (ResidualMap(dim, rank, generator) for _ in range(2))

    def forward(self, queries: Tensor, memories: Tensor, cosines: Tensor) -> Tensor:
        """queries [B, d], memories [B, K, d], their cosines [B, K] -> scores [B, K]."""
        moved = self.query_map(queries)
        # q' . W_m m is W_m^T q' . m: one product a query instead of one a memory, in the gradient too.
        toward = moved + self.memory_map.transposed(queries + moved)
        return cosines + (memories @ toward.unsqueeze(-1)).squeeze(-1).to(cosines.dtype)

    def save_pretrained(self, folder: Path) -> None:
        """Write `reranker.safetensors`, which says which embedder it is for."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / FILE, metadata={"embedder": self.embedder})

    @classmethod
    def from_file(cls, path: Path) -> LinearScores:
        """What `save_pretrained` wrote; a missing file is `MissingFileError`, another content `ConfigError`."""
        tensors, embedder = read_weights(path)
        inner = tensors.get("query_map.inner", torch.zeros(0))
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if inner.ndim == 2:
            scores = cls(inner.shape[1], inner.shape[0] if "query_map.outer" in tensors else None, embedder)
            if {name: tensor.shape for name, tensor in scores.state_dict().items()} == shapes:
                scores.load_state_dict(tensors)
                return scores
        raise ConfigError(
            f"{path} holds no reranker's maps, but {', '.join(f'{n} {list(shape)}' for n, shape in shapes.items()) or 'nothing'}."
        )


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, name of the embedder) of a weights' file, or of the folder that holds it."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError(f"No reranker weights at {file}. `memfactory train --trainer mem_reinforce` writes them to its checkpoints.")
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, (opened.metadata() or {}).get("embedder", "")  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{file} is not a safetensors file: {error}.") from error


@MODULE_REGISTRY.register("rmm_reranker")
class RMMReranker(BaseModule):
    """A retriever's slot: top K by the frozen embedder, then top k by trained linear maps (RMM)."""

    @dataclass(frozen=True, slots=True)
    class Options:
        """What is fetched, and what orders it."""

        embedder: str | dict[str, Any] = "hashed"
        """A key of EMBEDDER_REGISTRY, or `{"type": key, option: value}`; it is never trained."""
        candidates: int = ranged(20, least=1)
        """K: how many the embedder fetches for each query; as many as are asked for, if these are more."""
        tau: float = ranged(0.5, above=0)
        """Temperature of training: its logits are scores / tau. A ranking does not depend on it."""
        weights: str | None = None
        """Trained weights: a checkpoint's folder or a safetensors file. None: zeros, the retriever's order."""
        rank: int | None = ranged(None, least=1)
        """Rank of the maps; None: whole matrices, or what the weights have."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, device: str = "cuda", **kwargs: Any) -> None:
        super().__init__(tokenizer, device, **kwargs)
        self.embedder = CachedEmbedder(make_embedder(self.options.embedder))
        # On the CPU until a trainer moves it: there a ranking takes milliseconds, and no engine waits for it.
        self.scores = self._loaded() if self.options.weights else LinearScores(self.dim, self.options.rank, self.embedder.name)

    @property
    def dim(self) -> int:
        """Numbers in the embedder's vectors."""
        return self.embedder.embed(["dimension"]).shape[1]

    def _loaded(self) -> LinearScores:
        path, options = self.options.weights, self.options
        scores, here = LinearScores.from_file(Path(path)), self.dim
        if scores.dim != here:
            raise ConfigError(
                f"{path} is for vectors of {scores.dim} numbers ({scores.embedder}), and {self.embedder.name} gives {here}. "
                "Choose that embedder, or train weights for this one."
            )
        if scores.embedder != self.embedder.name:
            raise ConfigError(f"{path} was trained on the vectors of {scores.embedder!r}, not of {self.embedder.name!r}. Choose that one.")
        if options.rank not in (None, scores.rank):
            raise ConfigError(f"{path} has rank {scores.rank}, not {options.rank}. Leave `rank` out to take what it has.")
        return scores

    async def act(self, model: Session, *args: Any) -> list[MemoryItem]:
        """`act(model, items, queries, k)` returns the k best items of each query, together, in the order of the items."""
        items: Sequence[MemoryItem]
        items, queries, k = args
        note_order(model, ())
        if len(items) <= k:
            return list(items)
        pools: list[Sequence[MemoryItem]] = [items] * len(queries)
        if isinstance(items, Searchable) and items.embedder_name == self.embedder.name:
            found = await asyncio.to_thread(items.nearest, queries, max(self.options.candidates, k))
            near = [{item.id for item in nearest} for nearest in found]
            pools = [[item for item in items if item.id in ids] for ids in near]  # in their order, which decides ties
        if self.embedder.waits:  # for a server: the other attempts go on meanwhile
            best = await asyncio.to_thread(self._best, queries, pools, k)
        else:
            best = self._best(queries, pools, k)
        kept = note_order(model, best)
        return [item for item in items if item.id in kept]

    def _best(self, queries: Sequence[str], pools: Sequence[Sequence[MemoryItem]], k: int) -> list[list[str]]:
        """Ids for each query, the best first."""
        return [[item.id for item, _ in self.rank(query, pool, k)] for query, pool in zip(queries, pools, strict=True)]

    def candidates(self, query: str, items: Sequence[MemoryItem], k: int = 0) -> tuple[list[MemoryItem], Tensor, Tensor, Tensor]:
        """(items, query [d], their vectors [K, d], cosines [K] in float64) of the K nearest, nearest first; at least `k`."""
        found = search(query, items, self.embedder, max(self.options.candidates, k))
        vectors = torch.from_numpy(self.embedder.embed([query, *(item.text for item, _ in found)]))
        return [item for item, _ in found], vectors[0], vectors[1:], torch.tensor([cosine for _, cosine in found], dtype=torch.float64)

    def rank(self, query: str, items: Sequence[MemoryItem], k: int) -> list[tuple[MemoryItem, float]]:
        """The `k` best of the K nearest with their scores, best first; equal ones in the retriever's order."""
        near, vector, vectors, cosines = self.candidates(query, items, k)
        if k <= 0 or not near:
            return []
        device = self.scores.query_map.inner.device
        with torch.no_grad():
            scores = self.scores(vector[None].to(device), vectors[None].to(device), cosines[None].to(device))[0].cpu().numpy().round(DIGITS)
        return [(near[at], float(scores[at])) for at in np.argsort(-scores, kind="stable")[:k]]
