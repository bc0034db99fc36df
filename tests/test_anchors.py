"""Promise: anchors use their agent's reader and prompt, the oracle alone sees evidence, and what does not fit is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tasks_helpers import file_of, scripted

from memfactory.agents.anchors import KINDS, OracleAnchor, OracleView, beside
from memfactory.agents.base import BaseAgent
from memfactory.common.errors import ConfigError, DataError, UnknownNameError
from memfactory.common.files import read_json, write_json
from memfactory.common.flags import parse_flags
from memfactory.common.registry import AGENT_REGISTRY
from memfactory.common.types import Messages, Sampling, View
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.evaluation.anchors import anchor_notes
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.harness import Scores, evaluate
from memfactory.evaluation.jobs import Job, agent_of, run_job
from memfactory.evaluation.leak import check_no_leak, view_of
from memfactory.evaluation.ledger import Attempt, Ledger
from memfactory.evaluation.orchestrator import report_jobs
from memfactory.evaluation.report import markdown, summary
from memfactory.evaluation.retrieval import found_in, retrieval_rows
from memfactory.evaluation.tasks.env import TaskEnv
from memfactory.evaluation.worker import LEFT_OUT
from memfactory.evaluation.worker import main as work
from memfactory.memory.bm25 import BM25Index
from memfactory.memory.items import MemoryItem

ROOT = Path(__file__).resolve().parent.parent
DATA, MODEL = str(ROOT / "datas" / "tiny_bank" / "eval.json"), str(ROOT / "models" / "tiny-bank")
BANK = {"style": "lines", "answer_from": 8}
RAW = {**BANK, "extractor": "verbatim_extractor", "updater": "append_updater"}


def anchor(kind: str, agent: str = "memory_r1_agent", tokenizer: Any = None, options: Any = BANK, **own: Any) -> BaseAgent:
    key, given = beside(kind, agent, options, own)
    return AGENT_REGISTRY.get(key)(tokenizer, "cpu", **given)


def rule(messages: Messages, stage: str) -> str:
    """Reads one hop after the other from `relation person value .`, later lines over earlier; `and` adds."""
    memories, asked = re.findall(r"<(?:memories|question)>\n(.*?)\n</", messages[0]["content"], re.DOTALL)
    known: dict[tuple[str, str], str] = {}
    for fact in memories.removesuffix(" .").split(" . "):
        relation, person, *value = [*fact.split(), "", ""][: max(2, len(fact.split()))]
        added = bool(value) and value[0] == "and" and (relation, person) in known
        known[relation, person] = " ".join([known[relation, person], *value] if added else value)
    *relations, answer = asked.split()[:-1]
    for relation in reversed(relations):
        answer = known.get((relation, answer), "unknown")
    return f"**Answer:** {answer}"


def scored(kind: str, env: TaskEnv, **own: Any) -> Scores:
    return evaluate(anchor(kind, **own), Models({"policy": ScriptedChat(rule)}), env, name="d", k=0)


def test_more_of_what_matters_gives_more() -> None:
    env = TaskEnv(DATA, None, task="synth_dialog", limit=30, types=("plain", "updated", "additive", "multi_hop", "cascading"))
    of = {kind: scored(kind, env, k=4).greedy_mean.value for kind in KINDS}
    assert of["oracle"] >= max(of["bm25"], of["dense"]) > of["last_k"] > of["empty"] == of["abstain"] == 0
    assert of["oracle"] >= of["full"] > of["last_k"] and of["oracle"] > 0.6


@pytest.mark.parametrize("form", ["free", "choice"])
def test_always_to_abstain_gets_exactly_the_share_of_abstentions_and_asks_no_model(tmp_path: Path, form: str) -> None:
    (job,) = [job for job in jobs_of(config(tmp_path, "abstain", form=form))[0] if job.anchor]
    scores = run_job(job)
    assert scores.about["overall"] == scores.about["abstention_precision"] == 4 / 14 and scores.about["abstention_recall"] == 1
    assert scores.greedy_mean.value == 0 and all(attempt.turns == 0 for attempt in scores.attempts.values())


def config(tmp_path: Path, *kinds: str, form: str = "free", **more: Any) -> EvalConfig:
    path, options = file_of(tmp_path, "locomo"), f'{{"adversarial": "{form}"}}'
    return EvalConfig([MODEL], tasks=[f"locomo={path}"], task_options=options, k=0, anchors=list(kinds), output_dir=str(tmp_path), **more)


# The same reader and the same prompt


def prompts_of(agent: BaseAgent, view: View) -> list[str]:
    chat = ScriptedChat(lambda *_: "**Answer:** x")
    (trajectory,) = agent.inference([view], Models({"policy": chat}))
    assert trajectory.error is None
    return [messages[0]["content"] for _, messages in chat.asked]


def test_an_anchor_asks_as_its_agent_does() -> None:
    items = [MemoryItem("0", "city ann rome"), MemoryItem("1", "pet bob dog")]
    event = {"date": "day 1", "turns": [{"id": str(at), "speaker": "ann", "text": f"{item.text} ."} for at, item in enumerate(items)]}
    view = View("e", ("city ann ?",), events=(event,))
    own = prompts_of(AGENT_REGISTRY.get("memory_r1_agent")(None, "cpu", **RAW), view)
    assert own == prompts_of(anchor("full"), view) != prompts_of(anchor("empty"), view)
    assert "<memories>\ncity ann rome . pet bob dog .\n</memories>" in own[0]
    assert "- [day 1] ann: city ann rome ." in prompts_of(anchor("full", options={}), view)[0]
    assert "0: ann: city ann rome ." in prompts_of(anchor("full", "memory_rmm_agent", options={}), view)[0]  # its cited prompt
    assert "<memory>\n[day 1] ann: pet bob dog .\n</memory>" in prompts_of(anchor("last_k", "memagent", options={}, k=1), view)[0]


def test_memagents_reader_gets_the_text_in_the_memorys_place() -> None:
    documents = View("e", ("Where is Ben?",), "Document 1:\nAnn\nAnn is here.\n\nDocument 2:\nBen\nBen is there.")
    (found,) = prompts_of(anchor("bm25", "memagent", options={}, k=1), documents)
    assert "<memory>\nBen\nBen is there.\n</memory>" in found and "boxed" in found
    (near,) = prompts_of(anchor("dense", "memagent", options={}, k=1), View("e", ("pet bob ?",), "city alice paris . pet bob dog ."))
    assert "<memory>\npet bob dog .\n</memory>" in near
    (empty,) = prompts_of(anchor("empty", "memagent", options={}), documents)
    assert "<memory>\nNo previous memory\n</memory>" in empty


def test_an_agent_without_read_items_has_no_anchors() -> None:
    class Own(BaseAgent):
        def initial(self, view: View) -> str:
            return ""

        async def write(self, model: Any, memory: Any, event: Any, question: str | None = None) -> str:
            return ""

        async def read(self, model: Any, memory: Any, question: str) -> str:
            return ""

    session = Models({}).session(sampling=Sampling(0), stream=(0,), training=False)
    with pytest.raises(ConfigError, match="read_items"):
        asyncio.run(Own(None, "cpu").read_items(session, [], "?"))
    with pytest.raises(ConfigError, match="at least 1"):
        anchor("bm25", k=0)


@pytest.mark.parametrize("limit", [90, 100, 110, 1000])
def test_a_full_context_that_does_not_fit_loses_its_beginning_and_says_so(tiny_tokenizer: Any, limit: int) -> None:
    turns = [{"id": str(at), "speaker": "ann", "text": f"city alice {'paris ' * (at % 3 + 1)}."} for at in range(30)]
    view = View("e", ("city alice ?",), events=({"date": "", "turns": turns},))
    agent = anchor("full", tokenizer=tiny_tokenizer, max_prompt_length=limit)
    chat = ScriptedChat(lambda *_: "x")
    (trajectory,) = agent.inference([view], Models({"policy": chat}))

    def length(messages: Messages) -> int:
        return len(tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, enable_thinking=False))

    ((_, sent),) = chat.asked
    dropped = trajectory.report["items_that_did_not_fit"]
    kept = [item.text for item in agent.initial(view).with_event(view.events[0], "lines").items[dropped:]]
    assert length(sent) <= limit and " . ".join(kept) in sent[0]["content"] and (dropped > 0) is (limit < 1000)
    if dropped:
        (whole,) = prompts_of(anchor("full"), replace(view, events=({"date": "", "turns": turns[dropped - 1 :]},)))
        assert length([{"role": "user", "content": whole}]) > limit  # one more would not have fitted
        attempt = Attempt("e", "greedy", 0, "ok", 0.0, report=trajectory.report, answers=["x"])
        (note,) = anchor_notes("m + full", Scores("d", ["e"], [[]], [[0.0]], {attempt.key: attempt}))
        assert note.startswith(f"m + full on d: 1 of 1 prompts were too long for the model; {dropped}.0 items")


# Gold


def test_only_the_oracle_is_shown_evidence(tmp_path: Path) -> None:
    env = TaskEnv(str(file_of(tmp_path, "locomo")), None, task="locomo")
    oracle = anchor("oracle")
    shown = view_of(oracle, env, env[0])
    assert isinstance(shown, OracleView) and shown.evidence[0] == ("D1:1",)
    subclass = type("Mine", (OracleAnchor,), {})(None, "cpu")
    for agent in [subclass, scripted(lambda *_: ""), *(anchor(kind) for kind in KINDS if kind != "oracle")]:
        assert type(view_of(agent, env, env[0])) is View
        check_no_leak(agent, env)
    check_no_leak(oracle, env)


def test_the_leak_check_holds_for_all_other_gold_and_for_all_other_agents(tmp_path: Path) -> None:
    class Leaks(TaskEnv):
        def observe(self, example: dict[str, Any]) -> View:
            told = {"date": "", "turns": [{"id": "x", "speaker": "a", "text": str(example["asked"][0][self.what])}]}
            return replace(super().observe(example), events=(told,))

        what = "answers"

    env = Leaks(str(file_of(tmp_path, "locomo")), None, task="locomo")
    for what in ("answers", "evidence"):
        env.what = what
        for kind in ("oracle", "full"):
            with pytest.raises(DataError, match="shows gold"):
                check_no_leak(anchor(kind), env)


def test_without_evidence_there_is_no_oracle_which_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [f"synth_facts={file_of(tmp_path, 'synth_facts')}"]
    jobs, _ = jobs_of(EvalConfig([str(ROOT / "models" / "tiny")], tasks=tasks, anchors=["oracle"], output_dir=str(tmp_path / "out"), k=0))
    write_json(tmp_path / "asked.json", {name: getattr(jobs[1], name) for name in jobs[1].__dataclass_fields__})
    with caplog.at_level("INFO"):
        assert work([str(tmp_path / "asked.json")]) == LEFT_OUT
    assert "names no evidence" in caplog.text and not (tmp_path / "out").exists()


# Jobs, tables and the ledger


def test_anchors_are_further_jobs_behind_their_model(tmp_path: Path) -> None:
    parsed, _ = parse_flags(EvalConfig, ["--anchors", "--k", "0"], "memfactory eval")
    assert parsed.anchors == list(KINDS) and parse_flags(EvalConfig, [], "memfactory eval")[0].anchors == []
    assert parse_flags(EvalConfig, ["--anchors", "bm25", "empty"], "memfactory eval")[0].anchors == ["empty", "bm25"]
    with pytest.raises(UnknownNameError, match="bm25"):
        EvalConfig(anchors=["bm52"])
    jobs, _ = jobs_of(config(tmp_path, "bm25", "oracle", anchor_k=3, roles='{"answer": "policy"}'))
    assert [(job.model_name, job.anchor, job.anchor_of) for job in jobs] == [
        ("tiny-bank", "", ""), ("tiny-bank + bm25", "bm25", "tiny-bank"), ("tiny-bank + oracle", "oracle", "tiny-bank"),
    ]  # fmt: skip
    assert jobs[1].folder == str(tmp_path / "tiny-bank+bm25" / "locomo")
    key, options = agent_of(jobs[1])
    assert key == "anchor_bm25" and options["agent"] == "memory_r1_agent" and options["agent_options"]["style"] == "lines"
    assert (options["k"], options["max_prompt_length"]) == (3, 4096 - 48)
    assert agent_of(replace(jobs[1], anchor_options={}))[1].get("k") is None and agent_of(jobs[0])[0] == "memory_r1_agent"
    assert AGENT_REGISTRY.get(key)(None, "cpu", **{**options, "k": None}).k == 8  # as many as the agent answers from
    taken = EvalConfig([MODEL, f"tiny-bank + bm25={MODEL}"], tasks=[f"locomo={tmp_path}/locomo.json"], anchors=["bm25"])
    with pytest.raises(ConfigError, match="what an anchor is called"):
        jobs_of(taken)


def test_tables_group_anchors_under_their_model_and_pair_them_with_it() -> None:
    def of(value: float) -> dict[str, Scores]:
        return {"d": Scores("d", ["a", "b"], [[], []], [[value], [1.0]])}

    scores = {"m": of(1.0), "m + empty": of(0.0), "n": of(0.0), "n + empty": of(0.0)}
    results, paired = summary(scores, {"n + empty": ("n", "empty"), "m + empty": ("m", "empty")})
    assert [(row["model"], row.get("anchor"), row.get("of")) for row in results] == [
        ("m", None, None), ("m + empty", "empty", "m"), ("n", None, None), ("n + empty", "empty", "n"),
    ]  # fmt: skip
    assert {(row["base"], row["model"]) for row in paired} == {("m", "m + empty"), ("m", "n"), ("n", "n + empty")}
    assert "|   + empty |" in markdown(results, paired)


def test_the_ledger_says_what_was_retrieved(tmp_path: Path) -> None:
    env = TaskEnv(DATA, None, task="synth_dialog", limit=12)
    with Ledger(tmp_path) as ledger:
        evaluate(anchor("bm25", k=3), Models({"policy": ScriptedChat(rule)}), env, name="d", k=0, ledger=ledger)
    write_json(tmp_path / "questions.json", env.questions())
    assert {row["level"] for row in retrieval_rows("d", "m", found_in(tmp_path))} == {"session", "turn"}
    with Ledger(tmp_path / "agent") as ledger:  # a bank of rewritten facts is known by dates; one that fits is in no order
        agent = AGENT_REGISTRY.get("memory_r1_agent")(
            None, "cpu", **{**BANK, "extractor": "verbatim_extractor", "updater": "append_updater"}
        )
        evaluate(agent, Models({"policy": ScriptedChat(rule)}), env, name="d", k=0, ledger=ledger)
    write_json(tmp_path / "agent" / "questions.json", env.questions())
    rows = retrieval_rows("d", "m", found_in(tmp_path / "agent"))
    assert {row["level"] for row in rows} == {"session"} and rows[-1]["k"] == 8 and rows[-1]["ndcg"] is not None


def test_bm25_ranks_by_rare_words_and_keeps_the_order_of_equals() -> None:
    index = BM25Index(["the cat sat", "a dog and a cat", "the dog", "nothing here"])
    assert index.rank("Where is the dog?")[:2] == [2, 1] and index.rank("cat?")[:2] == [0, 1]
    assert index.rank("zebra") == index.rank("") == [0, 1, 2, 3]
    assert BM25Index([]).rank("x") == [] and BM25Index(["", "!"]).rank("x") == [0, 1] and BM25Index(["", "x"]).rank("x") == [1, 0]


@pytest.mark.slow
def test_the_tiny_base_end_to_end_with_all_anchors(tmp_path: Path) -> None:
    asked = EvalConfig([MODEL], tasks=[f"synth_dialog={DATA}"], limit=8, k=0, anchors=["all"], output_dir=str(tmp_path))
    scores: dict[str, Callable[..., Any] | Any] = {}
    jobs: list[Job] = []
    for job in jobs_of(asked)[0]:
        scores[job.anchor or "itself"] = run_job(job)
        jobs.append(job)
        made = read_json(Path(job.folder) / "fingerprint.json")["agent"]["type"]
        assert made == (f"anchor_{job.anchor}" if job.anchor else "memory_r1_agent")
    assert all(found.coverage == 1 for found in scores.values())
    about = scores["abstain"].about
    assert about["overall"] == about["abstention_n"] / 8
    assert scores["oracle"].greedy_mean.value >= scores["last_k"].greedy_mean.value >= scores["empty"].greedy_mean.value == 0
    assert scores["oracle"].greedy_mean.value > 0
    page = report(asked, jobs, tmp_path)
    assert ">2 models" not in page and "1 model · 7 anchors" in page
    assert page.count('title="tiny-bank + oracle"') >= 4 and 'id="sample/tiny-bank/' in page and 'id="sample/tiny-bank + oracle' not in page


def report(asked: EvalConfig, jobs: list[Job], folder: Path) -> str:
    """report.html of jobs that were run."""
    report_jobs(asked, jobs, {}, set(), Console(quiet=True))
    return (folder / "report.html").read_text(encoding="utf-8")
