"""The harness scores through the agent's own runtime, never scores what a server lost, and makes nothing twice."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from memfactory.agents.base import BaseAgent
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError, DataError, MissingFileError
from memfactory.common.files import write_json
from memfactory.common.types import View
from memfactory.data.parquet import write_parquet
from memfactory.engines.chat import Models, Session
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.evaluation.compare import adjusted, compare, is_compared
from memfactory.evaluation.harness import Scores, evaluate, headline
from memfactory.evaluation.leak import check_no_leak
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger
from memfactory.evaluation.report import coverage_note, markdown, paired_table, published_table, result_row, summary, table, write_results


def scores(sampled: list[list[float]], greedy: list[float]) -> Scores:
    return Scores("facts", [f"facts/{at}" for at in range(len(greedy))], sampled, [[g] for g in greedy])


def test_the_headline_is_default_then_answer_then_the_mean_of_the_stages() -> None:
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert headline({"memory": two, "default": one, "default/f1": two}) is one
    assert headline({"memory": two, "answer": one}) is one
    assert headline({"update": one, "extraction": two}).tolist() == [0.5, 0.0]


def test_nothing_that_pays_is_an_error() -> None:
    with pytest.raises(ConfigError, match="default/f1"):
        headline({"default/f1": torch.tensor([1.0])})


def test_what_infrastructure_lost_counts_as_wrong_and_is_shown_without_it_beside() -> None:
    row = result_row("base", scores([[1.0, math.nan], [0.0, 1.0]], [1.0, math.nan]))
    assert (row["avg_at_k"], row["greedy"], row["coverage"]) == (0.5, 0.5, 0.6667)
    assert (row["avg_at_k_completed_only"], row["greedy_completed_only"]) == (0.75, 1.0)


def test_a_report_of_one_question_has_null_for_what_one_question_cannot_tell(tmp_path: Path) -> None:
    results, paired = summary({"base": {"facts": scores([[1.0]], [1.0])}, "trained": {"facts": scores([[0.0]], [1.0])}})
    write_results(tmp_path, results, paired, {}, "# One")
    assert results[0]["se"] is None and paired[0]["ci_low"] is None and paired[0]["diff"] == -1.0 and paired[0]["verdict"] == "unknown"
    assert "–" in markdown(results, paired) and table(results, paired).row_count == 3


def test_each_column_has_its_own_verdict_or_why_there_is_none(tmp_path: Path) -> None:
    nan, n = math.nan, 20
    base = {name: replace(scores([[0.0, 0.0]] * n, [0.0, 1.0] * (n // 2)), dataset=name) for name in ("facts", "lost", "none")}
    after = base | {"facts": scores([[1.0, 1.0]] * (n - 1) + [[1.0, 0.0]], [1.0, 0.0] * (n // 2))}
    after["lost"] = replace(base["lost"], sampled=[[1.0, nan]] * n)
    base["none"] = after["none"] = replace(base["none"], sampled=[[nan, nan]] * n, greedy=[[nan]] * n)
    results, paired = summary({"base": base, "after": after})
    text = markdown(results, paired)
    assert "|  |  | against base | better +0.975 [+0.923, +1.027] | tied +0.000 [-0.480, +0.480] |" in text
    assert "|  |  | against base | not compared: 50 % of after's attempts lost | tied +0.000 [+0.000, +0.000] |" in text
    assert "|  |  | against base | not compared: nothing was scored | not compared: nothing was scored |" in text
    assert "| none | 20 | after (0% scored) | – | – |" in text and [
        "after",
        "0.9750 ± 0.025",
        "0.5000 ± 0.000",
        "–",
        "–",
    ] in published_table(results)
    write_results(tmp_path, results, paired, {}, "# Three")
    whole = [row for row in paired if row["dataset"] == "facts"]
    console = Console(width=80, file=io.StringIO())
    console.print(table(results, paired), paired_table(adjusted(paired)))
    for said in ((tmp_path / "report.md").read_text(encoding="utf-8"), " ".join(console.file.getvalue().split())):  # type: ignore[attr-defined]
        assert "without one for 90% of the attempts on both sides there is no verdict" in said
    assert not coverage_note(whole) and not table(results[:2], whole).caption


def test_the_notes_do_not_claim_a_temperature_that_was_not_asked_for(tmp_path: Path) -> None:
    results, paired = summary({"base": {"facts": scores([[1.0]], [1.0])}})
    write_results(tmp_path, results, paired, {}, "# One")
    assert "temperature 1" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_published_table_has_an_average_only_where_every_set_is_there() -> None:
    one, two = scores([[1.0], [0.0]], [1.0, 0.0]), replace(scores([[1.0], [1.0]], [1.0, 0.0]), dataset="more")
    results, _ = summary({"base": {"facts": one, "more": two}, "half": {"facts": one}})
    assert published_table(results) == [
        ["model", "facts", "more", "average"], ["base", "0.5000 ± 0.500", "1.0000 ± 0.000", "0.7500"], ["half", "0.5000 ± 0.500", "–", "–"],
    ]  # fmt: skip


FAILED = {
    "long": "PromptTooLong: A prompt of 9 tokens does not fit the model's 8 positions.",
    "limit": "PromptTooLong: The answer prompt has 9 tokens, max_prompt_length is 8.",
    "refused": "Refused: api:x failed: it refused this prompt, and would again (flagged).",
    "server": "InfrastructureError: api:x failed: busy",
}


@pytest.mark.parametrize(
    ("failed", "says", "again"),
    [
        (["long", "long"], "shorter chunks (--chunk_size)", False),
        (["limit", "limit"], "raise max_prompt_length in --engine_options", False),
        (["refused", "refused"], "leave it out, or ask another model", False),
        (["server", "long"], "--chunk_size", True),
        (["server", "server"], "Start again to make what is missing.", True),
        (["long"], "--chunk_size", True),  # and one is not made yet
    ],
)
def test_another_start_is_advised_only_where_it_can_help(failed: list[str], says: str, again: bool) -> None:
    found = scores([[], []], [math.nan, math.nan])
    made = [Attempt(f"facts/{at}", GREEDY, 0, "failed", None, error=FAILED[kind]) for at, kind in enumerate(failed)]
    found = replace(found, attempts={attempt.key: attempt for attempt in made})
    assert says in found.remedy and ("Start again" in found.remedy) == again, found.remedy


# compare


def folder_of(
    root: Path,
    model: str,
    dataset: str = "facts",
    sampled: list[list[float]] | None = None,
    greedy: list[float] | None = None,
    **printed: Any,
) -> Path:
    """A job's folder as `memfactory eval` leaves it; NaN is an attempt lost to infrastructure."""
    sampled, greedy = sampled or [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], greedy or [1.0, 0.0, 1.0]
    folder, examples = root / model / dataset, [f"{dataset}/{n}" for n in range(len(greedy))]
    made = [(e, GREEDY, 0, g) for e, g in zip(examples, greedy, strict=True)]
    made += [(e, SAMPLED, n, s) for e, row in zip(examples, sampled, strict=True) for n, s in enumerate(row)]
    attempts = [Attempt(e, kind, n, "failed" if math.isnan(s) else "ok", None if math.isnan(s) else s) for e, kind, n, s in made]
    fields = {"data": {"sha256": "d"}, "env": {"type": "longcontext", "reward": "auto"}, "model": model, "decoding": {"seed": 0}}
    with Ledger(folder, fields | printed) as ledger:
        ledger.append(attempts)
    write_json(folder / "job.json", {"dataset": dataset, "model_name": model, "k": len(sampled[0]), "examples": examples})
    return root / model


