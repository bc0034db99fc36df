"""Promise: an untrained reranker is the retriever, to the last tie; trained maps follow equation 1; wrong weights are refused by name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError
from memfactory.common.registry import EMBEDDER_REGISTRY, MODULE_REGISTRY
from memfactory.data.generators.synth_topics import synth_topics
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import search
from memfactory.modules.memory_retriever import NaiveRetriever
from memfactory.modules.rmm_reranker import FILE, LinearScores, RMMReranker

DIM = 32


class SmallEmbedder(HashedEmbedder):
    def __init__(self) -> None:
        super().__init__(dim=DIM)


@pytest.fixture(autouse=True)
def small(forgotten_parts: None) -> None:
    """The embedder `small`, of 32 numbers."""
    EMBEDDER_REGISTRY.register("small")(SmallEmbedder)


def reranker(**options: Any) -> RMMReranker:
    return RMMReranker(None, **({"embedder": "small"} | options))


def perturbed(module: RMMReranker, size: float = 0.3) -> RMMReranker:
    """The same with every parameter moved at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.scores.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


def bank(number: int, seed: int = 0) -> tuple[str, list[MemoryItem]]:
    """A question and `number` memories, with copies among them, so that there are ties."""
    (row,) = synth_topics(1, seed=seed, memories=max(number, 2), useful=1)
    texts = random.Random(seed).choices(row["M"], k=number)
    return row["input"], [MemoryItem(str(at), text) for at, text in enumerate(texts)]


def act(module: Any, items: list[MemoryItem], queries: list[str], k: int) -> list[str]:
    return [item.id for item in asyncio.run(module.act(None, items, queries, k))]


# An untrained reranker is the retriever


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("number", [1, 7, 30])
def test_with_zero_maps_the_ranking_is_the_retrievers(rank: int | None, number: int) -> None:
    module = reranker(rank=rank)
    for seed in range(6):
        query, items = bank(number, seed)
        assert module.rank(query, items, 5) == search(query, items, module.embedder, 5)


def test_equal_memories_keep_the_retrievers_order() -> None:
    query, items = bank(150)
    module = reranker(candidates=150)
    assert len({score for _, score in module.rank(query, items, 150)}) < 140
    assert module.rank(query, items, 150) == search(query, items, module.embedder, 150)


def test_with_zero_maps_it_takes_the_naive_retrievers_place() -> None:
    query, items = bank(40)
    other, _ = bank(2, seed=9)
    for k in (1, 3, 25, 40, 50):
        assert act(reranker(), items, [query, other], k) == act(NaiveRetriever(None, embedder="small"), items, [query, other], k)


@pytest.mark.parametrize("rank", [None, 4])
def test_only_the_maps_that_start_at_zero_hold_it_there_and_both_can_move(rank: int | None) -> None:
    module = reranker(rank=rank)
    query, items = bank(6)
    _, vector, vectors, cosines = module.candidates(query, items)
    module.scores(vector[None], vectors[None], cosines[None])[0, 2].backward()
    for name, parameter in module.scores.named_parameters():
        assert (float(parameter.detach().abs().max()) == 0) == name.endswith("inner")
        assert (float(parameter.grad.abs().max()) > 0) == name.endswith("inner")


# Trained maps


@pytest.mark.parametrize("rank", [None, 4])
def test_scores_are_equation_1(rank: int | None) -> None:
    module = perturbed(reranker(rank=rank))
    maps = module.scores
    query, items = bank(12)
    near, vector, vectors, cosines = module.candidates(query, items)
    found = maps(vector[None], vectors[None], cosines[None])[0].detach()
    q, m = vector.double(), vectors.double()
    w = [part.inner.double() if rank is None else part.outer.double() @ part.inner.double() for part in (maps.query_map, maps.memory_map)]
    expected = (m + m @ w[1].T) @ (q + w[0] @ q)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert np.argsort(-found.numpy()).tolist() != list(range(12)), "the maps say something else than the cosines"


def test_the_embedder_fetches_and_the_maps_order() -> None:
    query, items = bank(30)
    module = perturbed(reranker(candidates=8), size=2.0)
    best = module.rank(query, items, 3)
    fetched = [item for item, _ in search(query, items, module.embedder, 8)]
    assert {item.id for item, _ in best} <= {item.id for item in fetched} and [item for item, _ in best] != fetched[:3]
    assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)
    assert len(module.rank(query, items, 12)) == 12, "more are fetched if more are asked for"
    assert act(module, items, [query], 3) == sorted((item.id for item, _ in best), key=int), "in the order of the items"
    assert module.rank(query, [], 3) == module.rank(query, items, 0) == []


