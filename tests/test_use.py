"""Promise: what an application tells and asks is what `inference` does, one line at a time; it outlives the process, and nobody else's."""

from __future__ import annotations

import asyncio
import datetime
import importlib.util
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from openai_server import Server, says, serving

from memfactory.agents.base import BaseAgent
from memfactory.agents.build import local_models, trained_as
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.agents.told import MAX_PIECE, in_halves, named, pieces_of, turns_of
from memfactory.common.errors import ConfigError, DataError, InfrastructureError, PromptTooLong, StoreError, UnknownNameError, UserError
from memfactory.common.files import read_json, write_json
from memfactory.common.registry import AGENT_REGISTRY, EMBEDDER_REGISTRY, ENGINE_REGISTRY
from memfactory.common.types import Messages, Sampling, Turn, View
from memfactory.data.generators.bank_player import rule_player
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.chat import Models
from memfactory.engines.load import load_model
from memfactory.engines.scripted import ScriptedChat
from memfactory.memory.bank import UNKNOWN_ID, MemoryBank
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores import MemoryStore, open_store
from memfactory.memory.stores.in_memory import InMemoryStore

ROOT = Path(__file__).resolve().parent.parent
TINY, READER = str(ROOT / "models" / "tiny-bank"), str(ROOT / "models" / "tiny")
MILVUS = pytest.param("milvus", marks=pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="not installed"))
ORACLE = rule_player("oracle")

pytestmark = pytest.mark.usefixtures("forgotten_parts")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLM_MODEL", "MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)


def agent(answer: Callable[[Messages, str], str] = ORACLE, **options: Any) -> MemoryR1Agent:
    """Memory-R1 in lines, played by rules."""
    made = MemoryR1Agent(None, "cpu", style="lines", **options)
    made.attach(Models({"policy": ScriptedChat(answer)}))
    return made


def texts(of: BaseAgent) -> list[str]:
    return [item.text for item in of.memories()]


def dialogues(number: int) -> list[View]:
    made = synth_dialog(number, seed=7, rendering="triples")
    return [View(d["dialog_id"], tuple(q["question"] for q in d["questions"]), events=tuple(d["sessions"])) for d in made]


# The same prompts and tokens as inference


@pytest.mark.slow
@pytest.mark.parametrize("store", ["in_memory", MILVUS])
def test_a_dialogue_told_line_by_line_is_the_dialogue_of_inference(store: str, tmp_path: Path) -> None:
    here = agent(near=2, answer_from=3)  # few enough that the store has to choose
    policy: Any = here._models(None).chats["policy"]
    with here.use(store, store_options={} if store == "in_memory" else {"uri": str(tmp_path / "m.db")}):
        for view in dialogues(3):
            (expected,) = here.inference([view])
            asked, policy.asked = policy.asked, []
            user = here.for_user(view.example_id)
            told = [user.add(session["turns"], date=session["date"]) for session in view.events]
            answers = [user.ask(question) for question in view.questions]
            assert policy.asked == asked and len(asked) >= 8
            assert [answer.whole for answer in answers] == expected.answers
            assert user.store.bank(user.user) == expected.memory and len(expected.memory) > 3
            assert user.memories() == expected.memory.items()
            assert sum((change.trajectory.report for change in told), start=answers[0].trajectory.report) == expected.report
            policy.asked = []


def tokens(turns: list[Turn]) -> list[tuple[Any, ...]]:
    return [(turn.stage, turn.prompt_ids, turn.response_ids, turn.finish, turn.text) for turn in turns]


def test_a_models_tokens_are_those_of_inference() -> None:
    with BaseAgent.load(TINY) as used:
        assert isinstance(used, MemoryR1Agent) and used.options.near == 3, "as the checkpoint was trained"
        (view,) = dialogues(1)
        (expected,) = used.inference([view])
        turns = [turn for session in view.events for turn in used.add(session["turns"], date=session["date"]).trajectory.turns]
        turns += [turn for question in view.questions for turn in used.ask(question).trajectory.turns]
        assert tokens(turns) == tokens(expected.turns) and len(turns) >= 8
        assert [turn.logprobs for turn in turns] == [pytest.approx(turn.logprobs, abs=1e-4) for turn in expected.turns]
        assert used.store.bank(used.user) == expected.memory


