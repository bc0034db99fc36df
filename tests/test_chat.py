"""The line between agents and models: roles route and stamp, turns keep their order and stream, what was sampled is what is trained."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memfactory.agents.base import BaseAgent
from memfactory.algorithms.credit import assign_credit
from memfactory.algorithms.packing import pack
from memfactory.common.errors import ConfigError, PromptTooLong, UnknownNameError, UserError
from memfactory.common.parsing import strip_thinking
from memfactory.common.types import Completion, Messages, Sampling, Trajectory, Turn, View
from memfactory.engines.base import run, stream_key
from memfactory.engines.chat import LocalChat, Models, Session
from memfactory.engines.scripted import ScriptedChat, ScriptedEngine

HELLO: Messages = [{"role": "user", "content": "city alice ?"}]


def named(name: str) -> ScriptedChat:
    """A chat model that always says its name."""
    return ScriptedChat(lambda messages, stage: name)


def session(models: Models, training: bool = True) -> Session:
    return models.session(sampling=Sampling(0), stream=(0, 0, 0, 0), training=training)


def chat(line: Session, stage: str) -> Turn:
    return run(line.chat(HELLO, stage=stage, max_tokens=8))


class SlowChat:
    """Answers "0", "1", ... in the order of asking; the first asked is the last to answer."""

    def __init__(self, number: int) -> None:
        self.asked, self.number = 0, number

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        at, self.asked = self.asked, self.asked + 1
        for _ in range(3 * (self.number - at)):
            await asyncio.sleep(0)
        return Turn(stage, (at,), (at,), (0.0,), str(at), "stop", trainable=False)


def gathered(number: int) -> Trajectory:
    """The trajectory of `number` questions asked at once and answered in reverse."""
    line = session(Models({"policy": SlowChat(number)}))

    async def every() -> None:
        await asyncio.gather(*(line.chat(HELLO, stage="answer", max_tokens=8) for _ in range(number)))

    run(every())
    return line.trajectory


def test_a_stage_is_answered_by_the_model_of_its_role() -> None:
    chats = {"policy": named("P"), "policy_nograd": named("N"), "reference": named("R")}
    models = Models(chats, {"update": "policy_nograd", "answer": "reference"})
    line = session(models)
    assert [chat(line, stage).text for stage in ("extraction", "update", "answer")] == ["P", "N", "R"]
    assert [stage for stage, _ in chats["reference"].asked] == ["answer"]
    assert line.trajectory.outputs == {"extraction": "P", "update": "N", "answer": "R"}


@pytest.mark.parametrize(
    ("role", "training", "frozen", "temperature"),
    [
        ("policy", True, 0.0, 0.7), ("policy_nograd", True, 0.0, 0.7), ("reference", True, 0.0, 0.0), ("reference", True, None, 0.7),
        ("reference", False, 0.0, 0.7),
    ],
)  # fmt: skip
def test_in_training_what_the_policy_does_not_answer_has_a_temperature_of_its_own(
    role: str, training: bool, frozen: float | None, temperature: float
) -> None:
    class Thermometer:
        async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
            return Turn(stage, (), (), (), str(sampling.temperature), "stop", trainable=False)

    models = Models({"policy": Thermometer(), "reference": Thermometer()}, {"answer": role})
    models.frozen_temperature = frozen
    for known in (models, models.uncapped()):
        line = known.session(sampling=Sampling(0, 0.7), stream=(0,), training=training)
        assert float(chat(line, "answer").text) == temperature


@pytest.mark.parametrize(
    ("role", "training", "trainable"),
    [("policy", True, True), ("policy", False, False), ("policy_nograd", True, False), ("reference", True, False)],
)
def test_only_the_policy_in_training_is_trainable(role: str, training: bool, trainable: bool) -> None:
    models = Models({"policy": named("P"), "reference": named("R")}, {"memory": role})
    line = session(models, training)
    assert chat(line, "memory").trainable is trainable
    assert [turn.trainable for turn in line.trajectory.turns] == [trainable]


def test_policy_nograd_is_the_policy_unless_told_otherwise() -> None:
    policy = named("P")
    assert Models({"policy": policy}).chats["policy_nograd"] is policy
    assert Models({"policy": policy, "policy_nograd": named("N")}).chats["policy_nograd"] is not policy


def test_an_unknown_role_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError) as error:
        Models({"policy": named("P"), "api:gpt": named("A")}, {"answer": "polcy"})
    message = str(error.value)
    assert "stage answer" in message and "Did you mean 'policy'?" in message
    assert all(name in message for name in ("policy_nograd", "reference", "api:gpt"))


def test_a_role_without_a_model_lists_the_models_there_are() -> None:
    with pytest.raises(
        ConfigError, match="answer is answered by 'reference', but no reference model was made. Here: policy, policy_nograd"
    ):
        Models({"policy": named("P")}, {"answer": "reference"})


def test_a_stage_left_to_a_policy_that_was_not_made_is_a_clear_error() -> None:
    line = session(Models({"reference": named("R")}, {"answer": "reference"}))
    with pytest.raises(UserError, match="policy.*reference"):
        chat(line, "memory")


def test_turns_keep_the_order_of_asking() -> None:
    turns = gathered(5).turns
    assert [turn.text for turn in turns] == list("01234")
    assert [turn.response_ids for turn in turns] == [(n,) for n in range(5)]


def test_outputs_hold_the_last_turn_of_the_stage_whatever_ended_last() -> None:
    trajectory = gathered(4)
    assert trajectory.outputs == {"answer": trajectory.turns[-1].text}


def test_the_session_hands_down_its_sampling_and_counts_what_was_cut() -> None:
    engine = ScriptedEngine(lambda prompt, sampling: [1, 2, 3, 4, 5])
    tokenizer_free = Models({"policy": Direct(engine)})
    line = tokenizer_free.session(sampling=Sampling(0, 0.7, 0.9), stream=(4, 3, 2, 1), training=True)
    run(line.chat(HELLO, stage="memory", max_tokens=3))
    run(line.chat(HELLO, stage="memory", max_tokens=9))
    assert [sampling for _, sampling in engine.requests] == [Sampling(3, 0.7, 0.9, (4, 3, 2, 1, 0)), Sampling(9, 0.7, 0.9, (4, 3, 2, 1, 1))]
    assert line.trajectory.report == {"truncated_memory": 2}


class Direct:
    """An engine asked without a tokenizer: the prompt is one token."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        out = await self.engine.complete((1,), sampling)
        return Turn(stage, (1,), out.ids, out.logprobs, "", out.finish, trainable=False)


