"""What was written is not written again: lost answers are only asked anew, and another reader answers from the same frozen memories."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.errors import ConfigError, DataError, MissingFileError, ServerTimeout
from memfactory.common.files import read_json, write_json
from memfactory.common.types import Messages, Sampling, Turn
from memfactory.data.generators.bank_player import rule_player
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.chat import Models
from memfactory.evaluation import jobs as jobs_module
from memfactory.evaluation.compare import compare
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.fingerprint import write_fingerprint
from memfactory.evaluation.harness import Scores
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.ledger import read_attempts
from memfactory.evaluation.memories import pack, read_memories, unpacked
from memfactory.evaluation.replay import origin_of, replay_notes
from memfactory.memory.bank import MemoryBank
from memfactory.memory.items import MemoryOp

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny-bank"
WRITES = {"extraction", "update"}


class Chance:
    """Plays Memory-R1 by rules that a request's own random stream chooses among, and fails as it is told."""

    def __init__(self, fails: Callable[[Chance, str], Exception | None] = lambda *_: None) -> None:
        self.fails, self.asked = fails, list[str]()

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        self.asked.append(stage)
        if error := self.fails(self, stage):
            raise error
        drawn = hashlib.sha256(repr((sampling.stream, sampling.temperature)).encode()).digest()[0]
        text = rule_player("oracle" if drawn % 3 else "never delete")(messages, stage)
        text = "**Answer:** unknown" if stage == "answer" and drawn % 5 == 0 else text
        return Turn(stage, (), (), (), text, "stop", trainable=False, usage=(len(messages[0]["content"]), len(text)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """`run(folder, chat, **changes)`: Memory-R1 on six dialogues, one greedy and two sampled attempts at each."""
    write_json(tmp_path / "talks.json", list(synth_dialog(6, seed=5, rendering="triples")))
    monkeypatch.setattr(jobs_module, "check_no_leak", lambda *_: None)

    def go(folder: str, chat: Chance, **changes: Any) -> Scores:
        monkeypatch.setattr(jobs_module, "models_of", lambda *_: Models({"policy": chat}))
        job = Job(
            "tiny", str(MODEL), "talks", str(tmp_path / "talks.json"), str(tmp_path / folder), "memory_r1_agent", {"style": "lines"},
            "memory_bank", k=2, device="cpu",
        )  # fmt: skip
        return run_job(replace(job, **changes))

    return go


def lines(folder: Path) -> dict[Any, Any]:
    """The last line of every attempt that ended, without its times."""
    attempts = read_attempts(folder)
    for measures in (m for a in attempts for stages in getattr(a, "cost", {}).values() for m in stages.values()):
        del measures[3:]  # seconds
    return {attempt.key: replace(attempt, finished=0.0) for attempt in attempts}


# Kept and taken up


@pytest.mark.slow
def test_a_server_that_is_down_for_answers_costs_no_memory(run: Any, tmp_path: Path) -> None:
    whole, down, up = Chance(), Chance(lambda _, stage: ServerTimeout("gone") if stage == "answer" else None), Chance()
    run("whole", whole)
    run("lost", down)
    assert {attempt.status for attempt in lines(tmp_path / "lost").values()} == {"failed"}
    kept = (tmp_path / "lost" / "memories.jsonl").read_bytes()
    run("lost", up)
    assert set(up.asked) == {"answer"} and set(down.asked) >= WRITES
    assert lines(tmp_path / "lost") == lines(tmp_path / "whole")
    assert len({str(line.memory) for line in read_memories(tmp_path / "whole")}) > 6, "attempts differ, so that mixing them up would show"
    assert (tmp_path / "lost" / "memories.jsonl").read_bytes() == kept
    assert (tmp_path / "lost" / "examples.txt").read_text() == (tmp_path / "whole" / "examples.txt").read_text()


def test_an_end_in_the_middle_writes_each_memory_once(run: Any, tmp_path: Path) -> None:
    def dies(chat: Chance, stage: str) -> Exception | None:
        return RuntimeError("the end") if stage == "answer" and len(chat.asked) > 40 else None

    whole, before, after = Chance(), Chance(dies), Chance()
    run("whole", whole)
    with pytest.raises(RuntimeError, match="the end"):
        run("cut", before)
    held = {line.key for line in read_memories(tmp_path / "cut")}
    with (tmp_path / "cut" / "memories.jsonl").open("ab") as file:
        file.write(b'{"example": "torn')
    run("cut", after)
    written = [line.key for line in read_memories(tmp_path / "cut")]
    assert held and len(written) == len(set(written)) == 18 and set(written[: len(held)]) == held
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_line_says_what_was_written_and_what_it_cost(run: Any, tmp_path: Path) -> None:
    run("a", Chance())
    for line in read_memories(tmp_path / "a"):
        attempt = lines(tmp_path / "a")[line.key]
        assert str(unpacked(line.form, line.memory)) == attempt.memory and {turn["stage"] for turn in line.turns} == WRITES
        assert attempt.turns == len(line.turns) + len(attempt.answers) and line.outputs.keys() == WRITES
        assert all(attempt.report[name] >= count >= 0 for name, count in line.report.items())
        assert bool(line.steps) == bool(attempt.steps) and line.events > 0


def test_a_memory_that_was_tampered_with_is_refused_by_its_line(run: Any, tmp_path: Path) -> None:
    run("a", Chance(), limit=1)
    path = tmp_path / "a" / "memories.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    row = json.loads(first)
    row["memory"]["items"][0]["text"] = "city alice mars ."
    path.write_text(json.dumps(row) + "\n" + "".join(rest))
    with pytest.raises(DataError, match="line 1: the memory is not the one that was written"):
        run("a", Chance(), limit=1)
    path.write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not as it was written"):
        run("a", Chance(), limit=1)


EDITED = MemoryBank.of(["a", "b"]).apply([MemoryOp("DEL", "0"), MemoryOp("UPDATE", "1", "c")], when="May", source="s").bank


@pytest.mark.parametrize("memory", [EDITED, MemoryBank(), "", "half \ud83d of a pair", {"a": [1, 2.5, None]}, [True, "é"], 0])
def test_a_memory_that_is_kept_is_the_same_again(memory: Any) -> None:
    packed = pack(memory)
    assert packed is not None
    again = unpacked(*json.loads(json.dumps(packed)))
    assert again == memory and type(again) is type(memory)


@pytest.mark.parametrize("memory", [None, (1, 2), {1: "a"}, {"a": {1}}, float("nan"), object()])
def test_what_would_not_be_the_same_again_is_not_kept(memory: Any) -> None:
    assert pack(memory) is None


# What decides a memory


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"agent_options": {"answer_from": 3}}, True),
        ({"agent_options": {"answerer": {"type": "answerer", "max_tokens": 9}}}, True),
        ({"roles": {"answer": "api:x"}}, True),
        ({"roles": {"extraction": "api:x", "update": "api:x"}}, False),
        ({"roles": {"answer": "api:x", "rerank": "api:x"}, "agent_options": {"retriever": "rerank_retriever"}}, True),
        ({"roles": {"rerank": "api:x"}, "agent_options": {"finder": "rerank_retriever", "retriever": "rerank_retriever"}}, False),
        ({"agent_options": {"near": 3}}, False),
        ({"agent_options": {"updater": {"max_tokens": 9}}}, False),
        ({"model": "another"}, False),
        ({"seed": 1}, False),
        ({"code": "changed"}, False),
    ],
)
def test_what_only_answering_uses_decides_no_memory(changes: dict[str, Any], same: bool) -> None:
    def printed(agent_options: dict[str, Any] | None = None, roles: dict[str, str] | None = None, seed: int = 0, **more: Any) -> str:
        agent = MemoryR1Agent(None, "cpu", **(agent_options or {}))  # type: ignore[arg-type]
        whole = {"data": {}, "model": "m", "agent": agent.describe(), "prompts": "p", "code": "c", "own_code": {}}
        decoding = {"seed": seed, "roles": roles or {}, "reference": None}
        return write_fingerprint(agent, whole | {"decoding": decoding} | more)

    assert (printed(**changes) == printed()) is same