def test_a_ranking_is_the_same_every_time_and_at_every_temperature() -> None:
    query, items = bank(20)
    cold, hot = (perturbed(reranker(tau=tau)) for tau in (0.01, 10.0))
    assert cold.rank(query, items, 5) == cold.rank(query, items, 5) == hot.rank(query, items, 5)


class StoredItems(list[MemoryItem]):
    """Items that search themselves, as a store's do: `nearest` gives them in any order."""

    def __init__(self, items: list[MemoryItem], embedder: Any) -> None:
        super().__init__(items)
        self.embedder, self.embedder_name = embedder, embedder.name
        self.asked: list[int] = []

    def nearest(self, queries: Sequence[str], k: int) -> list[list[MemoryItem]]:
        self.asked.append(k)
        return [[item for item, _ in search(query, self, self.embedder, k)][::-1] for query in queries]


def test_items_that_search_themselves_are_asked_for_the_candidates() -> None:
    query, items = bank(40)
    other, _ = bank(2, seed=9)
    module = perturbed(reranker(candidates=8), size=2.0)
    stored = StoredItems(items, module.embedder)
    assert act(module, stored, [query, other], 3) == act(module, items, [query, other], 3) and stored.asked == [8]
    elsewhere = StoredItems(items, HashedEmbedder(dim=2))
    assert act(module, elsewhere, [query], 3) == act(module, items, [query], 3) and elsewhere.asked == [], "another embedder's"


# Weights


@pytest.mark.parametrize("rank", [None, 4])
def test_saved_weights_rank_alike_and_are_named_by_folder_or_file(rank: int | None, tmp_path: Path) -> None:
    module = perturbed(reranker(rank=rank))
    module.scores.save_pretrained(tmp_path)
    query, items = bank(20)
    for path in (tmp_path, tmp_path / FILE):
        again = reranker(weights=str(path))
        assert again.rank(query, items, 5) == module.rank(query, items, 5) and again.scores.rank == rank


def test_weights_that_are_not_there_say_what_writes_them(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=rf"{FILE}.*memfactory train --trainer mem_reinforce"):
        reranker(weights=str(tmp_path))


def test_weights_for_other_vectors_are_refused_with_both_dimensions(tmp_path: Path) -> None:
    LinearScores(DIM + 2, embedder="hashed:34:0.3").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"vectors of {DIM + 2} numbers \(hashed:34:0.3\), and hashed:{DIM}:0.3 gives {DIM}"):
        reranker(weights=str(tmp_path))


def test_weights_of_another_embedder_of_that_size_are_refused(tmp_path: Path) -> None:
    LinearScores(DIM, embedder="openai:x").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"'openai:x', not of 'hashed:{DIM}:0.3'"):
        reranker(weights=str(tmp_path))


def test_weights_of_another_rank_are_refused(tmp_path: Path) -> None:
    LinearScores(DIM, 4, reranker().embedder.name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has rank 4, not 5"):
        reranker(weights=str(tmp_path), rank=5)


@pytest.mark.parametrize("tensors", [{}, {"lm_head": (2, 2)}, {"query_map.inner": (DIM, DIM)}, {"query_map.inner": (DIM,)}])
def test_a_file_of_something_else_is_refused_with_what_it_holds(tensors: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / FILE)
    with pytest.raises(ConfigError, match="holds no reranker's maps, but " + (next(iter(tensors), "nothing"))):
        reranker(weights=str(tmp_path))
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        reranker(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau": 0.0}, "tau 0.0: must be above 0"),
        ({"candidates": 0}, "candidates 0: must be at least 1"),
        ({"rank": DIM + 1}, f"rank from 1 to {DIM}"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reranker(**options)
    with pytest.raises(UnknownNameError, match=r"option of RMMReranker 'ranks'. Did you mean 'rank'"):
        reranker(ranks=3)


# As a slot


def test_memory_r1_takes_it_as_its_retriever_and_describes_it(tmp_path: Path) -> None:
    perturbed(reranker()).scores.save_pretrained(tmp_path)
    agent = MemoryR1Agent(None, retriever={"type": "rmm_reranker", "embedder": "small", "candidates": 9, "weights": str(tmp_path)})
    assert type(agent.retriever) is MODULE_REGISTRY.get("rmm_reranker") is RMMReranker
    again = MemoryR1Agent(None, **agent.describe())
    query, items = bank(30)
    assert act(again.retriever, items, [query], 4) == act(agent.retriever, items, [query], 4)
    assert act(agent.retriever, items, [query], 4) != act(NaiveRetriever(None, embedder="small"), items, [query], 4)