class TwoTurns(BaseAgent):
    """Writes once and reads once."""

    stages = ("memory", "answer")

    def initial(self, view: View) -> str:
        return ""

    async def write(self, model: Session, memory: object, event: object, question: str | None = None) -> str:
        return (await model.chat([{"role": "user", "content": str(event)}], stage="memory", max_tokens=8)).text

    async def read(self, model: Session, memory: object, question: str) -> str:
        return (await model.chat([{"role": "user", "content": question}], stage="answer", max_tokens=8)).text


def views(*names: str) -> list[View]:
    return [View(name, ("city alice ?",), events=("city alice paris .",)) for name in names]


def streams(names: Iterable[str], generations: int = 2, seed: int = 0, step: int = 0) -> dict[tuple[str, int, int], tuple[int, ...]]:
    """{(example, attempt, turn): the stream it was sampled with}."""
    names = list(names)
    engine = ScriptedEngine(lambda prompt, sampling: [1])
    TwoTurns(None).rollout(Models({"policy": Direct(engine)}), views(*names), generations, seed=seed, step=step)
    seen = {(s.stream[2], s.stream[3], s.stream[4]): s.stream for _, s in engine.requests}
    keys = {stream_key(name): name for name in names}
    return {(keys[example], attempt, turn): stream for (example, attempt, turn), stream in seen.items()}


