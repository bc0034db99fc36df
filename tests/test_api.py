"""A model behind an OpenAI-compatible server answers as in process; what the server does wrong is said in words and never scored."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Server, breaks_off, hangs_up, refuses, reply, says, serving, stalls

from memfactory.agents.build import local_models
from memfactory.agents.memory_agent import MemoryAgent
from memfactory.common.errors import ConfigError, InfrastructureError, PromptTooLong, Refused
from memfactory.common.files import write_json
from memfactory.common.types import Sampling, Turn
from memfactory.engines.api import APIChat
from memfactory.engines.base import run
from memfactory.engines.chat import Models
from memfactory.engines.load import load_model
from memfactory.envs.longcontext import LongcontextEnv
from memfactory.evaluation.harness import evaluate
from memfactory.evaluation.jobs import Job, run_job
from memfactory.evaluation.ledger import Ledger, read_attempts
from memfactory.judges.llm import LLMJudge

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny" / "eval.json"
ASK = [{"role": "user", "content": "pet grace ?"}]
GREEDY = Sampling(16, 0.0)


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, address or .env of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what the test's clients left open: an APIChat cannot be closed yet, and an open socket at its end is a warning."""
    made: list[APIChat] = []
    init = APIChat.__init__

    def remember(self: APIChat, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(APIChat, "__init__", remember)
    yield
    for chat in made:
        if chat._client is not None:
            run(chat._client.close())


@pytest.fixture(scope="module")
def local() -> Models:
    model, tokenizer = load_model(str(MODEL))
    return local_models(model, tokenizer)


@pytest.fixture(scope="module")
def tiny(local: Models) -> Iterator[Server]:
    with serving(local.chats["policy"]) as server:
        yield server


@pytest.fixture
def bad() -> Iterator[Server]:
    """A server without a model: it only does what the test scripts."""
    with serving() as server:
        yield server


def client(server: Server, name: str = "api:tiny", **options: Any) -> APIChat:
    return APIChat(name, **({"base_url": server.url, "api_key": server.key, "timeout": 5.0, "max_retries": 0} | options))


def ask(chat: APIChat, sampling: Sampling = GREEDY) -> Turn:
    return run(chat.chat(ASK, "answer", sampling))


# A server that works


def test_a_reply_is_the_in_process_answer_with_the_servers_count_of_tokens(tiny: Server, local: Models) -> None:
    chat = client(tiny)
    turn, expected = ask(chat), run(local.chats["policy"].chat(ASK, "answer", GREEDY))
    assert (turn.text, turn.finish, turn.stage) == (expected.text, "stop", "answer") and turn.text
    assert turn.usage == (len(expected.prompt_ids), len(expected.response_ids)) and turn.prompt_ids == ()
    cut = ask(chat, Sampling(2, 0.0))
    assert cut.finish == "length" and cut.usage is not None and cut.usage[1] == 2
    assert dict(chat.stats) == {"requests": 2}


def test_the_sampling_reaches_the_server(tiny: Server) -> None:
    chat, first = client(tiny), len(tiny.requests)
    hot = [ask(chat, Sampling(12, 4.0, 0.97, stream=(stream,))).text for stream in (1, 2, 1)]
    assert hot[0] == hot[2] != hot[1], "a stream is a seed"
    sent = tiny.requests[first:]
    assert {(r["temperature"], r["top_p"], r["max_tokens"], r["model"]) for r in sent} == {(4.0, 0.97, 12, "tiny")}
    assert sent[0]["seed"] == sent[2]["seed"] != sent[1]["seed"] and all(0 <= r["seed"] < 2**31 for r in sent)
    ask(chat)
    assert "top_p" not in tiny.requests[-1] and tiny.requests[-1]["messages"] == ASK
    assert tiny.paths[-1] == "/v1/chat/completions"


@pytest.mark.slow
def test_an_agent_answers_the_same_through_http(tiny: Server, local: Models) -> None:
    _, tokenizer = load_model(str(MODEL))
    agent = MemoryAgent(tokenizer, "cpu", chunk_size=16, max_generate_length=32)
    env = LongcontextEnv(str(DATA))
    views = [env.observe(env[at]) for at in range(6)]
    here, there = agent.inference(views, local), agent.inference(views, Models({"policy": client(tiny)}))
    assert [(t.answers, t.memory, t.outputs) for t in there] == [(t.answers, t.memory, t.outputs) for t in here]
    assert all(t.error is None for t in there)


@pytest.fixture
def settings(tiny: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", tiny.url)
    monkeypatch.setenv("OPENAI_API_KEY", tiny.key)
    monkeypatch.setenv("LLM_MODEL", "tiny")


def job(folder: Path, name: str, **options: Any) -> Job:
    given: dict[str, Any] = {"model": str(MODEL), "k": 1, "limit": 3, "agent_options": {"chunk_size": 16, "max_generate_length": 32}}
    return Job(name, dataset="eval", data_path=str(DATA), folder=str(folder / name), device="cpu", **(given | options))


@pytest.mark.slow
@pytest.mark.usefixtures("settings")
def test_an_evaluated_model_and_a_role_may_be_behind_an_api(tmp_path: Path) -> None:
    here = run_job(job(tmp_path, "here"))
    served = run_job(job(tmp_path, "served", model="api:tiny", engine="api", tokenizer=str(MODEL)))
    role = run_job(job(tmp_path, "role", roles={"answer": "api:"}))
    assert served.greedy == role.greedy == here.greedy
    texts = [
        {a.example: (a.answers, a.memory) for a in read_attempts(tmp_path / name) if a.kind == "greedy"}
        for name in ("here", "served", "role")
    ]
    assert texts[0] == texts[1] == texts[2]
    counts = [sum(a.prompt_tokens for a in read_attempts(tmp_path / n) if a.kind == "greedy") for n in ("here", "served", "role")]
    assert counts[0] == counts[1] == counts[2] > 0, "tokens that a server counted are counted alike"
    assert json.loads((tmp_path / "served" / "fingerprint.json").read_text())["model"].startswith("api:tiny at http://127.0.0.1")


BEHIND_API = {"model": "api:", "engine": "api", "tokenizer": str(MODEL)}


@pytest.mark.slow
@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "options",
    [BEHIND_API, {"roles": {"answer": "api:"}}, {"env_options": {"log": ["boxed_em"], "reward": "llm_judge"}}],
    ids=["policy", "role", "judge"],
)
def test_another_llm_model_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    monkeypatch.setattr(APIChat, "chat", _fixed)
    run_job(job(tmp_path, "x", limit=1, k=0, **options))
    monkeypatch.setenv("LLM_MODEL", "another")
    with pytest.raises(ConfigError, match="other conditions.*another"):
        run_job(job(tmp_path, "x", limit=1, k=0, **options))


@pytest.mark.usefixtures("settings")
def test_another_tokenizer_cuts_other_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(APIChat, "chat", _fixed)
    run_job(job(tmp_path, "x", limit=1, k=0, **BEHIND_API))
    shutil.copytree(MODEL, tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "other" / "tokenizer.json").write_text(text.replace("alice", "alicf"), encoding="utf-8")
    with pytest.raises(ConfigError, match="other conditions.*tokenizer"):
        run_job(job(tmp_path, "x", limit=1, k=0, **(BEHIND_API | {"tokenizer": str(tmp_path / "other")})))


async def _fixed(self: APIChat, messages: Any, stage: str, sampling: Sampling) -> Turn:
    return Turn(stage, (), (), (), '{"verdict": "wrong"}' if stage == "judge" else "\\boxed{x}", "stop", trainable=False)


# A server that fails and recovers


@pytest.mark.parametrize(
    ("troubles", "counted"),
    [
        ([says({"error": "x"}, 500)] * 2, {"requests": 3, "server_errors": 2}),
        ([says("busy", 503), says(b"<html>gateway</html>", 502, "text/html")], {"requests": 3, "server_errors": 2}),
        ([says({"error": "slow down"}, 429)], {"requests": 2, "rate_limited": 1}),
        ([hangs_up], {"requests": 2}),
        ([breaks_off], {"requests": 2}),
        ([stalls(1.5)], {"requests": 2}),
    ],
)
def test_the_client_tries_again_and_counts_it(bad: Server, troubles: list, counted: dict[str, int]) -> None:
    bad.script.extend(troubles)
    bad.always = says(reply("fine"))
    chat = client(bad, max_retries=2, timeout=0.7)
    assert ask(chat).text == "fine" and dict(chat.stats) == counted


def test_a_server_says_how_long_to_wait_and_is_waited_for(bad: Server, caplog: pytest.LogCaptureFixture) -> None:
    bad.script.append(lambda handler, _: handler.send({"error": "slow down"}, 429, Retry_After="1"))
    bad.always = says(reply("fine"))
    chat, began = client(bad, max_retries=1), time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert ask(chat).text == "fine"
    assert time.monotonic() - began >= 0.95
    assert [r.getMessage() for r in caplog.records if "rate" in r.getMessage()] == [
        f"api:tiny at {bad.url} limits the rate of requests; the client waits and tries again."
    ]


# A server that does not recover

SHAPE = "not a chat completion"


@pytest.mark.parametrize(
    ("trouble", "says_"),
    [
        (says({"error": {"message": "boom inside"}}, 500), ["failed", "boom inside"]),
        (says({"error": {"message": "context too long"}}, 400), ["failed", "context too long"]),
        (says({"error": "slow"}, 429), ["rate limit", "after 2 tries"]),
        (stalls(1.2), ["did not answer within 0.5 s", "after 2 tries"]),
        (hangs_up, ["cannot be reached", "after 2 tries"]),
        (breaks_off, ["cannot be reached", "after 2 tries"]),
        (says(b"{not json"), ["not JSON"]),
        (says(b""), ["answered with"]),
        (says(b"<html>Welcome</html>", 200, "text/html"), [SHAPE, "Welcome"]),
        (says(b"plain", 200, "text/plain"), [SHAPE]),
        (says({"hello": "world"}), [SHAPE]),
        (says([1, 2]), [SHAPE]),
        (says("text"), [SHAPE]),
        (says(None), [SHAPE]),
        (says({"error": {"message": "out of memory"}}), [SHAPE]),
        (says(reply("x") | {"choices": []}), [SHAPE]),
        (says(reply("x") | {"choices": None}), [SHAPE]),
        (says(reply("x") | {"choices": "none"}), [SHAPE]),
        (says(reply("x") | {"choices": [5]}), [SHAPE]),
        (says(reply("x") | {"choices": [{"index": 0, "finish_reason": "stop"}]}), [SHAPE]),
        (says(reply("x") | {"choices": [{"message": None}]}), [SHAPE]),
        (says(reply(["a", "list"])), [SHAPE]),
        (says(reply({"text": "x"})), [SHAPE]),
        (says(reply(5)), [SHAPE]),
        (says(reply("", "content_filter")), ["withheld", "content_filter"]),
        (says(reply(None, "content_filter")), ["withheld", "content_filter"]),
        pytest.param(
            says(reply("x") | {"choices": [{"message": "a text"}]}), [SHAPE],
        ),
        pytest.param(
            says(reply("x") | {"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]}), [SHAPE],
        ),
        pytest.param(
            says(reply("x") | {"choices": [{"message": {}}]}), [SHAPE],
        ),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_is_infrastructures_failure_in_words(bad: Server, trouble: Any, says_: list[str]) -> None:
    bad.always = trouble
    chat = client(bad, max_retries=1, timeout=0.5)
    with pytest.raises(InfrastructureError) as error:
        ask(chat)
    message = str(error.value)
    assert message.startswith(f"api:tiny at {bad.url}") and all(text in message for text in says_), message
    assert "\n" not in message and len(message) < 600 and chat.stats["failures"] == 1


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": 0}],
)
def test_usage_that_is_missing_is_no_failure(bad: Server, usage: Any) -> None:
    bad.always = says(reply("fine", usage=usage))
    turn = ask(client(bad))
    assert turn.text == "fine" and (turn.usage is None or all(isinstance(n, int) for n in turn.usage))


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(usage)
        for usage in (7, "many", [1, 2], {"prompt_tokens": "3", "completion_tokens": "4"}, {"prompt_tokens": [3], "completion_tokens": 1})
    ],
)
def test_usage_of_a_wrong_type_does_not_end_the_evaluation(bad: Server, usage: Any) -> None:
    bad.always = says(reply("fine", usage=usage))
    try:
        turn = ask(client(bad))
    except InfrastructureError:
        return
    assert turn.usage is None or all(isinstance(n, int) for n in turn.usage)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_null_content_is_an_empty_answer_of_the_policy(bad: Server, finish: str) -> None:
    bad.always = says(reply(None, finish))
    turn = ask(client(bad))
    assert (turn.text, turn.finish) == ("<think>" if finish == "length" else "", finish)


def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with serving() as server:
        url = server.url
    chat = APIChat("api:tiny", base_url=url, timeout=2.0, max_retries=1)
    with pytest.raises(InfrastructureError, match="cannot be reached, after 2 tries"):
        ask(chat)
    assert chat.stats["failures"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": "wrong"}, "refused the key .*Incorrect API key provided.*OPENAI_API_KEY"),
        ({"name": "api:absent"}, "no such model or address .*`absent` does not exist.*LLM_MODEL.*OPENAI_BASE_URL"),
    ],
)
def test_a_key_or_a_name_that_is_refused_is_the_users_to_mend_and_is_not_tried_again(
    tiny: Server, options: dict[str, str], message: str
) -> None:
    first = len(tiny.requests)
    with pytest.raises(ConfigError, match=message):
        ask(client(tiny, max_retries=3, **options))
    assert len(tiny.requests) == first + 1


def test_a_forbidden_key_is_refused_too(bad: Server) -> None:
    bad.always = says({"error": {"message": "no access"}}, 403)
    with pytest.raises(ConfigError, match="refused the key .*no access"):
        ask(client(bad))


QUOTA = {"error": {"message": "You exceeded your current quota, please check your plan and billing details.", "type": "insufficient_quota",
                   "param": None, "code": "insufficient_quota"}}  # fmt: skip
WINDOW = {"error": {"message": "This model's maximum context length is 128000 tokens. However, your messages resulted in 200000 tokens.",
                    "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}  # fmt: skip
POLICY = {"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
                    "code": "content_filter", "status": 400}}  # fmt: skip
WRONG = {"error": {"message": "Invalid value: 'lw'. Supported values are: 'low' and 'high'.", "param": "reasoning_effort"}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, QUOTA, ConfigError, "no quota left .*exceeded your current quota.*add credit"),
        (402, {"error": {"message": "Insufficient Balance"}}, ConfigError, "no quota left .*Insufficient Balance"),
        (400, WINDOW, PromptTooLong, "does not fit its window .*128000"),
        (400, POLICY, Refused, "refused this prompt.*content management policy"),
        (400, WRONG, ConfigError, "refused the request .*'lw'.*--api_options"),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, ConfigError, "refused the request .*Field required"),
        (413, {"error": {"message": "too large"}}, ConfigError, "too large"),
        (405, "Method Not Allowed", ConfigError, "refused the request"),
    ],
)
def test_what_is_refused_for_good_is_said_at_once_and_not_tried_again(
    bad: Server, status: int, body: Any, kind: type[Exception], words: str
) -> None:
    bad.always = lambda handler, _: handler.send(body, status, x_should_retry="true", retry_after_ms="1")
    chat = client(bad, max_retries=3)
    with pytest.raises(kind, match=words) as error:
        ask(chat)
    assert type(error.value) is kind and len(bad.requests) == 1 and "rate_limited" not in chat.stats


