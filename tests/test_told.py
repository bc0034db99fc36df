"""What an application tells and a model writes: who said it and when, what is left out and why, and that prose is no memory."""

from __future__ import annotations

from typing import Any

import pytest

from memfactory.agents.base import BaseAgent
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.agents.rmm_agent import MemoryRMMAgent
from memfactory.common.errors import DataError
from memfactory.common.parsing import says_nothing
from memfactory.common.types import Messages
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.engines.chat import Models
from memfactory.engines.scripted import ScriptedChat


def texts(used: BaseAgent) -> list[str]:
    return [item.text for item in used.memories()]


def heard_by(answers: list[str], **options: Any) -> tuple[MemoryR1Agent, list[str]]:
    """An agent whose model gives these answers in turn, and the prompts that it was given."""
    heard: list[str] = []

    def model(messages: Messages, stage: str) -> str:
        heard.append(messages[0]["content"])
        return answers[len(heard) - 1]

    return MemoryR1Agent(None, "cpu", **options).attach(Models({"policy": ScriptedChat(model)})).use(user="Alice"), heard


@pytest.mark.parametrize(
    "prose",
    [
        "There is nothing worth remembering.", "I'm sorry, I can't help with that.", "没有需要记住的事实。",
        "Alice lives in Paris.", "- a\n- b", "",
        '["I’m sorry, but there are no facts."]', '["没有需要记住的事实。"]', '["none"]', "抱歉，我无法提取事实。",
        "覚えるべき事実はありません。",
    ],
)  # fmt: skip
def test_prose_is_never_remembered(prose: str) -> None:
    used, _ = heard_by([prose])
    change = used.add("hello")
    assert texts(used) == [] and change.edits == () and change.dropped and change.trajectory.report["unreadable_extraction"] == 1
    used, _ = heard_by([prose], style="lines")
    if prose not in ("Alice lives in Paris.", "- a\n- b", '["none"]'):
        assert used.add("hello").dropped and texts(used) == []


def test_what_is_left_out_is_said_with_its_reason() -> None:
    manage = 'Ops: [{"event": "ADD", "text": "a"}, {"event": "MERGE", "id": 1}, 3] and then [{"event": "ADD", "text": "z"}]'
    used, _ = heard_by(['First ["a", 1, "a", "b", "c", "d"], or rather ["e"].', manage])
    change = used.add("hello")
    assert texts(used) == ["a"] and {(lost.stage, lost.what, lost.why) for lost in change.dropped} == {
        ("extraction", "1", "not a fact"), ("extraction", "a", "repeated fact"), ("extraction", "e",
        "in a second list: the first one counts"),
        ("update", '{"event": "MERGE", "id": 1}', "unknown operation"), ("update", "3", "not an object"),
        ("update", '{"event": "ADD", "text": "z"}', "in a second list: the first one counts"),
    }  # fmt: skip
    used, _ = heard_by(['["a", "b"]', '[{"event": "ADD", "text": "a"}]'])
    assert [lost.what for lost in used.add("hello").dropped] == ["1 of 2 new facts"]
    used, _ = heard_by(['["a", "b"]', "Done."])
    assert [lost.what for lost in used.add("hello").dropped] == ["Done.", "a", "b"]
    assert ("the last entry", "cut off") in {(lost.what, lost.why) for lost in heard_by(['["a", "cut', "[]"])[0].add("x").dropped}


def test_messages_are_turns_of_who_said_them_and_the_rest_is_said() -> None:
    used, heard = heard_by(["[]", "[]"])
    image = {"type": "image_url", "image_url": {"url": "data:..."}}
    change = used.add([
        {"role": "system", "content": "Be brief."}, {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "name": "Bob", "content": "I moved"}, {"role": "user", "content": [{"type": "text",
        "text": "Look"}, image, "at it"]},
        {"role": "assistant", "content": None, "tool_calls": [{}]}, {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "Nice \ud800"}, {"role": "user", "content": ""},
    ])  # fmt: skip
    assert "Bob: I moved\nAlice: Look\nat it\nassistant: Nice \ufffd" in heard[0] and "Be brief" not in heard[0] and "42" not in heard[0]
    assert [(lost.stage, lost.why) for lost in change.dropped] == [
        ("told", "instructions, not conversation"), ("told", "instructions, not conversation"), ("told", "it is no text"),
        ("told", "it has no text but calls of tools"), ("told", "what a tool returned, not conversation"),
        ("told", "half a character is none: U+FFFD stands for each"), ("told", "it has no text"),
    ]  # fmt: skip
    only = used.add([{"role": "system", "content": "Be brief."}])
    assert only.edits == () and len(only.dropped) == 1 and len(heard) == 1, "nobody said anything: no model is asked"
    for bad in ({"role": "user", "content": 3}, {"role": "user"}):
        with pytest.raises(DataError):
            used.add([bad])