def test_an_untrained_models_tokens_too_and_sampled_ones_differ_from_call_to_call(tiny_qwen3: Callable, tiny_tokenizer: Any) -> None:
    models = local_models(tiny_qwen3(max_position_embeddings=4096), tiny_tokenizer)
    used = MemoryR1Agent(tiny_tokenizer, "cpu", style="lines", max_generate_length=6).attach(models).use()
    (view,) = dialogues(1)
    (expected,) = used.inference([View("x", view.questions[:1], events=view.events[:1])])
    turns = used.add(view.events[0]["turns"], date="day 1").trajectory.turns + used.ask(view.questions[0]).trajectory.turns
    assert tokens(turns) == tokens(expected.turns)
    used.use(temperature=1.0)
    drawn = [tokens(used.ask("city alice ?").trajectory.turns) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert [tokens(used.use(temperature=1.0).ask("city alice ?").trajectory.turns) for _ in range(2)] == [drawn[0]] * 2


def test_an_agent_that_reads_with_the_question_in_hand_keeps_what_it_is_told_word_for_word() -> None:
    with MemoryAgent.load(READER, chunk_size=16) as used:
        change = used.add("city alice paris . pet bob cat .", date="May 1")
        used.add("job carol chef . city alice rome .")
        assert [edit.op.text for edit in change.remembered] == ["city alice paris . pet bob cat ."] and change.trajectory.turns == []
        answer = used.ask("city alice ?")
        text = "[May 1] city alice paris . pet bob cat .\njob carol chef . city alice rome ."
        (expected,) = used.inference([View("x", ("city alice ?",), context=text)])
        assert tokens(answer.trajectory.turns) == tokens(expected.turns) and answer.whole == expected.answers[0]
        assert (
            len(answer.trajectory.turns) == len(expected.turns) > 2 and answer.trajectory.memory == expected.memory and answer.shown == ()
        )
        used.forget("0")
        assert texts(used) == ["job carol chef . city alice rome ."] and used.memories()[0].created == ""


# What is returned


def test_a_change_says_what_came_changed_and_went() -> None:
    with agent().use(user="alice") as used:
        first = used.add("city alice paris . pet bob cat . hello there .", date="day 1")
        assert [(e.op.id, e.op.text, e.old) for e in first.remembered] == [("0", "city alice paris", ""), ("1", "pet bob cat", "")]
        second = used.add([{"speaker": "bob", "text": "city alice rome ."}, "pet bob unknown ."], date="day 2")
        assert [(e.op.id, e.op.text, e.old) for e in second.changed] == [("0", "city alice rome", "city alice paris")]
        assert [(e.op.id, e.old) for e in second.forgotten] == [("1", "pet bob cat")] and second.remembered == second.rejected == ()
        assert used.add("joke alice cat .").edits == ()
        (item,) = used.memories()
        assert (item.text, item.created, item.updated) == ("city alice rome", "day 1", "day 2")
        assert used.history("0") == ("city alice paris", "city alice rome") and used.history("7") == ()
        answer = used.ask("city alice ?")
        assert (str(answer), answer.whole, answer.shown) == ("rome", "**Answer:** rome", (item,))
        assert used.ask("pet bob ?").text == "unknown"


def test_what_the_policy_asked_for_in_vain_is_said() -> None:
    def wild(messages: Messages, stage: str) -> str:
        return "city alice 7 UPDATE ." if stage == "update" else ORACLE(messages, stage)

    with agent(wild).use() as used:
        change = used.add("city alice paris .")
        assert [(r.op.kind, r.op.text, r.reason) for r in change.rejected] == [("UPDATE", "city alice paris", UNKNOWN_ID)]
        assert change.edits == () and change.trajectory.report["rejected_operations"] == 1


def test_closed_memories_are_shown_when_asked_for() -> None:
    with agent(write_policy="temporal").use() as used:
        used.add("city alice paris .", date="day 1")
        change = used.add("city alice rome .", date="day 2")
        assert [(e.op.id, e.old, e.op.text) for e in change.changed] == [("1", "city alice paris", "city alice rome")]
        assert texts(used) == ["city alice rome"] and [item.id for item in used.memories(closed=True)] == ["0", "1"]


SHOWN = tuple(MemoryItem(str(n), text) for n, text in enumerate(["tea is hot", "tea is hot and green", "city alice paris ."]))


@pytest.mark.parametrize(
    ("whole", "ids"),
    [
        ("tea is hot and green . **Answer:** green", ["1"]),
        ("- tea is hot\n- city alice paris\n**Answer:** x", ["0", "2"]),
        ("tea is hot", []),
        ("<think>tea is hot", []),
        ("[2, 0] **Answer:** paris", ["0", "2"]),
        ("[NO_CITE] **Answer:** unknown", []),
        ("[8 May 2023] tea is hot **Answer:** x", ["0"]),
        ("[9] tea is hot **Answer:** x", ["0"]),
        ("", []),
    ],
)
def test_an_answer_names_memories_by_their_words_or_cites_them(whole: str, ids: list[str]) -> None:
    assert [item.id for item in named(whole, SHOWN)] == ids


def test_turns_come_in_many_forms() -> None:
    assert turns_of("hi", "eve") == [{"speaker": "eve", "text": "hi"}] == turns_of({"text": "hi"}, "eve")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert turns_of(messages, "eve") == [{"speaker": "eve", "text": "hi"}, {"speaker": "assistant", "text": "yes"}]
    turn = {"id": "D1:1", "speaker": "bob", "text": "city bob delhi ."}
    assert turns_of([turn, "hi"], "eve") == [turn, {"speaker": "eve", "text": "hi"}]
    for bad in ("", " \n", [], [""], {"speaker": "bob"}, [{"text": 3}]):
        with pytest.raises(DataError):
            turns_of(bad, "eve")  # type: ignore[arg-type]


def test_the_speaker_is_the_user_unless_said() -> None:
    heard: list[str] = []

    def hears(messages: Messages, stage: str) -> str:
        heard.append(messages[0]["content"])
        return "[]"

    used = MemoryR1Agent(None, "cpu").attach(Models({"policy": ScriptedChat(hears)})).use(user="Alice")
    used.add("I moved")
    used.add("I moved", speaker="Bob", date="1 May")
    used.use().add("I moved")
    assert ["Alice: I moved" in heard[0], "Date: 1 May\nBob: I moved" in heard[1], "user: I moved" in heard[2]] == [True] * 3


def test_blank_questions_and_verbs_without_a_store_are_refused_in_words() -> None:
    used = agent()
    for verb in (lambda: used.add("x"), lambda: used.ask("x ?"), used.memories, lambda: used.forget("0")):
        with pytest.raises(ConfigError, match=r"no store: make it with MemoryR1Agent.load\(PATH, store=...\), or call use"):
            verb()
    used.use()
    with pytest.raises(DataError, match="blank"):
        used.ask(" ")
    with pytest.raises(UnknownNameError):
        used.forget("0")
    with pytest.raises(ConfigError, match="has no model"):
        MemoryR1Agent(None, "cpu").use().add("x")
    with pytest.raises(UserError, match="needs a fast tokenizer"):
        MemoryAgent(None, "cpu").attach(Models({"policy": ScriptedChat(ORACLE)})).use().ask("city alice ?")


def test_a_memory_that_no_store_can_keep_is_refused() -> None:
    class Notes(BaseAgent):
        def initial(self, view: View) -> Any:
            return "nothing"

        async def write(self, model: Any, memory: Any, event: Any, question: str | None = None) -> Any:
            return "something"

        async def read(self, model: Any, memory: Any, question: str) -> str:
            return str(memory)

    with pytest.raises(ConfigError, match="Notes keeps its memory as a str, and stores keep banks.*question_aware"):
        Notes(None, "cpu").use()

    class Liar(Notes):
        def initial(self, view: View) -> Any:
            return MemoryBank()

    with pytest.raises(ConfigError, match="Liar.write returned 'something', not a MemoryBank"):
        Liar(None, "cpu").attach(Models({})).use().add("x")


# Users, stores, processes


@pytest.fixture
def rules() -> None:
    """An engine that plays by rules, as a plug-in would register it."""

    @ENGINE_REGISTRY.register("rules")
    class Rules(ScriptedChat):
        def __init__(self, model: str, *, policy: str = "oracle") -> None:
            super().__init__(rule_player(policy))


@pytest.mark.slow
@pytest.mark.usefixtures("rules")
@pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="not installed")
def test_what_was_told_is_known_after_a_restart(tmp_path: Path) -> None:
    place: dict[str, Any] = {"store": "milvus", "store_options": {"uri": str(tmp_path / "alice.db")}, "engine": "rules"}
    with MemoryR1Agent.load(TINY, user="alice", **place) as used:
        used.add("city alice paris . pet bob cat .")
        used.for_user("bob").add("city alice oslo .")
        with pytest.raises(StoreError, match=r"in use by process \d+"):
            MemoryR1Agent.load(TINY, **place)
    with MemoryR1Agent.load(TINY, user="alice", **place) as used:
        assert texts(used) == ["city alice paris", "pet bob cat"]
        change = used.add("city alice rome .")
        assert [edit.old for edit in change.changed] == ["city alice paris"]
        assert [str(used.ask("city alice ?")), str(used.for_user("bob").ask("city alice ?"))] == ["rome", "oslo"]
        assert used.history("0") == ("city alice paris", "city alice rome")
    with pytest.raises(ConfigError, match="closed"):
        used.add("pet bob dog .")


