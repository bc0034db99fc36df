"""Small hand-written records in the published schema of each benchmark, for tests of tasks, and agents that play a part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memfactory.agents.base import BaseAgent
from memfactory.common.types import Trajectory, View
from memfactory.engines.base import stream_key
from memfactory.engines.chat import Session
from memfactory.evaluation.tasks.env import TaskEnv

HOTPOT = {
    "_id": "h1", "question": "Were Ann and Ben of one country?", "answer": "yes", "type": "comparison", "level": "hard",
    "supporting_facts": [["Ann", 0], ["Ben", 0]],
    "context": [["Zoe", ["Zoe sings."]], ["Ann", ["Ann is Dutch.", " She swims."]], ["Ben", ["Ben is Dutch."]]],
}  # fmt: skip
HUB = {
    "id": "h2", "question": "Where does Ann swim?", "answer": "Delft", "type": "bridge", "level": "easy",
    "supporting_facts": {"title": ["Ann"], "sent_id": [0]},
    "context": {"title": ["Ann", "Ben"], "sentences": [["Ann swims in Delft."], ["Ben."]]},
}  # fmt: skip
EVAL_N = {"context": "Document 1:\nAnn\nAnn is here.\n\nDocument 2:\nBen\nBen is there.", "input": "Where is Ben?", "answers": ["there"],
          "num_docs": 2, "index": 7, "evidence": [2]}  # fmt: skip


def musique(name: str, answerable: bool = True) -> dict[str, Any]:
    paragraphs = [{"idx": 0, "title": "A", "paragraph_text": "A is in B.", "is_supporting": True},
                  {"idx": 1, "title": "C", "paragraph_text": "C is far.", "is_supporting": False}]  # fmt: skip
    return {
        "id": name,
        "question": "Where is A?",
        "answer": "the B",
        "answer_aliases": ["Bee"],
        "answerable": answerable,
        "paragraphs": paragraphs,
    }


def locomo(name: str = "conv-1") -> dict[str, Any]:
    turns = [{"speaker": "Ann", "dia_id": f"D1:{n}", "text": f"I have {n} cats."} for n in (1, 2, 3)]
    golds = [(1, "cats, dogs"), (2, "7 May 2023"), (3, "Yes; she said so"), (4, 3), (4, "cats"), (5, None), (5, None)]
    asked = [{"question": f"What {n}?", "category": category, "evidence": ["D1:1"],
              **({"adversarial_answer": "a cat"} if gold is None else {"answer": gold})}
             for n, (category, gold) in enumerate(golds)]  # fmt: skip
    talk = {"speaker_a": "Ann", "speaker_b": "Ben", "session_1_date_time": "1:00 pm on 1 May, 2023", "session_1": turns}
    return {"sample_id": name, "conversation": talk, "qa": asked}


def longmemeval(name: str, kind: str = "multi-session", answer: Any = 3) -> dict[str, Any]:
    talk = [{"role": "user", "content": "I have three cats.", "has_answer": True}, {"role": "assistant", "content": "Good."}]
    return {"question_id": name, "question_type": kind, "question": "How many cats?", "answer": answer,
            "question_date": "2023/05/30 (Tue) 23:40",
            "haystack_dates": ["2023/05/20 (Sat) 02:21"], "haystack_session_ids": ["answer_1"], "haystack_sessions": [talk],
            "answer_session_ids": ["answer_1"]}  # fmt: skip


FACTS = "Here is a list of facts:\n1. Ann lives in Delft.\n2. Ann lives in Lima."


def consolidation(source: str = "factconsolidation_sh_6k", **more: Any) -> dict[str, Any]:
    about = {"source": source, "qa_pair_ids": [f"{source}_no1", f"{source}_no2"]}
    return {
        "context": FACTS,
        "questions": ["Where does Ann live?", "Who?"],
        "answers": [["Lima"], ["Ann", "Anna"]],
        "metadata": about,
    } | more


VT = {
    "index": 0,
    "input": "Which variables hold 12345?",
    "context": "VAR AB = 12345\nThe sky is blue.\nVAR CD = VAR AB",
    "outputs": ["AB", "CD"],
}
NVIDIA = {"index": 0, "outputs": ["AB", "CD"], "length": 40,
          "input": "Memorize and track the chain.\n\nVAR AB = 12345\nVAR CD = VAR AB\n"
                   "Question: Find all variables that are assigned 12345."}  # fmt: skip
BABI = """1 John went to the garden.
2 Mary went to the office.
3 Where is John? \tgarden\t1
4 John went to the office.
5 Where is John? \toffice\t4
"""
ROWS = [{"input": "Noise. John went to the garden. Noise.", "question": "Where is John? ", "target": "garden"}]
DIALOG = {
    "dialog_id": "d1", "speakers": ["a"],
    "sessions": [{"date": "day 1", "turns": [{"id": "D1:1", "speaker": "a", "text": "city a rome ."}]}],
    "questions": [{"question": "city a ?", "answers": ["rome"], "type": "plain", "evidence": ["D1:1"], "abstain": False},
                  {"question": "city b ?", "answers": ["unknown"], "type": "abstain", "evidence": [], "abstain": True}],
}  # fmt: skip
LONG = {"context": "city alice paris . pet bob dog .", "input": "pet bob ?", "answers": ["dog"], "index": 0, "hops": 1}

CASES: dict[str, tuple[str, Any, dict[str, int]]] = {
    "locomo": ("locomo", [locomo(), locomo("conv-2")], {"1": 2, "2": 2, "3": 2, "4": 4, "5": 4}),
    "longmemeval": ("longmemeval", [longmemeval("q1"), longmemeval("q2_abs", "knowledge-update", "You did not mention it.")],
                    {"multi-session": 1, "knowledge-update": 1}),
    "hotpotqa": ("hotpotqa", [HOTPOT], {"comparison": 1}),
    "hotpotqa_hub": ("hotpotqa", [HUB], {"bridge": 1}),
    "hotpotqa_eval": ("hotpotqa", [EVAL_N], {"all": 1}),
    "2wiki": ("2wiki", [HOTPOT | {"type": "inference"}], {"inference": 1}),
    "musique": ("musique", [musique("2hop__1_2"), musique("3hop1__1_2_3", False)], {"2-hop": 1, "3-hop": 1}),
    "memoryagentbench": ("memoryagentbench", {"data": [consolidation(), consolidation("icl_nlu")]},
                         {"factconsolidation_sh_6k": 2, "icl_nlu": 2}),
    "ruler_vt": ("ruler_vt", [VT], {"all": 1}),
    "ruler_nvidia": ("ruler_vt", [NVIDIA], {"all": 1}),
    "ruler_qa_1": ("ruler_qa_1", [VT | {"context": EVAL_N["context"]}], {"all": 1}),
    "qa1_babi": ("babilong", BABI, {"qa1": 2}),
    "qa1_rows": ("babilong", ROWS, {"qa1": 1}),
    "synth_dialog": ("synth_dialog", [DIALOG], {"plain": 1, "abstain": 1}),
    "synth_facts": ("synth_facts", [LONG], {"1-hop": 1}),
    "synth_hop": ("synth_hop", [EVAL_N], {"all": 1}),
}  # fmt: skip
"""{name: (task, what the file holds, {type: questions})}."""


def file_of(folder: Path, name: str, content: Any = None) -> Path:
    """The file of a case; a text is written as it is."""
    held = CASES[name][1] if content is None else content
    path = folder / f"{name}{'.txt' if isinstance(held, str) else '.json'}"
    path.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    return path


class Scripted(BaseAgent):
    """An agent that answers by a function of the example and the question's number, and remembers nothing.

    Agents are not told an example's name: it takes a look behind the scenes.
    """

    answer: Callable[[str, int], str]

    def initial(self, view: View) -> str:
        return self.names[view.example_id]

    async def _attempt(self, view: View, *rest: Any) -> Trajectory:
        self.names = getattr(self, "names", {}) | {f"{stream_key(view.example_id):016x}": view.example_id}
        return await super()._attempt(view, *rest)

    async def write(self, model: Session, memory: Any, event: Any, question: str | None = None) -> Any:
        return memory

    async def read(self, model: Session, memory: Any, question: str) -> str:
        return self.answer(memory, model.question or 0)


def scripted(answer: Callable[[str, int], str]) -> Scripted:
    agent = Scripted(None, "cpu")
    agent.answer = answer  # type: ignore[method-assign]
    return agent


def gold_of(env: TaskEnv) -> Callable[[str, int], str]:
    """Says the gold: all of it where all is asked for, without the reason that LoCoMo gives behind a semicolon."""
    asked: Mapping[str, list[dict[str, Any]]] = {example["example_id"]: example["asked"] for example in env.examples}

    def say(example: str, number: int) -> str:
        question = asked[example][number]
        gold = ", ".join(question["answers"]) if env.task.headline.startswith("ruler_all") else question["answers"][0]
        return gold.split(";")[0] if question["scorer"] == "f1_locomo_open@1" else gold

    return say
