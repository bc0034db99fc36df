#!/usr/bin/env bash
# What the rollout and the update reach on this machine's GPU: needs no network, and of Python only torch and transformers.
# At most nine minutes; every part has its own budget, and its figures are written as they come.
#   bash benchmarks/gpu.sh            figures in output/benchmarks/gpu/, or in the folder $OUT
#   bash benchmarks/gpu.sh --dry      the same code with tiny shapes on a CPU, under a minute
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    command -v python3 > /dev/null || python=python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" benchmarks/gpu.py "$@"
