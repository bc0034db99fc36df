"""RMM in the runtime: choices are read strictly, what is kept and cited is paid, and its parts go with Memory-R1's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.agents.rmm_agent import MemoryRMMAgent
from memfactory.common.config import TrainConfig
from memfactory.common.files import write_json
from memfactory.common.types import Messages, Trajectory, View
from memfactory.data.generators.bank_player import between, chooser
from memfactory.data.generators.rerank_demonstrator import lines_of, live_lines, needed
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.rerank_bank import RerankBankEnv
from memfactory.evaluation.harness import Scores, evaluate
from memfactory.memory.bank import MemoryBank
from memfactory.memory.choices import Topic, parse_choices, parse_merges, parse_topics
from memfactory.trainers.mem_grpo_trainer import MemTrainer

TINY = {
    "style": "lines", "answer_from": 4, "extractor": "verbatim_extractor", "updater": "append_updater", "answerer": "answerer",
    "retriever": {"type": "rerank_retriever", "candidates": 12},
}  # fmt: skip
Answer = Callable[[Messages, str], str]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> RerankBankEnv:
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.json"
    write_json(path, list(synth_dialog(12, seed=5, rendering="triples")))
    return RerankBankEnv(str(path))


def played(env: RerankBankEnv, answer: Answer, **options: Any) -> Scores:
    agent = MemoryRMMAgent(None, "cpu", **(TINY | options))
    return evaluate(agent, Models({"policy": ScriptedChat(answer)}), env, name="dialogues", k=0)


def outcome(scores: Scores) -> float:
    marks = [attempt.scores["default/outcome"] for attempt in scores.attempts.values()]
    return sum(marks) / len(marks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "ids", "problems"),
    [
        ("[4, 0]", (4, 0), 0), ('{"keep": ["4", 0]}', (4, 0), 0), ("```json\n[1]\n```", (1,), 0), ("[]", (), 0), ("none .", (), 0),
        ("none", (), 0),
        ("city alice 4 . pet bob 0 .", (4, 0), 0), ("city alice 4\npet bob 0", (4, 0), 0), ("<think>[1]</think>[2]", (2,), 0),
        ("[1, 1, 1, 1, 1, 1, 1, 1]", (1,), 7), ("[1, 99, -1, 2]", (1, 2), 2), ("[true, 1, null, 2.5]", (1,), 3),
        ("First [3], no: [1]", (1,), 0),
        ("city alice 4 . city alice 4 . city alice 44 .", (4,), 2), ("city alice 4 . and more words .", (4,), 1),
    ],
)  # fmt: skip
def test_choices_count_once_and_only_if_shown(text: str, ids: tuple[int, ...], problems: int) -> None:
    found = parse_choices(text, 6)
    assert (found.ids, sum(found.problems.values()), found.readable) == (ids, problems, True)


@pytest.mark.parametrize("text", ["", "I would keep them all.", "[[[", '{"keep": 3}', "<think> [1]", '["a", "b"]', "3.5 .", "null"])
def test_what_is_no_list_is_unreadable(text: str) -> None:
    assert not parse_choices(text, 6).readable


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='[]{}0123456789,. -"nonekeepcity\n', max_size=60), st.integers(0, 12))
def test_whatever_is_written_only_shown_numbers_come_out_once(text: str, shown: int) -> None:
    ids = parse_choices(text, shown).ids
    assert len(set(ids)) == len(ids) and all(0 <= number < shown for number in ids)
    for topics in parse_topics(text, shown)[0]:
        assert topics.summary and all(0 <= turn < shown for turn in topics.turns)
    merges, _ = parse_merges(text, shown)
    assert len({number for number, _ in merges}) == len(merges) and all(number < shown for number, _ in merges)


def test_reflections_and_merges_are_read_as_the_paper_writes_them() -> None:
    text = 'Here: {"extracted_memories": [{"summary": " Alice  paints ", "reference": [0, 2, 9]}, {"summary": ""}, 3]}'
    assert parse_topics(text, 3) == ([Topic("Alice paints", (0, 2))], True)
    assert parse_topics("NO_TRAIT", 3) == ([], True) and parse_topics("nothing", 3) == ([], False)
    assert parse_merges("Merge(1, Alice paints and sings)\nMerge(1, twice)\nMerge(7, who)\n", 2) == ([(1, "Alice paints and sings")], True)
    assert parse_merges("Add()", 2) == ([], True) and parse_merges("hm", 2) == ([], False)


def test_an_oracle_is_right_and_to_keep_all_is_not(env: RerankBankEnv) -> None:
    oracle, everything, nothing = (outcome(played(env, chooser(policy))) for policy in ("oracle", "all", "none"))
    assert oracle > 0.95 and everything < 0.7 and nothing < 0.4


def test_the_demonstrators_gold_is_what_is_true() -> None:
    for dialogue in synth_dialog(8, seed=5, rendering="triples"):
        live = live_lines(lines_of(dialogue))
        assert len(live) == len(dialogue["gold"]["turns"][-1]["bank"])
        assert needed(live, ("city", "nobody")) == []


@pytest.mark.parametrize("broken", ["", "I would keep them all.", "[[["])
def test_what_cannot_be_read_leaves_the_retrievers_own_and_costs(env: RerankBankEnv, broken: str) -> None:
    oracle = chooser("oracle")
    spoiled = played(env, lambda messages, stage: broken if stage == "rerank" else oracle(messages, stage))
    plain = played(env, oracle, retriever="naive_retriever")
    assert outcome(spoiled) == pytest.approx(outcome(plain))
    assert sum(attempt.report["unreadable_rerank"] for attempt in spoiled.attempts.values()) > 0
    assert spoiled.greedy_mean.value < outcome(spoiled)


def test_repeats_and_inventions_win_nothing(env: RerankBankEnv) -> None:
    """R3 of the public version: eight times the same id turned one citation into the maximum."""
    oracle = chooser("oracle")

    def padded(messages: Messages, stage: str) -> str:
        text = oracle(messages, stage)
        return f"{text} {text} city alice 99 ." if stage == "rerank" and text != "none ." else text

    honest, greedy = played(env, oracle), played(env, padded)
    assert greedy.greedy_mean.value == pytest.approx(honest.greedy_mean.value)
    assert sum(attempt.report["rejected_choices"] for attempt in greedy.attempts.values()) > 0


def test_each_question_is_paid_for_its_own_answer_cost_and_citations(env: RerankBankEnv) -> None:
    golds = [answers[0] for answers in env[0]["answers"]]
    attempt = Trajectory(answers=[golds[0], "wrong", *golds[2:]])
    reports = attempt.question_reports
    reports[0], reports[1] = Trajectory().report, Trajectory().report
    reports[0].update(kept_items=2, shown_items=2, cited_items=1)
    reports[1].update(kept_items=4, shown_items=4, cited_items=4)
    rewards = env.compute_reward({"answer": [""]}, env.collate_fn([env[0]]), 1, trajectories=[attempt])
    assert rewards["question"][0, :2].tolist() == pytest.approx([1.0 - 2 * 0.02 + 0.1 * 0.0, -4 * 0.02]), "wrong: citing all wins nothing"
    assert rewards["default"].tolist() == pytest.approx([float(rewards["question"][0].mean())])
    reports[0].update(cited_items=1)
    (full,) = env.compute_reward({"answer": [""]}, env.collate_fn([env[0]]), 1, trajectories=[attempt])["default/citation"].tolist()
    assert full == pytest.approx(1 / len(golds))


def test_rmm_reflects_merges_reranks_and_cites() -> None:
    """The paper's whole loop in its own forms: JSON topics, Merge lines, a list of numbers, citations before the answer."""
    said: list[str] = []

    def answer(messages: Messages, stage: str) -> str:
        text = messages[0]["content"]
        said.append(text)
        if "<session>" in text:
            about = "Alice" if "tells about Alice" in text else "Bob"
            if about == "Bob":
                return "NO_TRAIT"
            summary = "Alice lives in Rome" if "Rome" in text else "Alice lives in Paris"
            return json.dumps({"extracted_memories": [{"summary": summary, "reference": [0]}]})
        if "<history>" in text:
            return "Merge(0, Alice lived in Paris and lives in Rome)"
        if stage == "rerank":
            return "[0]"
        return "[0] **Answer:** Rome"

    def event(date: str, city: str) -> dict[str, Any]:
        talk = [{"speaker": "Alice", "text": f"I live in {city}."}, {"speaker": "Bob", "text": "Nice!"}]
        return {"date": date, "turns": talk}

    agent = MemoryRMMAgent(None, "cpu").attach(Models({"policy": ScriptedChat(answer)}))
    view = View("e", ("Where does Alice live?",), events=(event("May", "Paris"), event("June", "Rome")))
    (trajectory,) = agent.inference([view])
    bank = trajectory.memory
    assert isinstance(bank, MemoryBank)
    (item,) = bank
    assert item.text.split("\n> ") == ["Alice lived in Paris and lives in Rome", "Alice: I live in Paris.", "Alice: I live in Rome."]
    assert item.version == 2 and item.updated == "June"
    assert trajectory.answers == ["[0] **Answer:** Rome"] and trajectory.report["cited_items"] == trajectory.report["shown_items"] == 1
    assert [turn.stage for turn in trajectory.turns] == ["reflection"] * 5 + ["rerank", "answer"]
    assert between(said[-1], "memories").startswith("0: Alice lived")


