#!/usr/bin/env bash
# MemAgent on Qwen3-4B-Instruct with the published hyper-parameters. Paths come from the environment, further flags pass through:
#   MODEL_PATH=models/tiny DATA_PATH=datas/tiny/train.json OUTPUT_DIR=output/try bash examples/RunMemoryAgent4B.sh --max_steps 1
set -euo pipefail
cd "$(dirname "$0")/.."  # relative paths are read from the project's folder
source examples/environment.sh
use_python
PYTHON="${PYTHON:-$(command -v python || command -v python3)}"
(cd / && "$PYTHON" -c 'import memfactory') 2>/dev/null || { echo "Error: memfactory is not installed for $PYTHON. Run: bash examples/quickstart.sh (or pip install -e .)" >&2; exit 2; }

MODEL_PATH="${MODEL_PATH:-models/Qwen3-4B-Instruct}"
DATA_PATH="${DATA_PATH:-datas/converted_hotpotqa_2000.json}"
OUTPUT_DIR="${OUTPUT_DIR:-output/MemoryAgent4B}"

# One step here is a rollout batch: batch_size x gradient_accumulation_steps = 24 questions x 16 attempts, then one update.
# The public trainer counted its 24 questions as 24 steps; --save_steps 250 of it is about every 10 steps of this one.
exec "$PYTHON" examples/train_mem_grpo.py \
    --model_name_or_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --output_dir "$OUTPUT_DIR" \
    --env_type longcontext \
    --agent_type memagent \
    --lr 5e-6 \
    --beta 0.001 \
    --batch_size 1 \
    --gradient_accumulation_steps 24 \
    --num_generations 16 \
    --chunk_size 2500 \
    --max_chunk_number 6 \
    --max_prompt_length 5500 \
    --max_generate_length 1500 \
    --save_steps 10 \
    --epoch 2 \
    "$@"
