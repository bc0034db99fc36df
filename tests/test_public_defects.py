"""Promise: what is wrong with the public version's memory-bank training cannot happen here. One test for each defect, M1 to M8.

Where another file holds the promise in depth, this one states it in a line or two and names the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.files import write_json
from memfactory.common.types import Messages
from memfactory.data.generators.bank_player import rule_player
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.memory_bank import MemoryBankEnv
from memfactory.evaluation.harness import evaluate
from memfactory.memory.bank import MemoryBank
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryOp
from memfactory.memory.operations import parse_operations


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> MemoryBankEnv:
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.json"
    write_json(path, list(synth_dialog(12, seed=8, rendering="triples")))
    return MemoryBankEnv(str(path))


def worth(env: MemoryBankEnv, play: Callable[[Messages, str], str]) -> float:
    agent = MemoryR1Agent(None, "cpu", style="lines")
    return evaluate(agent, Models({"policy": ScriptedChat(play)}), env, name="dialogues", k=0).greedy_mean.value


def test_m1_what_is_paid_is_whether_the_answer_is_right(env: MemoryBankEnv) -> None:
    """There: 0.5 for the format, and the accuracy commented out. Same format here, other answers."""
    oracle = rule_player("oracle")

    def wrong(messages: Messages, stage: str) -> str:
        return "**Answer:** nowhere" if stage == "answer" else oracle(messages, stage)

    assert worth(env, oracle) == 1 and worth(env, wrong) == 0


@pytest.mark.parametrize("nothing", ['{"memory_list": []}', '{"operations": []}', '{"operations": ["x"]}', '{"memory": 7}', "[]"])
def test_m2_empty_lists_and_wrong_types_earn_no_more_than_the_unchanged_bank(env: MemoryBankEnv, nothing: str) -> None:
    """There: the full reward. More of it in test_memory_r1.py."""
    oracle = rule_player("oracle")
    spoiled = worth(env, lambda messages, stage: oracle(messages, stage) if stage == "answer" else nothing)
    assert spoiled <= worth(env, rule_player("never write"))


def test_m3_scalars_string_ids_fences_and_repeats_are_outcomes() -> None:
    """There: a scalar ended the run, "1" was refused, a fence was unreadable, one fact was added three times."""
    for scalar in ("3", "null", "true", '"text"', "1e999"):
        assert not parse_operations(scalar, []).readable
    bank = MemoryBank.of(["Alice lives in Paris", "Bob has a dog"])
    text = '<think>{"memory": []}</think>```json\n{"memory": [{"id": "1", "event": "UPDATE", "text": "Bob has a cat"}]}\n``` done.'
    parsed = parse_operations(text, [])
    assert [str(item.text) for item in bank.apply(parsed.ops).bank] == ["Alice lives in Paris", "Bob has a cat"]
    assert parse_operations(text.replace('"1"', "1"), []).ops == parsed.ops
    thrice = bank.apply([MemoryOp("ADD", text="Carol paints")] * 3)
    assert len(thrice.bank) == 3 and len(thrice.rejected) == 2


def test_m4_there_is_an_answer_agent_and_an_update_keeps_its_id() -> None:
    """There: no answer agent, thirty memories, and an update was a deletion and a new item under a new id."""
    agent = MemoryR1Agent(None, "cpu")
    assert agent.options.answer_from == 60 and agent.stages == ("extraction", "update", "answer")
    after = MemoryBank.of(["Alice lives in Paris"]).apply([MemoryOp("UPDATE", "0", "Alice lives in Rome")], when="May").bank
    (item,) = after
    assert (item.id, item.text, item.history, item.version) == ("0", "Alice lives in Rome", ("Alice lives in Paris",), 2)


def test_m5_near_texts_are_near_and_nothing_is_drawn_at_random() -> None:
    """There: vectors from md5 (.002 for near-identical texts, .081 for unrelated ones), and NumPy's generator reseeded by each."""
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    a, b, c = HashedEmbedder().embed(["Alice moved to Paris in May", "In May Alice moved to Paris", "The stove needs a new filter"])
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    assert a @ b > 0.7 > 0.2 > a @ c


def test_m6_attempts_share_nothing_and_the_bank_is_a_value() -> None:
    """There: one store for the process, and training wrote to configured databases (tests/test_stores.py forbids the sockets)."""
    start = MemoryBank.of(["Alice lives in Paris"])
    one = start.apply([MemoryOp("DEL", "0")]).bank
    other = start.apply([MemoryOp("ADD", text="Bob has a dog")]).bank
    assert (len(start), len(one), len(other)) == (1, 0, 2)


def test_m7_rewards_are_on_the_cpu_whatever_the_model_runs_on(env: MemoryBankEnv) -> None:
    """There: `device="cuda"` in the reward. API calls at once, with retries and a time-out: test_api.py."""
    rewards = env.compute_reward({"answer": ["**Answer:** x"] * 2}, env.collate_fn([env[0]]), 2)
    assert all(column.device == torch.device("cpu") and column.dtype == torch.float32 for column in rewards.values())


def test_m8_training_and_test_share_no_conversation_and_evidence_spans_sessions() -> None:
    """There: items were split at random over the same conversations, and questions kept to one session."""
    from memfactory.common.files import read_json

    root = Path(__file__).resolve().parent.parent / "datas" / "tiny_bank"
    parts = {name: read_json(root / f"{name}.json") for name in ("train", "eval", "eval_8sessions")}
    talks = {name: {json.dumps(d["sessions"]) for d in dialogues} for name, dialogues in parts.items()}
    assert not talks["train"] & talks["eval"] and not talks["train"] & talks["eval_8sessions"]
    spans = [len({turn.split(":")[0] for turn in q["evidence"]}) for d in parts["eval"] for q in d["questions"]]
    assert max(spans) > 1
