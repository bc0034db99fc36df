"""report.html: every text is escaped, every number is the report's, changes are told truly, and it stays small."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import COST, attempt, evaluation
from rich.console import Console

from memfactory.agents.base import BaseAgent
from memfactory.agents.use import shows
from memfactory.cli import main
from memfactory.common.errors import MissingFileError
from memfactory.common.files import read_json, write_json
from memfactory.common.registry import ENV_REGISTRY
from memfactory.common.types import Trajectory, Turn, View
from memfactory.engines.chat import Models, Session
from memfactory.engines.scripted import ScriptedChat
from memfactory.evaluation.costs import TOGETHER, cost_rows
from memfactory.evaluation.harness import evaluate, scores_of
from memfactory.evaluation.html.charts import around_zero
from memfactory.evaluation.html.diffs import bank_parts, items_of, text_parts
from memfactory.evaluation.html.markup import Html, clean, cut, html, tag
from memfactory.evaluation.html.page import render
from memfactory.evaluation.html.sample import Room
from memfactory.evaluation.html.samples import anchor, holds_gold, steps_of
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Ledger
from memfactory.evaluation.orchestrator import report_folder
from memfactory.evaluation.record import cost_of, event_text
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryOp

HOSTILE = [
    "</script><script>alert(1)</script>", "</style><img src=x onerror=alert(1)>", '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)", "<!--", "]]>", "&lt;b&gt;&amp;", "\u202eevil\u2066", "\x00\x01\x1b[31m",
    "\ud800 half", "javascript:alert(1)", "x" * 9000, "{{7*7}} ${x}",
]  # fmt: skip


class Seen(HTMLParser):
    """Tags and attributes of a document, and what a reader is shown."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attrs]
        if name not in ("meta", "br", "input", "col"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name, name

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def report(folder: Path, export: str = "") -> str:
    report_folder(folder, export, Console(quiet=True))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(report(evaluation(tmp_path_factory.mktemp("shown"), questions=4)))


def test_the_page_tells_scores_differences_types_abstention_cost_and_samples(page: Seen) -> None:
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert [name for name in ids if not str(name).startswith("sample/")] == [
        "theme", "front", "scores", "differences", "types", "abstention", "cost", "samples", "runs",
    ]  # fmt: skip
    assert len([name for name in ids if str(name).startswith("sample/")]) == 8 and len(set(ids)) == len(ids)
    for told in ("avg@2", "0.250", "0.750", "tied", "multi-hop", "recall", "0.0%", "extraction", "memory_r1_agent", "temperature 1"):
        assert told in page.text, told
    assert {value for name, key, value in page.attributes if name == "a" and key == "href"} <= {f"#{name}" for name in ids}
    assert not page.open


def test_a_sample_shows_what_changed_what_was_given_and_what_it_cost(page: Seen) -> None:
    given = ("answered from 2 memories, 1 of them with the gold answer's words", "holds the gold answer")
    cost = "4 calls, 160 prompt and 30 completion tokens, 0.75 s"
    for told in ("event 2", "1 added, 1 changed", *given, cost, "sampled scores"):
        assert told in page.text, told
    assert {"ins", "del"} <= set(page.tags)


def test_nothing_of_the_page_is_elsewhere_and_only_its_own_script_may_run(page: Seen) -> None:
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not [a for a in page.attributes if a[1] == "src" or a[1].startswith("on") or (a[1] == "href" and not str(a[2]).startswith("#"))]
    policy = next(value for name, key, value in page.attributes if key == "content" and "default-src" in str(value))
    assert "default-src 'none'" in str(policy) and re.search("script-src 'sha256-[^']+'", str(policy))


@pytest.mark.parametrize("task", [True, False])
def test_hostile_texts_are_shown_and_never_run(tmp_path: Path, task: bool) -> None:
    """Names of models, sets and examples, events, memories, answers, questions, gold, errors and notes: all of them hostile."""
    tags = set(Seen(report(evaluation(tmp_path / "plain", examples=1, task=task))).tags)
    bad = " ".join(HOSTILE)
    folder = evaluation(
        tmp_path / "hostile", examples=1, questions=1, task=task, answers=[bad], memory=bad, report={bad: 1},
        steps=[[bad, bad], [bad, f"{bad} more {bad}"]], given=[[bad]], marks={bad: [1.0]},
    )  # fmt: skip
    text = json.dumps(bad)[1:-1]
    for path in folder.glob("*/*/*.json"):
        path.write_text(path.read_text().replace("pet leo 0 ?", text).replace('"talks"', f'"{text}"').replace('"beagle"', f'"{text}"'))
    seen = Seen(report(folder))
    assert set(seen.tags) <= tags | {"i", "ins"} and not seen.open and seen.tags.count("script") == 1
    assert not [a for a in seen.attributes if a[1].startswith("on") or a[1] in ("src", "autofocus")]
    assert all(clean(one)[:500] in seen.text for one in HOSTILE)
    assert "\u202e" not in seen.text and "\x00" not in seen.text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_is_read_back_as_it_was_cleaned(text: str) -> None:
    seen = Seen(tag("p", {"title": text, "hidden": True}, text))
    assert seen.text == clean(text) and seen.attributes == [("p", "title", clean(text)), ("p", "hidden", None)]
    assert clean(clean(text)) == clean(text) and clean(text).encode() is not None


def test_markup_is_built_not_pasted() -> None:
    assert html(["<", Html("<b>"), None, False, 0, ["&"]]) == "&lt;<b>0&amp;"
    assert tag("meta", {"name": "a", "http-equiv": None}) == '<meta name="a">'
    assert cut("abcdef", 4) == 'abcd<span class="more"> … 2 characters more</span>' and cut("abc", 3) == "abc"


words = st.lists(st.sampled_from(["a", "b ", "c\n", " ", "dd", "\n\n"]), max_size=30).map("".join)


@settings(max_examples=100, deadline=None)
@given(words, words)
def test_a_text_s_difference_holds_both_texts(old: str, new: str) -> None:
    parts = text_parts(old, new)
    assert "".join(text for kind, text in parts if kind != "removed") == new
    assert "".join(text for kind, text in parts if kind != "added") == old
    assert all(text for _, text in parts) and (parts == [("same", old)] if old == new and old else True)


def test_long_texts_are_compared_by_lines() -> None:
    old = "\n".join(f"line {at} of many" for at in range(1000))
    assert text_parts(old, old.replace("line 7 ", "line seven ")) == [
        ("same", "".join(f"line {at} of many\n" for at in range(7))), ("removed", "line 7 of many\n"), ("added", "line seven of many\n"),
        ("same", old[old.index("line 8 ") :]),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1).filter(str.strip), max_size=5))