def test_two_users_never_mix() -> None:
    with agent().use(user="alice") as alice:
        bob = alice.for_user("bob")
        assert bob.user == "bob" and alice.user == "alice" and bob.store is alice.store
        alice.add("city alice paris .")
        bob.add("city alice oslo . pet bob cat .")
        assert texts(alice) == ["city alice paris"] and texts(bob) == ["city alice oslo", "pet bob cat"]
        assert [str(user.ask("city alice ?")) for user in (alice, bob, alice.for_user("eve"))] == ["paris", "oslo", "unknown"]
        bob.forget("0")
        assert texts(alice) == ["city alice paris"] and str(bob.ask("city alice ?")) == "unknown"
        bob.close()
        assert texts(alice) == ["city alice paris"], "who was lent the store does not close it"
    with pytest.raises(DataError, match="1 to 256"):
        alice.use().for_user(" ").add("city alice paris .")


def test_an_open_store_is_used_and_left_open() -> None:
    with open_store("in_memory") as store:
        with agent().use(store, "alice") as used:
            used.add("city alice paris .")
            assert used.store is store
        assert store.count("alice") == 1


def test_the_store_is_opened_with_the_retrievers_embedder() -> None:
    calls: list[int] = []

    @EMBEDDER_REGISTRY.register("counted")
    class Counted(HashedEmbedder):
        def __init__(self) -> None:
            super().__init__(dim=64)
            self.name = "counted"

        def embed(self, texts: Any) -> Any:
            calls.append(len(texts))
            return super().embed(texts)

    part = {"type": "naive_retriever", "embedder": "counted"}
    used = agent(retriever=part, finder=part, near=2, answer_from=2).use()
    assert used.store.embedder is used.retriever.embedder  # type: ignore[attr-defined]
    used.store.add(used.user, [f"city p{n} oslo" for n in range(50)])
    calls.clear()
    assert used.ask("city p7 ?").shown[0].id == "7" and sum(calls) == 1, "of fifty memories and a question the question alone"
    other = agent(retriever=part, near=2, answer_from=2).use(open_store("in_memory"))
    other.store.add(other.user, [f"city p{n} oslo" for n in range(50)])
    assert other.ask("city p7 ?").shown[0].id == "7", "a store with another embedder is not asked what is near"


