"""Envs load what is public, say exactly what is wrong with a file, never show gold, and pay [B*G] in the promised order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from memfactory.common.errors import DataError, MissingFileError, UnknownNameError
from memfactory.common.files import write_jsonl
from memfactory.data.formats import load_longcontext
from memfactory.envs.longcontext import LongcontextEnv

ROW = {"context": "The capital of Peru is a city.", "input": "Which city?", "answers": ["Lima"]}
PUBLIC = Path(__file__).parents[2] / "shared" / "benchdata" / "memagent" / "derived_eval_50.json"


def write(folder: Path, value: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def env_of(folder: Path, rows: list[dict], **options: Any) -> LongcontextEnv:
    return LongcontextEnv(str(write(folder, rows)), None, **options)


def test_json_and_jsonl_load_the_same_examples(tmp_path: Path) -> None:
    rows = [ROW | {"index": 7}, ROW | {"input": "Où ?", "answers": ["Lima", "Ciudad de los Reyes"]}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    listed, lined = load_longcontext(write(tmp_path, rows)), load_longcontext(write(tmp_path, lines, "data.jsonl"))
    assert listed == lined
    assert [e["question"] for e in listed] == ["Which city?", "Où ?"] and listed[0]["context"] == ROW["context"]
    assert listed[0]["extra"] == {"index": 7} and listed[0]["example_id"] != listed[1]["example_id"]


@pytest.mark.parametrize(
    ("answers", "golds"),
    [
        ("Lima", ["Lima"]),
        (42, ["42"]),
        (0, ["0"]),
        (1.5, ["1.5"]),
        (["Lima", "Lima, Peru"], ["Lima", "Lima, Peru"]),
        ([3, "three"], ["3", "three"]),
    ],
)
def test_answers_may_be_a_text_a_number_or_a_list(tmp_path: Path, answers: Any, golds: list[str]) -> None:
    (example,) = load_longcontext(write(tmp_path, [ROW | {"answers": answers}]))
    assert example["answers"] == golds


def test_every_gold_answer_counts(tmp_path: Path) -> None:
    env = env_of(tmp_path, [ROW | {"answers": ["Lima", "City of Kings", 42]}])
    answers = ["\\boxed{lima}", "so \\boxed{city of kings}", "\\boxed{42}", "\\boxed{Cusco}", "Lima"]
    rewards = env.compute_reward({"answer": answers}, env.collate_fn([env[0]]), 5)
    assert rewards["default"].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ["not valid JSON"]),
        ("", ["not valid JSON"]),
        ([], ["must hold a list", "nothing"]),
        ({"data": [ROW]}, ["must hold a list", "a dict"]),
        ("null", ["must hold a list", "nothing"]),
        ([ROW, "text"], ["record 1", "expected an object", "a str"]),
        ([ROW, {"input": "q", "answers": ["a"]}], ["record 1", "`context`", "None", "input, answers"]),
        ([ROW | {"context": ["a", "b"]}], ["record 0", "`context`", "['a', 'b']"]),
        ([ROW | {"context": "  "}], ["record 0", "`context`", "non-empty"]),
        ([ROW, ROW, ROW | {"input": 5}], ["record 2", "`input`", "got 5"]),
        ([{"context": "c", "question": "q", "answers": ["a"]}], ["record 0", "`input`", "question"]),
        ([{"context": "c", "input": "q"}], ["record 0", "`answers`", "None"]),
        ([ROW | {"answers": []}], ["record 0", "`answers`", "[]"]),
        ([ROW | {"answers": ""}], ["record 0", "`answers`", "''"]),
        ([ROW | {"answers": ["a", None]}], ["record 0", "`answers`", "None"]),
        ([ROW | {"answers": {"text": "a"}}], ["record 0", "`answers`", "{'text': 'a'}"]),
    ],
)
def test_a_malformed_file_is_named_with_record_and_field(tmp_path: Path, content: Any, says: list[str]) -> None:
    with pytest.raises(DataError) as error:
        LongcontextEnv(str(write(tmp_path, content, "broken.json")))
    assert all(text in str(error.value) for text in ["broken.json", *says])


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broken.jsonl, line 3"):
        load_longcontext(write(tmp_path, json.dumps(ROW) + '\n\n{"context": \n', "broken.jsonl"))
    with pytest.raises(DataError, match="empty.jsonl must hold a list.*nothing"):
        load_longcontext(write(tmp_path, "\n", "empty.jsonl"))


def test_a_text_with_unicode_line_borders_survives_json_lines(tmp_path: Path) -> None:
    row = ROW | {"context": "one\u2028two\u0085three"}
    write_jsonl(tmp_path / "data.jsonl", [row])
    assert load_longcontext(tmp_path / "data.jsonl")[0]["context"] == row["context"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_file_that_is_not_utf8_is_a_data_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(json.dumps(ROW | {"input": "Où"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=name):
        load_longcontext(tmp_path / name)


@pytest.mark.parametrize("name", ["none.json", "none.jsonl"])
def test_a_missing_file_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingFileError) as error:
        LongcontextEnv(str(tmp_path / name))
    assert all(text in str(error.value) for text in (name, "datas/tiny/train.json", "memfactory data fetch", "memfactory data build"))
    assert isinstance(error.value, FileNotFoundError)


def test_an_unknown_option_or_rule_fails_before_any_rollout(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="LongcontextEnv 'rewards'.*Did you mean 'reward'"):
        env_of(tmp_path, [ROW], rewards="boxed_em")
    with pytest.raises(UnknownNameError, match="scorer 'exact'.*boxed_em, boxed_f1"):
        env_of(tmp_path, [ROW], reward="exact")
    with pytest.raises(UnknownNameError, match="scorer 'exact'"):
        env_of(tmp_path, [ROW], log=["exact"])


def test_observe_never_shows_gold(tmp_path: Path) -> None:
    env = env_of(tmp_path, [ROW | {"answers": ["Zanzibar", "Unguja"], "answer_note": "Zanzibar"}])
    view = env.observe(env[0])
    assert "Zanzibar" not in repr(view) and "Unguja" not in repr(view)
    assert (view.context, view.questions) == (ROW["context"], ("Which city?",))
    assert view.memory is None and view.events == ()


def test_a_batch_is_columns(tmp_path: Path) -> None:
    env = env_of(tmp_path, [ROW, ROW | {"answers": ["Cusco", "Cuzco"]}])
    assert len(env) == 2
    batch = env.collate_fn([env[1], env[0]])
    assert batch["answers"] == [["Cusco", "Cuzco"], ["Lima"]]
    assert set(batch) == {"example_id", "context", "question", "answers", "match", "extra"}


def test_rewards_are_example_major_float32_on_the_cpu(tmp_path: Path) -> None:
    env = env_of(tmp_path, [ROW, ROW | {"answers": ["Cusco"]}, ROW | {"answers": ["Puno"]}])
    batch = env.collate_fn([env[0], env[1], env[2]])
    boxes = ["Lima", "Cusco", "Cusco", "Lima", "Puno", "Puno"]  # attempts 0 and 1 of Lima, of Cusco, of Puno
    rewards = env.compute_reward({"answer": [f"\\boxed{{{box}}}" for box in boxes], "memory": [""] * 6}, batch, 2)
    assert rewards["default"].tolist() == [1, 0, 1, 0, 1, 1]
    assert {(r.shape, r.dtype, r.device.type) for r in rewards.values()} == {(torch.Size([6]), torch.float32, "cpu")}
    assert set(rewards) == {"default", "default/boxed_em", "default/boxed_f1"}


def test_the_paying_rule_is_an_option(tmp_path: Path) -> None:
    env = env_of(tmp_path, [ROW | {"answers": ["Lima Peru"]}], reward="boxed_f1", log=["boxed_em"])
    rewards = env.compute_reward({"answer": ["\\boxed{Lima}", "no box"]}, env.collate_fn([env[0]]), 2)
    assert rewards["default"].tolist() == pytest.approx([2 / 3, 0.0])
    assert rewards["default/boxed_em"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("number", "generations"), [(3, 2), (5, 2), (0, 2), (4, 1)])
def test_a_wrong_number_of_predictions_is_an_error(tmp_path: Path, number: int, generations: int) -> None:
    env = env_of(tmp_path, [ROW, ROW])
    batch = env.collate_fn([env[0], env[1]])
    with pytest.raises(ValueError, match=f"{number} predictions for 2 examples x {generations} attempts"):
        env.compute_reward({"answer": ["\\boxed{Lima}"] * number}, batch, generations)


@pytest.mark.skipif(not PUBLIC.is_file(), reason="the published evaluation file is not here")
def test_the_published_evaluation_file_loads() -> None:
    env = LongcontextEnv(str(PUBLIC))
    assert len(env) == 32
    assert all(env[n]["answers"] and env.observe(env[n]).context for n in range(32))
    golds = env.collate_fn([env[n] for n in range(32)])
    perfect = [f"\\boxed{{{answers[-1]}}}" for answers in golds["answers"]]
    assert env.compute_reward({"answer": perfect}, golds, 1)["default"].tolist() == [1.0] * 32
