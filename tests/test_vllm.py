"""vLLM gives the tokens, log-probs and answers of the hf engine, in this process and as a server; without it one line says how to get it.

The tests marked `vllm` need it: `bash tests/vllm.sh` makes an environment of its own for them and runs them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from memfactory.agents.base import BaseAgent
from memfactory.agents.build import open_models
from memfactory.agents.memory_r1_agent import MemoryR1Agent
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, UnknownNameError, UserError
from memfactory.common.files import write_json
from memfactory.common.types import Completion, Sampling, Turn, View
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.engines.base import run
from memfactory.engines.hf import HFEngine, stop_ids_of
from memfactory.engines.load import load_model, stop_ids_at
from memfactory.engines.vllm import VLLMEngine
from memfactory.evaluation.config import EvalConfig, jobs_of
from memfactory.evaluation.jobs import Job, models_of, run_job
from memfactory.evaluation.ledger import read_attempts

ROOT = Path(__file__).resolve().parent.parent
TINY, READER, DATA = ROOT / "models" / "tiny-bank", ROOT / "models" / "tiny", ROOT / "datas" / "tiny" / "eval.json"
INSTALLED = importlib.util.find_spec("vllm") is not None
SMALL = {"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 28}
UNUSED = 3
"""A token that the tiny model never writes: the copy's generation_config stops at it."""


def with_vllm(test: Any) -> Any:
    """Marks a test that needs vLLM, whose import warns of many things."""
    for mark in (pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(not INSTALLED, reason="bash tests/vllm.sh")):
        test = mark(test)
    return test


# Without vLLM


@pytest.mark.skipif(INSTALLED, reason="vLLM is here")
def test_without_vllm_one_line_says_how_to_get_it() -> None:
    with pytest.raises(
        ConfigError, match=r'needs vLLM \(No module named .vllm.\)\. Run, in the checkout of MemFactory: pip install -e "\.\[vllm\]"'
    ):
        BaseAgent.load(str(TINY), engine="vllm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"options": {"max_modellen": 1}},
            "option of the engine 'vllm' 'max_modellen'. Did you mean 'max_model_len'. Known: dtype",
        ),
        ({"options": {"device": "cpu"}}, "option of the engine 'vllm' 'device'"),
        ({"options": {"stop_ids": ()}}, "option of the engine 'vllm' 'stop_ids'"),
        ({"roles": {"answer": "reference"}, "reference": str(TINY)}, "the vllm engine holds one model"),
        ({"model": "models/missing"}, "No model at 'models/missing'"),
    ],
)
def test_what_vllm_is_not_asked_is_one_message(options: dict[str, Any], message: str) -> None:
    agent = MemoryR1Agent(None, "cpu", style="lines")
    with pytest.raises(UserError, match=message):
        open_models(**({"model": str(TINY), "agent": agent, "engine": "vllm"} | options))


def test_the_ends_of_turn_of_a_checkpoint_are_known_without_its_weights(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(TINY))
    assert stop_ids_at(str(TINY)) == stop_ids_of(model, tokenizer.eos_token_id) == {tokenizer.eos_token_id}
    both = load_model(str(copied(tmp_path / "m")))
    assert stop_ids_at(str(tmp_path / "m")) == stop_ids_of(both[0], both[1].eos_token_id) == {tokenizer.eos_token_id, UNUSED}


def test_an_evaluation_hands_its_engine_the_options_and_its_servers_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"models": [str(READER), "api:x"], "datasets": [str(DATA)], "engine": "vllm", "engine_options": '{"max_model_len": 99}'}
    jobs, _ = jobs_of(EvalConfig(**given))  # type: ignore[arg-type]
    assert [(job.engine, job.engine_options) for job in jobs] == [("vllm", {"max_model_len": 99}), ("api", {})]
    seen: dict[str, Any] = {}
    monkeypatch.setattr("memfactory.agents.build.VLLMEngine", lambda path, *, device, **options: seen.update(options, device=device))
    monkeypatch.setattr("memfactory.agents.build._refuse_unknown", lambda *_: None)
    agent = MemoryR1Agent(None, "cpu", style="lines")
    models_of(jobs[0], agent, "cpu")
    assert seen == {"max_model_len": 99, "device": "cpu"}
    with pytest.raises(UnknownNameError, match="Unknown engine 'vlm'. Did you mean 'vllm'"):
        EvalConfig(engine="vlm")