def test_a_bank_is_read_back_from_how_it_prints_itself(texts: list[str]) -> None:
    assert items_of(str(MemoryBank.of(texts))) == {str(at): text for at, text in enumerate(texts)}


def test_a_bank_is_told_item_by_item_and_other_memories_word_by_word() -> None:
    assert (
        items_of("0: a\nmore of it\n1: b") == {"0": "a\nmore of it", "1": "b"}
        and items_of("Ann: a") is None
        and items_of("0: a\n0: b") is None
    )
    assert bank_parts({"0": "a", "1": "b c", "2": "d"}, {"1": "b e", "2": "d", "3": "f"}) == [
        ("removed", "0", [("removed", "a")]), ("changed", "1", [("same", "b "), ("removed", "c"), ("added", "e")]),
        ("same", "2", [("same", "d")]), ("added", "3", [("added", "f")]),
    ]  # fmt: skip
    first, second = steps_of([["e", "0: a"], ["f", ""]], "")
    assert first["bank"] and second["items"] == [("removed", "0", [("removed", "a")])]
    assert not steps_of([["e", "0: a"], ["f", "I forgot it all."]], "")[0]["bank"]
    assert steps_of([["e", "0: a\n1: b"]], "0: a")[0]["items"][0] == ("same", "0", [("same", "a")])


def test_what_a_memory_holds_of_the_gold_answer_is_whole_words() -> None:
    assert (
        holds_gold("3: Pet Leo, a Beagle.", ["the beagle"]) and not holds_gold("beagles", ["beagle"]) and not holds_gold("x", ["", "the"])
    )


def test_anchors_are_unlike_and_need_no_escaping() -> None:
    taken: set[str] = set()
    found = [anchor(taken, "m", "d", name) for name in ("a/1", "a 1", "a#1", "é", "")]
    assert found == ["sample/m/d/a-1", "sample/m/d/a-1~2", "sample/m/d/a-1~3", "sample/m/d/-", "sample/m/d/-~2"]


def test_a_scale_of_differences_has_0_in_its_middle() -> None:
    scale = around_zero([-0.12, 0.31])
    assert (scale.low, scale.high, scale.zero) == (-0.4, 0.4, 0.0) and scale.at(0.0) == "50.00%" and scale.at(9) == "100.00%"
    assert around_zero([]).high == 0.01 and around_zero([2.5]).high == 3