def test_a_refusal_after_answers_is_of_one_prompt(bad: Server) -> None:
    bad.script.append(says(reply("fine")))
    bad.always = says(WRONG, 400)
    chat = client(bad)
    ask(chat)
    with pytest.raises(Refused, match="refused this prompt, and would again"):
        ask(chat)


NEWER = ("max_tokens", "temperature", "top_p", "seed")


def test_a_newer_model_is_asked_as_it_wants_and_the_next_client_knows(bad: Server, caplog: pytest.LogCaptureFixture) -> None:
    bad.always = refuses(NEWER)
    with caplog.at_level(logging.WARNING):
        assert ask(client(bad), Sampling(7, 0.0, 0.9)).text == "fine"
    assert [sorted(set(NEWER) & set(r)) for r in bad.requests] == [
        sorted(NEWER), ["seed", "temperature", "top_p"], ["seed", "top_p"], ["seed"], [],
    ]  # fmt: skip
    told = [r.getMessage().partition(" is asked without")[0].rpartition(" ")[0] for r in caplog.records]
    assert told == [f"api:tiny at {bad.url} does not take {name}" for name in NEWER[1:]]
    ask(client(bad), Sampling(7, 0.0))
    assert len(bad.requests) == 6 and bad.requests[-1] == {"model": "tiny", "messages": ASK, "max_completion_tokens": 7}
    ask(client(bad, name="api:older"))
    assert "max_tokens" in bad.requests[6], "another model is another matter"