@pytest.mark.slow
def test_two_models_are_paired_by_question(tmp_path: Path) -> None:
    base = folder_of(tmp_path, "base", sampled=[[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], greedy=[0.0, 1.0, 0.0])
    after = folder_of(tmp_path, "after", sampled=[[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]], greedy=[1.0, 0.0, 1.0])
    (sampled, greedy), notes = compare(base, after)
    assert notes == [] and (sampled["base"], sampled["model"], sampled["n"]) == ("base", "after", 3)
    assert sampled["diff"] == pytest.approx((1 + 0.5 + 0.5) / 3, abs=1e-4) and "mcnemar_p" not in sampled
    assert (greedy["only_base_right"], greedy["only_model_right"], greedy["mcnemar_p"]) == (1, 2, 1.0)
    assert compare(base / "facts", after / "facts")[0] == [sampled, greedy], "the folder of one data set will do"


@settings(max_examples=25, deadline=None)
@given(table=st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, math.nan])] * 6), min_size=2, max_size=8))
def test_turning_the_two_round_turns_every_sign(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[float, ...]]) -> None:
    root = tmp_path_factory.mktemp("turned")
    a = folder_of(root, "a", sampled=[list(row[:2]) for row in table], greedy=[row[2] for row in table])
    b = folder_of(root, "b", sampled=[list(row[3:5]) for row in table], greedy=[row[5] for row in table])
    opposite = {"better": "worse", "worse": "better"}

    def turned(value: float | None) -> float | None:
        return None if value is None else -value

    for there, back in zip(compare(a, b)[0], compare(b, a)[0], strict=True):
        assert back["diff"] == turned(there["diff"]) and back["n"] == there["n"] and back["p"] == there["p"]
        words = " and ".join(reversed(there["verdict"].removeprefix("not compared: ").removesuffix(" attempts lost").split(" and ")))
        assert words in back["verdict"] if not is_compared(there) else back["verdict"] == opposite.get(there["verdict"], there["verdict"])
        assert (back["ci_low"], back["ci_high"]) == (turned(there["ci_high"]), turned(there["ci_low"]))
        assert back.get("mcnemar_p") == there.get("mcnemar_p") and back.get("only_base_right") == there.get("only_model_right")
        assert back.get("diff_completed") == turned(there.get("diff_completed"))


