"""Agents fold a memory over events: MemAgent's turns and prompts, its limits in training, chunks, failures, one runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from memfactory.agents.anchors import OracleView
from memfactory.agents.base import BaseAgent, Request
from memfactory.agents.build import build_agent, local_models
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, UnknownNameError, UserError
from memfactory.common.prompts import NO_MEMORY
from memfactory.common.types import Messages, Sampling, Trajectory, Turn, View
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.engines.base import run, stream_key
from memfactory.engines.chat import Models, Session
from memfactory.engines.scripted import ScriptedChat

FACTS = [
    "city alice paris .",
    "city bob rome .",
    "job alice nurse .",
    "job bob pilot .",
    "pet alice cat .",
    "pet bob dog .",
    "boss alice carol .",
]


def view(number: int = 3, questions: tuple[str, ...] = ("city alice ?",), name: str = "x") -> View:
    """A text of `number` facts of four tokens each."""
    return View(name, questions, context=" ".join(FACTS[:number]))


def scripted(answer: Callable[[Messages, str], str] | None = None) -> ScriptedChat:
    """Writes memory "m1", "m2", ... in the order of asking, and answers with a box, unless told otherwise."""
    model = ScriptedChat(answer or (lambda messages, stage: "\\boxed{paris}" if stage == "answer" else f"m{len(model.asked)}"))
    return model


def mem_agent(tokenizer: PreTrainedTokenizerFast, **options: Any) -> MemoryAgent:
    return MemoryAgent(tokenizer, "cpu", **({"chunk_size": 4} | options))


def infer(agent: BaseAgent, chat: ScriptedChat, *views: View) -> list[Trajectory]:
    return agent.inference(list(views), Models({"policy": chat}))


def rollout(agent: BaseAgent, chat: ScriptedChat, *views: View) -> list[Trajectory]:
    """One attempt at each view, in training."""
    return [t for group in agent.rollout(Models({"policy": chat}), list(views), 1) for t in group.trajectories]


def prompts(chat: ScriptedChat, stage: str) -> list[str]:
    return [messages[0]["content"] for asked, messages in chat.asked if asked == stage]


# MemAgent


def test_memagent_asks_once_a_chunk_and_once_for_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted()
    (trajectory,) = infer(mem_agent(tiny_tokenizer), chat, view(3))
    assert [turn.stage for turn in trajectory.turns] == ["memory"] * 3 + ["answer"]
    assert trajectory.memory == "m3" and trajectory.answers == ["\\boxed{paris}"]
    assert [(event.strip(), memory) for event, memory in trajectory.steps] == list(zip(FACTS, ["m1", "m2", "m3"], strict=False))


def test_each_update_replaces_the_memory(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted()
    infer(mem_agent(tiny_tokenizer), chat, view(3))
    held = [NO_MEMORY, "m1", "m2", "m3"]
    for at, text in enumerate(prompts(chat, "memory") + prompts(chat, "answer")):
        assert [memory for memory in held if memory in text] == [held[at]]
        assert "<problem>\ncity alice ?\n</problem>" in text


def test_each_section_is_read_once_and_never_by_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted()
    infer(mem_agent(tiny_tokenizer), chat, view(5))
    for at, text in enumerate(prompts(chat, "memory")):
        assert [fact for fact in FACTS if fact in text] == [FACTS[at]]
    (answer,) = prompts(chat, "answer")
    assert not any(fact in answer for fact in FACTS) and "<section>" not in answer


@pytest.mark.parametrize(
    ("order", "first", "second"), [("memory_first", "<memory>", "<section>"), ("chunk_first", "<section>", "<memory>")]
)
def test_prompt_order_puts_memory_or_section_first(tiny_tokenizer: PreTrainedTokenizerFast, order: str, first: str, second: str) -> None:
    chat = scripted()
    (trajectory,) = infer(mem_agent(tiny_tokenizer, module={"prompt_order": order}), chat, view(2))
    for text, memory, fact in zip(prompts(chat, "memory"), (NO_MEMORY, "m1"), FACTS, strict=False):
        assert text.index("<problem>") < text.index(first) < text.index(second)
        assert f"<memory>\n{memory}\n</memory>" in text and fact in text
    assert trajectory.memory == "m2"


def test_a_question_aware_agent_reads_the_text_again_for_each_question(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted(lambda messages, stage: ("bob" if "bob ?" in messages[0]["content"] else "alice") + f" {stage}")
    (trajectory,) = infer(mem_agent(tiny_tokenizer), chat, view(1, ("job alice ?", "job bob ?")))
    assert [stage for stage, _ in chat.asked] == ["memory", "answer"] * 2
    assert trajectory.answers == ["alice answer", "bob answer"]
    assert f"<memory>\n{NO_MEMORY}\n</memory>" in prompts(chat, "memory")[1], "the second question starts from no memory"


def test_a_view_may_bring_its_memory(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted()
    infer(mem_agent(tiny_tokenizer), chat, View("x", ("city alice ?",), context=FACTS[0], memory="city zoe oslo ."))
    assert "<memory>\ncity zoe oslo .\n</memory>" in prompts(chat, "memory")[0]


def test_a_closed_thought_is_stripped_from_the_memory(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted(lambda messages, stage: "<think> hm </think>\n city alice paris . \n")
    (trajectory,) = infer(mem_agent(tiny_tokenizer), chat, view(1))
    assert trajectory.memory == "city alice paris ."
    assert "unclosed_thought" not in trajectory.report


def test_an_unclosed_thought_keeps_the_previous_memory_and_is_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chat = scripted(lambda messages, stage: "<think> hm" if FACTS[1] in messages[0]["content"] else "kept")
    (trajectory,) = infer(mem_agent(tiny_tokenizer), chat, view(2))
    assert [memory for _, memory in trajectory.steps] == ["kept", "kept"]
    assert trajectory.report == {"unclosed_thought": 1}
    (first,) = infer(mem_agent(tiny_tokenizer), scripted(lambda messages, stage: "<think>"), view(1))
    assert first.memory == NO_MEMORY


class CutChat(ScriptedChat):
    """Every turn is cut at its limit, which is kept."""

    limits: list[tuple[str, int]]

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        self.__dict__.setdefault("limits", []).append((stage, sampling.max_tokens))
        return Turn(stage, (), (), (), "cut", "length", trainable=False)


def test_truncated_turns_are_used_and_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (trajectory,) = infer(mem_agent(tiny_tokenizer), CutChat(lambda messages, stage: ""), view(3))
    assert trajectory.memory == "cut" and trajectory.answers == ["cut"]
    assert trajectory.report == {"truncated_memory": 3, "truncated_answer": 1}


@pytest.mark.parametrize(
    ("options", "memory", "answer"),
    [
        ({}, 1024, 1024),
        ({"max_generate_length": 50}, 50, 50),
        ({"max_generate_length": 50, "module": {"max_memory_tokens": 7}}, 7, 50),
        ({"module": {"max_answer_tokens": 9}}, 1024, 9),
    ],
)
def test_budgets_of_turns(tiny_tokenizer: PreTrainedTokenizerFast, options: dict, memory: int, answer: int) -> None:
    chat = CutChat(lambda messages, stage: "")
    infer(mem_agent(tiny_tokenizer, **options), chat, view(1))
    assert chat.limits == [("memory", memory), ("answer", answer)]


@pytest.mark.parametrize(
    ("limit", "kept"), [(1, [0]), (2, [0, 6]), (3, [0, 1, 6]), (4, [0, 1, 5, 6]), (7, list(range(7))), (9, list(range(7)))]
)
def test_training_keeps_the_first_and_last_chunks(tiny_tokenizer: PreTrainedTokenizerFast, limit: int, kept: list[int]) -> None:
    agent, chat = mem_agent(tiny_tokenizer, max_chunk_number=limit), scripted()
    (trajectory,) = rollout(agent, chat, view(7))
    assert [event.strip() for event, _ in trajectory.steps] == [FACTS[at] for at in kept]
    assert trajectory.report["dropped_events"] == 7 - len(kept)
    (whole,) = infer(agent, scripted(), view(7))
    assert len(whole.steps) == 7 and not whole.report


# Agents in general


class Diary(BaseAgent):
    """Writes without knowing the question, reads from one memory."""

    stages = ("memory", "answer")

    def initial(self, view: View) -> list[str]:
        return []

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> list[str]:
        assert question is None
        await model.chat([{"role": "user", "content": str(event)}], stage="memory", max_tokens=8)
        return [*memory, event]

    async def read(self, model: Session, memory: Any, question: str) -> str:
        turn = await model.chat([{"role": "user", "content": f"{'+'.join(memory)} {question}"}], stage="answer", max_tokens=8)
        return turn.text


def test_a_memory_without_the_question_is_written_once_and_read_often() -> None:
    chat = ScriptedChat(lambda messages, stage: messages[0]["content"].upper())
    (trajectory,) = infer(Diary(None), chat, View("d", ("q1", "q2", "q3"), events=("a", "b")))
    assert [turn.stage for turn in trajectory.turns] == ["memory"] * 2 + ["answer"] * 3
    assert trajectory.answers == ["A+B Q1", "A+B Q2", "A+B Q3"]
    assert trajectory.memory == ["a", "b"] and trajectory.steps == [("a", ["a"]), ("b", ["a", "b"])]


class Curious(Diary):
    """Remembers every view that it is shown, and asks with its name."""

    def initial(self, view: View) -> Any:
        self.seen = [*getattr(self, "seen", []), view]
        return []


@pytest.mark.parametrize("name", ["gpt4_2655b836_abs", "2hop__574419_270105/unanswerable", "conv-26/adversarial/7"])
def test_an_agent_is_not_told_what_an_examples_name_tells(name: str) -> None:
    agent, chat = Curious(None), ScriptedChat(lambda messages, stage: "x")
    models, asked = Models({"policy": chat}), OracleView(name, ("q",), events=("a",), evidence=(("D1:1",),))
    streams: list[tuple[int, ...]] = []
    real = models.session
    models.session = lambda **given: streams.append(given["stream"]) or real(**given)  # type: ignore[method-assign]
    (group,) = agent.rollout(models, [asked], 1, seed=5, step=2)
    agent.inference([asked], models, seed=5)
    list(agent.attempts([Request(asked), Request(asked, keep=lambda _: None)], models, seed=5))
    assert group.example_id == name and streams == [(5, 2, stream_key(name), 0)] + [(5, 0, stream_key(name), 0)] * 3
    for view in agent.seen:
        assert view == replace(asked, example_id=f"{stream_key(name):016x}") and isinstance(view, OracleView)
        assert not any(part in str(view) for part in ("abs", "hop__", "conv-26", "adversarial"))
    assert len(agent.seen) == 4


def test_attempts_come_back_example_major() -> None:
    chat = ScriptedChat(lambda messages, stage: messages[0]["content"])
    views = [View(name, (f"{name}?",)) for name in "abc"]
    groups = Diary(None).rollout(Models({"policy": chat}), views, 2)
    assert [group.example_id for group in groups] == ["a", "b", "c"]
    assert [[t.answers[0].strip() for t in group.trajectories] for group in groups] == [["a?"] * 2, ["b?"] * 2, ["c?"] * 2]
    flat = Diary(None).inference(views, Models({"policy": chat}), num_attempts=3)
    assert [t.answers[0].strip() for t in flat] == ["a?"] * 3 + ["b?"] * 3 + ["c?"] * 3


def failing_at(text: str, error: Exception) -> ScriptedChat:
    def answer(messages: Messages, stage: str) -> str:
        if text in messages[0]["content"]:
            raise error
        return "fine"

    return ScriptedChat(answer)


@pytest.mark.parametrize("error", [InfrastructureError("no server"), PromptTooLong("9 tokens")])
def test_an_infrastructure_failure_ends_its_own_attempt_only(error: Exception) -> None:
    views = [View("a", ("qa",), events=("one",)), View("b", ("qb",), events=("one", "bad")), View("c", ("qc",))]
    a, b, c = rollout(Diary(None), failing_at("bad", error), *views)
    assert b.error == f"{type(error).__name__}: {error}" and b.answers == []
    assert [t.error for t in (a, c)] == [None, None]
    assert [t.answers for t in (a, c)] == [["fine"], ["fine"]]


@pytest.mark.parametrize("error", [ConfigError("wrong option"), ZeroDivisionError("a bug")])
def test_any_other_failure_is_raised(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        rollout(Diary(None), failing_at("bad", error), View("b", ("bad",)))


class Patient:
    """A chat model whose answers take time, except that a question of "bad" fails at once; keeps who is still being answered."""

    def __init__(self) -> None:
        self.busy = 0

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        if "bad" in messages[0]["content"]:
            raise InfrastructureError("no server")
        self.busy += 1
        try:
            await asyncio.sleep(0.05)
        finally:
            self.busy -= 1
        return Turn(stage, (), (), (), "fine", "stop", trainable=False)


def test_a_failed_attempt_leaves_nothing_running() -> None:
    chat = Patient()
    (group,) = Diary(None).rollout(Models({"policy": chat}), [View("d", ("q1", "bad"))], 1)
    assert group.trajectories[0].error is not None
    assert chat.busy == 0


class TwoCallDiary(Diary):
    """Thinks, then answers: two calls a question."""

    async def read(self, model: Session, memory: Any, question: str) -> str:
        await super().read(model, memory, f"{question} thought")
        return await super().read(model, memory, f"{question} answer")


def _streams_when_slow(slow: str) -> dict[str, tuple[int, ...]]:
    seen: dict[str, tuple[int, ...]] = {}

    class Uneven:
        async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
            text = messages[0]["content"].strip()
            seen[text] = sampling.stream
            for _ in range(9 if text == slow else 1):
                await asyncio.sleep(0)
            return Turn(stage, (), (), (), "", "stop", trainable=False)

    TwoCallDiary(None).rollout(Models({"policy": Uneven()}), [View("d", ("q1", "q2"))], 1)
    return seen


def test_streams_of_parallel_reads_do_not_depend_on_who_is_faster() -> None:
    assert _streams_when_slow("q1 thought") == _streams_when_slow("q2 thought")


# Names and options


def test_an_unknown_option_lists_the_known_ones(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnknownNameError) as error:
        mem_agent(tiny_tokenizer, chunk_sze=5)
    assert all(text in str(error.value) for text in ("MemoryAgent", "'chunk_sze'", "Did you mean 'chunk_size'?", "max_chunk_number"))
    with pytest.raises(UnknownNameError, match="RecurrentMemoryModule.*max_memory_tokens"):
        mem_agent(tiny_tokenizer, module={"max_memory": 5})


def test_an_unknown_slot_or_agent_lists_the_known_ones(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnknownNameError, match="Unknown module 'recurrent'.*recurrent_memory_module"):
        mem_agent(tiny_tokenizer, module="recurrent")
    with pytest.raises(UnknownNameError, match="Did you mean 'memagent'.*Known: .*memagent"):
        build_agent("memagnt", tiny_tokenizer, "cpu", {})


def test_an_unknown_prompt_order_lists_the_known_ones(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="'last'.*memory_first, chunk_first"):
        mem_agent(tiny_tokenizer, module={"prompt_order": "last"})  # before anything is loaded or asked


def test_a_role_for_a_stage_the_agent_has_not_lists_its_stages(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    models = Models({"policy": scripted()}, {"extraction": "policy"})
    with pytest.raises(ConfigError, match="'extraction'; MemoryAgent has memory, answer"):
        mem_agent(tiny_tokenizer).attach(models)


def test_inference_uses_the_attached_models_or_says_how(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    agent = mem_agent(tiny_tokenizer)
    with pytest.raises(ConfigError, match="attach"):
        agent.inference([view(1)])
    (trajectory,) = agent.attach(Models({"policy": scripted()})).inference([view(1)])
    assert trajectory.answers == ["\\boxed{paris}"]


def test_options_reach_the_agent_by_its_name(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    agent = build_agent(
        "memagent", tiny_tokenizer, "cpu", {"chunk_size": 6, "module": {"type": "recurrent_memory_module", "max_memory_tokens": 3}}
    )
    assert isinstance(agent, MemoryAgent)
    assert (agent.options.chunk_size, agent.module.options.max_memory_tokens) == (6, 3)


# Chunks


def byte_level_bpe(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """A small byte-level BPE as of GPT-2 and Qwen: its tokens can end inside a character."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [
        "the old café by the sea 海海 \N{GRINNING FACE}\N{SMILING FACE WITH OPEN MOUTH}\N{GRINNING FACE}\N{CAT} e\u0301e\u0301 \n\n"
    ] * 8
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