def test_an_agent_that_reads_what_was_said_knows_who_said_it_and_when() -> None:
    heard: list[str] = []

    def model(messages: Messages, stage: str) -> str:
        heard.append(messages[0]["content"])
        return "m"

    for style in ("", "json"):
        used = MemoryAgent(make_tiny_tokenizer(), "cpu", by_session=style).attach(Models({"policy": ScriptedChat(model)})).use(user="Alice")
        used.add("I live in Oslo", date="1 May")
        used.add([{"speaker": "Bob", "text": "I live in Rome"}, {"role": "assistant", "content": "Good"}], date="2 May")
        heard.clear()
        used.ask("Where does Bob live?")
        whole = "\n".join(heard)
        if style:
            assert "Date: 1 May\nAlice: I live in Oslo" in whole and "Date: 2 May\nBob: I live in Rome\nassistant: Good" in whole
        else:
            assert "[1 May] Alice: I live in Oslo\n[2 May] Bob: I live in Rome\n[2 May] assistant: Good" in whole


@pytest.mark.parametrize("written", ["I'm sorry, I can't help with that.", "抱歉，我无法提供帮助。", "<think>so"])
def test_an_apology_does_not_overwrite_a_memory(written: str) -> None:
    answers = iter(["Alice lives in Oslo", written, "Oslo"])
    used = MemoryAgent(make_tiny_tokenizer(), "cpu", chunk_size=8).attach(Models({"policy": ScriptedChat(lambda *_: next(answers))})).use()
    used.add("city alice oslo . city bob rome . ")
    answer = used.ask("Where?")
    assert answer.trajectory.memory == "Alice lives in Oslo" and answer.trajectory.dropped and answer.text == "Oslo"


def test_an_empty_text_is_an_empty_memory_and_is_counted() -> None:
    answers = iter(["Alice lives in Oslo", " ", "unknown"])
    used = MemoryAgent(make_tiny_tokenizer(), "cpu", chunk_size=8).attach(Models({"policy": ScriptedChat(lambda *_: next(answers))})).use()
    used.add("city alice oslo . city bob rome . ")
    answer = used.ask("Where?")
    assert answer.trajectory.memory == "" and answer.trajectory.report["empty_memory"] == 1


@pytest.mark.parametrize(
    "fact",
    [
        "I don't eat meat", "I'm afraid of spiders", "I can't swim", "There is no cat in Bob's house", "我不能吃花生",
        "无锡是小明的家乡", "Nobody knows Bob",
        "No information desk hired Bob", "city alice paris", "none of Bob's cats is black", "لا يوجد في بيت أحمد قطة",
        "Sorry is Bob's favourite song",
    ],
)  # fmt: skip
def test_facts_are_not_taken_for_refusals(fact: str) -> None:
    assert not says_nothing(fact)


def test_reflections_say_what_they_leave_out() -> None:
    topics = '[{"summary": "Alice paints", "reference": [0]}, {"summary": ""}, "x"] or [{"summary": "Alice sings"}]'
    answers = iter([topics, "I am sorry.", '[{"summary": "Bob runs"}]', "Merge(7, who)"])
    used = MemoryRMMAgent(None, "cpu").attach(Models({"policy": ScriptedChat(lambda *_: next(answers))})).use(user="Alice")
    change = used.add("I paint")
    assert [text.split("\n")[0] for text in texts(used)] == ["Alice paints"] and len(change.dropped) == 3
    assert used.add("hm").dropped[0].what == "I am sorry." and len(texts(used)) == 1
    assert used.add("Bob runs").dropped[0].why == "choice out of range" and len(texts(used)) == 2
