"""Rules that play Memory-R1's stages from the agent's own prompts in lines: yardsticks beside a trained policy, and scripts for tests.

A player sees what a model would see (the facts, the memories that were shown) and nothing of the gold. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable

from memfactory.common.types import Messages
from memfactory.data.generators import dialog_bank, dialog_world
from memfactory.data.generators.rerank_demonstrator import live_lines, needed

Player = Callable[[Messages, str], str]
"""(messages, stage) -> text, as `ScriptedChat` takes it."""


def between(text: str, tag: str) -> str:
    """What a prompt's block `<tag>` holds."""
    return text.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def sentences(text: str) -> list[str]:
    """The lines style's facts, each with its full stop; `none` is none."""
    return [] if text == "none" else [f"{part.strip()} ." for part in text.split(" .") if part.strip()]


def shown_bank(text: str) -> dialog_bank.Bank:
    """Memories with their numbers, `city alice 0 paris .`, as the rules' bank."""
    bank = {}
    for sentence in sentences(text):
        words = sentence.split()
        at = max(place for place, word in enumerate(words) if word.isdigit())
        number = int(words.pop(at))
        said = dialog_world.read_line(" ".join(words))
        assert said is not None, sentence
        bank[number] = said
    return bank


def operations(policy: str, memory: str, facts: str) -> str:
    """The operation lines of one of `dialog_bank.POLICIES`, one a fact at most."""
    bank, lines = shown_bank(memory), []
    for fact in sentences(facts):
        said = dialog_world.read_line(fact)
        assert said is not None, fact
        key = " ".join(fact.split()[:2])
        for edit in dialog_bank.POLICIES[policy](bank, said, 99)[:1]:
            lines.append(f"{key} {'new' if edit.op == 'ADD' else edit.id} {edit.op} .")
    return "\n".join(lines) or "none ."


def answer_from(memories: str, question: str) -> str:
    """The answer that the memories give by rule: of several items of a key the oldest is believed."""
    bank = {number: dialog_world.read_line(line) for number, line in enumerate(sentences(memories))}
    path = dialog_world.read_question(question)
    assert path is not None, question
    values = dialog_bank.read({number: said for number, said in bank.items() if said is not None}, path)
    return f"**Answer:** {dialog_world.answer_text(values, 'triples') if values else 'unknown'}"


def rule_player(policy: str, update: Callable[[str], str] = lambda text: text) -> Player:
    """All three stages: perfect extraction and reading, operations by a named rule, changed by `update`."""

    def play(messages: Messages, stage: str) -> str:
        text = messages[0]["content"]
        if stage == "extraction":
            facts = [line for line in sentences(between(text, "conversation")) if dialog_world.read_line(line) is not None]
            return " ".join(facts) or "none"
        if stage == "update":
            return update(operations(policy, between(text, "memory"), between(text, "facts")))
        return answer_from(between(text, "memories"), between(text, "question"))

    return play


def chooser(policy: str = "oracle") -> Player:
    """RMM's two stages by rule: `oracle` keeps what an answer rests on, `all` every candidate, `none` nothing; reading is by rule."""

    def play(messages: Messages, stage: str) -> str:
        text = messages[0]["content"]
        if stage != "rerank":
            return answer_from(between(text, "memories"), between(text, "question"))
        candidates = [sentence.removesuffix(" .").split() for sentence in sentences(between(text, "candidates"))]
        lines = [" ".join([*words[:2], *words[3:]]) for words in candidates]
        path = dialog_world.read_question(between(text, "question"))
        assert path is not None, text
        kept = {"oracle": needed(live_lines(lines), path), "all": list(range(len(lines))), "none": []}[policy]
        return " ".join(f"{' '.join(candidates[number][:3])} ." for number in kept) or "none ."

    return play