def test_costs_are_told_by_stage_writing_and_answering_apart() -> None:
    def turn(stage: str, question: int | None, prompt: int = 3, response: int = 2) -> Turn:
        return Turn(stage, (1,) * prompt, (1,) * response, (0.0,) * response, "", "stop", False, question=question, seconds=0.5)

    turns = [turn("extraction", None), turn("extraction", None, 5), turn("look", 0), turn("answer", 1)]
    assert cost_of(turns, False) == {
        "writing": {"extraction": [2, 8, 4, 1.0]},
        "answering": {"look": [1, 3, 2, 0.5], "answer": [1, 3, 2, 0.5]},
    }
    assert cost_of([turn("memory", 0), turn("answer", 0)], True) == {
        "writing": {"memory": [1, 3, 2, 0.5]},
        "answering": {"answer": [1, 3, 2, 0.5]},
    }
    assert turn("answer", 0) == Turn(
        "answer", (1,) * 3, (1,) * 2, (0.0,) * 2, "", "stop", False, question=0
    )  # time is no part of what was sampled


def test_cost_of_a_question_shares_out_what_was_written_once() -> None:
    made = {a.key: a for a in (attempt("a", GREEDY, 0, 1.0), attempt("a", SAMPLED, 0, None), attempt("b", GREEDY, 0, 1.0, questions=6))}
    rows = cost_rows({"m": {"d": scores_of("d", ["a", "b"], 1, made)}})
    by_part = {(row["part"], row["stage"]): row for row in rows}
    assert by_part["writing", ""] == {"dataset": "d", "model": "m", "part": "writing", "stage": "", "attempts": 2, "questions": 8,
                                      "calls": 1.0, "prompt_tokens": 40.0, "completion_tokens": 7.5, "seconds": 0.188}  # fmt: skip
    assert list(by_part) == [("writing", ""), ("writing", "extraction"), ("writing", "update"), ("answering", ""), ("answering", "answer")]
    old = attempt("a", GREEDY, 0, 1.0, cost={})
    (row,) = cost_rows({"m": {"d": scores_of("d", ["a"], 0, {old.key: old})}})
    assert row["part"] == TOGETHER and row["prompt_tokens"] == 100 and "seconds" not in row


def test_events_are_told_as_people_speak() -> None:
    assert event_text({"date": "day 1", "turns": [{"speaker": "ann", "text": "hi", "id": "D1"}]}) == "Date: day 1\nann: hi"
    assert event_text("a text") == "a text" and event_text({"turns": [1]}) == "{'turns': [1]}"
    assert Trajectory().given == {}


