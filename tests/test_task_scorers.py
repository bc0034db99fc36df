"""Promise: the benchmarks' scorers give the published figures on published outputs, and what their rules say on each trap."""

from __future__ import annotations

import csv
import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from memfactory.common.registry import SCORER_REGISTRY
from memfactory.evaluation.tasks.babilong import LABELS
from memfactory.judges.benchmarks import mark

DATA = Path(__file__).parents[2] / "shared" / "benchdata"
PHI = DATA / "ruler" / "phi35_4096_submission.csv"
BABILONG = DATA / "babilong" / "phi3mini_qa1_4k.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def word(rng: random.Random, letters: str, length: int) -> str:
    return "".join(rng.choices(letters, k=length))


def fwe_golds(number: int) -> list[list[str]]:
    """RULER's gold of fwe at 4096 tokens: 81 drawn words a record in an order of its own seed, of which the first becomes dots.

    The generator draws a record's words once more beforehand, to see how many fit.
    """
    rng, golds = random.Random(42), []
    for _ in range(number + 1):
        words = sorted(word(rng, string.ascii_lowercase, 6) for _ in range(4096 // 50))
        random.Random(42).shuffle(words)
        golds.append(words[1:4])
    return golds[1:]


def vt_golds(number: int) -> list[list[str]]:
    """RULER's gold of vt: five names a record, then five places among its lines of noise, all from one stream.

    Before the records come an example's tries (noise 5, 10, 15, the last once more) and fourteen tries of more noise by tens.
    With Phi-3.5's tokenizer 130 lines fit; the name of each record then agrees with what the model saw.
    """
    rng = random.Random(42)

    def names(length: int, lines: int) -> list[str]:
        drawn = [word(rng, string.ascii_uppercase, length) for _ in range(5)]
        rng.sample(range(lines), 5)
        return drawn

    for lines in (30, 10, 15, 10):  # five lines of noise are cut into thirty pieces
        names(3, lines)
    for tens in range(14):
        names(5, 10 * (tens + 1))
    return [names(5, 130) for _ in range(number)]


@pytest.mark.skipif(not PHI.is_file(), reason="RULER's predictions are not there")
@pytest.mark.parametrize(("task", "golds", "published"), [("fwe", fwe_golds, 90.8), ("vt", vt_golds, 97.96)])
def test_ruler_on_phi_35_at_4096_tokens(task: str, golds: Any, published: float) -> None:
    said = [row["Prediction"] for row in rows(PHI) if row["Task"] == task]
    found = [mark("ruler_all@1", text, gold) for text, gold in zip(said, golds(len(said)), strict=True)]
    assert len(said) == 500 and round(100 * fmean(found), 2) == published


@pytest.mark.skipif(not PHI.is_file(), reason="RULER's predictions are not there")
def test_ruler_question_answering_on_phi_35_as_far_as_its_gold_is_here() -> None:
    """RULER asks SQuAD's and HotpotQA's questions in the files' order; the slices here begin as the files do.

    Published of all 500: 84.0 and 55.6. SQuAD's first two articles have 293 of them, and the slice of HotpotQA the first 100.
    """
    said = {task: [row["Prediction"] for row in rows(PHI) if row["Task"] == task] for task in ("qa_1", "qa_2")}
    articles = json.loads((DATA / "squad" / "squad_dev_slice.json").read_text(encoding="utf-8"))["data"]
    asked = [q for article in articles for paragraph in article["paragraphs"] for q in paragraph["qas"] if not q["is_impossible"]]
    squad = [[answer["text"] for answer in q["answers"]] for q in asked]
    hotpot = json.loads((DATA / "hotpotqa" / "hotpot_dev_distractor_200.json").read_text(encoding="utf-8"))
    of_qa_1 = [mark("ruler_part@1", text, gold) for text, gold in zip(said["qa_1"], squad, strict=False)]
    of_qa_2 = [mark("ruler_part@1", text, [row["answer"]]) for text, row in zip(said["qa_2"], hotpot[:100], strict=False)]
    assert (sum(of_qa_1), len(of_qa_1)) == (235, 293)
    assert (sum(of_qa_2), len(of_qa_2)) == (58, 100)


@pytest.mark.skipif(not BABILONG.is_file(), reason="BABILong's outputs are not there")
def test_babilong_on_phi_3_mini_at_4k() -> None:
    found = [mark("babilong@1", row["output"], [row["target"]], row["question"], LABELS["qa1"]) for row in rows(BABILONG)]
    assert len(found) == 1000 and fmean(found) == 0.690


@pytest.mark.parametrize(
    ("rule", "text", "golds", "expected"),
    [
        ("sub_em_oneway@1", "It is in Lima, Peru.", ["Lima"], 1),
        ("sub_em_oneway@1", "Lim", ["Lima"], 0),  # the public code's other way
        ("sub_em_oneway@1", "", ["Lima"], 0),
        ("sub_em_oneway@1", "Limas", ["Lima"], 0),  # whole words
        ("sub_em_oneway@1", r"Lima or \boxed{Cusco}", ["Lima"], 0),  # the final answer alone
        ("sub_em_oneway@1", "anything", ["the"], 0),  # nothing is left of the gold
        ("sub_em_oneway@1", "42", [42], 1),
        ("abstain@1", "unknown", [], 1),
        ("abstain@1", "city a . **Answer:** unknown", ["rome"], 1),
        ("abstain@1", "Unknown soldier", [], 0),
        ("abstain@1", "Not mentioned in the conversation.", [], 1),
        ("abstain@1", "I don't know that.", [], 1),
        ("abstain@1", "Ann's age is not explicitly mentioned in the memories.", [], 1),
        ("abstain@1", "There is no information about a dog.", [], 1),
        ("abstain@1", "It cannot be determined.", [], 1),
        ("abstain@1", "He mentioned it.", [], 0),
        ("abstain@1", "No.", [], 0),
        ("abstain@1", "", [], 0),
        ("abstain@1", "<think>not mentioned", [], 0),
        ("abstain_locomo@1", "No information available.", ["x"], 1),
        ("abstain_locomo@1", "unknown", ["unknown"], 0),
        ("f1_locomo_open@1", "Yes", ["Yes; she said so"], 1),
        ("f1_squad@1", "yes it is", ["yes"], 0.5),  # f1_hotpot@1 gives 0
        ("f1_squad@1", "a", ["the"], 1),
        ("f1_squad@1", "x", ["the"], 0),
        ("f1_squad@1", "The B", ["Bee", "b"], 1),
        ("option_set@1", "(c)", ["(c)"], 1),
        ("option_set@1", "The answer is (C).", ["(c)"], 1),
        ("option_set@1", "c", ["(c)"], 1),
        ("option_set@1", "C. A cat", ["(c)"], 1),
        ("option_set@1", "(a) and (c)", ["(c)"], 0),
        ("option_set@1", "A cat", ["(a)"], 0),
        ("option_set@1", "", ["(a)"], 0),
        ("boxed_em@1", r"\boxed{Lima}", ["lima"], 1),
        ("boxed_em@1", "Lima", ["lima"], 0),
        ("ruler_part@1", "It is LIMA", ["cusco", "lima"], 1),
        ("ruler_all@1", "ab, cd", ["AB", "CD", "EF", "GH"], 0.5),
    ],
)
def test_on_each_trap(rule: str, text: str, golds: Sequence[Any], expected: float) -> None:
    assert mark(rule, text, golds) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "gold", "question", "expected"),
    [
        ("The garden.", "garden", "Where is John?", 1),
        ("garden or office", "garden", "", 0),
        ("He went from the garden to the office", "office", "Where was he before the garden?", 1),
        ("garden. Then the office.", "garden", "", 1),  # the first sentence
        ("", "garden", "", 0),
        ("**Answer:** garden", "garden", "", 1),
    ],
)
def test_babilong_takes_the_first_sentence_without_what_the_question_names(text: str, gold: str, question: str, expected: float) -> None:
    assert mark("babilong@1", text, [gold], question, LABELS["qa1"]) == expected


def test_babilong_takes_lists_whole_and_directions_as_one() -> None:
    assert mark("babilong@1", "milk, apple", ["apple,milk"], "", LABELS["qa8"]) == 1
    assert mark("babilong@1", "milk", ["apple,milk"], "", LABELS["qa8"]) == 0
    assert mark("babilong@1", "n,w", ["n,w"], "", LABELS["qa19"]) == 1


def test_the_versions_of_older_names_are_the_same_rules() -> None:
    for name in ("boxed_em", "ruler_all", "ruler_part"):
        assert SCORER_REGISTRY.get(name) is SCORER_REGISTRY.get(f"{name}@1")