def test_options_of_ones_own_win_are_part_of_the_name_and_are_never_dropped(bad: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.always = says(reply("fine"))
    own = {"reasoning_effort": "low", "max_completion_tokens": 99, "temperature": None}
    monkeypatch.setenv("LLM_OPTIONS", json.dumps(own))
    chat = client(bad)
    ask(chat)
    assert {k: v for k, v in bad.requests[0].items() if k not in ("model", "messages", "seed")} == {
        "reasoning_effort": "low", "max_completion_tokens": 99,
    }  # fmt: skip
    assert str(chat) == f"api:tiny at {bad.url} with {json.dumps(own, sort_keys=True)}" and "with" not in str(client(bad, options={}))
    bad.always = refuses(["reasoning_effort"])
    with pytest.raises(ConfigError, match="'reasoning_effort' is not supported"):
        ask(client(bad))
    monkeypatch.setenv("LLM_OPTIONS", "low")
    with pytest.raises(ConfigError, match="api_options 'low' is not JSON"):
        client(bad)


# Names and settings


def test_the_environment_names_model_address_and_key(tiny: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", tiny.url)
    monkeypatch.setenv("OPENAI_API_KEY", tiny.key)
    monkeypatch.setenv("LLM_MODEL", "tiny")
    chat = APIChat()
    assert (chat.model, str(chat)) == ("tiny", f"api:tiny at {tiny.url}") and ask(chat).text
    assert APIChat("api:other").model == "other" and APIChat("api:owner/name:7b").model == "owner/name:7b"


def test_what_is_not_set_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="names no model and LLM_MODEL is not set"):
        APIChat()
    with pytest.raises(ConfigError, match="needs OPENAI_API_KEY, or OPENAI_BASE_URL"):
        APIChat("api:tiny")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert APIChat("api:tiny").model == "tiny", "a local server may need no key"


def test_a_key_is_never_shown(bad: Server) -> None:
    bad.always = says({"error": {"message": "no"}}, 500)
    chat = client(bad, api_key="sk-secret")
    with pytest.raises(InfrastructureError) as error:
        ask(chat)
    assert "sk-secret" not in f"{error.value}{chat}{chat!r}"


def test_no_more_requests_run_at_once_than_the_limit(bad: Server) -> None:
    bad.always = stalls(0.03)

    async def many(chat: APIChat) -> list[Turn]:
        return await asyncio.gather(*(chat.chat(ASK, "answer", GREEDY) for _ in range(12)))

    assert len(run(many(client(bad, concurrency=3)))) == 12
    assert bad.most == 3 and len(bad.requests) == 12


UNCLOSED = """
import gc, sys, warnings
sys.path.insert(0, {tests!r})
from openai_server import reply, says, serving
from memfactory.common.types import Sampling
from memfactory.engines.api import APIChat
from memfactory.engines.base import run
warnings.simplefilter("always")
with serving() as server:
    server.always = says(reply("fine"))
    chat = APIChat("api:tiny", base_url=server.url)
    run(chat.chat([{{"role": "user", "content": "x"}}], "answer", Sampling(4, 0.0)))
    del chat
    gc.collect()
"""


@pytest.mark.slow
def test_a_client_that_is_forgotten_leaves_no_open_connection() -> None:
    code = UNCLOSED.format(tests=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "unclosed" not in result.stderr


# In an evaluation


def evaluated(folder: Path, chat: APIChat, **options: Any) -> Callable[[], list]:
    write_json(
        folder / "facts.json", [{"context": f"pet grace {pet} .", "input": "pet grace ?", "answers": [pet]} for pet in ("dog", "cat")]
    )
    _, tokenizer = load_model(str(MODEL))
    agent = MemoryAgent(tokenizer, "cpu", chunk_size=64, max_generate_length=8)
    env = LongcontextEnv(str(folder / "facts.json"), **options)

    def once() -> list:
        with Ledger(folder / "out", {}) as ledger:
            evaluate(agent, Models({"policy": chat}), env, name="facts", k=1, ledger=ledger, in_flight=1)
        return read_attempts(folder / "out")

    return once


def test_attempts_lost_to_a_server_are_told_in_the_ledger_and_made_again(bad: Server, tmp_path: Path) -> None:
    bad.script.extend([says(reply("noted", usage={"prompt_tokens": 5, "completion_tokens": 1})), says({"error": "x"}, 500)])
    bad.always = says(reply("\\boxed{dog}", usage={"prompt_tokens": 5, "completion_tokens": 1}))
    once = evaluated(tmp_path, client(bad))
    attempts = once()
    lost = [a for a in attempts if a.status == "failed"]
    assert len(lost) == 1 and len(attempts) == 4
    assert lost[0].error is not None and lost[0].error.startswith(f"InfrastructureError: api:tiny at {bad.url} failed")
    assert lost[0].score is None and lost[0].answers == []
    attempts = once()
    assert len(attempts) == 5 and attempts[-1].key == lost[0].key and attempts[-1].status == "ok"
    assert attempts[-1].prompt_tokens == 10 and attempts[-1].completion_tokens == 2


def test_a_refused_key_ends_the_evaluation_and_keeps_what_was_made(bad: Server, tmp_path: Path) -> None:
    bad.script.extend([says(reply("noted")), says(reply("\\boxed{dog}"))])
    bad.always = says({"error": {"message": "expired"}}, 401)
    with pytest.raises(ConfigError, match="refused the key .*expired"):
        evaluated(tmp_path, client(bad))()
    assert [a.score for a in read_attempts(tmp_path / "out")] == [1.0]


def test_a_judge_behind_http_scores_fails_and_refuses_as_it_should(bad: Server) -> None:
    bad.script.extend([says(reply('{"verdict": "correct"}')), says({"error": "x"}, 500), says(reply("who knows"))])
    bad.always = says(reply('{"verdict": "wrong"}'))
    judge = LLMJudge("api:judge", client(bad, "api:judge", concurrency=1))
    found = judge.scores(["q"] * 5, [["g"]] * 5, ["\\boxed{a}", "\\boxed{b}", "\\boxed{c}", "\\boxed{d}", ""])
    assert found[0] == 1.0 and math.isnan(found[1]) and math.isnan(found[2]) and found[3:] == [0.0, 0.0]
    assert len(bad.requests) == 4 and bad.requests[0]["temperature"] == 0 and bad.requests[0]["model"] == "judge"
    bad.always = says({"error": {"message": "expired"}}, 401)
    with pytest.raises(ConfigError, match="refused the key"):
        judge.scores(["q"] * 3, [["g"]] * 3, ["\\boxed{a}"] * 3)
