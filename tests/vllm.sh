#!/usr/bin/env bash
# Install vLLM for CPUs into .venv-vllm, apart from .venv, and run the tests that need it. Arguments go to pytest. An active
# environment is not used: vLLM brings its own transformers. Needs Python 3.11 or newer (PYTHON=python3.12 names one).
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/environment.sh
unset VIRTUAL_ENV CONDA_PREFIX
use_python --make .venv-vllm
install_vllm
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1
exec python -m pytest -m vllm tests/test_vllm.py tests/test_vllm_rollouts.py --durations=5 "$@"
