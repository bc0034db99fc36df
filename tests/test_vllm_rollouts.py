"""vLLM samples in training with the trainer's own weights, in this process and as a server that loads a folder.

The tests marked `vllm` need it: `bash tests/vllm.sh`. The others ask a stand-in for the server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai_server import Handler, Server, says, serving
from test_vllm import INSTALLED, answers, plain, sampled, with_vllm
from transformers import Qwen3ForCausalLM

from memfactory.common.errors import ConfigError, InfrastructureError, UserError
from memfactory.engines.base import run
from memfactory.engines.load import load_causal_lm
from memfactory.engines.vllm import VLLMEngine
from memfactory.engines.vllm_server import EXTENSION, VLLMServer
from memfactory.engines.weights import save_weights
from memfactory.trainers.mem_grpo_trainer import MemTrainer

ROOT = Path(__file__).resolve().parent.parent
TINY, DATA = ROOT / "models" / "tiny", ROOT / "datas" / "tiny" / "train.json"
SMALL = {"max_model_len": 1024, "kv_cache_memory_bytes": 1 << 28}
PROMPTS = [tuple(torch.randint(5, 400, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (7, 30, 140, 300)]
"""Two of them are longer than a block of vLLM's cache."""


def off(drawn: list[Any], model: Qwen3ForCausalLM) -> float:
    """The largest distance in nats of reported log-probs from one forward pass of `model`."""
    pairs = [zip(c.logprobs, plain(model.eval(), prompt, c.ids), strict=True) for prompt, c in zip(PROMPTS, drawn, strict=True)]
    return max(abs(a - b) for pair in pairs for a, b in pair)


def changed(model: Qwen3ForCausalLM, part: str) -> None:
    """Move the weights whose name has `part` in it."""
    found = [parameter for name, parameter in model.named_parameters() if part in name]
    assert found, part
    with torch.no_grad():
        for parameter in found:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.1 * parameter.std() * noise if parameter.ndim > 1 else 0.1 * parameter)


PARTS = ["embed_tokens", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "k_norm", "input_layernorm", "model.norm"]


# In this process


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    made = VLLMEngine(str(TINY), device="cpu", **SMALL)
    yield made
    made.close()


@with_vllm
def test_every_weight_is_renewed(engine: VLLMEngine) -> None:
    """Each alone: a tied head, of which vLLM packs a copy on a CPU, would stay behind if only loaded."""
    model = load_causal_lm(str(TINY))
    engine.follow(model)
    assert off(sampled(engine, PROMPTS, temperature=0.0, max_tokens=12), model) < 1e-4
    for part in PARTS:
        changed(model, part)
        assert off(sampled(engine, PROMPTS, temperature=0.0, max_tokens=12), model) > 1e-2, f"{part} matters"
        engine.weights_changed()
        assert off(sampled(engine, PROMPTS, temperature=0.0, max_tokens=12), model) < 1e-4, part
    engine.close()


@with_vllm
def test_two_steps_of_training_sample_from_the_trainers_weights(tmp_path: Path) -> None:
    config = MemTrainer.configured(
        {
            "model_name_or_path": str(TINY), "data_path": str(DATA), "output_dir": str(tmp_path), "engine": "vllm", "device": "cpu",
            "engine_options": SMALL, "batch_size": 2, "num_generations": 4, "max_generate_length": 16, "chunk_size": 64, "lr": 3e-3,
            "warmup_updates": 0,
        }
    )  # fmt: skip
    assert (config.old_logprobs, config.tis, config.tis_cap) == ("frozen", "token", 2.0)
    trainer = MemTrainer(config)
    engine: Any = trainer.models.chats["policy"].engine  # type: ignore[union-attr]
    try:
        measured = []
        while trainer.updates < 2:
            before, updates = sampled(engine, PROMPTS, temperature=1.0, max_tokens=12), trainer.updates
            assert off(before, trainer.model) < 1e-4
            metrics = trainer.training_step()
            if trainer.updates == updates:  # no group had anything to teach
                continue
            measured.append(metrics)
            assert off(before, trainer.model) > 1e-3, "the update moved what the samples before it report"
            assert off(sampled(engine, PROMPTS, temperature=1.0, max_tokens=12), trainer.model) < 1e-4
        for metrics in measured:
            assert metrics["logprob_mismatch_max"] < 1e-4 and metrics["mismatch_ess"] > 0.9999
            assert metrics["tis_weight"] == pytest.approx(1.0, abs=1e-4) and metrics["tis_truncated"] == 0
    finally:
        trainer.models.close()