# Replayed


def test_another_reader_answers_from_the_same_memories_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    run("a", Chance())
    reader = Chance()
    run("b", reader, memories=str(tmp_path / "a"), agent_options={"style": "lines", "answer_from": 1}, model_name="one")
    assert set(reader.asked) == {"answer"} and not (tmp_path / "b" / "memories.jsonl").exists()
    own, others = lines(tmp_path / "a"), lines(tmp_path / "b")
    for line in read_memories(tmp_path / "a"):
        attempt = others[line.key]
        assert attempt.replayed == line.sha256 and attempt.memory == own[line.key].memory and own[line.key].replayed == ""
        assert attempt.turns == len(attempt.answers) and 0 < attempt.prompt_tokens < own[line.key].prompt_tokens
    assert any(others[key].answers != own[key].answers for key in own)
    about = read_json(tmp_path / "b" / "fingerprint.json")["memories"]
    assert about["agent"] == "memory_r1_agent" and {line.write for line in read_memories(tmp_path / "a")} == {about["write"]}
    rows, notes = compare(tmp_path / "a", tmp_path / "b")
    assert rows[0]["n"] == 6 and any("agent.answer_from: 8 -> 1" in note for note in notes)
    assert not any("memories" in note for note in notes), "both answered from the same"
    (note,) = replay_notes([tmp_path / "a", tmp_path / "b"])
    assert note.startswith("one on talks answers from the memories in") and about["sha256"] in note


