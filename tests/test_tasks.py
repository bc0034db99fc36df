"""Promise: a benchmark's file becomes what is asked and told, gold seen by nobody; who answers gold gets all, silence gets nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_helpers import BABI, CASES, FACTS, HOTPOT, NVIDIA, consolidation, file_of, gold_of, locomo, longmemeval, musique, scripted

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError, UserError
from memfactory.common.files import write_json
from memfactory.common.registry import SCORER_REGISTRY, TASK_REGISTRY
from memfactory.engines.chat import Models
from memfactory.evaluation.by_type import task_notes
from memfactory.evaluation.harness import evaluate
from memfactory.evaluation.leak import check_no_leak
from memfactory.evaluation.ledger import GREEDY, Attempt, Ledger
from memfactory.evaluation.questions import read_questions, scores_by_question, write_questions
from memfactory.evaluation.report import result_row
from memfactory.evaluation.tasks import Loaded, Question, Sample
from memfactory.evaluation.tasks.env import TaskEnv
from memfactory.evaluation.tasks.selection import limited, of_types, ordered
from memfactory.evaluation.tasks.texts import SESSION_WORDS, in_parts, of_text

ALL = sorted(CASES)


def env_of(folder: Path, name: str, content: Any = None, **options: Any) -> TaskEnv:
    return TaskEnv(str(file_of(folder, name, content)), None, task=CASES[name][0], **options)


def played(env: TaskEnv, answer: Any) -> list[Attempt]:
    """The greedy attempts of an agent that answers by a function."""
    ledger = Ledger()
    evaluate(scripted(answer), Models({}), env, name="t", k=0, ledger=ledger)
    return [attempt for (_, kind, _), attempt in ledger.attempts().items() if kind == GREEDY]


def marks(env: TaskEnv, answer: Any, abstain: bool) -> list[float]:
    """The headline scores of the questions to abstain on, or of the others."""
    flags = {example["example_id"]: [q["abstain"] for q in example["asked"]] for example in env.examples}
    return [
        score
        for attempt in played(env, answer)
        for score, flag in zip(attempt.questions, flags[attempt.example], strict=True)
        if flag == abstain and score is not None
    ]


# Every task


def test_every_task_has_a_case_and_says_what_it_is() -> None:
    tried = {CASES[name][0] for name in ALL}
    assert {key.partition("_niah")[0] for key in TASK_REGISTRY if not key.startswith("ruler_")} == tried - {"ruler_vt", "ruler_qa_1"}
    assert len([key for key in TASK_REGISTRY if key.startswith("ruler_")]) == 13
    for key, task in TASK_REGISTRY.items():
        assert task.__doc__ and "arXiv" in task.__doc__ or key.startswith("synth_"), key
        assert all(rule in SCORER_REGISTRY for rule in (task.headline, *task.beside))


@pytest.mark.parametrize("name", ALL)
def test_a_file_becomes_questions_of_its_types(tmp_path: Path, name: str) -> None:
    env = env_of(tmp_path, name)
    assert dict(env.loaded.types) == CASES[name][2]
    for example in env.examples:
        view = env.observe(example)
        assert view.context.strip() and view.events and len(view.questions) == len(example["asked"])
        told = [turn["id"] for session in view.events for turn in session["turns"]]
        assert len(set(told)) == len(told)
        assert all(turn in told for asked in example["asked"] for turn in asked["evidence"])
        assert all(set(turn) == {"id", "speaker", "text"} for session in view.events for turn in session["turns"])
        assert all(set(session) == {"date", "turns"} and session["date"] for session in view.events)


@pytest.mark.parametrize("name", ALL)
def test_gold_wins_silence_loses_and_to_abstain_always_is_right_where_it_should_be(tmp_path: Path, name: str) -> None:
    env = env_of(tmp_path, name)
    for answer in (gold_of(env), lambda example, number: f"So: **Answer:** {gold_of(env)(example, number)}"):
        assert set(marks(env, answer, False)) == {1.0}
        assert all(marks(env, answer, True))
    assert set(marks(env, lambda *_: "", False)) == {0.0} and not any(marks(env, lambda *_: "", True))
    for said in ("unknown", "not mentioned", "**Answer:** The conversation does not mention it."):
        assert set(marks(env, lambda *_, said=said: said, False)) == {0.0} and all(marks(env, lambda *_, said=said: said, True))


@pytest.mark.parametrize("agent", [MemoryAgent, MemoryR1Agent])
@pytest.mark.parametrize("name", ALL)
def test_gold_reaches_no_agent(tmp_path: Path, name: str, agent: Any, tiny_tokenizer: Any) -> None:
    check_no_leak(agent(tiny_tokenizer, "cpu"), env_of(tmp_path, name))


def test_a_session_id_that_says_where_the_answer_is_is_not_shown(tmp_path: Path) -> None:
    view = (env := env_of(tmp_path, "longmemeval")).observe(env[0])
    assert "answer_1" not in f"{view.events}{view.context}" and "has_answer" not in str(view.events)
    assert view.questions[0].startswith("Today is 2023/05/30 (Tue) 23:40.\nHow many cats?\n")


# What is marked


def test_each_category_of_locomo_has_its_rule_and_category_5_is_apart(tmp_path: Path) -> None:
    env = env_of(tmp_path, "locomo")
    said = ["dogs", "May 2023", "Yes", "three", "cats", "a cat", "No information available"]
    attempt = played(env, lambda _, number: said[number])[0]
    assert attempt.questions == pytest.approx([0.5, 0.8, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert attempt.score == pytest.approx(3.3 / 5)  # of the five that have an answer
    assert attempt.marks["f1_locomo@1"] == pytest.approx([2 / 3, 0.8, 0.4, 0.0, 1.0, None, None])
    assert attempt.marks["abstain_locomo@1"] == [0, 0, 0, 0, 0, 0, 1] == attempt.marks["abstain@1"]
    assert set(attempt.marks) == {"abstain@1", "abstain_locomo@1", "bleu1_mem0@1", "em_squad@1", "f1_locomo@1", "f1_locomo_multi@1",
                                  "f1_locomo_open@1", "f1_mem0@1"}  # fmt: skip
    assert env.questions()["examples"]["conv-1"][0] == {
        "id": "conv-1/0", "question": "What 0?", "answers": ("cats, dogs",), "type": "1", "evidence": ("D1:1",), "abstain": False,
        "scorer": "f1_locomo_multi@1", "date": "", "labels": (), "twin": "", "label_error": "", "cluster": "conv-1", "all_golds": False,
    }  # fmt: skip


def test_category_5_can_be_a_choice(tmp_path: Path) -> None:
    env = env_of(tmp_path, "locomo", options={"adversarial": "choice"})
    asked = [question for example in env.examples for question in example["asked"] if question["type"] == "5"]
    assert all(question["text"].startswith("What") and "a cat" in question["text"] and question["abstain"] for question in asked)
    assert {question["answers"] for question in asked} == {("(a)",), ("(b)",)}
    for question in asked:
        assert f"{question['answers'][0]} Not mentioned in the conversation" in question["text"]
    assert set(marks(env, gold_of(env), True)) == {1.0} and sorted(set(marks(env, lambda *_: "(a)", True))) == [0.0, 1.0]
    with pytest.raises(UnknownNameError, match="way of asking category 5 'two'"):
        env_of(tmp_path, "locomo", options={"adversarial": "two"})


def test_a_source_of_memoryagentbench_that_asks_for_just_the_answer_gets_it(tmp_path: Path) -> None:
    env = env_of(tmp_path, "memoryagentbench")
    easy, strict = played(env, lambda *_: "label: Lima")
    assert (easy.questions, strict.questions) == ([1, 0], [0, 0])
    assert {question["cluster"] for example in env.examples for question in example["asked"]} == {"memoryagentbench/0"}


def test_facts_keep_their_order_and_questions_of_babi_hear_only_what_was_before(tmp_path: Path) -> None:
    view = (env := env_of(tmp_path, "qa1_babi")).observe(min(env.examples, key=lambda example: len(example["context"])))
    assert view.context == "John went to the garden.\nMary went to the office."
    assert [turn["text"] for turn in of_text(FACTS)[0]["turns"]] == FACTS.split("\n")
    assert {question["cluster"] for example in env.examples for question in example["asked"]} == {"qa1_babi/0"}


def test_nvidias_prompt_is_taken_apart_and_counted(tmp_path: Path) -> None:
    env = env_of(tmp_path, "ruler_nvidia")
    assert env[0]["query"] == ["Question: Find all variables that are assigned 12345."] and "Find all" not in env[0]["context"]
    assert env.loaded.repaired == {"prompt taken apart into text and question": 1}


def test_the_words_behind_a_question_can_be_others_or_none(tmp_path: Path) -> None:
    assert env_of(tmp_path, "hotpotqa")[0]["query"] == ["Were Ann and Ben of one country?\nAnswer in a few words."]
    assert env_of(tmp_path, "hotpotqa", instruction="Be brief.")[0]["query"][0].endswith("?\nBe brief.")
    assert env_of(tmp_path, "hotpotqa", instruction="")[0]["query"] == ["Were Ann and Ben of one country?"]
    assert env_of(tmp_path, "hotpotqa").identity()["instruction"] == "Answer in a few words."


def test_an_attempt_that_failed_has_no_score_and_one_without_answers_is_wrong(tmp_path: Path) -> None:
    env = env_of(tmp_path, "locomo")
    rewards = env.compute_reward({"answer": ["cats, dogs", ""]}, env.collate_fn([env[0]]), 2)
    assert rewards["default"].tolist() == pytest.approx([0.2, 0]) and rewards["default/question"].shape == (2, 7)
    with pytest.raises(ValueError, match="1 predictions for 1 examples x 2"):
        env.compute_reward({"answer": ["x"]}, env.collate_fn([env[0]]), 2)


# Known label errors


def test_known_label_errors_are_marked_by_the_audits_ids_or_ours(tmp_path: Path) -> None:
    audit = [{"question_id": "locomo_1_qa1", "question": "What 1?", "error_type": "TEMPORAL_ERROR"},
             {"question_id": "locomo_0_qa0", "error_type": "WRONG_CITATION"}, {"question_id": "conv-1/2"}]  # fmt: skip
    write_json(tmp_path / "errors.json", audit)
    env = env_of(tmp_path, "locomo", mask=str(tmp_path / "errors.json"))
    wrong = {q["id"]: q["label_error"] for example in env.examples for q in example["asked"] if q["label_error"]}
    assert wrong == {"conv-2/1": "TEMPORAL_ERROR", "conv-1/2": "label error"}
    for record, message in (
        ({"question_id": "locomo_0_qa1", "question": "Another?"}, "locomo_0_qa1 .* is no question of this file"),
        ({"question_id": "locomo_7_qa1"}, "locomo_7_qa1"),
        ({"question_id": "conv-9/1"}, "'conv-9/1' is no question of"),
    ):
        write_json(tmp_path / "errors.json", [record])
        with pytest.raises(UserError, match=message):
            env_of(tmp_path, "locomo", mask=str(tmp_path / "errors.json"))


# What is wrong is named


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    del changed[key]
    return changed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("locomo", [locomo() | {"qa": [{"question": "?", "answer": "x", "category": 7, "evidence": []}]}],
         "category of question conv-1/0 '7'"),
        ("longmemeval", [longmemeval("q1", "gossip")], r"question type of .*q1 'gossip'.*temporal-reasoning"),
        ("musique", [musique("2hop__1"), without(musique("2hop__2"), "paragraphs")], r"record 1 \(2hop__2\): `paragraphs`"),
        ("musique", [musique("two")], "record 0 .two.: `id` must begin with the number of hops"),
        ("musique", [musique("2hop__1"), musique("2hop__1")], "two questions are called '2hop__1'"),
        ("memoryagentbench", [consolidation(answers=[["Lima"]])], "record 0: 2 `questions` and 1 `answers`"),
        ("memoryagentbench", [consolidation("recsys_redial")], "record 0: the source 'recsys_redial' is scored by a judge"),
        ("ruler_vt", [NVIDIA | {"input": "No question here."}], "record 0: no `context`"),
        ("ruler_vt", [], "holds none"),
        ("ruler_vt", ["x"], "record 0: expected an object"),
        ("qa1_babi", "1 John went away.\nWhere is John?\n", "line 2: must begin with a number"),
        ("qa1_babi", "1 Where is John?\tgarden\t1\n", "line 1: a question must be"),
        ("qa1_rows", [{"input": "x", "question": "?"}], "record 0: `target` must be"),
        ("hotpotqa", [{"question": "?"}], "record 0: `answer` must be a text"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        env_of(tmp_path, name, content)


def test_what_was_repaired_is_counted(tmp_path: Path) -> None:
    assert env_of(tmp_path, "locomo").loaded.repaired["answer that is a number made a text"] == 2
    rows = [CASES["hotpotqa"][1][0], CASES["hotpotqa"][1][0] | {"context": None, "_id": "h9"}]
    assert env_of(tmp_path, "hotpotqa", rows).loaded.repaired == {"record without documents left out": 1}
    row = consolidation(metadata={"source": "eventqa_full"})
    assert env_of(tmp_path, "memoryagentbench", [row]).loaded.repaired == {"row without an id for each question: numbered": 1}


def test_a_file_of_babilong_says_which_task_it_is(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(BABI, encoding="utf-8")
    with pytest.raises(ConfigError, match="which of BABILong's tasks.*qa1, qa2.*--task_options"):
        TaskEnv(str(tmp_path / "test.txt"), None, task="babilong")
    assert TaskEnv(str(tmp_path / "test.txt"), None, task="babilong", options={"task": "qa1"}).loaded.types == {"qa1": 2}
    with pytest.raises(UnknownNameError, match="option of Babilong 'kind'.*task"):
        TaskEnv(str(tmp_path / "test.txt"), None, task="babilong", options={"kind": "qa1"})
    with pytest.raises(UnknownNameError, match="task 'locomoo'.*Did you mean 'locomo'"):
        TaskEnv(str(tmp_path / "test.txt"), None, task="locomoo")


# Long texts as sessions


@settings(max_examples=40)
@given(st.text(alphabet="ab. \n", max_size=400), st.integers(1, 40))
def test_a_text_is_told_whole_and_in_parts_that_are_short_enough(text: str, words: int) -> None:
    sessions = of_text(text, words)
    turns = [turn["text"] for session in sessions for turn in session["turns"]]
    assert " ".join(turns).split() == text.split()
    assert all(len(" ".join(turn["text"] for turn in session["turns"]).split()) <= words for session in sessions)
    assert [session["date"] for session in sessions] == [f"part {number}" for number in range(1, len(sessions) + 1)]


def test_long_sessions_can_be_told_in_parts(tmp_path: Path) -> None:
    whole, parts = env_of(tmp_path, "locomo"), env_of(tmp_path, "locomo", session_words=5)
    view = parts.observe(parts[0])
    assert [len(session["turns"]) for session in view.events] == [1, 1, 1] and len(whole.observe(whole[0]).events) == 1
    assert {session["date"] for session in view.events} == {"1:00 pm on 1 May, 2023"}
    assert [turn["text"] for session in in_parts(whole[0]["sessions"], 2) for turn in session["turns"]][:2] == ["I have", "1 cats."]
    assert [len(session["turns"]) for session in in_parts(whole[0]["sessions"], 8)] == [2, 1]


def test_a_line_of_words_and_dots_is_not_cut_at_every_dot() -> None:
    (first, *_) = of_text("abc ... ... def " * 1000)
    assert len(first["turns"]) < 12 and SESSION_WORDS == 512


# Types and a part of a file


def asked(at: int, kinds: list[str]) -> tuple[Question, ...]:
    return tuple(Question(f"s{at}/{n}", "?", ("x",), kind) for n, kind in enumerate(kinds))


SAMPLES = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=12).map(
    lambda types: Loaded([Sample(f"s{at}", asked(at, kinds), (), "") for at, kinds in enumerate(types)])
)


def names(loaded: Loaded) -> set[str]:
    return {question.id for sample in loaded.samples for question in sample.questions}


@settings(max_examples=30)
@given(SAMPLES, st.integers(1, 40), st.integers(0, 3))
def test_a_limit_takes_a_fair_part_of_every_type_and_a_larger_one_takes_more_of_the_same(loaded: Loaded, limit: int, seed: int) -> None:
    whole, part = loaded.types, limited(loaded, limit, seed)
    total = sum(whole.values())
    assert sum(part.types.values()) == min(limit, total)
    assert names(part) <= names(limited(loaded, limit + 1, seed))
    if limit >= len(whole):
        assert set(part.types) == set(whole)
    for kind, number in part.types.items():
        assert abs(number - min(limit, total) * whole[kind] / total) <= len(whole)
    assert all(sample.questions for sample in part.samples)
    assert [s.id for s in part.samples] == [s.id for s in loaded.samples if s.id in {sample.id for sample in part.samples}]
    reversed_file = Loaded(loaded.samples[::-1])
    assert names(limited(reversed_file, limit, seed)) == names(part)
    assert sorted(s.id for s in ordered(loaded, seed).samples) == sorted(s.id for s in loaded.samples)


def test_another_seed_is_another_part() -> None:
    loaded = Loaded([Sample(f"s{at}", (Question(f"s{at}", "?", ("x",)),), (), "") for at in range(100)])
    parts = [names(limited(loaded, 10, seed)) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_types_are_chosen_by_number_or_true_name(tmp_path: Path) -> None:
    env = env_of(tmp_path, "locomo", types=["temporal", "4"])
    assert env.loaded.types == {"2": 2, "4": 4}
    with pytest.raises(UnknownNameError, match="type of question in this file 'temporl'.*'temporal'"):
        of_types(env.loaded, ["temporl"], env.task.names)


def test_a_limit_on_single_questions_orders_the_samples_and_one_on_conversations_picks_questions(tmp_path: Path) -> None:
    rows = [CASES["hotpotqa"][1][0] | {"_id": f"h{n}", "type": kind} for n, kind in enumerate(["bridge"] * 6 + ["comparison"] * 2)]
    whole, some = env_of(tmp_path, "hotpotqa", rows), env_of(tmp_path, "hotpotqa", rows, limit=4)
    assert [e["example_id"] for e in whole.examples] == [e["example_id"] for e in some.examples]
    assert [e["asked"][0]["type"] for e in whole.examples[:4]].count("comparison") == 1
    assert whole.identity() == some.identity()  # more samples may join the same ledger
    part = env_of(tmp_path, "locomo", limit=5)
    assert sum(len(example["asked"]) for example in part.examples) == 5 and set(part.loaded.types) == {"1", "2", "3", "4", "5"}
    assert part.identity() != env_of(tmp_path, "locomo").identity()


def test_the_unanswerable_twin_of_musique_full_is_a_question_of_its_own(tmp_path: Path) -> None:
    name, other = "2hop__1_2", "3hop1__1_2_3"
    env = env_of(tmp_path, "musique", [musique(name), musique(name, False), musique(other, False), musique(other)])
    asked = {q["id"]: (q["abstain"], q["twin"], q["cluster"]) for example in env.examples for q in example["asked"]}
    assert asked == {
        name: (False, "", name), f"{name}/unanswerable": (True, name, name),
        other: (False, "", other), f"{other}/unanswerable": (True, other, other),
    }  # fmt: skip
    assert {example["example_id"] for example in env.examples} == set(asked)


# What MuSiQue's GroupAnswerSufficiencyMetric gives a pair: the F1 of the answer if both twins were told apart rightly, else 0.
@pytest.mark.parametrize(
    ("said", "twin", "grouped", "headline"),
    [
        ("the B", "not mentioned", 1.0, 1.0),
        ("B or so", "not mentioned", 0.5, 0.5),
        ("the B", "the B", 0.0, 1.0),
        ("unknown", "unknown", 0.0, 0.0),
    ],
)
def test_musique_full_is_scored_by_pairs_too(tmp_path: Path, said: str, twin: str, grouped: float, headline: float) -> None:
    name = "2hop__1_2"
    env = env_of(tmp_path, "musique", [musique(name), musique(name, False), musique("2hop__3_4")])
    ledger, answers = Ledger(), {name: said, f"{name}/unanswerable": twin, "2hop__3_4": "the B"}
    evaluate(scripted(lambda example, _: answers[example]), Models({}), env, name="t", k=0, ledger=ledger)
    write_questions(tmp_path, env.questions(), list(answers))
    asked = read_questions(tmp_path)
    assert asked is not None
    scores = scores_by_question("t", asked, 0, ledger.attempts())
    assert scores.about["grouped"] == pytest.approx(grouped) and scores.greedy_mean.value == pytest.approx((headline + 1) / 2)
    assert result_row("m", scores)["grouped"] == pytest.approx(grouped) and "grouped" in " ".join(task_notes("m", scores))
    assert scores.clusters.count(name) == 1 and scores.abstention is not None and scores.abstention.clusters == [name]


ALIASES = """{"Q_id": "Q1", "aliases": ["Big Apple", "NYC"], "demonyms": ["New Yorker"]}
{"Q_id": "Q2", "aliases": [], "demonyms": []}
"""


@pytest.mark.parametrize(("option", "wanted"), [("auto", 1.0), ("", 0.0), ("names.json", 0.4)])
def test_2wiki_takes_the_best_of_all_names_where_there_is_a_file_of_them(tmp_path: Path, option: str, wanted: float) -> None:
    (tmp_path / "id_aliases.json").write_text(ALIASES)
    (tmp_path / "names.json").write_text('{"Q_id": "Q1", "aliases": ["Big Apple City"], "demonyms": []}')
    wiki = HOTPOT | {"answer": "New York", "answer_id": "Q1", "type": "inference"}
    chosen = str(tmp_path / option) if option.endswith("json") else option
    env = env_of(tmp_path, "2wiki", [wiki, wiki | {"_id": "h2", "answer_id": "Q2"}], options={"aliases": chosen})
    found = {attempt.example: attempt.score for attempt in played(env, lambda *_: "the apple NYC" if option.endswith("json") else "NYC")}
    assert found["h1"] == pytest.approx(wanted) and found["h2"] == 0


def test_2wikis_file_of_names_is_checked(tmp_path: Path) -> None:
    (tmp_path / "id_aliases.json").write_text('{"Q_id": "Q1", "aliases": "NYC", "demonyms": []}')
    with pytest.raises(UserError, match=r"id_aliases.json, line 1: `aliases` must be a list"):
        env_of(tmp_path, "2wiki")
    with pytest.raises(MissingFileError, match="nowhere.json"):
        env_of(tmp_path, "2wiki", options={"aliases": str(tmp_path / "nowhere.json")})
