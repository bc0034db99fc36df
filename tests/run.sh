#!/usr/bin/env bash
# Install the test requirements and run the tests: the fast ones, or with --all the slow ones too (launchers, quick start,
# kill and resume). Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/environment.sh
use_python --make
install requirements-test.txt
unset PYTHONDONTWRITEBYTECODE  # where it is set, every process compiles every module anew
# One thread each: bitwise promises. Three processes on two cores, because some tests wait for a server.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1
if [ "${1:-}" = "--all" ]; then
    shift
    ruff check . && ruff format --check . && mypy
    exec python -m pytest -m "not vllm" --durations=5 "$@"
fi
exec python -m pytest -n 3 -m "not slow and not vllm" --durations=5 "$@"
