"""RMM's prompts in our words: note topics, merge them, choose memories, answer with citations (Tan et al., 2025, arXiv 2503.08026).

Knows no bank and no parser. Choosing has a form in JSON and one in lines, for models too small for JSON.
"""

from __future__ import annotations

from memfactory.common.errors import unknown_name
from memfactory.common.prompts import fill, user
from memfactory.common.types import Messages

REFLECT = (
    "You are given a session of a conversation, each turn with its number. Note what it tells about <<speaker>>: one entry for each "
    "topic, a topic may span several turns. An entry is a short summary in the third person, with names and dates, and the numbers of "
    'the turns it rests on. Answer with JSON: {"extracted_memories": [{"summary": "...", "reference": [0, 2]}]}, or NO_TRAIT if there '
    "is nothing about <<speaker>> worth keeping.\n\n<session>\n<<session>>\n</session>\n\nEntries:\n"
)
"""RMM's prospective reflection, once for each speaker of a session."""

MERGE = (
    "You keep a memory of topics. You are given the summaries that are close to a new one, each with its number, and the new one. "
    "Answer with one action a line: Merge(number, merged summary) where the new summary continues, corrects or repeats a kept one, "
    "Add() where it is about something else.\n\n<history>\n<<history>>\n</history>\n\n<new>\n<<new>>\n</new>\n\nActions:\n"
)
"""RMM's update of the memory with one new topic."""

_CHOOSE = (
    "You choose memories of a conversation. You are given candidates, oldest first, each with its number, and a question. Keep what "
    "is needed to answer it and still true at the end; leave out what was replaced, taken back or is about something else. "
)
CHOOSE_JSON = (
    _CHOOSE + "Answer with a JSON list of the numbers to keep, the most useful first, [] if none helps.\n\n<candidates>\n<<candidates>>\n"
    "</candidates>\n\n<question>\n<<question>>\n</question>\n\nNumbers to keep:\n"
)
CHOOSE_LINES = (
    _CHOOSE + "Answer with one line a memory to keep: its first words, its number and a full stop; none if none helps.\n\n"
    "<candidates>\n<<candidates>>\n</candidates>\n\n<question>\n<<question>>\n</question>\n\nMemories to keep:\n"
)

ANSWER_WITH_CITATIONS = (
    "You are given memories of a conversation, oldest first, each with its number, and a question. Where memories contradict each "
    "other, the most recent is right. Write first the numbers of the memories that you use, and of no others, in brackets like [0, 2], "
    "or [NO_CITE] if you use none; then the answer in a few words after **Answer:**, or unknown if the memories do not say.\n\n"
    "<memories>\n<<memories>>\n</memories>\n\n<question>\n<<question>>\n</question>\n\nCitations and answer:\n"
)
"""RMM's answer: what is cited is the reranker's reward. The citations come first, as the memories do in Memory-R1's distillation."""

RMM_PROMPTS: dict[str, str] = {
    "reflect": REFLECT,
    "merge": MERGE,
    "choose_json": CHOOSE_JSON,
    "choose_lines": CHOOSE_LINES,
    "answer_with_citations": ANSWER_WITH_CITATIONS,
}


def reflect_messages(session: str, speaker: str) -> Messages:
    """The messages of a reflection turn: the numbered turns of a session, and whom to note things about."""
    return user(fill(REFLECT, session=session, speaker=speaker))


def merge_messages(history: str, new: str) -> Messages:
    """The messages of a merging turn: numbered summaries, and the new one."""
    return user(fill(MERGE, history=history, new=new))


def choose_messages(candidates: str, question: str, style: str = "json") -> Messages:
    """The messages of a reranking turn: numbered candidates, and the question."""
    if style not in ("json", "lines"):
        raise unknown_name("style", style, ("json", "lines"))
    return user(fill(RMM_PROMPTS[f"choose_{style}"], candidates=candidates, question=question))


def cited_answer_messages(memories: str, question: str) -> Messages:
    """The messages of an answer turn that cites."""
    return user(fill(ANSWER_WITH_CITATIONS, memories=memories, question=question))