@with_vllm
def test_a_run_from_the_command_line_ends_as_it_should(tmp_path: Path) -> None:
    flags = {
        "model_name_or_path": str(TINY), "data_path": str(DATA), "output_dir": str(tmp_path / "run"), "engine": "vllm",
        "engine_options": json.dumps(SMALL), "max_steps": "2", "batch_size": "2", "num_generations": "4", "max_generate_length": "16",
        "chunk_size": "64", "device": "cpu", "lr": "1e-3", "eval_data_path": str(ROOT / "datas" / "tiny" / "eval.json"), "eval_steps": "2",
        "eval_samples": "4", "eval_k": "0",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    done = subprocess.run([sys.executable, "-m", "memfactory.cli", "train", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert any(key.startswith("eval/") for key in rows[-1])


# As a server


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server, started as docs/use.md says."""
    port = 18100 + os.getpid() % 1000
    words = f"--model {TINY} --generation-config vllm --host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-model-len 1024"
    words += f" --no-enable-chunked-prefill --kv-cache-memory-bytes {1 << 28} --logprobs-mode processed_logprobs"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words.split(), "--worker-extension-cls", EXTENSION]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_SERVER_DEV_MODE": "1"}
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT) as process,
    ):
        try:
            until = time.monotonic() + 240
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


class Drawn:
    """Ids and log-probs that a server gave."""

    def __init__(self, root: str, prompt: tuple[int, ...]) -> None:
        asked = {
            "model": str(TINY), "prompt": prompt, "temperature": 0.7, "seed": 3, "max_tokens": 12, "logprobs": 0, "return_token_ids": True,
            "top_k": 0, "repetition_penalty": 1.0,
        }  # fmt: skip
        request = urllib.request.Request(f"{root}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            choice = json.load(reply)["choices"][0]
        self.ids, self.logprobs = tuple(choice["token_ids"]), choice["logprobs"]["token_logprobs"]


@with_vllm
def test_a_real_server_renews_every_weight_from_a_folder(real_server: str, tmp_path: Path) -> None:
    def drawn_off() -> float:
        drawn = [Drawn(real_server, prompt) for prompt in PROMPTS]
        pairs = [zip(d.logprobs, plain(model, prompt, d.ids, 0.7), strict=True) for prompt, d in zip(PROMPTS, drawn, strict=True)]
        return max(abs(a - b) for pair in pairs for a, b in pair)

    model = load_causal_lm(str(TINY)).eval()
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{real_server}/v1", max_retries=0)
    server = VLLMServer(f"{real_server}/v1", client)
    run(server.check())
    assert server.max_model_len == 1024 and drawn_off() < 1e-4
    for at, part in enumerate(("embed_tokens", "down_proj", "q_proj", "norm")):
        changed(model, part)
        assert drawn_off() > 1e-2
        save_weights(model, tmp_path / str(at))
        run(server.load_weights(str(tmp_path / str(at))))
        assert drawn_off() < 1e-4, part
    with pytest.raises(InfrastructureError, match="failed at /collective_rpc"):
        run(server.load_weights(str(tmp_path / "nowhere")))
    run(client.close())


# A stand-in for the server

GOOD = {
    "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": 99}, "device_config": {"device": "cuda"},
    "parallel_config": {"worker_extension_cls": ""},
}  # fmt: skip


class ControlHandler(Handler):
    def do_GET(self) -> None:
        about = getattr(self.server, "about", None)
        self.send({"detail": "Not Found"}, 404) if about is None else self.send({"vllm_config": about})


def answer(handler: Handler, body: dict[str, Any]) -> None:
    if handler.path == "/collective_rpc":
        return handler.send({"results": [None]})
    assert handler.path == "/reset_prefix_cache"
    return handler.send({"success": getattr(handler.server, "clears", True)})


@pytest.fixture
def stand_in() -> Iterator[Server]:
    with serving() as server:
        server.RequestHandlerClass, server.always, server.about = ControlHandler, answer, GOOD  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def control(stand_in: Server) -> Iterator[VLLMServer]:
    client = openai.AsyncOpenAI(api_key="none", base_url=stand_in.url, max_retries=0)
    yield VLLMServer(stand_in.url, client)
    run(client.close())


def test_a_server_loads_the_folder_and_forgets(stand_in: Server, control: VLLMServer, tmp_path: Path) -> None:
    run(control.check())
    run(control.load_weights(str(tmp_path / "a" / ".." / "b")))
    assert stand_in.paths == ["/collective_rpc", "/reset_prefix_cache"] and control.max_model_len == 99
    assert stand_in.requests[0] == {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "b")}}


def test_a_servers_cpu_worker_is_asked_by_the_method_that_renews_all(stand_in: Server, control: VLLMServer) -> None:
    stand_in.about = {**GOOD, "parallel_config": {"worker_extension_cls": EXTENSION}, "device_config": {"device": "cpu"}}  # type: ignore[attr-defined]
    run(control.check())
    run(control.load_weights("/x"))
    assert stand_in.requests[0]["method"] == "renew_weights"
    name, _, kind = EXTENSION.rpartition(".")
    assert callable(getattr(__import__(name, fromlist=[kind]), kind).renew_weights)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "has no /server_info: it is not in development mode. Start it with VLLM_SERVER_DEV_MODE=1"),
        ({**GOOD, "model_config": {"logprobs_mode": "raw_logprobs"}}, "reports raw_logprobs, not log-probs of the distribution"),
        ({**GOOD, "device_config": {"device": "cpu"}}, f"renews all of its weights only with --worker-extension-cls {EXTENSION}"),
    ],
)
def test_a_server_that_cannot_train_is_refused(stand_in: Server, control: VLLMServer, about: Any, message: str) -> None:
    stand_in.about = about  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        run(control.check())


def test_a_cache_that_is_not_cleared_or_a_server_that_fails_is_said(stand_in: Server, control: VLLMServer) -> None:
    stand_in.clears = False  # type: ignore[attr-defined]
    with pytest.raises(InfrastructureError, match="could not clear its prefix cache"):
        run(control.load_weights("/x"))
    stand_in.always = says({"error": "gone"}, 500)
    with pytest.raises(InfrastructureError, match="failed at /collective_rpc"):
        run(control.load_weights("/x"))


@pytest.mark.skipif(INSTALLED, reason="vLLM is here")
def test_training_with_vllm_says_how_to_get_it(tmp_path: Path) -> None:
    config = MemTrainer.configured({"model_name_or_path": str(TINY), "data_path": str(DATA), "output_dir": str(tmp_path), "engine": "vllm"})
    with pytest.raises(UserError, match="needs vLLM"):
        MemTrainer(config)