def test_every_turn_has_a_stream_of_its_own() -> None:
    tables = [streams("abc", seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert [len(table) for table in tables] == [3 * 2 * 2] * 3
    assert len({stream for table in tables for stream in table.values()}) == 3 * 3 * 2 * 2


def test_a_stream_does_not_depend_on_the_batch() -> None:
    alone, together = streams("b", generations=2), streams("abc", generations=3)
    assert alone == {key: together[key] for key in alone}
    assert len(alone) == 4


def local(tokenizer: PreTrainedTokenizerFast, answer: Iterable[int], limit: int | None = None) -> tuple[LocalChat, ScriptedEngine]:
    engine = ScriptedEngine(lambda prompt, sampling: answer, frozenset({tokenizer.eos_token_id}))
    return LocalChat(tokenizer, engine, limit), engine


def test_a_prompt_over_the_limit_is_refused_and_never_cut(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(local(tiny_tokenizer, [1])[0].encode(HELLO))
    fits, _ = local(tiny_tokenizer, [1], length)
    assert len(run(fits.chat(HELLO, "memory", Sampling(1))).prompt_ids) == length
    over, engine = local(tiny_tokenizer, [1], length - 1)
    with pytest.raises(PromptTooLong, match=f"memory prompt has {length} tokens, max_prompt_length is {length - 1}"):
        run(over.chat(HELLO, "memory", Sampling(1)))
    assert engine.requests == []


def test_the_prompt_is_the_chat_template_with_a_generation_prompt(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_model, engine = local(tiny_tokenizer, tiny_tokenizer.encode("paris", add_special_tokens=False) + [tiny_tokenizer.eos_token_id])
    turn = run(chat_model.chat(HELLO, "answer", Sampling(9)))
    expected = tiny_tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert turn.prompt_ids == tuple(expected) == engine.requests[0][0]
    assert (turn.text, turn.finish, turn.trainable) == ("paris", "stop", False)


def spelled(tokenizer: PreTrainedTokenizerFast, word: str) -> tuple[int, ...]:
    """A known word in byte tokens, which the tokenizer itself would never write so."""
    return tuple(tokenizer.convert_tokens_to_ids(["▁", *(f"<0x{byte:02X}>" for byte in word.encode())]))


@pytest.mark.parametrize("stopped", [True, False])
def test_what_was_sampled_is_what_is_trained(tiny_tokenizer: PreTrainedTokenizerFast, stopped: bool) -> None:
    ids = spelled(tiny_tokenizer, "paris")[:8] + ((tiny_tokenizer.eos_token_id,) if stopped else ())
    assert tuple(tiny_tokenizer.encode(tiny_tokenizer.decode(ids, skip_special_tokens=True), add_special_tokens=False)) != ids, "the trap"
    chat_model, engine = local(tiny_tokenizer, ids)
    agent = TwoTurns(tiny_tokenizer)
    groups = agent.rollout(Models({"policy": chat_model}), views("a"), 2)
    turns = [turn for trajectory in groups[0].trajectories for turn in trajectory.turns]
    assert {turn.text for turn in turns} == {"paris"} and {turn.response_ids for turn in turns} == {ids}
    batch = pack(groups, assign_credit(groups, {"default": torch.tensor([1.0, 0.0])}))
    sampled = [(prompt, ids) for prompt, _ in engine.requests]
    assert sorted((s.prompt_ids, s.response_ids) for s in batch.samples) == sorted(sampled)
    (micro,) = batch.micro_batches(10_000)
    assert micro.targets.tolist() == list(ids) * 4


def test_the_memory_passes_to_the_next_prompt_as_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = spelled(tiny_tokenizer, "rome")
    chat_model, engine = local(tiny_tokenizer, ids)

    class Echo(TwoTurns):
        async def read(self, model: Session, memory: object, question: str) -> str:
            return await self.write(model, None, memory)

    Echo(tiny_tokenizer).rollout(Models({"policy": chat_model}), views("a"), 1)
    (known,) = tiny_tokenizer.encode("rome", add_special_tokens=False)
    assert known in engine.requests[1][0]
    assert not set(ids) & set(engine.requests[1][0])


def test_the_scripted_engine_stops_as_an_engine_does() -> None:
    engine = ScriptedEngine(lambda prompt, sampling: prompt, frozenset({9}))
    outs = [run(engine.complete((1, 9, 2), Sampling(limit))) for limit in (1, 2, 3)]
    assert outs == [Completion((1,), (0.0,), "length"), *[Completion((1, 9), (0.0, 0.0), "stop")] * 2]
    assert [prompt for prompt, _ in engine.requests] == [(1, 9, 2)] * 3


def test_a_thought_that_the_template_opened_is_seen_as_open(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{- '<think>\n' }}{%- endif %}"
    says = tokenizer("city alice paris .", add_special_tokens=False).input_ids
    engine = ScriptedEngine(lambda prompt, sampling: [*says, tokenizer.eos_token_id], frozenset({tokenizer.eos_token_id}))
    turn = run(LocalChat(tokenizer, engine).chat([{"role": "user", "content": "city alice ?"}], "memory", Sampling(20)))
    assert strip_thinking(turn.text) is None, "a thought that was cut off is no memory"
    assert turn.response_ids == (*says, tokenizer.eos_token_id)


def test_a_tokenizer_without_a_template_is_one_clear_error(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat template"):
        LocalChat(tokenizer, ScriptedEngine(lambda prompt, sampling: [])).encode([{"role": "user", "content": "a"}])


def test_running_from_inside_the_loop_is_refused_not_a_deadlock() -> None:
    async def inside() -> None:
        with pytest.raises(RuntimeError, match="await"):
            run(asyncio.sleep(0))

    run(inside())
