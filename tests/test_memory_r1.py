"""Memory-R1 in the runtime: rules that play the policy show that a good manager is paid and a bad, empty or broken one is not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.build import local_models
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.bank_prompts import answer_messages, extract_messages, manage_messages
from memfactory.common.config import TrainConfig
from memfactory.common.errors import ConfigError, UserError
from memfactory.common.files import write_json, write_jsonl
from memfactory.common.types import Messages, Trajectory
from memfactory.data.dialog_forms import memory_bank_rows
from memfactory.data.generators.bank_player import between, rule_player
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat
from memfactory.envs.memory_bank import MemoryBankEnv
from memfactory.evaluation.harness import Scores, evaluate
from memfactory.evaluation.leak import check_no_leak
from memfactory.memory.bank import MemoryBank
from memfactory.trainers.mem_grpo_trainer import MemTrainer

Answer = Callable[[Messages, str], str]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> MemoryBankEnv:
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.json"
    write_json(path, list(synth_dialog(24, seed=5, rendering="triples")))
    return MemoryBankEnv(str(path))


def played(env: MemoryBankEnv, answer: Answer, **options: Any) -> Scores:
    agent = MemoryR1Agent(None, "cpu", style="lines", **options)
    return evaluate(agent, Models({"policy": ScriptedChat(answer)}), env, name="dialogues", k=0)


def total(scores: Scores) -> Counter[str]:
    return sum((Counter(attempt.report) for attempt in scores.attempts.values()), Counter())


def test_an_oracle_manager_is_always_right(env: MemoryBankEnv) -> None:
    scores = played(env, rule_player("oracle"))
    assert scores.greedy_mean.value == 1 and total(scores)["rejected_operations"] == 0


def test_a_bad_manager_is_paid_less_than_a_good_one_and_a_random_one_less_too(env: MemoryBankEnv) -> None:
    rng = random.Random(0)

    def scrambled(text: str) -> str:
        return "\n".join(" ".join([*line.split()[:-2], rng.choice(["ADD", "UPDATE", "DEL", "NONE"]), "."]) for line in text.split("\n"))

    worth = {name: played(env, rule_player(name)).greedy_mean.value for name in ("never write", "always add", "never delete")}
    worth["random"] = played(env, rule_player("oracle", scrambled)).greedy_mean.value
    assert worth["never write"] < worth["always add"] < worth["never delete"] < 1
    assert worth["random"] < worth["never delete"]


@pytest.mark.parametrize("broken", ["", "I would add all of them.", '{"memory": 3}', "[[[", '{"operations": "x"}', "null", "<think> add"])
def test_broken_output_leaves_the_bank_and_is_worth_less_than_a_valid_none(env: MemoryBankEnv, broken: str) -> None:
    silent = played(env, rule_player("never write"))
    spoiled = played(env, rule_player("never write", lambda _: broken))
    assert silent.greedy_mean.value > spoiled.greedy_mean.value
    assert all(str(attempt.memory) == "" for attempt in spoiled.attempts.values())
    assert total(spoiled)["unreadable_update"] > 0 and total(silent)["unreadable_update"] == 0


@pytest.mark.parametrize("empty", ['{"memory": []}', '{"operations": []}', "none ."])
def test_empty_lists_cannot_win(env: MemoryBankEnv, empty: str) -> None:
    scores = played(env, rule_player("oracle", lambda _: empty))
    assert scores.greedy_mean.value == pytest.approx(played(env, rule_player("never write")).greedy_mean.value)


def test_add_only_and_temporal_keep_what_crud_would_overwrite(env: MemoryBankEnv) -> None:
    crud, add_only, temporal = (played(env, rule_player("oracle"), write_policy=policy) for policy in ("crud", "add_only", "temporal"))
    assert crud.greedy_mean.value == temporal.greedy_mean.value == 1, "what is closed is not shown"
    assert add_only.greedy_mean.value < 1


def test_the_bank_is_written_once_and_asked_many_times(env: MemoryBankEnv) -> None:
    asked: Counter[str] = Counter()
    answer = rule_player("oracle")

    def counted(messages: Messages, stage: str) -> str:
        asked[stage] += 1
        return answer(messages, stage)

    agent = MemoryR1Agent(None, "cpu", style="lines").attach(Models({"policy": ScriptedChat(counted)}))
    (trajectory,) = agent.inference([env.observe(env[0])])
    assert asked["extraction"] == len(env[0]["sessions"]) and asked["answer"] == len(env[0]["query"]) > 1
    assert isinstance(trajectory.memory, MemoryBank) and len(trajectory.steps) == len(env[0]["sessions"])


def test_gold_never_reaches_the_agent(env: MemoryBankEnv) -> None:
    check_no_leak(MemoryR1Agent(None, "cpu", style="lines"), env)


@pytest.mark.slow
def test_public_rows_start_from_their_own_bank(tmp_path: Path) -> None:
    rows = [row for dialogue in synth_dialog(6, seed=1, rendering="triples") for row in memory_bank_rows(dialogue)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    env = MemoryBankEnv(str(tmp_path / "train.jsonl"))
    start = [env.observe(env[at]).memory for at in range(len(env))]
    assert all(isinstance(bank, MemoryBank) for bank in start) and any(len(bank) for bank in start)
    assert all(len(env.observe(env[at]).questions) == 1 for at in range(len(env)))


def test_the_outcome_is_the_mean_over_questions_and_a_question_not_reached_is_wrong(env: MemoryBankEnv) -> None:
    golds = [answers[0] for answers in env[0]["answers"]]
    attempts = [Trajectory(answers=golds), Trajectory(answers=golds[:1]), Trajectory(answers=[])]
    rewards = env.compute_reward({"answer": [""] * 3}, env.collate_fn([env[0]]), 3, trajectories=attempts)
    assert rewards["default/outcome"].tolist() == pytest.approx([1.0, 1 / len(golds), 0.0])
    assert rewards["default"].tolist() == rewards["default/outcome"].tolist()


def test_an_answer_can_be_paid_for_its_own_question_and_writing_for_all(env: MemoryBankEnv) -> None:
    golds = [answers[0] for answers in env[0]["answers"]]
    asked = len(golds)
    attempts = [Trajectory(answers=[*golds[:at], "wrong"]) for at in range(2)]
    by_question = MemoryBankEnv(str(env.data_path), answers_paid="own")
    for paid, own in ((by_question, True), (env, False)):
        rewards = paid.compute_reward({"answer": [""] * 2}, paid.collate_fn([env[0]]), 2, trajectories=attempts)
        assert ("question" in rewards) is own
        assert rewards["default/question"].tolist() == [[0.0] * asked, [1.0] + [0.0] * (asked - 1)]
        assert rewards["default"].tolist() == pytest.approx([0.0, 1 / asked])
    with pytest.raises(UserError, match="answers_paid 'all'.*mean, own"):
        MemoryBankEnv(str(env.data_path), answers_paid="all")


def test_every_answer_turn_knows_its_question_and_the_ledger_each_score(env: MemoryBankEnv) -> None:
    agent = MemoryR1Agent(None, "cpu", style="lines")
    models = Models({"policy": ScriptedChat(rule_player("never delete"))})
    (group,) = agent.rollout(models, [env.observe(env[0])], 1)
    turns = group.trajectories[0].turns
    assert [turn.question for turn in turns if turn.stage == "answer"] == list(range(len(env[0]["query"])))
    assert {turn.question for turn in turns if turn.stage != "answer"} == {None}
    scores = evaluate(agent, models, env, name="dialogues", k=0)
    for attempt in scores.attempts.values():
        assert attempt.score == pytest.approx(sum(attempt.questions) / len(attempt.questions)) and len(attempt.questions) > 1  # type: ignore[arg-type]


def test_weights_name_components(env: MemoryBankEnv) -> None:
    with pytest.raises(ConfigError, match="weights names format; MemoryBankEnv has outcome, malformed, operations"):
        MemoryBankEnv(str(env.data_path), weights={"format": 1.0})
    thrifty = MemoryBankEnv(str(env.data_path), weights={"outcome": 1.0, "operations": -0.01})
    attempt = Trajectory(answers=[a[0] for a in env[0]["answers"]], report=Counter({"operation_ADD": 4}), steps=[("", "")] * 2)
    rewards = thrifty.compute_reward({"answer": [""]}, env.collate_fn([env[0]]), 1, trajectories=[attempt])
    assert rewards["default"].tolist() == pytest.approx([0.98])


def test_prompts_show_what_they_were_given_and_nothing_else() -> None:
    for style in ("json", "lines"):
        assert "THE TALK" in extract_messages("THE TALK", style)[0]["content"]
        text = manage_messages("THE MEMORY", "THE FACTS", style)[0]["content"]
        assert between(text, "memory") == "THE MEMORY" and between(text, "facts") == "THE FACTS"
    text = answer_messages("M {braces} <<question>>", "Q")[0]["content"]
    assert between(text, "memories") == "M {braces} <<question>>" and between(text, "question") == "Q"
    with pytest.raises(Exception, match="style 'xml'.*json, lines"):
        extract_messages("", "xml")


@pytest.mark.parametrize(
    ("roles", "moved"),
    [({}, {"extraction", "update", "answer"}), ({"extraction": "policy_nograd", "answer": "reference"}, {"update"}),
     ({"extraction": "reference", "update": "reference"}, {"answer"})],
)  # fmt: skip
def test_any_subset_of_the_stages_is_trained(
    env: MemoryBankEnv, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    roles: dict[str, str], moved: set[str],
) -> None:  # fmt: skip
    class Lottery(MemoryBankEnv):
        """Pays at random: a model that cannot speak still has something to learn from."""

        def compute_reward(self, predictions: Any, ground_truths: Any, num_generations: int, **kwargs: Any) -> Any:
            rng = random.Random(1)
            return {"default": torch.tensor([rng.random() for _ in predictions["answer"]])}

    import json

    config = TrainConfig(
        data_path=str(env.data_path), output_dir=str(tmp_path / "run"), agent_type="memory_r1_agent", env_type="memory_bank", device="cpu",
        batch_size=2, num_generations=2, max_generate_length=6, lr=0.01, max_steps=1, roles=json.dumps(roles),
        agent_options='{"style": "lines"}',
    )  # fmt: skip
    model = tiny_qwen3(max_position_embeddings=4096)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = MemTrainer(config, model, tiny_tokenizer, env=Lottery(str(env.data_path)))
    rollout = trainer._rollout()
    assert {sample.stage for sample in rollout.data.samples} == moved
    trainer.training_step()
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    if trainer.reference is not None:
        kept = trainer.reference.resident
        assert kept is not None and all(torch.equal(before[name], p) for name, p in kept.named_parameters()), "it stays as it was"


def test_training_and_inference_ask_the_same_prompts(
    env: MemoryBankEnv, tiny_qwen3: Callable[..., Qwen3ForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    models = local_models(tiny_qwen3(max_position_embeddings=4096), tiny_tokenizer)
    agent = MemoryR1Agent(tiny_tokenizer, "cpu", style="lines", max_generate_length=6)
    views = [env.observe(env[at]) for at in range(2)]
    rolled = [t for group in agent.rollout(models, views, 2, seed=3, step=0) for t in group.trajectories]
    used = agent.inference(views, models, num_attempts=2, temperature=1.0, seed=3)
    assert [[turn.prompt_ids for turn in t.turns] for t in rolled] == [[turn.prompt_ids for turn in t.turns] for t in used]