# At the same time


class Meeting:
    """The oracle, once three users are at it together; knows how many were there of one."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most_of_one = 0
        self.met = asyncio.Event()

    async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
        name = messages[0]["content"].split("<conversation>\npet ")[1].split()[0] if stage == "extraction" else ""
        if name:
            self.now[name] = self.now.get(name, 0) + 1
            self.most_of_one = max(self.most_of_one, self.now[name])
            if sum(map(bool, self.now.values())) == 3:
                self.met.set()
            await asyncio.wait_for(self.met.wait(), 20)
            await asyncio.sleep(0.002)
            self.now[name] -= 1
        return Turn(stage, (), (), (), ORACLE(messages, stage), "stop", trainable=False)


PETS = ["cat", "dog", "duck", "parrot", "turtle"]


def test_adds_of_one_user_are_written_one_after_the_other_and_of_several_at_once() -> None:
    meeting = Meeting()
    used = MemoryR1Agent(None, "cpu", style="lines").attach(Models({"policy": meeting})).use(user="bob")
    users = [used, used.for_user("eve"), used.for_user("dan")]

    async def server() -> None:
        await asyncio.gather(*(user.aadd(f"pet {user.user} and {pet} .") for pet in PETS for user in users))
        answer = await users[1].aask("pet eve ?")
        assert sorted(answer.text.split(" and ")) == sorted(PETS)

    asyncio.run(server())
    assert all(sorted(item.text.split()[-1] for item in user.memories()) == sorted(PETS) for user in users)
    assert meeting.most_of_one == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pet: used.for_user("amy").add(f"pet amy and {pet} ."), PETS))
    assert len(used.for_user("amy").memories()) == len(PETS) and meeting.most_of_one == 1


def test_the_verbs_work_inside_a_running_loop_as_in_a_notebook() -> None:
    used = agent().use()

    async def cell() -> str:
        used.add("city alice paris .")
        await used.aadd("city alice rome .")
        return used.ask("city alice ?").text

    assert asyncio.run(cell()) == "rome"


def test_another_writer_between_is_neither_lost_nor_a_reason_to_lose() -> None:
    store = open_store("in_memory")
    store.add("alice", ["city alice paris", "pet bob cat", "city carol lima"])

    def disturbed(messages: Messages, stage: str) -> str:
        if stage == "update":
            store.add("alice", ["job eve chef"])
            store.update("alice", "1", "pet bob two cats")
            store.delete("alice", "2")
        return ORACLE(messages, stage)

    used = agent(disturbed).use(store, "alice")
    change = used.add("city alice rome . pet bob unknown . city carol oslo . pet eve dog .")
    assert [item.text for item in used.memories()] == ["city alice rome", "pet bob two cats", "job eve chef", "pet eve dog"]
    assert [(e.op.kind, e.op.id) for e in change.edits] == [("UPDATE", "0"), ("ADD", "4")], "the id that it chose was given away"
    assert [(r.op.kind, r.op.id, r.reason) for r in change.rejected] == [
        ("DEL", "1", "changed meanwhile"), ("UPDATE", "2", UNKNOWN_ID),
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["extraction", "update", "answer", "store"])
def test_a_failure_leaves_the_memory_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    down = False

    def shaky(messages: Messages, stage: str) -> str:
        if down and stage == where:
            raise InfrastructureError("the server is down")
        return ORACLE(messages, stage)

    used = agent(shaky).use()
    used.add("city alice paris .")
    before = used.store.bank(used.user)
    down = True
    with monkeypatch.context() as patch:
        if where == "store":
            patch.setattr(InMemoryStore, "_write", _full)
        with pytest.raises(InfrastructureError):
            used.add("city alice rome . pet bob cat .") if where != "answer" else used.ask("city alice ?")
        assert used.store.bank(used.user) == before
    down = False
    assert len(used.add("city alice rome . pet bob cat .").edits) == 2, "and works again afterwards"


def _full(self: Any, user: str, rows: Any) -> None:
    raise StoreError("the disk is full")


def test_a_cancelled_add_lets_the_next_one_in() -> None:
    started = threading.Event()

    class Stuck:
        stuck = True

        async def chat(self, messages: Messages, stage: str, sampling: Sampling) -> Turn:
            started.set()
            if self.stuck:
                await asyncio.sleep(60)
            return Turn(stage, (), (), (), ORACLE(messages, stage), "stop", trainable=False)

    chat = Stuck()
    used = MemoryR1Agent(None, "cpu", style="lines").attach(Models({"policy": chat})).use()

    async def client() -> None:
        telling = asyncio.create_task(used.aadd("city alice paris ."))
        assert await asyncio.to_thread(started.wait, 20)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling

    asyncio.run(client())
    assert used.memories() == ()
    chat.stuck = False
    assert len(used.add("city alice paris .").edits) == 1


# Loading


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (MemoryAgent, {}, "trained as 'memory_r1_agent' .MemoryR1Agent., not as MemoryAgent. Use MemoryR1Agent.load, or BaseAgent"),
        (BaseAgent, {"neer": 3}, "Unknown option of MemoryR1Agent 'neer'. Did you mean 'near'"),
        (BaseAgent, {"store": "milfus"}, "Unknown store 'milfus'. Did you mean 'milvus'"),
        (BaseAgent, {"store_options": {"uri": "x"}}, "Unknown option of InMemoryStore 'uri'"),
        (BaseAgent, {"engine": "vlm"}, "Unknown engine 'vlm'"),
        (BaseAgent, {"engine": "scripted"}, "The engine 'scripted' is not opened by a model's name: ScriptedEngine is no chat model"),
        (BaseAgent, {"engine": "rules", "engine_options": {"polcy": "x"}}, "option of the engine 'rules' 'polcy'. Did you mean 'policy'"),
        (BaseAgent, {"engine_options": {"slot": 1}}, "option of the engine 'hf' 'slot'. Did you mean 'slots'"),
        (BaseAgent, {"engine": "api", "engine_options": {"url": 1}}, "option of the engine 'api' 'url'. Did you mean 'base_url'"),
        (BaseAgent, {"roles": {"answer": "reference"}}, "say which model it is with --reference"),
        (BaseAgent, {"engine": "rules", "roles": {"anser": "policy"}}, "roles names the stage 'anser'; MemoryR1Agent has"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_message(
    cls: type[BaseAgent], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[MemoryStore] = []
    monkeypatch.setattr(InMemoryStore, "_close", lambda self: closed.append(self))
    with pytest.raises(UserError, match=message):
        cls.load(TINY, **options)
    assert len(closed) == ("engine" in str(options) or "roles" in options), "a store that was opened in vain is closed"


@pytest.mark.usefixtures("rules")
def test_a_checkpoints_options_hold_under_those_given_and_other_roles_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    about = read_json(tmp_path / "m" / "memfactory.json")
    write_json(tmp_path / "m" / "memfactory.json", about | {"roles": {"answer": "api:judge", "update": "policy"}})
    with BaseAgent.load(str(tmp_path / "m"), engine="rules", engine_options={"policy": "always add"}, near=7) as used:
        assert (used.options.near, used.options.answer_from, used.options.style) == (7, 8, "lines")
        for city in ("paris", "rome"):
            used.add(f"city alice {city} .")
        assert len(used.memories()) == 2
    assert "was trained with the roles {'answer': 'api:judge'}; here it answers every stage itself" in caplog.text


@pytest.mark.usefixtures("rules")
def test_a_class_of_ones_own_loads_its_parents_checkpoint_unless_it_is_registered_as_another() -> None:
    class Mine(MemoryR1Agent):
        """Not registered."""

    assert isinstance(Mine.load(TINY, engine="rules"), Mine)
    AGENT_REGISTRY.register("mine")(Mine)
    with pytest.raises(ConfigError, match="was trained as 'memory_r1_agent'"):
        Mine.load(TINY, engine="rules")
    assert isinstance(BaseAgent.load("api:x", engine_options={"base_url": "http://localhost:1"}), MemoryR1Agent)
    assert isinstance(Mine.load("api:x", engine_options={"base_url": "http://localhost:1"}, style="lines"), Mine)


def test_a_checkpoint_on_the_hub_says_what_it_was_trained_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--memory" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--memory" / "refs").mkdir()
    (tmp_path / "models--someone--memory" / "refs" / "main").write_text("0" * 40)
    assert trained_as("someone/memory") == {} == trained_as("not a name")
    (snapshot / "memfactory.json").write_text(json.dumps({"agent": "memagent"}))
    assert trained_as("someone/memory") == {"agent": "memagent"}


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    model, tokenizer = load_model(TINY)
    with serving(local_models(model, tokenizer).chats["policy"], name=TINY) as server:
        yield server


@pytest.mark.slow
def test_a_server_that_serves_the_checkpoint_answers_as_the_checkpoint_here(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    monkeypatch.setenv("OPENAI_API_KEY", served.key)
    said = ["city alice paris .", "pet bob cat . city alice rome ."]
    with BaseAgent.load(TINY) as here, BaseAgent.load(TINY, engine="api", engine_options={"max_retries": 0}) as there:
        for used in (here, there):
            for text in said:
                used.add(text)
        assert there.store.bank(there.user) == here.store.bank(here.user) and len(here.memories()) > 0
        answers = [used.ask("city alice ?") for used in (here, there)]
        assert (answers[0].whole, answers[0].useful) == (answers[1].whole, answers[1].useful)
        assert served.requests[-1]["temperature"] == 0 and served.requests[-1]["model"] == TINY
        served.script.append(says({"error": "x"}, 500))
        with pytest.raises(InfrastructureError):
            there.add("city alice oslo .")
        assert there.store.bank(there.user) == here.store.bank(here.user)
    named = BaseAgent.load(f"api:{TINY}", style="lines", near=3, answer_from=8, max_generate_length=48)
    with named:
        assert len(named.add("city alice paris .").edits) == 1


# What does not fit the model.


def narrow(**words_of: int) -> Callable[[Messages, str], str]:
    """The oracle with a window of so many words for each stage."""

    def answer(messages: Messages, stage: str) -> str:
        if (words := sum(len(message["content"].split()) for message in messages)) > words_of.get(stage, 1000):
            raise PromptTooLong(f"{words} words")
        return ORACLE(messages, stage)

    return answer


def test_what_does_not_fit_is_written_in_halves_and_the_most_similar_memories_are_shown() -> None:
    cities = [f"city {name} paris" for name in ("alice", "bob", "carol", "dave", "eve", "frank", "grace", "heidi")]
    said = [{"speaker": "bob", "text": f"{fact} ."} for fact in cities]
    with agent().use(user="alice") as wide, agent(narrow(update=112, answer=75)).use(user="alice") as small:
        assert wide.add(said).trajectory.report["split_events"] == 0
        change = small.add(said)
        assert [item.text for item in small.memories()] == [item.text for item in wide.memories()] == cities
        assert change.trajectory.report["split_events"] > 0 and change.rejected == () and len(change.remembered) == 8
        whole, answer = wide.ask("city grace ?"), small.ask("city grace ?")
        assert answer.text == whole.text == "paris" and whole.left_out == 0
        assert answer.left_out == len(whole.shown) - len(answer.shown) > 0
        assert "city grace paris" in [item.text for item in answer.shown], "the most similar ones"
        with pytest.raises(PromptTooLong):
            small.ask("city grace ? " * 30)


def test_a_very_long_text_is_kept_in_pieces_that_lose_nothing() -> None:
    text = "\n\n".join(f"Paragraph {n}. " + "The rain in Rome, again. " * 60 for n in range(40))
    pieces = pieces_of(text)
    assert max(map(len, pieces)) <= MAX_PIECE and "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.rstrip().endswith(".") for piece in pieces) and pieces_of("short") == ["short"]
    assert "".join(pieces_of("語" * 20_001)) == "語" * 20_001 and in_halves([{"text": "tiny"}]) is None


def test_what_is_told_twice_is_counted_and_said() -> None:
    def always_adds(messages: Messages, stage: str) -> str:
        return "city alice paris new ADD ." if stage == "update" else "city alice paris ."

    with agent(always_adds).use(user="alice") as used:
        assert used.add("city alice paris .").remembered and used.add("city alice paris .").repeated[0].old == "city alice paris"
        assert [(item.text, item.told) for item in used.memories()] == [("city alice paris", 2)]
        for date in (1.7e9, datetime.date(2023, 5, 8)):
            used.add("city alice paris .", date=date)  # type: ignore[arg-type]
        assert used.memories()[0].told == 4 and used.forget("0", date=datetime.date(2023, 5, 9)).updated == "2023-05-09"  # type: ignore[arg-type]
        with pytest.raises(DataError, match="'date' cannot be"):
            used.add("city alice paris .", date=[])  # type: ignore[arg-type]
