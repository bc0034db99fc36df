"""`synth_facts`, `synth_hop`, `synth_dialog`: this project's own generated worlds as tasks; what they are, `data/generators` says."""

from __future__ import annotations

from pathlib import Path

from memfactory.common.registry import TASK_REGISTRY
from memfactory.data.dialogs import load_dialogs, only_told
from memfactory.data.documents import split_documents
from memfactory.data.formats import load_longcontext
from memfactory.evaluation.tasks.base import Loaded, Question, Sample, Task
from memfactory.evaluation.tasks.texts import of_documents, of_text, text_of

FACTS_A_SESSION = 16
"""Words of a session of `synth_facts`: four facts, as the tiny reader's chunks have them."""


@TASK_REGISTRY.register("synth_dialog")
class SynthDialog(Task):
    """Dialogues whose facts are updated, refined, retracted and doubted (`memfactory data build synth_dialog`)."""

    headline = "em_squad@1"
    beside = ("f1_squad@1",)

    def load(self, path: Path) -> Loaded:
        loaded = load_dialogs(path)
        samples = []
        for dialogue in loaded.dialogues:
            name, sessions = dialogue["dialog_id"], only_told(dialogue["sessions"])
            questions = [
                Question(f"{name}/{at}", q["question"], tuple(q["answers"]), q["type"], tuple(q["evidence"]), q["abstain"])
                for at, q in enumerate(dialogue["questions"])
            ]
            samples.append(Sample(name, tuple(questions), sessions, text_of(sessions)))
        return Loaded(samples, loaded.repairs)


@TASK_REGISTRY.register("synth_facts")
class SynthFacts(Task):
    """A list of facts about people and a question of one or two hops (`memfactory data build synth_facts`, datas/tiny)."""

    headline = "em_squad@1"
    beside = ("boxed_em@1",)

    def load(self, path: Path) -> Loaded:
        samples = []
        for row in load_longcontext(path):
            name, hops = row["example_id"], row["extra"].get("hops")
            question = Question(name, row["question"], tuple(row["answers"]), "all" if hops is None else f"{hops}-hop")
            facts = of_text(row["context"].replace(" . ", " .\n"), FACTS_A_SESSION)
            samples.append(Sample(name, (question,), facts, row["context"]))
        return Loaded(samples)


@TASK_REGISTRY.register("synth_hop")
class SynthHop(Task):
    """Questions of two hops over invented documents, in MemAgent's form (`memfactory data build synth_hop`)."""

    headline = "em_squad@1"
    beside = ("f1_hotpot@1", "sub_em_oneway@1", "boxed_em@1")

    def load(self, path: Path) -> Loaded:
        samples = []
        for row in load_longcontext(path):
            name, evidence = row["example_id"], tuple(map(str, row["extra"].get("evidence", ())))
            question = Question(name, row["question"], tuple(row["answers"]), evidence=evidence)
            _, sessions = of_documents(split_documents(row["context"]))
            samples.append(Sample(name, (question,), sessions, row["context"]))
        return Loaded(samples)