EXTRACTORS = ("naive_extractor", "prospective_reflector", "verbatim_extractor")
UPDATERS = ("naive_updater", "topic_updater", "append_updater")
RETRIEVERS = ("naive_retriever", "rerank_retriever", "rmm_reranker")
ANSWERERS = ("answerer", "cited_answerer")
EVERY = list(itertools.product(("memory_r1_agent", "memory_rmm_agent"), EXTRACTORS, UPDATERS, RETRIEVERS, ANSWERERS))


@pytest.mark.parametrize(
    ("agent", "extractor", "updater", "retriever", "answerer"),
    [
        ("memory_r1_agent", "naive_extractor", "naive_updater", "rerank_retriever", "answerer"),
        ("memory_r1_agent", "prospective_reflector", "naive_updater", "rmm_reranker", "cited_answerer"),
        ("memory_rmm_agent", "naive_extractor", "topic_updater", "naive_retriever", "cited_answerer"),
        *(pytest.param(*parts, marks=pytest.mark.slow) for parts in EVERY),
    ],
)
def test_every_part_goes_with_every_other_and_trains(
    env: RerankBankEnv, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    agent: str, extractor: str, updater: str, retriever: str, answerer: str,
) -> None:  # fmt: skip
    class Lottery(RerankBankEnv):
        """Pays at random: a model that cannot speak still has something to learn from."""

        def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> Any:
            rewards = super().compute_reward(predictions, ground_truths, num_generations, **kwargs)
            drawn = torch.rand(len(rewards["default"]), generator=torch.Generator().manual_seed(1))
            return {"default": drawn, "default/question": rewards["default/question"]}

    parts = {"extractor": extractor, "updater": updater, "retriever": retriever, "answerer": answerer}
    config = TrainConfig(
        data_path=str(env.data_path), output_dir=str(tmp_path / "run"), agent_type=agent, env_type="rerank_bank", device="cpu",
        batch_size=1, num_generations=2, max_generate_length=4, lr=0.01, max_steps=1, agent_options=json.dumps({"style": "lines"} | parts),
    )  # fmt: skip
    trainer = MemTrainer(config, tiny_qwen3(max_position_embeddings=4096), tiny_tokenizer, env=Lottery(str(env.data_path)))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    row = trainer.training_step()
    assert row["errors"] == 0 and any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    assert "rerank" in trainer.agent.stages or retriever != "rerank_retriever"


def test_options_reach_the_parts_that_have_them() -> None:
    agent = MemoryR1Agent(None, "cpu", style="lines", max_generate_length=9, retriever={"type": "rerank_retriever", "candidates": 7})
    assert (agent.retriever.options.style, agent.retriever.options.max_tokens, agent.retriever.options.candidates) == ("lines", 9, 7)
    assert agent.stages == ("extraction", "update", "answer", "rerank")
    again = MemoryR1Agent(None, "cpu", **agent.describe())
    assert again.describe() == agent.describe()
