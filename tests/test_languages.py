"""Texts of any script: what is near in them, and that nothing changed for ASCII (test_embedders has the rest of the embedders)."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from languages import LANGUAGES

from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.errors import ConfigError, UnknownNameError
from memfactory.common.words import content_of, words_of
from memfactory.memory.bm25 import BM25Index
from memfactory.memory.embedders import CachedEmbedder, HashedEmbedder, make_embedder
from memfactory.memory.stores import open_store
from memfactory.modules.memory_retriever import NaiveRetriever


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_question_finds_its_fact_among_a_hundred(name: str) -> None:
    """Recall@10 of words alone (before: Chinese .84 and .10, Japanese .85 and .10, Thai .86 and .81, Russian .88 and 1)."""
    facts, questions = LANGUAGES[name].facts(), LANGUAGES[name].questions()
    embedder = HashedEmbedder()
    cosines = (embedder.embed(questions) @ embedder.embed(facts).T).round(6)
    index = BM25Index(facts)
    found = [at in np.argsort(-row, kind="stable")[:10] for at, row in enumerate(cosines)]
    ranked = [at in index.rank(question)[:10] for at, question in enumerate(questions)]
    assert len(set(facts)) == len(facts) == 100 and np.mean(found) >= 0.95 and np.mean(ranked) >= 0.95


ASCII = [
    "Paris",
    "Alice adopted a golden retriever named Max in May 2023.",
    "city alice paris .",
    "x_1 = 3.5; it's",
    "WHO is it?",
    "",
    "?!",
]


def test_vectors_of_ascii_are_what_they_were() -> None:
    digest = hashlib.sha256(HashedEmbedder().embed(ASCII).tobytes() + HashedEmbedder(dim=64, word_share=0.5).embed(ASCII).tobytes())
    assert digest.hexdigest()[:16] == "4deb07dbac14b6c6"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＡＢＣ １２３", "abc 123"), ("ｶﾀｶﾅ", "カタカナ"), ("café Łódź", "cafe Łodz"), ("cafe\u0301", "café"),
        ("الْقَاهِرَة", "القاهرة"), ("أحمد", "احمد"),
        ("العـــربية", "العربية"), ("שָׁלוֹם", "שלום"), ("Фёдор", "ФЕДОР"), ("می\u200cروم", "میروم"),
        ("Straße", "STRASSE"), ("İstanbul", "istanbul"),
        ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8"), ("\u202eabc\u202c é", "abc e"), ("\ufeffé", "é"),
    ],
)  # fmt: skip
def test_what_is_written_in_two_ways_is_one_word(one: str, other: str) -> None:
    assert words_of(one) == words_of(other) != []


def test_words_of_scripts_without_spaces_are_letters_and_pairs() -> None:
    assert words_of("我住Paris") == ["我", "我住", "住", "paris"]
    assert words_of("ไม่มี") == ["ไ", "ไม่", "ม่", "ม่มี", "มี"], "a letter has its marks"
    assert words_of("हिन्दी में") == ["हिन्दी", "में"], "marks end no word"
    assert content_of("的") == "的" and content_of("我的猫") == "我 我的 的猫 猫"
    assert words_of("\ud800我\x00") == ["我"] and words_of("🙂") == []


def test_embedders_are_named_with_their_options() -> None:
    assert make_embedder({"type": "hashed", "dim": 64}).name == "hashed:64:0.3" == make_embedder({"dim": 64}).name
    with pytest.raises(UnknownNameError, match="option of the embedder 'hashed' 'dims'. Did you mean 'dim'"):
        make_embedder({"type": "hashed", "dims": 64})
    for bad in (3, {"dim": "many"}):
        with pytest.raises(ConfigError, match="name, option|cannot be made with"):
            make_embedder(bad)  # type: ignore[arg-type]


def test_the_agents_embedder_is_that_of_its_store_and_a_store_with_another_is_said(caplog: pytest.LogCaptureFixture) -> None:
    choice: dict[str, Any] = {"type": "hashed", "dim": 128}
    agent = MemoryR1Agent(None, "cpu", embedder=choice).use()
    assert agent.store.embedder.name == agent.finder.embedder.name == "hashed:128:0.3"  # type: ignore[attr-defined]
    assert agent.describe()["embedder"] == choice and "embedder" not in agent.describe()["retriever"]
    assert MemoryR1Agent(None, "cpu", **agent.describe()).describe() == agent.describe()
    with caplog.at_level(logging.WARNING):
        agent.use(open_store("in_memory", embedder=choice))
        assert not caplog.records
        agent.use(open_store("in_memory"))
    assert "hashed:2048:0.3, and the agent searches with hashed:128:0.3" in caplog.text


@pytest.mark.parametrize("backend", ["milvus", "hybrid"])
@pytest.mark.slow
def test_a_store_of_an_earlier_embedder_is_embedded_anew(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite" if backend == "milvus" else "arcadedb_embedded")
    options = {"uri": str(tmp_path / "m.db")} if backend == "milvus" else {"path": str(tmp_path)}
    old = HashedEmbedder()
    old.version = 1  # type: ignore[misc]
    with monkeypatch.context() as before:
        before.setattr("memfactory.memory.embedders.content_of", lambda text: text)
        with open_store(backend, options, embedder=old) as store:
            store.add("u", LANGUAGES["Chinese"].facts())
            store.delete("u", "99")
            store.add("v", ["我住在北京"])
    for _ in range(2):  # the second time there is nothing to do
        with open_store(backend, options, embedder=CachedEmbedder(HashedEmbedder())) as store:
            hits = [store.search("u", question, 10) for question in LANGUAGES["Chinese"].questions()[:20]]
            assert [str(at) in {item.id for item, _ in found} for at, found in enumerate(hits)] == [True] * 20
            assert store.search("v", "我住在北京", 1)[0][1] == pytest.approx(1, abs=1e-5) and store.count("u") == 99


def test_a_retriever_takes_an_embedders_options() -> None:
    assert NaiveRetriever(None, embedder={"dim": 32}).embedder.name == "hashed:32:0.3"
