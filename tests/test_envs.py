"""Envs load what is public, say exactly what is wrong with a file, never show gold, and pay [B*G] in the promised order."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError, DataError, MissingFileError, UnknownNameError
from memfactory.common.files import write_jsonl
from memfactory.common.types import Messages, Trajectory, View
from memfactory.data.formats import load_longcontext
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.envs.rewards import rewards_of
from memfactory.evaluation.harness import evaluate
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.ledger import read_attempts

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
        ([{"context": "c", "query": "q", "answers": ["a"]}], ["record 0", "`input`", "query"]),
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
    with pytest.raises(UnknownNameError, match="scorer 'exact'.*boxed_em, .*boxed_f1"):
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


# Published forms, and what their files give

FWE = {"index": 0, "input": "Most frequent?", "context": "a b b", "outputs": ["b", "a"], "answer_prefix": " Answer:", "length": None}
MEMAGENT_ROW = {
    "data_source": "hotpotqa", "prompt": [{"role": "user", "content": "Which city?"}], "context": "Document 1:\nPeru\nIts capital is Lima.",
    "ability": "memory", "reward_model": {"style": "rule", "ground_truth": ["Lima"]},
    "extra_info": {"index": 3, "question": "Which city is it?", "num_docs": 1},
}  # fmt: skip


def test_rulers_outputs_are_all_asked_for_and_paid_by_their_share(tmp_path: Path) -> None:
    env = env_of(tmp_path, [FWE, ROW])
    assert [(e["match"], e["answers"]) for e in env.examples] == [("all", ["b", "a"]), ("any", ["Lima"])]
    assert env[0]["extra"] == {"index": 0, "answer_prefix": " Answer:", "length": None}
    rewards = env.compute_reward({"answer": ["only B", "Puno", "b, a", "\\boxed{lima}"]}, env.collate_fn([env[0], env[1]]), 2)
    assert rewards["default"].tolist() == [0.5, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (ROW | {"match": "all"}, "all"),
        (FWE | {"match": "any"}, "any"),
        (ROW | {"outputs": ["x"]}, "any"),
        (FWE | {"outputs": "b"}, "all"),
    ],
)
def test_match_says_whether_one_gold_answer_is_enough(tmp_path: Path, row: dict, match: str) -> None:
    (example,) = load_longcontext(write(tmp_path, [row]))
    assert example["match"] == match and "match" not in example["extra"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW | {"match": "some"}, ["`match` must be one of any, all", "'some'"]),
        (ROW | {"match": None}, ["`match` must be one of any, all"]),
        (FWE | {"outputs": []}, ["`outputs`", "[]"]),
        (FWE | {"outputs": ["a", ""]}, ["`outputs`"]),
        (ROW | {"context": [4, 17, 9]}, ["document numbers", "smaller set"]),
        ({"context": "c", "prompt": [], "reward_model": {"ground_truth": "a"}, "extra_info": {}}, ["`extra_info.question`"]),
        (MEMAGENT_ROW | {"reward_model": {"style": "rule"}}, ["`reward_model.ground_truth`", "None"]),
        (MEMAGENT_ROW | {"reward_model": None}, ["`answers`", "None"]),
    ],
)
def test_a_record_of_a_published_form_that_is_wrong_is_named(tmp_path: Path, row: dict, says: list[str]) -> None:
    with pytest.raises(DataError) as error:
        load_longcontext(write(tmp_path, [ROW, row]))
    assert all(text in str(error.value) for text in ["data.json, record 1", *says])


def test_an_empty_list_for_a_context_is_not_called_document_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_longcontext(write(tmp_path, [ROW | {"context": []}]))
    assert "document numbers" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "question", "golds"),
    [
        ({}, "Which city is it?", ["Lima"]),
        ({"extra_info": {"index": 3, "question": None}}, "Which city?", ["Lima"]),
        ({"reward_model": {"style": "rule", "ground_truth": "Lima"}}, "Which city is it?", ["Lima"]),
    ],
)
def test_memagents_parquet_loads_like_its_json(tmp_path: Path, change: dict, question: str, golds: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([MEMAGENT_ROW | change]), tmp_path / "train.parquet")
    env = LongcontextEnv(str(tmp_path / "train.parquet"))
    assert (env[0]["question"], env[0]["answers"], env[0]["match"]) == (question, golds, "any")
    assert env[0]["context"] == MEMAGENT_ROW["context"] and "reward_model" not in env[0]["extra"]
    assert "Lima" in env[0]["context"] and env.observe(env[0]).questions == (question,)


def test_a_parquet_file_that_is_none_is_a_data_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="train.parquet is not a"):
        load_longcontext(tmp_path / "train.parquet")
    with pytest.raises(MissingFileError, match="memfactory data fetch"):
        load_longcontext(tmp_path / "absent.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[parquet\]"'):
        load_longcontext(tmp_path / "train.parquet")


PUBLISHED = [(PUBLIC, 32, "any"), (PUBLIC.with_name("derived_eval_fwe_16384.json"), 8, "all")]
MODEL = Path(__file__).resolve().parent.parent / "models" / "tiny"


def published(path: Path) -> LongcontextEnv:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    return LongcontextEnv(str(path))


@pytest.mark.parametrize(("path", "number", "match"), PUBLISHED, ids=["hotpotqa", "fwe"])
def test_a_published_file_scores_gold_as_right_and_nothing_as_wrong(
    path: Path, number: int, match: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    env = published(path)
    assert len(env) == number and {example["match"] for example in env.examples} == {match}
    gold = {example["question"] + example["context"][:200]: example["answers"] for example in env.examples}

    class Knows(MemoryAgent):
        """Keeps the beginning of the text in mind and answers by heart."""

        def events(self, view: View) -> list[str]:
            return [view.context[:200]]

    def right(messages: Messages, stage: str) -> str:
        text = messages[0]["content"]
        if stage == "memory":
            return text.split("<section>\n")[1].split("\n</section>")[0]
        question, memory = text.split("<problem>\n")[1].split("\n</problem>")[0], text.split("<memory>\n")[1].split("\n</memory>")[0]
        found = next((golds for key, golds in gold.items() if key.startswith(question) and memory.strip() and memory.strip() in key), [])
        return f"It is \\boxed{{{', '.join(found)}}}."

    agent = Knows(tiny_tokenizer, "cpu")
    assert evaluate(agent, Models({"policy": ScriptedChat(right)}), env, name="p", k=1).avg_at_k.value >= 0.99
    for nothing in ("", "\\boxed{}", "I do not know."):
        assert evaluate(agent, Models({"policy": ScriptedChat(lambda m, s, n=nothing: n)}), env, name="p", k=1).avg_at_k.value == 0


@pytest.mark.slow
@pytest.mark.parametrize(("path", "number", "match"), PUBLISHED, ids=["hotpotqa", "fwe"])
def test_the_tiny_model_reads_a_published_file_to_its_end(path: Path, number: int, match: str, tmp_path: Path) -> None:
    published(path)
    options = {"chunk_size": 300, "max_generate_length": 4}
    scores = run_job(Job("tiny", str(MODEL), "p", str(path), str(tmp_path / "out"), k=0, limit=1, agent_options=options, device="cpu"))
    (attempt,) = read_attempts(tmp_path / "out")
    assert attempt.error is None and scores.coverage == 1 and attempt.turns > 2


class Paying(LongcontextEnv):
    """Pays what it is told to."""

    paid: Any = None

    def compute_reward(self, *args: Any, **kwargs: Any) -> Any:
        return self.paid


def paid(folder: Path, rewards: Any, errors: tuple[str | None, ...] = (None, None, None)) -> dict[str, torch.Tensor]:
    env = Paying(str(write(folder, [ROW])), None)
    env.paid = rewards
    return rewards_of(env, {"answer": [""] * 3}, {}, 3, [Trajectory(error=error) for error in errors])


NUMBERS: dict[str, Any] = {
    "list": [1, 0.5, 0], "tuple": (1.0, 0.5, False), "array": np.array([1, 0.5, 0]), "float16": np.array([1, 0.5, 0], dtype=np.float16),
    "numpy numbers": [np.float64(1), np.float32(0.5), np.int64(0)], "tensors": [torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0)],
    "double": torch.tensor([1, 0.5, 0], dtype=torch.float64), "half": torch.tensor([1, 0.5, 0], dtype=torch.bfloat16),
    "differentiable": torch.tensor([1, 0.5, 0], requires_grad=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_rewards_of_any_kind_become_float32(tmp_path: Path, kind: str) -> None:
    found = paid(tmp_path, {"default": NUMBERS[kind], "default/part": NUMBERS[kind]})
    for column in found.values():
        assert column.dtype == torch.float32 and column.device.type == "cpu" and not column.requires_grad
        assert column.tolist() == [1.0, 0.5, 0.0]


def test_booleans_integers_and_nothing_are_numbers_too(tmp_path: Path) -> None:
    assert paid(tmp_path, {"answer": [True, np.bool_(False), 2]})["answer"].tolist() == [1.0, 0.0, 2.0]
    assert paid(tmp_path, {"answer": torch.tensor([True, False, True])})["answer"].tolist() == [1.0, 0.0, 1.0]
    assert paid(tmp_path, {"question": [[1, 0], [0, None], [1, 1]]})["question"].shape == (3, 2)
    values = paid(tmp_path, {"default": [1, None, math.nan]}, (None, None, None))["default"]
    assert values.isnan().tolist() == [False, True, True]
    assert paid(tmp_path, {"default": [1, 1, 1]}, (None, "down", None))["default"].isnan().tolist() == [False, True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rewards_on_a_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    values = paid(tmp_path, {"default": torch.tensor([1.0, 0.5, 0.0], device="cuda", requires_grad=True)})["default"]
    assert values.device.type == "cpu" and values.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0, 0.0, 1.0], "Paying.compute_reward returned a list, not {stage or 'default': 3 numbers}"),
        (None, "returned a NoneType"),
        ({"default": [1.0, 0.0]}, r"rewards\['default'\] has the shape \[2\], expected \[3\]"),
        ({"answer": 1.0}, r"rewards\['answer'\] has the shape \[\], expected \[3\]"),
        ({"answer": torch.ones(3, 1)}, r"rewards\['answer'\] has the shape \[3, 1\], expected \[3\]"),
        ({"default": [[1.0], [0.0], [1.0]]}, r"has the shape \[3, 1\]"),
        ({"question": [1.0, 0.0, 1.0]}, r"rewards\['question'\] has the shape \[3\], expected \[3, questions\]"),
        ({"default": [[1.0], [0.0, 1.0], [1.0]]}, "is not 3 numbers"),
        ({"default": [1.0, "1", 0.0]}, r"rewards\['default'\] is not 3 numbers: '1' is no number"),
        ({"default": [1.0, 10**400, 0.0]}, "is not 3 numbers"),
        ({"default": {"a": 1}}, "is not 3 numbers"),
        ({"default": torch.ones(3, dtype=torch.complex64)}, "is not 3 numbers: torch.complex64"),
        ({"default": [1.0, math.inf, 0.0]}, r"rewards\['default'\] is infinite for attempt 1"),
        ({"memory": torch.tensor([0.0, 0.0, -math.inf])}, r"rewards\['memory'\] is infinite for attempt 2"),
        ({"default": [1.0] * 3, "default/part": [0, 0, 1e300]}, r"rewards\['default/part'\] is infinite for attempt 2"),
        ({"question": [[1.0, 1.0], [0.0, math.inf], [0.0, 0.0]]}, r"rewards\['question'\] is infinite for attempt 1, question 1"),
    ],
)  # fmt: skip
def test_what_is_no_reward_is_refused_by_its_name_and_place(tmp_path: Path, rewards: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paid(tmp_path, rewards)


def test_evaluation_takes_lists_too(tmp_path: Path) -> None:
    env = Paying(str(write(tmp_path, [ROW])), None)
    env.paid = {"default": [True]}
    agent = MemoryAgent(None, "cpu")
    agent.events = lambda view: ["one"]  # type: ignore[method-assign]
    scores = evaluate(agent, Models({"policy": ScriptedChat(lambda *_: "x")}), env, name="t", k=0)
    assert scores.greedy == [[1.0]]