@pytest.mark.slow
def test_the_same_reader_has_the_same_scores_again_whatever_they_count(run: Any, tmp_path: Path) -> None:
    run("a", Chance(), env_options={"weights": {"outcome": 1.0, "malformed": -0.5, "operations": 0.1}})
    run("b", Chance(), env_options={"weights": {"outcome": 1.0, "malformed": -0.5, "operations": 0.1}}, memories=str(tmp_path / "a"))
    costs = {"turns": 0, "prompt_tokens": 0, "completion_tokens": 0, "replayed": "", "cost": {}}
    own, again = ({key: replace(line, **costs) for key, line in lines(tmp_path / name).items()} for name in "ab")
    assert again == own


def test_a_replay_goes_on_and_knows_when_the_memories_are_others(run: Any, tmp_path: Path) -> None:
    run("a", Chance())
    run("b", Chance(), memories=str(tmp_path / "a"), limit=2)
    more = Chance()
    run("b", more, memories=str(tmp_path / "a"))
    assert len(lines(tmp_path / "b")) == 18 and set(more.asked) == {"answer"}
    run("c", Chance(), seed=1)
    with pytest.raises(ConfigError, match=r"memories\.sha256: '[0-9a-f]{16}' -> '[0-9a-f]{16}'"):
        run("b", Chance(), memories=str(tmp_path / "c"))
    with pytest.raises(ConfigError, match=r"memories: None -> "):
        run("a", Chance(), memories=str(tmp_path / "c"))
    _, notes = compare(tmp_path / "b", tmp_path / "c")
    assert any("memories" in note for note in notes)