CUTTERS = {
    "tiny": Diary(make_tiny_tokenizer()),
    "byte-level": Diary(byte_level_bpe(trim_offsets=False)),
    "byte-level, trimmed": Diary(byte_level_bpe(trim_offsets=True)),
}
WORDS = ["alice ", "city", " ", "\n", "No previous memory", "<|im_end|>\n"]
SYMBOLS = ["e\u0301", "é", "海", "\N{GRINNING FACE}", "👩\u200d👩\u200d👧", "🇩🇪"]
PIECES = st.sampled_from(WORDS + SYMBOLS)
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=25).map("".join))


@pytest.mark.parametrize("name", CUTTERS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(text=TEXTS, size=st.integers(1, 7))
@example(text="\N{GRINNING FACE}" * 3, size=1)
@example(text="  e\u0301 \n\n 👩\u200d👩\u200d👧", size=2)
@example(text="", size=1)
def test_chunks_lose_nothing_and_have_the_asked_size(name: str, text: str, size: int) -> None:
    agent = CUTTERS[name]
    chunks = agent.chunks(text, size)
    assert "".join(chunks) == text and all(chunks)
    assert agent.tokenizer is not None
    offsets = agent.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    widest = max((sum(a <= at < b for a, b in offsets) for at in range(len(text))), default=0)
    at = 0
    for chunk in chunks:
        tokens = sum(at <= a < at + len(chunk) for a, b in offsets if a < b)  # a trimmed space has no width
        assert tokens <= size + max(widest - 1, 0), f"{tokens} tokens in {chunk!r}"
        at += len(chunk)


@pytest.mark.parametrize("name", CUTTERS)
def test_a_character_of_several_tokens_stays_whole(name: str) -> None:
    assert CUTTERS[name].chunks("\N{CAT}\N{CAT FACE}\N{DOG}", 1) == ["\N{CAT}", "\N{CAT FACE}", "\N{DOG}"]


def test_chunks_of_words_are_cut_where_expected(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    chunks = Diary(tiny_tokenizer).chunks(" ".join(FACTS[:3]), 5)
    assert [chunk.split() for chunk in chunks] == ["city alice paris . city".split(), "bob rome . job alice".split(), "nurse .".split()]


def test_chunks_refuse_what_they_cannot_cut(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="chunk_size 0"):
        Diary(tiny_tokenizer).chunks("city", 0)
    with pytest.raises(UserError, match="Diary.*fast tokenizer"):
        Diary(None).chunks("city", 4)


# One runtime


def exchange(trajectory: Trajectory) -> list[tuple]:
    return [(t.stage, t.prompt_ids, t.response_ids, t.logprobs, t.text, t.finish) for t in trajectory.turns]


def test_training_and_inference_have_the_same_prompts_and_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> None:
    models = local_models(tiny_qwen3(), tiny_tokenizer, slots=8)
    agent = mem_agent(tiny_tokenizer, max_generate_length=10)
    views = [view(3, name="a"), view(2, name="b")]
    groups = agent.rollout(models, views, 2, seed=5)
    trained = [t for group in groups for t in group.trajectories]
    used = agent.inference(views, models, num_attempts=2, temperature=1.0, seed=5)
    assert [exchange(t) for t in trained] == [exchange(t) for t in used]
    assert len({turn.response_ids for t in used for turn in t.turns}) == 4 + 4 + 3 + 3, "every turn is sampled for itself"
    assert {turn.trainable for t in trained for turn in t.turns} == {True} and {turn.trainable for t in used for turn in t.turns} == {False}


def test_an_attempt_does_not_depend_on_what_it_is_batched_with(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> None:
    model, agent = tiny_qwen3(), mem_agent(tiny_tokenizer, max_generate_length=10)
    many = agent.rollout(local_models(model, tiny_tokenizer, slots=3), [view(3, name=name) for name in "abc"], 2, seed=1)
    (alone,) = agent.rollout(local_models(model, tiny_tokenizer), [view(3, name="b")], 1, seed=1)
    ids = [[turn.response_ids for turn in group.trajectories[0].turns] for group in (many[1], alone)]
    assert ids[0] == ids[1]
    other = agent.rollout(local_models(model, tiny_tokenizer), [view(3, name="b")], 1, seed=1, step=1)
    assert [turn.response_ids for turn in other[0].trajectories[0].turns] != ids[1]


def test_inference_is_greedy_unless_told_otherwise(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> None:
    models, agent = local_models(tiny_qwen3(), tiny_tokenizer), mem_agent(tiny_tokenizer, max_generate_length=6)
    first, second = (agent.inference([view(2)], models, seed=seed)[0] for seed in (0, 1))
    assert [turn.response_ids for turn in first.turns] == [turn.response_ids for turn in second.turns]


def test_a_prompt_over_the_limit_is_recorded_as_the_attempts_error(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_qwen3: Callable[..., Qwen3ForCausalLM]
) -> None:
    models = local_models(tiny_qwen3(), tiny_tokenizer, max_prompt_length=30)
    agent = mem_agent(tiny_tokenizer, max_generate_length=2, chunk_size=60)
    short, long = agent.inference([view(1, name="a"), view(7, name="b")], models)
    assert short.error is None and len(short.answers) == 1
    assert long.error is not None and long.error.startswith("PromptTooLong: The memory prompt has")


def test_run_can_be_called_on_its_own() -> None:
    session = Models({"policy": ScriptedChat(lambda messages, stage: stage)}).session(sampling=Sampling(0), stream=(0,), training=False)
    run(Diary(None).run(View("d", ("q",), events=("a",)), session))
    assert session.trajectory.answers == ["answer"]
