#!/usr/bin/env bash
# From nothing to a trained and compared memory agent. Needs Python >= 3.10 and pip: no GPU, no key, no server.
#   bash examples/quickstart.sh            go, or go on
#   bash examples/quickstart.sh --fresh    start over
# TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu spares a Linux laptop gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/environment.sh
use_python --make
install requirements.txt
# One thread a process is no slower at this size, and spinning OpenMP threads starve each other.
export OMP_WAIT_POLICY=PASSIVE
exec python examples/quickstart.py "$@"