def test_what_cannot_be_replayed_says_what_differs(run: Any, tmp_path: Path) -> None:
    run("a", Chance(), limit=2, k=1)
    a = str(tmp_path / "a")
    write_json(tmp_path / "other.json", list(synth_dialog(6, seed=6, rendering="triples")))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data_path": str(tmp_path / "other.json")}, r"of other data: data\.sha256: '\w+' -> '\w+'"),
        ({"k": 1}, "no memory of .*, greedy 0, nor of any attempt at it; or evaluate it there first"),
        ({"k": 3, "limit": 2}, "no memory of .*, sampled 1, only of its attempts greedy 0, sampled 0: give --k accordingly"),
        ({"agent": "memagent", "agent_options": {}}, "MemoryAgent reads with the question in hand .* nothing to replay"),
        ({"at": "a"}, "is where the answers are to go. Give another --output_dir"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            run(changes.pop("at", "b"), Chance(), memories=a, **changes)
    assert not (tmp_path / "b" / "attempts.jsonl").exists() or not lines(tmp_path / "b")
    about = read_json(tmp_path / "a" / "fingerprint.json")
    for name, says in (("memagent", "writes with the question in hand: such a memory"), ("own", "holds no memories.jsonl")):
        write_json(tmp_path / "none" / "fingerprint.json", about | {"agent": {"type": name}})
        with pytest.raises(ConfigError, match=says):
            run("b", Chance(), memories=str(tmp_path / "none"))


def test_what_was_told_otherwise_is_not_what_was_written(run: Any, tmp_path: Path) -> None:
    task = {"task": "synth_dialog", "session_words": 0}
    run("a", Chance(), env="task", env_options=task, limit=1, k=0)
    with pytest.raises(ConfigError, match=r"on something else than is told here: env\.session_words: 0 -> 4"):
        run("b", Chance(), env="task", env_options=task | {"session_words": 4}, limit=1, k=0, memories=str(tmp_path / "a"))


def test_a_folder_means_the_memories_of_the_same_model_and_data_set(tmp_path: Path) -> None:
    for model in ("m", "n"):
        for dataset in ("d", "e"):
            write_json(tmp_path / "out" / model / dataset / "job.json", {"model_name": model, "dataset": dataset, "memories": ""})
    write_json(tmp_path / "again" / "x" / "d" / "job.json", {"model_name": "x", "dataset": "d", "memories": "out/m/d"})
    out = tmp_path / "out"
    assert origin_of("", "m", "d") == ""
    assert origin_of(str(out), "n", "d") == str(out / "n" / "d") == origin_of(str(out / "n"), "m", "d")
    assert origin_of(str(out / "m" / "e"), "n", "d") == str(out / "m" / "e"), "what was named is taken; its data are compared"
    assert origin_of(str(tmp_path / "again"), "m", "d") == "out/m/d"
    with pytest.raises(ConfigError, match="several wrote on d. Name one of .*m/d, .*n/d"):
        origin_of(str(out), "other", "d")
    with pytest.raises(ConfigError, match="has nothing on f; it has d, e"):
        origin_of(str(out / "m"), "m", "f")
    with pytest.raises(MissingFileError, match="no evaluated data set there"):
        origin_of(str(tmp_path / "absent"), "m", "d")
    (job,), _ = jobs_of(EvalConfig(models=[f"n={MODEL}"], datasets=[f"d={ROOT / 'datas' / 'tiny' / 'eval.json'}"], memories=str(out)))
    assert job.memories == str(out / "n" / "d")


# Killed


KILLED = """
import os, signal, sys, time
from pathlib import Path
from memfactory.evaluation.jobs import Job, run_job
model, data, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
def start(folder):
    child = os.fork()
    if child == 0:
        try:
            run_job(Job("tiny", model, "talks", data, str(folder), "", {}, "memory_bank", k=1, slots=8, threads=1, device="cpu"))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(77)
        os._exit(0)
    return child
assert os.waitpid(start(work / "whole"), 0)[1] == 0
path, lines = work / "killed" / "memories.jsonl", 0
for aim in (1, 4):
    child = start(work / "killed")
    while not path.exists() or path.read_bytes().count(b"\\n") < aim:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "ended before it was killed"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert os.waitpid(start(work / "killed"), 0)[1] == 0
"""


@pytest.mark.slow
def test_a_real_model_killed_between_writing_and_answering_writes_nothing_twice(tmp_path: Path) -> None:
    write_json(tmp_path / "talks.json", list(synth_dialog(4, seed=5, rendering="triples")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(MODEL), str(tmp_path / "talks.json"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    written = [line.key for line in read_memories(tmp_path / "killed")]
    assert len(written) == len(set(written)) == 8
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    memories = [{line.key: line.sha256 for line in read_memories(tmp_path / name)} for name in ("killed", "whole")]
    assert memories[0] == memories[1]
