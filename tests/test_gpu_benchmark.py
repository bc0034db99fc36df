"""The GPU benchmark runs: as a whole on a CPU with tiny shapes, and with nothing beyond torch and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu import TOTAL  # noqa: E402
from gpu_figures import Figures  # noqa: E402
from gpu_shapes import SHAPES, card_of, launcher  # noqa: E402

BLOCKED = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig, Qwen3Config, Qwen3ForCausalLM
absent = {"rich", "sklearn", "scipy", "openai", "dotenv", "nltk", "bm25s", "json_repair", "matplotlib", "peft", "swanlab", "pymilvus",
          "neo4j", "pandas", "pyarrow", "datasets", "trl", "vllm", "hypothesis"}
for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
    del sys.modules[name]  # transformers takes what it finds
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, "benchmarks")
import gpu_decode, gpu_update
"""
"""What transformers needs is loaded first; then only what it brings may be asked for."""


def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_dry_run_has_every_figure(tmp_path: Path) -> None:
    done = run("bash", "benchmarks/gpu.sh", "--dry", OUT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"card", "decode-dry", "update-dry", "step-dry", "attention", "tests"}
    for name, content in found.items():
        assert content["ended"] == "ok" and content["failed"] == {} and content["figures"], name
    decode = found["decode-dry"]["figures"]
    assert decode["ours, batch 4"]["rows"] == 4 and decode["generate"]["tokens_per_second"] > 0
    assert "x `model.generate`" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_it_needs_nothing_but_torch_and_transformers() -> None:
    done = run(sys.executable, "-c", BLOCKED)
    assert done.returncode == 0, done.stderr


def test_the_arithmetic_is_that_of_the_models() -> None:
    small, large = SHAPES["1.7b"], SHAPES["4b"]
    assert (small.token_bytes, large.token_bytes) == (114_688, 147_456)
    assert small.weight_bytes == pytest.approx(3.44e9, rel=0.01) and large.weight_bytes == pytest.approx(8.04e9, rel=0.01)
    h200 = card_of("NVIDIA H200")
    assert h200 is not None and card_of("NVIDIA H100 PCIe") == (2.0e12, 756e12) and card_of("NVIDIA H100 80GB HBM3") == (3.35e12, 989e12)
    assert 16 / (small.step_bytes(16, 3250) / h200[0]) == pytest.approx(8166, rel=0.01)
    group = small.update_flops([4000] * 96, 144_000)
    assert group == pytest.approx(4.04e15, rel=0.03) and group + small.recomputed_flops([4000] * 96) == pytest.approx(5.39e15, rel=0.04)


def test_the_launchers_settings_are_those_that_are_measured() -> None:
    flags = launcher()
    assert {"engine_slots", "chunk_size", "max_prompt_length", "max_generate_length", "beta"} <= set(flags)
    assert flags["gradient_checkpointing"] == "True"


@pytest.mark.slow
def test_a_figure_that_fails_costs_only_itself(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "part.json")
    figures.add("first", seconds=1.5)
    with figures.attempt("second"):
        raise RuntimeError("CUDA out of memory\nmore")
    with figures.attempt("third"):
        figures.add("third", seconds=2.5)
    content = json.loads((tmp_path / "part.json").read_text())
    assert list(content["figures"]) == ["first", "third"] and content["failed"] == {"second": "RuntimeError: CUDA out of memory"}


def test_all_parts_together_stay_under_nine_minutes() -> None:
    assert TOTAL <= 540
