"""Was the evidence among the memories that were retrieved? Recall and NDCG by question, from a job's folder; runs nothing.

LongMemEval's measures (arXiv 2410.10813, its eval_utils.py), at the level of sessions and of turns. Questions to abstain on and
those without evidence are left out. A memory with several sources counts as all of them; one whose source is not known stands for
no session. Where memories were rewritten, the dates at which they were is all that is known: sessions alone are scored then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from memfactory.evaluation.compare import Row, number
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, read_attempts
from memfactory.evaluation.questions import Asked, read_questions
from memfactory.evaluation.report import markdown_table

LEVELS = ("session", "turn")
CUTS = (1, 5, 10)
"""k beside the agent's own, as far as it retrieves so many."""
_HEADINGS = ("data set", "model", "level", "k", "n", "recall_any", "recall_all", "NDCG")


def recall_any(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 if any of the relevant is among the first k."""
    return float(not set(relevant).isdisjoint(ranking[:k]))


def recall_all(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 if all of the relevant are among the first k."""
    return float(set(relevant) <= set(ranking[:k]))


def ndcg(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """DCG of the first k over that of the best order, with LongMemEval's gains: rel_1 + sum over i > 1 of rel_i / log2(i).

    The first two places weigh the same, other than with log2(i + 1). 0 where nothing is relevant.
    """
    best = _dcg([1.0] * min(len(set(relevant)), k))
    return _dcg([float(name in relevant) for name in ranking[:k]]) / best if best else 0.0


def ndcg_of_turns(places: Sequence[str], relevant: Collection[str], corpus: Sequence[str], k: int) -> float:
    """LongMemEval's NDCG by session where turns were retrieved (its evaluate_retrieval_turn2session): no place is left out.

    `places`: the session of each retrieved turn, best first; `corpus`: that of every turn. As many turns count as k sessions are found
    in, k at least; each turn of a relevant session is a gain, in the best order too.
    """
    reach = next((cut for cut in range(k, len(places)) if len(set(places[:cut])) >= k), max(k, len(places)))
    best = _dcg([1.0] * min(sum(name in relevant for name in corpus), reach))
    return _dcg([float(name in relevant) for name in places[:reach]]) / best if best else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / (math.log2(place) if place > 1 else 1.0) for place, gain in enumerate(gains, 1))


@dataclass(frozen=True, slots=True)
class Found:
    """What one attempt retrieved for one question, at one level."""

    question: str
    example: str
    level: str
    k: int
    """Memories that it retrieved."""
    ranked: bool
    ranking: tuple[str, ...]
    """Distinct sessions or turns in the order of the memories."""
    relevant: frozenset[str]
    units: int
    """Sessions or turns that the sample has."""
    places: tuple[str, ...] = ()
    """By session, where each memory is one turn: its session, none left out; else ()."""
    corpus: tuple[str, ...] = ()
    """Then the session of every turn of the sample."""

    def ndcg(self, k: int) -> float:
        """By session LongMemEval's rule for retrieved turns, where it applies."""
        return ndcg_of_turns(self.places, self.relevant, self.corpus, k) if self.places else ndcg(self.ranking, self.relevant, k)


def found_in(folder: Path) -> list[Found]:
    """Every retrieval in a task's folder, of the attempts that its score is of (sampled ones, else the greedy)."""
    asked = read_questions(folder)
    if asked is None or not asked.sessions:
        return []
    attempts = {attempt.key: attempt for attempt in read_attempts(folder) if attempt.status != "failed" and attempt.retrieved}
    kind = SAMPLED if any(key[1] == SAMPLED for key in attempts) else GREEDY
    rows: list[Found] = []
    for attempt in attempts.values():
        sessions = asked.sessions.get(attempt.example, [])
        if attempt.kind == kind and sessions:
            rows += _of_attempt(attempt, asked.examples.get(attempt.example, []), _Sample(sessions))
    return rows


class _Sample:
    """Where a sample's turns are, and which session a date means."""

    def __init__(self, sessions: Sequence[Mapping[str, Any]]) -> None:
        dates = Counter(str(session["date"]) for session in sessions)
        self.sizes = {"session": len(sessions), "turn": sum(len(session["turns"]) for session in sessions)}
        self.session_of = {str(turn): str(at) for at, session in enumerate(sessions) for turn in session["turns"]}
        self.dated = {str(session["date"]): str(at) for at, session in enumerate(sessions) if dates[str(session["date"])] == 1}

    def units(self, level: str, source: Mapping[str, Sequence[str]]) -> list[str] | None:
        """The sessions or turns that a memory comes from; None if that cannot be known."""
        if "turns" in source:
            known = [turn for turn in source["turns"] if turn in self.session_of]
            return known if level == "turn" else [self.session_of[turn] for turn in known]
        if level == "turn" or any(date not in self.dated for date in source.get("dates", ())):
            return None
        return [self.dated[date] for date in source["dates"]] if "dates" in source else None


def _of_attempt(attempt: Attempt, questions: Sequence[Asked], sample: _Sample) -> list[Found]:
    rows = []
    for question in questions:
        held = attempt.retrieved[question.place] if question.place < len(attempt.retrieved) else {}
        evidence = [turn for turn in question.evidence if turn in sample.session_of]
        if question.abstain or not evidence or not held:
            continue
        for level in LEVELS:
            units = [sample.units(level, source) for source in held["sources"]]
            if held["sources"] and all(unit is None for unit in units):
                continue
            ranking = tuple(dict.fromkeys(name for unit in units for name in unit or ()))
            relevant = frozenset(sample.session_of[turn] if level == "session" else turn for turn in evidence)
            single = level == "session" and all(len(source.get("turns", ())) == 1 for source in held["sources"])
            places = tuple(name for unit in units for name in unit or ()) if single else ()
            corpus = tuple(sample.session_of.values()) if single else ()
            found = (question.id, question.example, level, len(held["sources"]), held["ranked"], ranking, relevant, sample.sizes[level])
            rows.append(Found(*found, places, corpus))
    return rows


def retrieval_rows(dataset: str, model: str, found: Sequence[Found]) -> list[Row]:
    """A row for each level and k: means over questions, of a question's attempts first; NDCG only where there is an order.

    `covered` of `samples` have no more sessions (turns) than k: there recall says nothing.
    """
    rows = []
    for level in LEVELS:
        part = [row for row in found if row.level == level]
        own = max((row.k for row in part), default=0)
        ranked = bool(part) and all(row.ranked for row in part)
        for k in sorted({cut for cut in CUTS if cut < own and ranked} | ({own} if own else set())):
            units = {row.example: row.units for row in part}
            row: Row = {
                "dataset": dataset, "model": model, "level": level, "k": k, "own_k": k == own,
                "n": len({row.question for row in part}), "samples": len(units), "covered": sum(k >= size for size in units.values()),
            }  # fmt: skip
            row["recall_any"] = number(_mean(part, lambda found, k: recall_any(found.ranking, found.relevant, k), k))
            row["recall_all"] = number(_mean(part, lambda found, k: recall_all(found.ranking, found.relevant, k), k))
            row["ndcg"] = number(_mean(part, Found.ndcg, k)) if ranked else None
            rows.append(row)
    return rows


def _mean(found: Sequence[Found], measure: Callable[[Found, int], float], k: int) -> float:
    by_question: dict[str, list[float]] = {}
    for row in found:
        by_question.setdefault(row.question, []).append(measure(row, k))
    means = [sum(values) / len(values) for values in by_question.values()]
    return sum(means) / len(means)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [
        [row["dataset"], row["model"], row["level"], f"{row['k']}{' *' if row['covered'] else ''}", str(row["n"])]
        + [shown(row[name]) for name in ("recall_any", "recall_all", "ndcg")]
        for row in rows
    ]


def retrieval_table(rows: Sequence[Row]) -> Table:
    """Retrieval at each agent's own k as a terminal table; the files have the other k."""
    shown = Table(title="Evidence among what was retrieved (* k covers a whole sample)", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for at, name in enumerate(_HEADINGS):
        shown.add_column(name, justify="right" if at > 2 else "left")
    for cells in _cells([row for row in rows if row["own_k"]]):
        shown.add_row(*map(escape, cells))
    return shown


def retrieval_markdown(rows: Sequence[Row]) -> str:
    """All rows in Markdown."""
    return markdown_table([_HEADINGS, *_cells(rows)], right=range(3, 8))


def retrieval_notes(rows: Sequence[Row]) -> list[str]:
    """A warning for each set of which k covers whole samples: to retrieve everything is no retrieval."""
    notes = {}
    for row in rows:
        if row["own_k"] and row["covered"]:
            notes[row["dataset"], row["level"], row["k"]] = (
                f"{row['dataset']}: k = {row['k']} covers all {row['level']}s of {row['covered']} of {row['samples']} samples; recall by "
                f"{row['level']} says little there."
            )
    return list(notes.values())
