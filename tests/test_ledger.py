"""The ledger only grows, loses one attempt at most to a kill, refuses what was made under other conditions, and is all a report needs."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.base import BaseAgent
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common import prompts as prompt_texts
from memfactory.common.errors import ConfigError, DataError, InfrastructureError, MissingFileError
from memfactory.common.files import read_json, write_json
from memfactory.common.registry import import_plugins
from memfactory.common.types import Messages, Trajectory, View
from memfactory.engines.chat import Models, Session
from memfactory.engines.load import model_hash
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.evaluation import fingerprint as prints
from memfactory.evaluation import ledger as ledgers
from memfactory.evaluation.fingerprint import fingerprint
from memfactory.evaluation.harness import Scores, evaluate, scores_of
from memfactory.evaluation.ledger import GREEDY, SAMPLED, Attempt, Ledger, read_attempts
from memfactory.evaluation.report import result_row
from memfactory.evaluation.tasks.env import TaskEnv

ROWS = [{"context": f"city alice {city} .", "input": "city alice ?", "answers": [city]} for city in ("paris", "rome", "oslo", "delhi")]


class Echo(BaseAgent):
    """Remembers the text as it is and asks the model once."""

    stages = ("answer",)

    def initial(self, view: View) -> str:
        return view.context

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> Any:
        return memory

    async def read(self, model: Session, memory: Any, question: str) -> str:
        return (await model.chat([{"role": "user", "content": memory}], stage="answer", max_tokens=8)).text


def attempt(example: str = "facts/0", kind: str = GREEDY, number: int = 0, score: float | None = 1.0, **fields: Any) -> Attempt:
    return Attempt(example, kind, number, fields.pop("status", "failed" if score is None else "ok"), score, **fields)


def facts(folder: Path, rows: list[dict] | None = None, name: str = "facts.json") -> LongcontextEnv:
    write_json(folder / name, ROWS if rows is None else rows)
    return LongcontextEnv(str(folder / name))


def right(messages: Messages, stage: str) -> str:
    return f"\\boxed{{{messages[0]['content'].split()[-2]}}}"


def measured(
    env: LongcontextEnv, folder: Path | None, answer: Callable[[Messages, str], str] = right, **options: Any
) -> tuple[Scores, int]:
    """(scores, how many times the model was asked) of an evaluation with a ledger in `folder`."""
    chat = ScriptedChat(answer)
    with Ledger(folder, {}) as ledger:
        scores = evaluate(Echo(None), Models({"policy": chat}), env, name="facts", ledger=ledger, **options)
    return scores, len(chat.asked)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]


# One line per attempt, only ever appended


def test_an_attempt_is_one_line_and_comes_back_as_it_was(tmp_path: Path) -> None:
    first = attempt(answers=['\\boxed{Øre\n\u2028\'"x"}'], memory="mémoire 记忆 \x00", report={"truncated_answer": 1}, steps=[["e", "m"]])
    second = attempt(kind=SAMPLED, score=None, error="the server said [no]", scores={"default": None})
    with Ledger(tmp_path, {"a": 1}) as ledger:
        ledger.append([first])
        before = (tmp_path / "attempts.jsonl").read_bytes()
        ledger.append([second])
    data = (tmp_path / "attempts.jsonl").read_bytes()
    assert data.startswith(before) and data.count(b"\n") == 2 and before.count(b"\n") == 1
    assert read_attempts(tmp_path) == [first, second]


def test_nothing_to_append_writes_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path, {}) as ledger:
        ledger.append([])
    assert (tmp_path / "attempts.jsonl").read_bytes() == b""


def test_a_ledger_without_a_folder_keeps_attempts_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger()
    ledger.append([attempt(), attempt("facts/1", score=None)])
    assert set(ledger.attempts()) == {("facts/0", GREEDY, 0), ("facts/1", GREEDY, 0)} and ledger.done() == {("facts/0", GREEDY, 0)}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", [None, "text", "", {"a": [1, 2]}, ["x"], 3, 2.5, {"set"}, Path("x"), b"bytes", object])
def test_memory_of_any_type_can_be_written(tmp_path: Path, memory: Any) -> None:
    with Ledger(tmp_path, {}) as ledger:
        ledger.append([attempt(memory=memory)])
    (found,) = read_attempts(tmp_path)
    assert found.memory == (memory if isinstance(memory, (str, int, float, list, dict, type(None))) else str(memory))


def test_a_reward_that_is_not_a_number_is_null_in_the_file(tmp_path: Path) -> None:
    def fails(messages: Messages, stage: str) -> str:
        raise InfrastructureError("the server is down")

    env = facts(tmp_path)
    scores, _ = measured(env, tmp_path / "out", fails, k=1, limit=1)
    assert "NaN" not in (tmp_path / "out" / "attempts.jsonl").read_text()
    for line in lines(tmp_path / "out"):
        assert line["score"] is None and set(line["scores"].values()) == {None} and line["status"] == "failed"
        assert line["error"] == "InfrastructureError: the server is down"
    assert math.isnan(scores.greedy[0][0]) and scores.coverage == 0


def test_half_a_character_from_a_server_does_not_end_the_evaluation(tmp_path: Path) -> None:
    with Ledger(tmp_path, {}) as ledger:
        ledger.append([attempt(answers=[json.loads('"cut \\ud83d"')])])
    assert len(read_attempts(tmp_path)) == 1


def test_an_infinite_reward_is_an_error_that_names_the_env(tmp_path: Path) -> None:
    class Infinite(LongcontextEnv):
        def compute_reward(self, *args: Any, **kwargs: Any) -> dict:
            return {name: value + math.inf for name, value in super().compute_reward(*args, **kwargs).items()}

    facts(tmp_path)
    with pytest.raises((ConfigError, DataError), match="Infinite"):
        measured(Infinite(str(tmp_path / "facts.json")), tmp_path / "out", limit=1)


# Torn and broken lines

THREE = [
    attempt(answers=["\\boxed{paris}"]),
    attempt("facts/1", memory="记忆 é", answers=["Où 🙂"]),
    attempt("facts/2", kind=SAMPLED, score=0.0, answers=["🙂 end"], report={"ü": 1}),
]
WHOLE = [json.dumps(asdict(a), ensure_ascii=False).encode() + b"\n" for a in THREE]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, sum(map(len, WHOLE))))
def test_a_file_cut_at_any_byte_loses_at_most_the_attempt_that_was_being_written(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / str(cut)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "attempts.jsonl").write_bytes(b"".join(WHOLE)[:cut])
    write_json(folder / "fingerprint.json", {})
    whole = sum(sum(map(len, WHOLE[: at + 1])) <= cut for at in range(3))
    assert read_attempts(folder) == THREE[:whole], "a reader beside a writer sees whole lines only"
    with Ledger(folder, {}) as ledger:
        assert ledger.done() == {a.key for a in THREE[:whole]}
        ledger.append(THREE[whole:])
    assert (folder / "attempts.jsonl").read_bytes() == b"".join(WHOLE[:whole]) + b"".join(
        json.dumps(asdict(a), ensure_ascii=False).encode() + b"\n" for a in THREE[whole:]
    )
    assert read_attempts(folder) == THREE


def test_a_torn_line_costs_its_own_attempt_and_the_rest_is_not_made_again(tmp_path: Path) -> None:
    env = facts(tmp_path)
    whole, asked = measured(env, tmp_path / "out", k=1)
    assert asked == 8
    path = tmp_path / "out" / "attempts.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again, asked = measured(env, tmp_path / "out", k=1)
    assert asked == 1 and (again.sampled, again.greedy) == (whole.sampled, whole.greedy) and len(lines(tmp_path / "out")) == 8


@pytest.mark.parametrize("broken", [b"{", b"[1, 2]", b"7", b"null", b"", b'{"example": "x"}', b'{"unknown": 1}', b"half a li{ne"])
def test_a_broken_line_in_the_middle_is_named_with_its_file_and_number(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "attempts.jsonl").write_bytes(WHOLE[0] + broken + b"\n" + WHOLE[1])
    with pytest.raises(DataError, match=r"attempts\.jsonl, line 2 is not (an attempt|as it was written)"):
        read_attempts(tmp_path)


def test_a_line_that_is_not_utf8_is_named_with_its_file_and_number(tmp_path: Path) -> None:
    (tmp_path / "attempts.jsonl").write_bytes(WHOLE[0] + b"\xff\xfe\n" + WHOLE[1])
    with pytest.raises(DataError, match=r"attempts\.jsonl, line 2 is not (an attempt|as it was written)"):
        read_attempts(tmp_path)


def test_a_folder_without_attempts_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="holds no attempts.jsonl.*memfactory eval"):
        read_attempts(tmp_path)


# Failures, and what a later run adds


def test_failed_attempts_are_made_again_and_the_last_line_counts(tmp_path: Path) -> None:
    env, out = facts(tmp_path), tmp_path / "out"
    down = {"paris", "oslo"}

    def flaky(messages: Messages, stage: str) -> str:
        if messages[0]["content"].split()[-2] in down:
            raise InfrastructureError("down")
        return right(messages, stage)

    first, asked = measured(env, out, flaky, k=2)
    assert asked == 12 and first.coverage == 0.5
    again, asked = measured(env, out, flaky, k=2)
    assert asked == 6 and again.coverage == 0.5, "only the failed ones are tried again"
    down.clear()
    last, asked = measured(env, out, flaky, k=2)
    assert asked == 6 and last.coverage == 1 and last.avg_at_k.value == last.greedy_mean.value == 1
    assert len(lines(out)) == 12 + 6 + 6, "nothing is taken back"
    assert measured(env, out, flaky, k=2)[1] == 0


def test_a_larger_k_and_a_larger_limit_add_only_what_is_missing(tmp_path: Path) -> None:
    env, out = facts(tmp_path), tmp_path / "out"
    assert measured(env, out, k=1, limit=2)[1] == 4
    assert measured(env, out, k=3, limit=2)[1] == 4
    assert measured(env, out, k=3, limit=3)[1] == 4
    scores, asked = measured(env, out, k=3)
    assert asked == 4 and len(lines(out)) == 16 and len({(a["example"], a["kind"], a["number"]) for a in lines(out)}) == 16
    assert measured(env, None, k=3)[0].sampled == scores.sampled


def test_a_smaller_k_and_a_smaller_limit_use_the_first_ones(tmp_path: Path) -> None:
    env, out = facts(tmp_path), tmp_path / "out"
    count = iter(range(100))
    big, _ = measured(env, out, lambda m, s: right(m, s) if next(count) % 3 else "no box", k=4)
    small, asked = measured(env, out, k=2, limit=3)
    assert asked == 0 and small.sampled == [row[:2] for row in big.sampled[:3]] and small.greedy == big.greedy[:3]
    assert small.examples == big.examples[:3] and len(lines(out)) == 20


def test_tokens_of_a_row_are_of_the_attempts_that_the_row_is_about() -> None:
    made = [attempt(kind=SAMPLED, number=n, prompt_tokens=10 if n < 2 else 1000) for n in range(4)] + [attempt(prompt_tokens=10)]
    scores = scores_of("facts", ["facts/0"], 2, {a.key: a for a in made})
    assert result_row("m", scores)["prompt_tokens"] == 10


def test_progress_counts_what_was_found_and_then_what_is_made(tmp_path: Path) -> None:
    env, told = facts(tmp_path), list[int]()
    measured(env, tmp_path / "out", k=1, limit=2)
    measured(env, tmp_path / "out", k=1, on_progress=told.append)
    assert told[0] == 4 and sum(told) == 8


def test_steps_are_kept_of_the_first_greedy_attempts_only(tmp_path: Path) -> None:
    class Steps(Echo):
        def events(self, view: View) -> list[str]:
            return ["one", "two"]

    env = facts(tmp_path)
    with Ledger(tmp_path / "out", {}) as ledger:
        evaluate(Steps(None), Models({"policy": ScriptedChat(right)}), env, name="facts", k=1, ledger=ledger)
    kept = {(line["example"], line["kind"]): len(line["steps"]) for line in lines(tmp_path / "out")}
    assert {key for key, number in kept.items() if number} == {(f"facts/{at}", GREEDY) for at in range(4)} and kept["facts/0", GREEDY] == 2


def test_a_truncated_attempt_is_scored_and_not_made_again(tmp_path: Path) -> None:
    class Cut(Echo):
        async def read(self, model: Session, memory: Any, question: str) -> str:
            model.count("truncated_answer")
            return await super().read(model, memory, question)

    env = facts(tmp_path)
    for asked in (2, 0):
        chat = ScriptedChat(right)
        with Ledger(tmp_path / "out", {}) as ledger:
            evaluate(Cut(None), Models({"policy": chat}), env, name="facts", k=1, limit=1, ledger=ledger)
        assert len(chat.asked) == asked
    assert [(line["status"], line["score"]) for line in lines(tmp_path / "out")] == [("truncated", 1.0)] * 2


# Two writers


HOLDS = (
    "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
)


def test_another_process_that_writes_is_a_clear_error_and_its_end_frees_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PATIENCE", 0.05)
    command = [sys.executable, "-S", "-c", HOLDS, str(tmp_path / "attempts.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(ConfigError, match=r"Another process is writing .*attempts\.jsonl.*--output_dir"):
            Ledger(tmp_path, {})
        assert not (tmp_path / "fingerprint.json").exists()
        other.kill()
    with Ledger(tmp_path, {}) as ledger:
        ledger.append([attempt()])


def test_a_second_ledger_in_this_process_is_refused_until_the_first_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PATIENCE", 0.0)
    with Ledger(tmp_path, {}), pytest.raises(ConfigError, match="Another process"):
        Ledger(tmp_path, {})
    Ledger(tmp_path, {}).close()


def test_a_second_writer_waits_for_the_first_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PATIENCE", 20.0)
    holder = Ledger(tmp_path, {})
    waited = iter([None, None, holder.close])

    def sleep(_: float) -> None:
        if end := next(waited):
            end()

    monkeypatch.setattr(ledgers.time, "sleep", sleep)
    Ledger(tmp_path, {}).close()
    assert next(waited, "waited three times") == "waited three times"


def test_a_refused_folder_is_not_locked_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PATIENCE", 0.0)
    Ledger(tmp_path, {"seed": 0}).close()
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        Ledger(tmp_path, {"seed": 1})
    Ledger(tmp_path, {"seed": 0}).close()


def test_a_folder_with_a_broken_line_is_not_locked_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_PATIENCE", 0.0)
    (tmp_path / "attempts.jsonl").write_bytes(b"{\n")
    write_json(tmp_path / "fingerprint.json", {})
    with pytest.raises(DataError):
        Ledger(tmp_path, {})
    (tmp_path / "attempts.jsonl").write_bytes(b"")
    Ledger(tmp_path, {}).close()


# The fingerprint


def test_the_same_conditions_may_go_on_and_others_are_named_with_old_and_new(tmp_path: Path) -> None:
    old = {"model": "a", "data": {"sha256": "x", "examples": 3}, "log": ("em", "f1"), "roles": {}}
    Ledger(tmp_path, old).close()
    Ledger(tmp_path, old).close()
    for changed, says in [
        (old | {"model": "b"}, ["model: 'a' -> 'b'"]),
        (old | {"data": {"sha256": "y", "examples": 4}}, ["data.sha256: 'x' -> 'y'", "data.examples: 3 -> 4"]),
        (old | {"roles": {"answer": "api:x"}}, ["roles.answer: None -> 'api:x'"]),
        (old | {"log": ("em",)}, ["log: ['em', 'f1'] -> ['em']"]),
        (old | {"new": 1}, ["new: None -> 1"]),
        ({k: v for k, v in old.items() if k != "model"}, ["model: 'a' -> None"]),
    ]:
        shutil.copytree(tmp_path, tmp_path / "copy", dirs_exist_ok=True)
        with pytest.raises(ConfigError, match="other conditions") as error:
            Ledger(tmp_path / "copy", changed)
        assert all(text in str(error.value) for text in says) and "--output_dir" in str(error.value)
        assert str(error.value).count("->") == len(says), "what agrees is not named"
        shutil.rmtree(tmp_path / "copy")
    assert read_json(tmp_path / "fingerprint.json")["model"] == "a"


def test_attempts_without_a_fingerprint_are_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "attempts.jsonl").write_bytes(WHOLE[0])
    with pytest.raises(ConfigError, match="fingerprint"):
        Ledger(tmp_path, {"model": "a"})


@pytest.fixture
def printed(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., dict]:
    """`printed(...)`: the fingerprint of a small evaluation, changed as told."""

    def make(rows: list[dict] | None = None, env: dict | None = None, agent: dict | None = None, model: str = "m", **decoding: Any) -> dict:
        write_json(tmp_path / "facts.json", ROWS if rows is None else rows)
        made = MemoryAgent(tiny_tokenizer, "cpu", **(agent or {}))
        data = LongcontextEnv(str(tmp_path / "facts.json"), **(env or {}))
        return fingerprint(made, data, model=model, decoding={"temperature": 1.0, "top_p": 1.0, "seed": 0} | decoding)

    return make


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [*ROWS[:3], ROWS[3] | {"answers": ["agra"]}]}, ["data.sha256", "env.asked"]),
        ({"rows": ROWS[:2]}, ["data.sha256", "data.examples: 4 -> 2", "env.asked"]),
        ({"env": {"reward": "boxed_f1"}}, ["env.reward: 'auto' -> 'boxed_f1'"]),
        ({"env": {"log": ("ruler_all",)}}, ["env.log"]),
        ({"model": "n"}, ["model: 'm' -> 'n'"]),
        ({"agent": {"chunk_size": 7}}, ["agent.chunk_size: 5000 -> 7"]),
        ({"agent": {"module": {"prompt_order": "chunk_first"}}}, ["agent.module.prompt_order: 'memory_first' -> 'chunk_first'"]),
        ({"temperature": 0.7}, ["decoding.temperature: 1.0 -> 0.7"]),
        ({"top_p": 0.9}, ["decoding.top_p"]),
        ({"seed": 1}, ["decoding.seed: 0 -> 1"]),
    ],
)
def test_whatever_decides_an_attempt_is_named_when_it_changes(
    tmp_path: Path, printed: Callable[..., dict], change: dict, says: list[str]
) -> None:
    Ledger(tmp_path / "out", printed()).close()
    Ledger(tmp_path / "out", printed()).close()
    with pytest.raises(ConfigError) as error:
        Ledger(tmp_path / "out", printed(**change))
    assert all(text in str(error.value) for text in says) and str(error.value).count(" -> ") == len(says)


def test_other_prompts_or_other_code_are_other_conditions(printed: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    before = printed()
    monkeypatch.setitem(prompt_texts.PROMPTS, "memory_answer", "Answer: <<question>> <<memory>>")
    assert ledgers.differences(before, printed()) == [f"prompts: {before['prompts']!r} -> {printed()['prompts']!r}"]
    monkeypatch.undo()
    monkeypatch.setattr(prints, "ATTEMPTS_FORMAT", prints.ATTEMPTS_FORMAT + 1)
    assert ledgers.differences(before, printed()) == [f"code: {before['code']!r} -> {before['code'] + 1!r}"]


def test_the_place_of_the_data_does_not_matter_only_what_is_in_it(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    one, two = (fingerprint(Echo(None), facts(tmp_path / folder), model="m", decoding={}) for folder in ("a", "b"))
    assert one == two


def test_the_code_of_ones_own_agent_decides_too(tmp_path: Path) -> None:
    print_ = fingerprint(Echo(None), facts(tmp_path), model="m", decoding={})
    assert print_["own_code"] == {f"{Echo.__module__}.Echo": prints.file_hash(__file__)}


@pytest.mark.usefixtures("forgotten_parts")
def test_the_code_of_ones_own_scoring_rule_decides_too(tmp_path: Path) -> None:
    env = facts(tmp_path)
    found = []
    for number, worth in enumerate((1.0, 0.5)):
        rule = tmp_path / f"{number}" / "rule.py"
        rule.parent.mkdir()
        rule.write_text(
            "from memfactory.common.registry import SCORER_REGISTRY\n"
            f"@SCORER_REGISTRY.register('mine{number}')\ndef mine(text, golds):\n    return {worth}\n"
        )
        import_plugins([str(rule)])
        own = LongcontextEnv(str(env.data_path), reward=f"mine{number}")
        print_ = fingerprint(Echo(None), own, model="m", decoding={})
        found.append(print_["own_code"])
    assert found[0] != found[1]


@pytest.mark.usefixtures("forgotten_parts")
def test_what_ones_own_rule_imports_from_beside_it_decides_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "worths_of_rule.py").write_text("from words_of_rule import WORD\nWORTH = 1.0\n")
    (tmp_path / "words_of_rule.py").write_text("WORD = 'a'\n")
    (tmp_path / "beside.py").write_text("WORD = 'not imported'\n")
    (tmp_path / "rule_with_words.py").write_text(
        "from memfactory.common.registry import SCORER_REGISTRY\nfrom worths_of_rule import WORTH\n"
        "@SCORER_REGISTRY.register('worth')\ndef worth(text, golds):\n    return WORTH\n"
    )
    import_plugins([str(tmp_path / "rule_with_words.py")])

    def own_code() -> dict:
        return fingerprint(Echo(None), facts(tmp_path), model="m", decoding={})["own_code"]

    before = own_code()
    (tmp_path / "beside.py").write_text("WORD = 'still not'\n")
    assert own_code() == before
    (tmp_path / "words_of_rule.py").write_text("WORD = 'b'\n")
    assert own_code() != before


def _second_file(folder: Path, kind: str) -> tuple[Callable[[], dict], Path, str, str]:
    """(a fingerprint, a file that it must depend on, the file's content before and after)."""
    wiki = [{"_id": "h", "question": "Where?", "answer": "New York", "answer_id": "Q1", "context": [["A", ["New York."]]]}]
    write_json(folder / "wiki.json", wiki)
    names = '{{"Q_id": "Q1", "aliases": ["{}"], "demonyms": []}}'
    if kind == "beside the data":
        env = {"task": "2wiki"}
        return (lambda: _printed(folder, env)), folder / "id_aliases.json", names.format("NYC"), names.format("Big Apple")
    if kind == "by an option":
        env = {"task": "2wiki", "options": {"aliases": str(folder / "names.json")}}
        return (lambda: _printed(folder, env)), folder / "names.json", names.format("NYC"), names.format("Big Apple")
    if kind == "that nothing came of":  # named by an option, so it is looked at, whatever is made of it
        env = {"task": "2wiki", "options": {"aliases": str(folder / "names.json")}}
        return (lambda: _printed(folder, env)), folder / "names.json", names.format("NYC"), names.format("NYC") + "\n"
    agent = {"agent": "memagent", "agent_options": {"module": {"type": str(folder / "notes.txt")}}}
    return (lambda: {"agent": prints._read(agent)}), folder / "notes.txt", "one", "two"


def _printed(folder: Path, env: dict[str, Any]) -> dict:
    return fingerprint(Echo(None), TaskEnv(str(folder / "wiki.json"), None, **env), model="m", decoding={})


@pytest.mark.parametrize("kind", ["beside the data", "by an option", "that nothing came of", "of an agent's slot"])
def test_every_file_that_was_read_decides(tmp_path: Path, kind: str) -> None:
    made, file, before, after = _second_file(tmp_path, kind)
    file.write_text(before)
    first = made()
    assert made() == first
    file.write_text(after)
    assert ledgers.differences(first, made())


def test_known_label_errors_decide_nothing_and_the_date_that_a_prompt_shows_does(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "wiki.json", [{"_id": "h", "question": "Where?", "answer": "Delft", "context": [["A", ["Delft."]]]}])
    write_json(tmp_path / "errors.json", [{"question_id": "h", "error_type": "WRONG"}])
    plain, masked = (_printed(tmp_path, {"task": "2wiki"} | more) for more in ({}, {"mask": str(tmp_path / "errors.json")}))
    assert plain == masked
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    printed = []
    for date in (datetime(2025, 1, 1), datetime(2031, 1, 1)):
        monkeypatch.setattr("memfactory.engines.template.today", lambda date=date: date)
        printed.append(fingerprint(MemoryAgent(tokenizer, "cpu"), facts(tmp_path), model="m", decoding={}))
    assert [name.split(":")[0] for name in ledgers.differences(*printed)] == ["rendered"]


def test_a_models_hash_is_of_its_weights_and_tokenizer_and_not_of_notes_beside_them(
    tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_qwen3().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    first = model_hash(str(tmp_path))
    (tmp_path / "trainer_state").mkdir()
    (tmp_path / "trainer_state" / "tensors-00001.safetensors").write_bytes(b"state")
    (tmp_path / "README.md").write_text("notes")
    write_json(tmp_path / "memfactory.json", {})
    assert model_hash(str(tmp_path)) == first
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert model_hash(str(tmp_path / "moved")) == first
    template = next(tmp_path.glob("chat_template*"))
    text = template.read_text(encoding="utf-8")
    template.write_text(text + " ", encoding="utf-8")
    assert model_hash(str(tmp_path)) != first
    template.write_text(text, encoding="utf-8")
    tiny_qwen3(seed=1).save_pretrained(tmp_path)
    assert model_hash(str(tmp_path)) != first
    assert model_hash("owner/name") == "owner/name"


def test_a_models_hash_covers_the_end_tokens_of_its_generation_config(tmp_path: Path, tiny_qwen3: Callable[..., Qwen3ForCausalLM]) -> None:
    tiny_qwen3().save_pretrained(tmp_path)
    first = model_hash(str(tmp_path))
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [0, 5]})
    assert model_hash(str(tmp_path)) != first


