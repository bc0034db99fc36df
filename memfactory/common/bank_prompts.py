"""The prompts of a memory bank: extract facts, manage them, answer from them (after Memory-R1, arXiv 2508.19828, in our words).

Each has a form in JSON and one in lines, for models too small for JSON. Knows no bank and no parser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memfactory.common.errors import unknown_name
from memfactory.common.prompts import fill, user
from memfactory.common.types import Messages

STYLES = ("json", "lines")

_EXTRACT = (
    "You are given a part of a conversation. Write down the facts about the people in it that are worth remembering: who they are, "
    "what they have, want, do and plan, and what is no longer so. One short sentence a fact, with names instead of pronouns and dates "
    "as given. Leave out greetings and small talk. "
)
EXTRACT_JSON = (
    _EXTRACT + "Answer with a JSON list of texts, [] if there is nothing to remember.\n\n<conversation>\n<<conversation>>\n"
    "</conversation>\n\nFacts:\n"
)
EXTRACT_LINES = (
    _EXTRACT + "Answer with one fact a line, none if there is nothing to remember.\n\n<conversation>\n<<conversation>>\n"
    "</conversation>\n\nFacts:\n"
)

_MANAGE = (
    "You manage a memory of facts. You are given the memories that are close to some new facts, each with its id, and the new facts. "
    "Choose one operation for each new fact: ADD for what the memory does not hold; UPDATE, with the id, for what changes, corrects or "
    "completes a memory; DEL, with the id, if the fact says that a memory is no longer true and nothing takes its place; NONE for what "
    "the memory holds already. "
)
MANAGE_JSON = (
    _MANAGE + 'Answer with JSON: {"memory": [{"id": "2", "event": "UPDATE", "text": "the memory as it should be"}, {"event": "ADD", '
    '"text": "a new memory"}, {"id": "0", "event": "DEL"}]}.\n\n<memory>\n<<memory>>\n</memory>\n\n<facts>\n<<facts>>\n</facts>\n\n'
    "Operations:\n"
)
MANAGE_LINES = (
    _MANAGE + "Answer with one line a fact: its first words, the id or new, the operation and a full stop.\n\n<memory>\n<<memory>>\n"
    "</memory>\n\n<facts>\n<<facts>>\n</facts>\n\nOperations:\n"
)

ANSWER_FROM_MEMORIES = (
    "You are given memories of a conversation and a question. Where memories contradict each other, the most recent is right. First write "
    "down the memories that are useful for the answer, then the answer in a few words after **Answer:**, or unknown if the memories do "
    "not say.\n\n<memories>\n<<memories>>\n</memories>\n\n<question>\n<<question>>\n</question>\n\nUseful memories and answer:\n"
)
"""Memory-R1's answer turn with memory distillation."""

BANK_PROMPTS: dict[str, str] = {
    "extract_json": EXTRACT_JSON,
    "extract_lines": EXTRACT_LINES,
    "manage_json": MANAGE_JSON,
    "manage_lines": MANAGE_LINES,
    "answer_from_memories": ANSWER_FROM_MEMORIES,
}


def in_lines(texts: Iterable[str]) -> str:
    """Facts as the lines style shows them: words, each fact ended by a full stop that stands alone."""
    return " ".join(f"{text.removesuffix(' .')} ." for text in texts)


def numbered_lines(texts: Sequence[str]) -> str:
    """Facts with their numbers behind the first two words, `city alice 0 paris .`: to name an item is then to continue its key."""
    split = [text.removesuffix(" .").split() for text in texts]
    return in_lines(" ".join([*words[:2], str(number), *words[2:]]) for number, words in enumerate(split)) or "none"


def _of_style(name: str, style: str) -> str:
    if style not in STYLES:
        raise unknown_name("style", style, STYLES)
    return BANK_PROMPTS[f"{name}_{style}"]


def extract_messages(conversation: str, style: str = "json") -> Messages:
    """The messages of an extraction turn."""
    return user(fill(_of_style("extract", style), conversation=conversation))


def manage_messages(memory: str, facts: str, style: str = "json") -> Messages:
    """The messages of a management turn: memories as they are shown, and the new facts."""
    return user(fill(_of_style("manage", style), memory=memory, facts=facts))


def answer_messages(memories: str, question: str) -> Messages:
    """The messages of an answer turn: the retrieved memories and the question, nothing of the conversation."""
    return user(fill(ANSWER_FROM_MEMORIES, memories=memories, question=question))
