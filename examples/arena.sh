#!/usr/bin/env bash
# MemAgent, Memory-R1 and RMM trained by the same loop and scored on the same held-out dialogues by the same reader: docs/arena.md.
# Under two hours on two cores; a second start goes on. What is compared stands in examples/arena.yaml. A part of it:
#   bash examples/arena.sh --agents memagent memory_r1 --seeds 0 --budget 60000 --limit 32 --output_dir output/small_arena
set -euo pipefail
cd "$(dirname "$0")/.."  # relative paths are read from the project's folder
source examples/environment.sh
use_python
exec python examples/arena.py "$@"