def test_a_report_is_made_again_from_ledgers_alone(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", ["new", "base"], ["b", "a"])
    first = report(folder)
    rows = read_json(folder / "report.json")
    assert rows["cost"] and (folder / "report.md").is_file() and (folder / "results.csv").is_file()
    moved = folder.rename(tmp_path / "run2")  # where it lies does not matter
    assert report(moved).replace("run2", "run") == first
    assert {**read_json(moved / "report.json"), "jobs": 0} == {**rows, "jobs": 0}
    with pytest.raises(MissingFileError, match="holds no evaluation"):
        report(tmp_path)


def test_what_is_lost_is_said_first_and_what_failed_stays_failed(tmp_path: Path) -> None:
    folder = evaluation(tmp_path)
    with Ledger(folder / "new" / "talks") as ledger:
        ledger.append([attempt("talks/1", GREEDY, 0, None)])
    report(folder)
    write_json(folder / "report.json", read_json(folder / "report.json") | {"failed": {str(folder / "gone" / "talks"): "killed"}})
    seen = Seen(report(folder))
    assert seen.text.index("Not complete") < seen.text.index("Scores") and "TimeoutError: no reply" in seen.text and "killed" in seen.text
    assert "91.7%" in seen.text or "95.8%" in seen.text


def test_ledgers_of_before_and_unfinished_ones_are_reported(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, task=False, k=0, cost={}, given=[])
    for path in folder.glob("*/*/examples.json"):
        path.unlink()
    for path in folder.glob("*/*/job.json"):
        job = read_json(path)
        write_json(path, {name: value for name, value in job.items() if name not in ("versions", "shown")})
    place = folder / "new" / "talks" / "attempts.jsonl"
    kept = [json.loads(line) for line in place.read_text().splitlines()][:2]
    drop = ("cost", "given", "marks")
    place.write_text("".join(json.dumps({k: v for k, v in line.items() if k not in drop}) + "\n" for line in kept))
    seen = Seen(report(folder))
    assert "greedy" in seen.text and "(question not kept)" in seen.text and TOGETHER in seen.text


def test_judged_rows_are_shown_with_what_the_judge_lets_in(tmp_path: Path) -> None:
    folder = evaluation(tmp_path)
    rate = {"rate": 0.25, "low": 0.1, "high": 0.5, "n": 8, "lost": 0}
    row: dict[str, Any] = {
        "dataset": "talks", "model": "new", "metric": "greedy", "judge": "api:judge", "votes": 3, "judged": 0.625, "judged_low": 0.5,
        "judged_high": 0.7, "rule_score": 0.75, "coverage": 1.0, "unanimous": 0.9, "accepts_specific": rate,
        "accepts_vague": rate | {"rate": None},
        "warnings": ["the judge: 25% of 8 known wrong specific answers accepted"],
    }  # fmt: skip
    write_json(folder / "judged.json", {"judge": {}, "rows": [row, row | {"model": "elsewhere"}]})
    seen = Seen(report(folder))
    assert "by api:judge, 3 votes" in seen.text and "25% / –" in seen.text and "0.625" in seen.text and "elsewhere" not in seen.text


@pytest.mark.slow
def test_the_page_stays_under_five_megabytes_and_says_what_it_leaves_out() -> None:
    """20 sets x 3 models, each sample with 30 sessions of 20,000 characters, a bank of 150 items and 200 questions."""
    text = "long words & <tags> " * 1000
    steps = steps_of([[text, "\n".join(f"{n}: item {n} of {text[:200]}" for n in range(at * 5))] for at in range(31)], "")
    asked = [{"question": text, "answers": [text], "answer": text, "score": 0.5, "marks": {}, "given": [{"text": text, "gold": True}] * 60,
              "sampled": []}] * 200  # fmt: skip
    samples = [
        {"model": f"m{at % 3}", "dataset": f"d{at // 6}", "example": str(at // 3 % 2), "score": 0.5, "sampled": [], "status": "ok",
         "error": None,
         "report": {}, "cost": COST, "tokens": [1, 2, 3], "steps": steps, "memory": "", "questions": asked, "anchor": f"sample/{at}"}
        for at in range(120)
    ]  # fmt: skip
    names = ("results", "paired", "by_type", "judged", "cost", "alarms", "notes", "abstention", "runs", "datasets", "retrieval")
    page = dict.fromkeys(names, []) | {"anchors": {}}
    document = render(page | {"title": "large", "models": ["m0", "m1", "m2"], "samples": samples})
    assert len(document.encode()) < 5_000_000
    assert "characters more" in document and "more events, kept in attempts.jsonl" in document and "more questions, kept in" in document
    assert Room.of(4).parts == 60 and Room.of(100_000).parts == 3


def test_an_evaluation_keeps_cost_by_stage_and_what_answers_were_made_from(tmp_path: Path) -> None:
    """An agent that says what it shows, with two questions answered side by side."""

    class Bank(BaseAgent):
        stages = ("note", "answer")

        def initial(self, view: View) -> MemoryBank:
            return MemoryBank.of(["city ann rome", "pet leo mouse"])

        def events(self, view: View) -> list[str]:
            return ["pet leo beagle"]

        async def write(self, model: Session, memory: MemoryBank, event: str, question: str | None = None) -> MemoryBank:
            said = await model.chat([{"role": "user", "content": event}], stage="note", max_tokens=8)
            return memory.apply([MemoryOp("UPDATE", "1", said.text)]).bank

        async def read(self, model: Session, memory: MemoryBank, question: str) -> str:
            shows(model, [item for item in memory if item.text.split()[1] in question])
            return (await model.chat([{"role": "user", "content": question}], stage="answer", max_tokens=8)).text

    path = tmp_path / "rows.json"
    session = {"date": "day 1", "turns": [{"id": "D1:1", "speaker": "ann", "text": "hi"}]}
    told = {"answers": ["x"], "type": "plain", "abstain": False, "evidence": ["D1:1"]}
    asked = [{"question": f"{name} ?", **told} for name in ("pet leo", "city ann")]
    path.write_text(json.dumps([{"dialog_id": "d", "speakers": ["ann", "bob"], "sessions": [session], "questions": asked}]))
    env = ENV_REGISTRY.get("memory_bank")(str(path), None)
    models = Models({"policy": ScriptedChat(lambda messages, stage: messages[0]["content"])})
    scores = evaluate(Bank(None), models, env, name="d", k=1)
    greedy, sampled = scores.attempts["d", GREEDY, 0], scores.attempts["d", SAMPLED, 0]
    assert greedy.given == [["1: pet leo beagle"], ["0: city ann rome"]] and sampled.given == sampled.steps == []
    assert {part: {stage: row[:3] for stage, row in stages.items()} for part, stages in greedy.cost.items()} == {
        "writing": {"note": [1, 0, 0]}, "answering": {"answer": [2, 0, 0]},
    }  # fmt: skip
    assert all(row[3] >= 0 for stages in greedy.cost.values() for row in stages.values())


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report"]) == 2 and "takes the folder of an evaluation" in capsys.readouterr().err
    evaluation(tmp_path)
    assert main(["report", str(tmp_path), "--export", "csv"]) == 2 and "Known: lm-eval" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--export", "lm-eval"]) == 0
    said = capsys.readouterr().out
    assert "report.html" in said and "lm_eval/new/results_" in said
