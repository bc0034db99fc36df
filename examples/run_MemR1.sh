#!/usr/bin/env bash
# Memory-R1 (arXiv 2508.19828) with the hyper-parameters of the public run_MemR1.sh; what is paid here is the outcome, not the format.
# Paths come from the environment, further flags pass through and win. CONFIG takes a file of settings instead of those below:
#   CONFIG=examples/configs/tiny_bank.yaml OUTPUT_DIR=output/tiny_bank bash examples/run_MemR1.sh     # the tiny base, one CPU core
set -euo pipefail
cd "$(dirname "$0")/.."  # relative paths are read from the project's folder
source examples/environment.sh

if [ -n "${CONFIG:-}" ]; then
    train "$CONFIG" --output_dir "${OUTPUT_DIR:-output/$(basename "$CONFIG" .yaml)}" ${MODEL_PATH:+--model_name_or_path "$MODEL_PATH"} \
        ${DATA_PATH:+--data_path "$DATA_PATH"} "$@"
fi

MODEL_PATH="${MODEL_PATH:-models/Qwen2.5-3B-Instruct}"
DATA_PATH="${DATA_PATH:-datas/memory_r1/train.jsonl}"  # memfactory data build memory-r1 --from locomo10.json --output datas/memory_r1
OUTPUT_DIR="${OUTPUT_DIR:-output/mem_r1_qwen25_3b}"

# The flags below are the published ones. Those we recommend instead (append them to the command):
#   --beta 0.001 --gradient_accumulation_steps 16 --num_minibatches 4   more updates from as many conversations
#   --roles '{"answer": "reference"}'   Memory-R1's manager is trained with a frozen answer agent, then the answer agent alone
#   --save_steps 10 --eval_data_path datas/memory_r1/val.jsonl --eval_steps 10
# One step is a rollout batch: batch_size x gradient_accumulation_steps conversations x num_generations attempts, then one update.
train \
    --model_name_or_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --output_dir "$OUTPUT_DIR" \
    --env_type memory_bank \
    --agent_type memory_r1_agent \
    --lr 1e-6 \
    --beta 0.01 \
    --batch_size 1 \
    --gradient_accumulation_steps 12 \
    --num_generations 8 \
    --max_prompt_length 3072 \
    --max_generate_length 2048 \
    --save_steps 1000 \
    --epoch 5 \
    --engine_slots 48 \
    --gradient_checkpointing True \
    "$@"
