#!/usr/bin/env bash
# RMM (arXiv 2503.08026) with the policy as reranker: topics are reflected and merged, memories reranked, answers cite; paid are the
# answer, its citations and how little was kept. Paths come from the environment, further flags pass through and win. CONFIG takes a
# file of settings instead of those below:
#   CONFIG=examples/configs/tiny_rerank.yaml OUTPUT_DIR=output/tiny_rerank bash examples/run_RMM.sh     # the tiny base, one CPU core
# The paper's own reranker, two linear maps trained on citations by REINFORCE, is another trainer:
#   memfactory data build synth_topics --output datas/topics.jsonl
#   memfactory train --trainer mem_reinforce --data_path datas/topics.jsonl --output_dir output/reranker
set -euo pipefail
cd "$(dirname "$0")/.."  # relative paths are read from the project's folder
source examples/environment.sh

if [ -n "${CONFIG:-}" ]; then
    train "$CONFIG" --output_dir "${OUTPUT_DIR:-output/$(basename "$CONFIG" .yaml)}" ${MODEL_PATH:+--model_name_or_path "$MODEL_PATH"} \
        ${DATA_PATH:+--data_path "$DATA_PATH"} "$@"
fi

MODEL_PATH="${MODEL_PATH:-models/Qwen2.5-3B-Instruct}"
DATA_PATH="${DATA_PATH:-datas/memory_r1/train.jsonl}"  # memfactory data build memory-r1 --from locomo10.json --output datas/memory_r1
OUTPUT_DIR="${OUTPUT_DIR:-output/mem_rmm_qwen25_3b}"

# K = 20 candidates of which at most M = 5 are kept, as in the paper; the other numbers are those of run_MemR1.sh.
# Where citations pay, the answer agent is the frozen reference: one that is trained would learn to cite everything.
train \
    --model_name_or_path "$MODEL_PATH" \
    --data_path "$DATA_PATH" \
    --output_dir "$OUTPUT_DIR" \
    --env_type rerank_bank \
    --agent_type memory_rmm_agent \
    --roles '{"reflection": "policy_nograd", "answer": "reference"}' \
    --lr 1e-6 \
    --beta 0.01 \
    --batch_size 1 \
    --gradient_accumulation_steps 12 \
    --num_generations 8 \
    --max_prompt_length 3072 \
    --max_generate_length 1024 \
    --save_steps 1000 \
    --epoch 5 \
    --engine_slots 48 \
    --gradient_checkpointing True \
    "$@"
