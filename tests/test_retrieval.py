"""Promise: recall and NDCG are LongMemEval's, by question and level, from the ledger alone; a k that covers a whole sample is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.common.files import write_json
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger
from memfactory.evaluation.retrieval import (
    found_in,
    ndcg,
    ndcg_of_turns,
    recall_all,
    recall_any,
    retrieval_markdown,
    retrieval_notes,
    retrieval_rows,
    retrieval_table,
)

ORDER = ["a", "b", "c", "d", "e"]


def test_the_formulas_give_what_a_hand_computes() -> None:
    assert [recall_any(ORDER, "cx", k) for k in (1, 2, 3, 9)] == [0, 0, 1, 1]
    assert [recall_all(ORDER, "ac", k) for k in (1, 2, 3)] == [0, 0, 1] and recall_all(ORDER, "ax", 5) == 0
    assert ndcg(ORDER, "a", 5) == ndcg(ORDER, "b", 5) == 1  # LongMemEval's gain: the second place weighs as the first
    assert ndcg(ORDER, "d", 5) == 0.5  # 1 / log2(4)
    assert ndcg(ORDER, "ad", 5) == pytest.approx((1 + 0.5) / 2)
    assert ndcg(ORDER, "bce", 5) == pytest.approx((1 + 1 / 1.5849625 + 1 / 2.3219281) / (1 + 1 + 1 / 1.5849625))
    assert ndcg(ORDER, "bce", 2) == pytest.approx(0.5)  # two places, so the best is 1 + 1
    assert ndcg(ORDER, "x", 5) == ndcg(ORDER, "", 5) == ndcg([], "a", 5) == 0


@settings(max_examples=60, deadline=None)
@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefghxy"), min_size=1), st.integers(1, 8))
def test_measures_are_shares_and_recall_grows_with_k(ranking: list[str], relevant: set[str], k: int) -> None:
    for measure in (recall_any, recall_all, ndcg):
        assert 0 <= measure(ranking, relevant, k) <= 1 + 1e-12
    for recall in (recall_any, recall_all):
        assert recall(ranking, relevant, k) <= recall(ranking, relevant, k + 1)
    assert recall_all(ranking, relevant, k) <= recall_any(ranking, relevant, k)
    if k >= len(relevant):  # before, the best order gains too
        assert ndcg(ranking, relevant, k) <= ndcg(ranking, relevant, k + 1) + 1e-12
    best = sorted(ranking, key=lambda name: name not in relevant)
    assert ndcg(best, relevant & set(ranking), k) == pytest.approx(float(bool(relevant & set(ranking))))


SESSIONS = [{"date": f"day {at}", "turns": [f"D{at}:1", f"D{at}:2"]} for at in (1, 2, 3)]


def question(name: str, evidence: list[str], abstain: bool = False) -> dict[str, Any]:
    about = {"id": name, "question": "?", "answers": ["a"], "type": "t", "cluster": "c", "abstain": abstain, "scorer": "em_squad@1"}
    return about | {"evidence": evidence}


def ledger(folder: Path, retrieved: list[dict[str, Any]], kind: str = GREEDY, sessions: Any = SESSIONS, **more: Any) -> Path:
    asked = [question("q1", ["D1:1", "D3:2"]), question("q2", ["D2:1"], abstain=True), question("q3", [])]
    about = {"task": "t", "headline": "em_squad@1", "beside": [], "names": {}, "repaired": {}}
    write_json(folder / "questions.json", about | {"examples": {"c": asked}, "sessions": {"c": sessions}})
    with Ledger(folder) as opened:
        opened.append([Attempt("c", kind, 0, "ok", 1.0, answers=["a"] * 3, retrieved=retrieved, **more)])
    return folder


def turns(*names: str, ranked: bool = True) -> dict[str, Any]:
    return {"ranked": ranked, "sources": [{"turns": [name]} for name in names]}


def test_a_ranking_is_scored_by_session_and_by_turn_without_abstention_and_without_evidence(tmp_path: Path) -> None:
    found = found_in(ledger(tmp_path, [turns("D3:1", "D3:2", "D2:1", "D1:2"), turns("D1:1"), turns("D1:1")]))
    assert {row.question for row in found} == {"q1"}
    rows = {(row["level"], row["k"]): row for row in retrieval_rows("set", "m", found)}
    assert set(rows) == {("session", 1), ("session", 4), ("turn", 1), ("turn", 4)}
    own = rows["session", 4]  # sessions 3, 2, 1
    assert (own["recall_any"], own["recall_all"], own["n"], own["covered"], own["own_k"]) == (1, 1, 1, 1, True)
    # Each turn of a relevant session is a gain, as in evaluate_retrieval_turn2session: 1, 1, 0, 1 of 1, 1, 1, 1.
    assert own["ndcg"] == pytest.approx((1 + 1 + 0.5) / (1 + 1 + 1 / 1.5849625 + 0.5), abs=1e-4)
    assert (rows["session", 1]["recall_any"], rows["session", 1]["recall_all"], rows["session", 1]["covered"]) == (1, 0, 0)
    assert (rows["turn", 4]["recall_any"], rows["turn", 4]["recall_all"], rows["turn", 4]["ndcg"]) == (1, 0, 0.5)
    assert rows["turn", 4]["covered"] == 0 and rows["turn", 1]["recall_any"] == 0
    assert retrieval_notes(list(rows.values())) == [
        "set: k = 4 covers all sessions of 1 of 1 samples; recall by session says little there."
    ]
    assert "| set | m | session | 4 * | 1 | 1.000 | 1.000 | 0.798 |" in retrieval_markdown(list(rows.values()))
    assert retrieval_table(list(rows.values())).row_count == 2


# What LongMemEval's evaluate_retrieval_turn2session gives for the whole ranking of the turns A1 A2 A3 B1 B2 C1, by their sessions.
@pytest.mark.parametrize(
    ("places", "relevant", "wanted"),
    [
        ("BAACAB", "A", {1: 0.0, 2: 0.5, 3: 0.619906, 5: 0.783604}),
        ("AAABBC", "B", {1: 0.0, 2: 0.25, 3: 0.465338, 5: 0.465338}),
        ("CBBAAA", "AC", {1: 1.0, 2: 0.5, 3: 0.479091, 5: 0.740205}),
        ("ABC", "", {2: 0.0}),
    ],
)
def test_the_ndcg_of_retrieved_turns_by_session_is_longmemevals(places: str, relevant: str, wanted: dict[int, float]) -> None:
    for k, value in wanted.items():
        assert ndcg_of_turns(places, relevant, "AAABBC", k) == pytest.approx(value, abs=1e-6), k


def test_memories_of_several_turns_are_ranked_by_their_sessions(tmp_path: Path) -> None:
    both = {"ranked": True, "sources": [{"turns": ["D3:1", "D3:2"]}, {"turns": ["D2:1"]}, {"turns": ["D1:2"]}]}
    rows = {(row["level"], row["k"]): row for row in retrieval_rows("set", "m", found_in(ledger(tmp_path, [both])))}
    assert rows["session", 3]["ndcg"] == pytest.approx((1 + 1 / 1.5849625) / 2, abs=1e-4)


def test_rewritten_memories_are_known_by_their_dates_if_these_tell_sessions_apart(tmp_path: Path) -> None:
    dated = {"ranked": False, "sources": [{"dates": ["day 1", "day 3"]}, {}]}
    (row,) = retrieval_rows("set", "m", found_in(ledger(tmp_path / "a", [dated])))
    assert (row["level"], row["recall_all"], row["ndcg"], row["k"]) == ("session", 1, None, 2)
    alike = [session | {"date": "day"} for session in SESSIONS]
    same = {"ranked": False, "sources": [{"dates": ["day"]}]}
    assert found_in(ledger(tmp_path / "b", [same], sessions=alike)) == []


def test_sampled_attempts_are_what_is_scored_and_one_that_found_nothing_counts(tmp_path: Path) -> None:
    ledger(tmp_path, [turns("D1:1", "D3:2")], SAMPLED)
    ledger(tmp_path, [turns("D2:1")])
    (row,) = [row for row in retrieval_rows("set", "m", found_in(tmp_path)) if row["level"] == "turn" and row["own_k"]]
    assert row["recall_all"] == 1
    nothing = found_in(ledger(tmp_path / "none", [{"ranked": True, "sources": []}]))
    assert len(nothing) == 2 and nothing[0].k == 0 and recall_any(nothing[0].ranking, nothing[0].relevant, 5) == 0
    assert found_in(ledger(tmp_path / "without", [])) == []
