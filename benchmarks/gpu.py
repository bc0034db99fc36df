#!/usr/bin/env python3
"""Runs the GPU benchmark part by part, each in a process of its own with its own time, and writes the summary.

bash benchmarks/gpu.sh [--dry] [--only PART ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_figures import Figures
from gpu_shapes import DRY, REAL, ROOT
from gpu_summary import summary

TOTAL = 525
"""Seconds for everything; what is left is for starting and stopping."""

PARTS = {
    "card": 45, "decode-1.7b": 120, "update-1.7b": 60, "decode-4b": 130, "step-4b": 120, "attention": 60, "tests": 90,
}  # fmt: skip
"""Most seconds of each part, in the order of what is wanted most; a part that needs less leaves the rest to the others."""

DRY_PARTS = {"card": 30, "decode-dry": 30, "update-dry": 30, "step-dry": 30, "attention": 30, "tests": 60}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "output/benchmarks/gpu"))
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="these parts only")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        run_part(args.part, args.out, args.dry)
        return
    start, parts = time.monotonic(), DRY_PARTS if args.dry else PARTS
    for name, seconds in parts.items():
        if args.only and name not in args.only:
            continue
        left = TOTAL - (time.monotonic() - start)
        (args.out / f"{name}.json").unlink(missing_ok=True)
        ended = launch(name, args.out, args.dry, min(seconds, left)) if left > 15 else "not started: no time was left"
        note(args.out / f"{name}.json", ended)
        (args.out / "summary.md").write_text(summary(args.out, list(parts)), encoding="utf-8")
    print((args.out / "summary.md").read_text(encoding="utf-8"))
    print(f"{time.monotonic() - start:.0f} s. Figures and summary.md: {args.out}")


def launch(name: str, out: Path, dry: bool, seconds: float) -> str:
    """Run a part in its own process group; how it ended."""
    print(f"{name} (at most {seconds:.0f} s)", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--out", str(out), *(["--dry"] if dry else [])]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"
    return "ok" if code == 0 else f"ended with code {code}"


def note(path: Path, ended: str) -> None:
    """Write how a part ended beside its figures."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"figures": {}, "failed": {}}
    path.write_text(json.dumps(content | {"ended": ended}, indent=1) + "\n", encoding="utf-8")


def run_part(part: str, out: Path, dry: bool) -> None:
    """One part, in this process."""
    kind, _, shape = part.partition("-")
    work = DRY if dry else REAL
    if kind == "tests":
        tests(Figures(out / "tests.json"))
        return
    import torch  # the process that starts the parts has no GPU memory of its own

    device = "cpu" if dry else "cuda"
    if dry:
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise SystemExit("This torch sees no GPU. `bash benchmarks/gpu.sh --dry` tries the code on a CPU.")
    figures = Figures(out / f"{part}.json", **about(device), **reached(out))
    if kind in ("card", "decode", "attention"):
        import gpu_decode

        if kind == "decode":
            gpu_decode.decode(figures, work, device, dry, shape)
        else:
            getattr(gpu_decode, kind)(figures, work, device, dry)
    else:
        import gpu_update

        getattr(gpu_update, kind)(figures, work, device, dry, shape)


def about(device: str) -> dict[str, Any]:
    """What was measured and on what."""
    import torch

    versions = {}
    for name in ("torch", "transformers", "triton", "flash_attn", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu: dict[str, Any] = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "processors": properties.multi_processor_count}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "python": sys.version.split()[0], **versions, "cuda": torch.version.cuda, **gpu}


def reached(out: Path) -> dict[str, float]:
    """What the part `card` measured, for the others' ratios."""
    path = out / "card.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    found = {}
    if "copy" in figures:
        found["copy_bytes_per_second"] = figures["copy"]["bytes_per_second"]
    if "matrix product" in figures:
        found["flops_per_second"] = figures["matrix product"]["flops_per_second"]
    return found


def tests(figures: Figures) -> None:
    """The tests that need a GPU; without one each says that it was skipped."""
    if importlib.util.find_spec("pytest") is None:
        figures.add("tests", ended="skipped: pytest is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests/test_engine_cuda.py", "-rfEs", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "-o", "filterwarnings=default"], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    (figures.path.parent / "tests.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    figures.add("tests", code=done.returncode, ended=lines[-1] if lines else "no output", said=lines[-15:])


if __name__ == "__main__":
    main()