# With vLLM: one agent for all tests, on a copy whose generation_config nobody may follow


def copied(to: Path) -> Path:
    """The tiny model with a generation_config that would change every answer."""
    shutil.copytree(TINY, to)
    rules = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 1.9, "eos_token_id": [stop_id(), UNUSED]}
    write_json(to / "generation_config.json", rules)
    return to


def stop_id() -> int:
    return int(json.loads((TINY / "config.json").read_text())["eos_token_id"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(copied(tmp_path_factory.mktemp("models") / "copy"))


@pytest.fixture(scope="module")
def here(checkpoint: str) -> Any:
    """The agent on the hf engine."""
    return MemoryR1Agent.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def starting(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, subprocess.Popen, Path]]:
    """vLLM's own server, started as docs/use.md says: (port, process, log)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint, "--generation-config", "vllm"]
    command += ["--default-chat-template-kwargs", '{"enable_thinking": false}', "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--max-model-len",
        "1024",
        "--kv-cache-memory-bytes",
        str(1 << 28),
    ]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1"}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        yield port, process, log
        os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own, which outlives one that is killed alone


@pytest.fixture(scope="module")
def used(checkpoint: str, starting: Any) -> Iterator[Any]:
    """The same on vLLM; the server starts on the other core meanwhile."""
    with MemoryR1Agent.load(checkpoint, engine="vllm", engine_options=SMALL, device="cpu") as agent:
        yield agent


def engine_of(agent: Any) -> Any:
    return agent.models.chats["policy"].engine


@pytest.fixture
def engine(used: Any) -> VLLMEngine:
    return engine_of(used)


@pytest.fixture
def hf(here: Any) -> HFEngine:
    return engine_of(here)


def dialogues(number: int) -> list[View]:
    made = synth_dialog(number, seed=7, rendering="triples")
    return [View(d["dialog_id"], tuple(q["question"] for q in d["questions"]), events=tuple(d["sessions"])) for d in made]


@pytest.fixture(scope="module")
def prompts(here: Any) -> list[tuple[int, ...]]:
    """What the agent asks in two dialogues."""
    turns = [turn for trajectory in here.inference(dialogues(3)) for turn in trajectory.turns]
    return list(dict.fromkeys(turn.prompt_ids for turn in turns))


def sampled(engine: Any, prompts: list[tuple[int, ...]], **sampling: Any) -> list[Completion]:
    """One answer to each prompt, asked all at once; each has a stream of its own."""

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(
            *(engine.complete(prompt, Sampling(**{"max_tokens": 48, "stream": (5, at), **sampling})) for at, prompt in enumerate(prompts))
        )

    return run(all_of_them())


def plain(model: Any, prompt: tuple[int, ...], ids: tuple[int, ...], temperature: float = 1.0) -> list[float]:
    """Log-probs of `ids` after the prompt by one forward pass."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()


@with_vllm
def test_greedy_tokens_are_hfs_and_log_probs_those_of_a_plain_forward(engine: Any, hf: Any, prompts: list[tuple[int, ...]]) -> None:
    ours, theirs = sampled(engine, prompts, temperature=0.0), sampled(hf, prompts, temperature=0.0)
    assert [(c.ids, c.finish) for c in ours] == [(c.ids, c.finish) for c in theirs] and len(prompts) > 16
    for prompt, completion in zip(prompts, ours, strict=True):
        assert completion.logprobs == pytest.approx(plain(hf.model, prompt, completion.ids), abs=1e-3)
    assert all(completion.ids[-1] == stop_id() for completion in ours if completion.finish == "stop")


@with_vllm
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_log_probs_are_those_of_the_tempered_distribution(engine: Any, hf: Any, prompts: list, temperature: float) -> None:
    drawn = sampled(engine, prompts[:16], temperature=temperature, max_tokens=12)
    differs = 0.0
    for prompt, completion in zip(prompts, drawn, strict=False):
        assert completion.logprobs == pytest.approx(plain(hf.model, prompt, completion.ids, temperature), abs=1e-3)
        untempered = plain(hf.model, prompt, completion.ids)
        differs = max(differs, *(abs(a - b) for a, b in zip(completion.logprobs, untempered, strict=True)))
    assert (differs > 0.1) == (temperature != 1), "else the tempered ones cannot be told from the others"


@with_vllm
def test_what_is_drawn_has_the_distribution_that_is_reported(engine: Any, hf: Any, prompts: list) -> None:
    number, temperature = 600, 2.0
    with torch.inference_mode():
        logits = hf.model(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    drawn = Counter(c.ids[0] for c in sampled(engine, [prompts[0]] * number, temperature=temperature, max_tokens=1))
    for token in expected.topk(5).indices.tolist():
        share = expected[token].item()
        assert abs(drawn[token] - number * share) < 4.5 * (number * share * (1 - share)) ** 0.5
    assert len(drawn) > 20, "neither top_k nor another rule of the checkpoint cuts the tail off"


@with_vllm
def test_requests_at_once_share_their_steps_and_answer_as_alone(engine: Any, prompts: list, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = engine._llm.step
    monkeypatch.setattr(engine._llm, "step", lambda: (steps.append(1), step())[1])
    many = (prompts * 2)[:32]
    together = sampled(engine, many, temperature=0.0)
    assert len(steps) <= max(len(c.ids) for c in together) + 4 < sum(len(c.ids) for c in together)
    assert [c.ids for c in together] == [sampled(engine, [prompt], temperature=0.0)[0].ids for prompt in many]


@with_vllm
def test_a_stream_is_one_sample(engine: Any, prompts: list) -> None:
    first, again = (sampled(engine, prompts[:8], temperature=2.0) for _ in range(2))
    assert [c.ids for c in first] == [c.ids for c in again]
    assert sampled(engine, [prompts[0]], temperature=2.0, stream=(5, 0))[0].ids == first[0].ids, "whatever it is batched with"
    others = {sampled(engine, [prompts[0]], temperature=2.0, stream=(6, at))[0].ids for at in range(5)}
    assert len(others) > 1


@with_vllm
def test_a_turn_ends_with_its_token_or_at_its_length(engine: Any, prompts: list) -> None:
    (whole,) = sampled(engine, prompts[:1], temperature=0.0)
    assert (whole.finish, whole.ids[-1]) == ("stop", stop_id()) and stop_id() not in whole.ids[:-1] and UNUSED in engine.stop_ids
    (cut,) = sampled(engine, prompts[:1], temperature=0.0, max_tokens=2)
    assert (cut.finish, cut.ids, len(cut.logprobs)) == ("length", whole.ids[:2], 2)
    (just,) = sampled(engine, prompts[:1], temperature=0.0, max_tokens=len(whole.ids))
    assert (just.finish, just.ids) == ("stop", whole.ids)


@with_vllm
def test_a_prompt_needs_room_and_only_known_tokens(engine: Any, prompts: list) -> None:
    assert engine.max_length == SMALL["max_model_len"]
    words = (prompts[0] * 100)[: engine.max_length]
    with pytest.raises(PromptTooLong, match="A prompt of 1024 tokens does not fit vLLM's max_model_len of 1024"):
        sampled(engine, [words])
    (last,) = sampled(engine, [words[:-1]], temperature=0.0)
    assert len(last.ids) == 1 and last.finish == ("stop" if last.ids[0] == stop_id() else "length")
    with pytest.raises(ConfigError, match="vLLM cannot sample so: temperature must be in .0, 2., got 2.5"):
        sampled(engine, prompts[:1], temperature=2.5)
    with pytest.raises(ConfigError, match="max_tokens 0"):
        sampled(engine, prompts[:1], max_tokens=0)

    async def one_is_wrong() -> list[Any]:
        asked = [engine.complete(prompt, Sampling(8, 0.0)) for prompt in (prompts[0], (10**6,), prompts[1])]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, wrong, last = run(one_is_wrong())
    assert isinstance(wrong, ConfigError) and "The prompt has the token 1000000, and the model 532 of them" in str(wrong)
    assert [first.ids, last.ids] == [c.ids for c in sampled(engine, prompts[:2], temperature=0.0, max_tokens=8)]


@with_vllm
def test_a_caller_who_gives_up_frees_the_engine(engine: Any, prompts: list) -> None:
    async def given_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.complete(prompts[0], Sampling(900, 2.0)), 0.001)
        with pytest.raises(InfrastructureError, match="while requests were being sampled"):
            engine.weights_changed()
        await engine._driver

    run(given_up())
    assert not engine.on_thread(lambda llm: llm.has_unfinished_requests())
    assert sampled(engine, prompts[:1], temperature=0.0)[0].ids


@with_vllm
def test_new_weights_make_it_forget_the_keys_of_the_old_ones(engine: Any, hf: Any, prompts: list) -> None:
    """The weights are changed behind its back, as a trainer would; a prompt longer than a block of 128 tokens is kept."""
    prompt = (prompts[0] * 20)[:400]

    def scale(model: Any, by: float) -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("input_layernorm.weight"):
                    weight.mul_(by)

    def off() -> float:
        (now,) = sampled(engine, [prompt], temperature=0.0, max_tokens=4)
        return max(abs(a - b) for a, b in zip(now.logprobs, plain(hf.model, prompt, now.ids), strict=True))

    assert off() < 1e-3
    for by in (1.5, 1 / 1.5):
        scale(hf.model, by)
        engine.on_thread(lambda llm, by=by: llm.apply_model(lambda model: scale(model, by)))
        assert off() > 0.01, "the cache of the old weights is used: the test can fail"
        engine.weights_changed()
        assert off() < 1e-3


def tokens(turns: list[Turn]) -> list[tuple[Any, ...]]:
    return [(turn.stage, turn.prompt_ids, turn.response_ids, turn.finish, turn.text) for turn in turns]


def lived(agent: Any, view: View) -> tuple[list[Turn], list[str], list[str]]:
    """A dialogue told and asked: (turns, answers, memories)."""
    user = agent.for_user(view.example_id)
    user.store.purge(user.user)  # another test may have told it
    changes = [user.add(session["turns"], date=session["date"]) for session in view.events]
    answers = [user.ask(question) for question in view.questions]
    turns = [turn for done in (*changes, *answers) for turn in done.trajectory.turns]
    return turns, [answer.whole for answer in answers], [item.text for item in user.memories()]


@with_vllm
def test_an_agent_remembers_and_answers_as_on_hf(used: Any, here: Any) -> None:
    for view in dialogues(2):
        (turns, *said), (expected, *told) = lived(used, view), lived(here, view)
        assert tokens(turns) == tokens(expected) and len(turns) >= 8
        assert [turn.logprobs for turn in turns] == [pytest.approx(turn.logprobs, abs=1e-3) for turn in expected]
        assert said == told and len(said[1]) > 3
    engine = engine_of(used)
    used.use()
    assert engine_of(used) is engine and engine.on_thread(lambda llm: True), "another store is no other engine"


@with_vllm
def test_a_second_one_is_refused_while_the_first_is_open(used: Any, checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="vLLM holds one model at a time in a process: close '.*copy' first"):
        BaseAgent.load(checkpoint, engine="vllm")


@with_vllm
@pytest.mark.parametrize(("device", "message"), [("cuda", "the vLLM that is installed runs on cpu"), ("cpu:1", "CUDA_VISIBLE_DEVICES=1")])
def test_a_device_that_vllm_cannot_take_is_said(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VLLMEngine(str(TINY), device=device)


# Processes of their own

LIFE = """
import random, sys
import numpy, torch
from memfactory.agents.base import BaseAgent
from memfactory.common.errors import ConfigError, InfrastructureError
from memfactory.common.types import Sampling
from memfactory.engines.base import run
from memfactory.engines.vllm import VLLMEngine

def globals_now():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.set_num_threads, torch.get_rng_state().tolist()

before, small = globals_now(), {"kv_cache_memory_bytes": 1 << 27, "max_model_len": 256}
for wrong in ({"max_model_len": 10**6}, {"dtype": "float3"}, {"kv_cache_memory_bytes": 1 << 10}):
    try:
        VLLMEngine(sys.argv[1], **{**small, **wrong})
    except ConfigError as error:
        assert "vLLM cannot open" in str(error), error
    else:
        raise AssertionError(wrong)
try:
    BaseAgent.load(sys.argv[1], engine="vllm", engine_options=small, roles={"anser": "policy"})
except ConfigError as error:
    assert "anser" in str(error), error
for _ in range(2):
    engine = VLLMEngine(sys.argv[1], **small)
    assert globals_now()[3] == before[3] or _
    assert len(run(engine.complete((5, 6, 7), Sampling(4, 1.0))).ids) and engine.max_length == 256
    engine.close()
    engine.close()
    try:
        run(engine.complete((5, 6, 7), Sampling(4, 1.0)))
    except InfrastructureError as error:
        assert "was closed" in str(error)
engine = VLLMEngine(sys.argv[1], **small)

def broken():
    raise RuntimeError("the device is gone")

engine._llm.step = broken
for message in ("the device is gone", "vLLM failed before (the device is gone)"):
    try:
        run(engine.complete((5, 6, 7), Sampling(4, 1.0)))
    except RuntimeError as error:
        assert message in str(error), error
engine.close()
assert globals_now()[:3] == before[:3]
VLLMEngine(sys.argv[1], **small)  # forgotten, not closed
left_open = VLLMEngine(sys.argv[1], **small)
print("lived")
"""


def child(*words: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, **options)


@with_vllm
def test_it_opens_closes_fails_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    done = child("-c", LIFE, str(TINY), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "lived\n"), done.stderr


@with_vllm
def test_a_conversation_in_a_terminal_is_that_of_hf(here: Any, tmp_path: Path) -> None:
    told, question = ["city alice paris .", "pet bob cat .", "city alice rome ."], "city alice ?"
    options = ["--engine", "vllm", "--engine_options", json.dumps(SMALL), "--date", ""]
    done = child("-m", "memfactory.cli", "chat", str(TINY), *options, cwd=tmp_path, input="\n".join([*told, question, "/memories", ""]))
    user = here.for_user("terminal")
    for text in told:
        user.add(text)
    shown = [str(user.ask(question)), *(f"{item.id}  {item.text}" for item in user.memories())]
    assert done.returncode == 0 and done.stdout.splitlines()[-len(shown) - 1 : -1] == shown and len(shown) > 1, done.stdout + done.stderr


@with_vllm
def test_an_evaluation_with_vllm_scores_as_with_hf(tmp_path: Path) -> None:
    options = ["--models", f"tiny={READER}", "--datasets", f"facts={DATA}", "--limit", "6", "--k", "0", "--gpus", "none", "--workers", "1"]
    engine = ["--engine", "vllm", "--engine_options", json.dumps({**SMALL, "max_model_len": 4096})]
    done = child("-m", "memfactory.cli", "eval", *options, *engine, "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run_job(Job("tiny", str(READER), "facts", str(DATA), str(tmp_path / "hf"), limit=6, k=0, device="cpu"))
    ours, theirs = (sorted(read_attempts(folder), key=lambda a: a.key) for folder in (tmp_path / "out" / "tiny" / "facts", tmp_path / "hf"))
    assert [(a.key, a.score, a.answers) for a in ours] == [(a.key, a.score, a.answers) for a in theirs] and len(ours) == 6


@pytest.fixture(scope="module")
def server(starting: tuple[int, subprocess.Popen, Path]) -> str:
    """The address of vLLM's own server."""
    port, process, log = starting
    until = time.monotonic() + 240
    while not answers(f"http://127.0.0.1:{port}/health"):
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}/v1"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@with_vllm
def test_its_server_remembers_and_answers_as_hf_does(server: str, checkpoint: str, here: Any) -> None:
    there = MemoryR1Agent.load(checkpoint, engine="api", engine_options={"base_url": server, "max_retries": 0})
    with there:
        for view in dialogues(2):
            (turns, *said), (expected, *told) = lived(there, view), lived(here, view)
            assert said == told and [turn.text for turn in turns] == [turn.text for turn in expected]
            counted = [(len(turn.prompt_ids), len(turn.response_ids)) for turn in expected]
            assert [turn.usage for turn in turns] == counted, "the same template made the prompts"


@with_vllm
def test_what_its_server_draws_for_a_stream_is_what_is_drawn_here(server: str, checkpoint: str, used: Any) -> None:
    asked = [{"role": "user", "content": "city alice ?"}]
    there = MemoryR1Agent.load(checkpoint, engine="api", engine_options={"base_url": server, "max_retries": 0})
    with there:
        for at in range(4):
            sampling = Sampling(12, 2.0, stream=(1, at))
            texts = [run(agent.models.chats["policy"].chat(asked, "answer", sampling)).text for agent in (there, used)]
            assert texts[0].split() == texts[1].split() != []  # the server decodes token by token: a space more or less