def test_what_infrastructure_lost_counts_as_wrong_in_a_comparison_and_is_left_out_beside_it(tmp_path: Path) -> None:
    base = folder_of(tmp_path, "base", sampled=[[1.0], [1.0]], greedy=[1.0, 1.0])
    after = folder_of(tmp_path, "after", sampled=[[1.0], [math.nan]], greedy=[1.0, math.nan])
    sampled, greedy = compare(base, after)[0]
    assert sampled["diff"] == -0.5 and sampled["diff_completed"] == 0.0 and sampled["n"] == 2
    assert (greedy["only_base_right"], greedy["only_model_right"]) == (0, 0), "McNemar speaks only of questions that both answered"


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        ({"data": {"sha256": "e"}}, "not scored on the same.*data.sha256: 'd' -> 'e'"),
        ({"env": {"type": "longcontext", "reward": "f1"}}, "env.reward: 'auto' -> 'f1'"),
        ({"env": {"type": "mine", "reward": "auto"}}, "env.type: 'longcontext' -> 'mine'"),
    ],
)
def test_scores_of_different_things_are_not_compared(tmp_path: Path, printed: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compare(folder_of(tmp_path, "a"), folder_of(tmp_path, "b", **printed))


def test_what_differs_besides_the_model_is_named(tmp_path: Path) -> None:
    a = folder_of(tmp_path, "a")
    folder_of(tmp_path, "a", "extra")
    b = folder_of(tmp_path, "b", decoding={"seed": 3}, code="x")
    folder_of(tmp_path, "b", "other")
    rows, notes = compare(a, b)
    assert {row["dataset"] for row in rows} == {"facts"}
    assert notes == [
        "differs besides the model: decoding.seed: 0 -> 3", "differs besides the model: code: None -> 'x'",
        "only one of them was evaluated on extra, which is left out", "only one of them was evaluated on other, which is left out",
    ]  # fmt: skip


def test_models_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b = folder_of(tmp_path / "first", "tiny"), folder_of(tmp_path / "second", "tiny")
    row = compare(a, b)[0][0]
    assert (row["base"], row["model"]) == (str(a), str(b))


def test_folders_that_cannot_be_compared_say_what_to_name(tmp_path: Path) -> None:
    a, b = folder_of(tmp_path / "out", "a"), folder_of(tmp_path / "out", "b", "other")
    with pytest.raises(MissingFileError, match=f"It holds several models: {a}, {b}. Name two of them"):
        compare(tmp_path / "out", a)
    with pytest.raises(MissingFileError, match="absent is not the folder of an evaluated model.*memfactory eval"):
        compare(a, tmp_path / "absent")
    with pytest.raises(ConfigError, match="No data set in common: .* has facts; .* has other"):
        compare(a, b)
    (b / "other" / "attempts.jsonl").unlink()
    with pytest.raises(MissingFileError, match="holds no attempts.jsonl"):
        compare(b, b)


def test_the_same_data_under_another_file_name_is_the_same_questions(tmp_path: Path) -> None:
    a, b = folder_of(tmp_path, "a"), folder_of(tmp_path, "b")
    for name in ("job.json", "attempts.jsonl"):
        text = (b / "facts" / name).read_text(encoding="utf-8").replace('"facts/', '"facts_copy/')
        (b / "facts" / name).write_text(text, encoding="utf-8")
    rows, notes = compare(a, b)
    assert rows[0]["n"] == 3 or any("question" in note for note in notes), "paired, or said that nothing could be"


# The leak guard

LEAK_ROWS = [
    {"context": "The capital of Peru is a city.", "input": "Which city?", "answers": ["Lima"]},
    {"index": 0, "context": "a b b c c c", "input": "Most frequent?", "outputs": ["c", "b"], "answer_prefix": " Answer:", "length": 9},
    {"context": "x", "input": "Number?", "answers": [42, "forty-two"], "match": "all", "note": {"deep": ["gold 42"]}},
]


class Reader(BaseAgent):
    """Reads every event and the text, and writes them into its memory."""

    stages = ("memory", "answer")

    def initial(self, view: View) -> str:
        return f"{view.memory or ''}"

    def events(self, view: View) -> list[Any]:
        return [*view.events, view.context]

    async def write(self, model: Session, memory: str, event: Any, question: str | None = None) -> str:
        await model.chat([{"role": "user", "content": f"{event}"}], stage="memory", max_tokens=8)
        return f"{memory} {event}"

    async def read(self, model: Session, memory: str, question: str) -> str:
        return (await model.chat([{"role": "user", "content": f"{question} {memory}"}], stage="answer", max_tokens=8)).text


@pytest.mark.parametrize("row", LEAK_ROWS, ids=["any", "ruler", "all"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_the_long_context_env_shows_no_gold_in_any_format(tmp_path: Path, row: dict, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        info = {"index": 0, "question": row["input"], "num_docs": 1}
        gold = [str(answer) for answer in row.get("answers") or row["outputs"]]
        known = {"prompt": [{"role": "user", "content": row["input"]}], "reward_model": {"ground_truth": gold}, "extra_info": info}
        write_parquet(path, [{"context": row["context"]} | known])
    else:
        path.write_text(json.dumps([row] if kind == "json" else row), encoding="utf-8")
    check_no_leak(Reader(None), LongcontextEnv(str(path)))


@pytest.mark.parametrize(
    ("shown", "where"),
    [
        (lambda v, e: replace(v, questions=(f"{v.questions[0]} (not {e['answers'][0]})",)), "the view's questions"),
        (lambda v, e: replace(v, context=v.context + e["answers"][-1]), "the view's context"),
        (lambda v, e: replace(v, events=({"text": "hello", "evidence": e["answers"]},)), "the view's events"),
        (lambda v, e: replace(v, memory={"notes": e["answers"]}), "the view's memory"),
        (lambda v, e: replace(v, example_id=e["answers"][0]), "the view's example_id"),
        (lambda v, e: replace(v, context=str(e["extra"])), "the view's context"),
    ],
    ids=["question", "context", "events", "memory", "name", "extra"],
)
def test_an_env_that_shows_gold_is_refused_with_the_place(tmp_path: Path, shown: Callable[[View, dict], View], where: str) -> None:
    class Leaks(LongcontextEnv):
        def observe(self, example: dict[str, Any]) -> View:
            return shown(super().observe(example), example)

    write_json(tmp_path / "data.json", LEAK_ROWS[2:])
    with pytest.raises(DataError, match=f"Leaks shows gold to the agent: .*answers, extra turned up in {where}.*observe"):
        check_no_leak(Reader(None), Leaks(str(tmp_path / "data.json")))


def test_an_event_that_hides_gold_until_it_is_read_is_found_in_the_prompt(tmp_path: Path) -> None:
    class Sealed:
        def __init__(self, text: str) -> None:
            self.text = text

        def __format__(self, spec: str) -> str:
            return self.text

        def __repr__(self) -> str:
            return "sealed"

    class Leaks(LongcontextEnv):
        def observe(self, example: dict[str, Any]) -> View:
            return replace(super().observe(example), events=(Sealed(example["answers"][0]),))

    write_json(tmp_path / "data.json", LEAK_ROWS[:1])
    with pytest.raises(DataError, match="a prompt of the stage (memory|answer)"):
        check_no_leak(Reader(None), Leaks(str(tmp_path / "data.json")))


def test_a_leak_that_the_first_example_does_not_have_is_found(tmp_path: Path) -> None:
    class Leaks(LongcontextEnv):
        def observe(self, example: dict[str, Any]) -> View:
            return replace(super().observe(example), context=f"{example['context']} {example['extra'].get('evidence', '')}")

    write_json(tmp_path / "data.json", [LEAK_ROWS[0], LEAK_ROWS[0] | {"evidence": "Lima, of course"}])
    with pytest.raises(DataError, match="shows gold"):
        check_no_leak(Reader(None), Leaks(str(tmp_path / "data.json")))


def test_a_gold_answer_reaches_no_prompt_and_no_memory_in_a_whole_evaluation(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"context": "city alice paris . pet bob dog .", "input": "city alice ?", "answers": [f"canary{n}", f"canary{n}b"]} for n in range(3)
    ]
    write_json(tmp_path / "data.json", rows)
    agent = MemoryAgent(tiny_tokenizer, "cpu", chunk_size=4)
    chat = ScriptedChat(lambda messages, stage: messages[0]["content"][-200:])
    with Ledger(tmp_path / "out", {}) as ledger:
        evaluate(agent, Models({"policy": chat}), LongcontextEnv(str(tmp_path / "data.json")), name="data", k=2, ledger=ledger)
    assert len(chat.asked) == 9 * 3 and "canary" not in repr(chat.asked)
    assert "canary" not in (tmp_path / "out" / "attempts.jsonl").read_text(encoding="utf-8")
    assert "city alice" in repr(chat.asked), "what may be seen was seen"