# What a kill leaves, in a process of its own

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from memfactory.evaluation.ledger import Attempt, Ledger, read_attempts
folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(3)
for _ in range(kills):
    child = os.fork()
    if child == 0:
        with Ledger(folder, {"seed": 0}) as ledger:
            number = len(ledger.attempts())
            while True:
                ledger.append([Attempt("e", "sampled", number + at, "ok", 1.0, answers=["x" * rng.randrange(20000)]) for at in range(3)])
                number += 3
    time.sleep(rng.uniform(0.0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (folder / "attempts.jsonl").exists():
        numbers = [attempt.number for attempt in read_attempts(folder)]
        assert numbers == list(range(len(numbers))), numbers
print(len(numbers))
"""


@pytest.mark.slow
def test_thirty_kills_while_writing_lose_nothing_that_was_on_the_disk(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "30"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 30


def test_every_attempt_of_a_ledger_can_be_told_to_a_person(tmp_path: Path) -> None:
    from memfactory.evaluation.transcript import transcript

    told = transcript(
        {"question": "city alice ?", "answers": ["paris", "Paris"]},
        replace(attempt(answers=["\\boxed{rome}"], report={"b": 2, "a": 1}, steps=[["e1", "m1"]]), error="down"), None,
    )  # fmt: skip
    for line in ("Question: city alice ?", "Gold: paris | Paris", "[1] reads:  e1", "memory: m1", "\\boxed{rome}", "Reward: none"):
        assert line in told
    assert "Report: a 1, b 2" in told and "Lost to infrastructure: down" in told
    assert transcript({"question": "q"}, Trajectory(answers=["x"]), 0.5).endswith("Reward: 0.5")
