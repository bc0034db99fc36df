#!/usr/bin/env bash
# One machine: vLLM serves rollouts on some GPUs, the trainer has the others. DRY_RUN=1 prints the commands instead of running them.
#   MODEL_PATH=models/Qwen3-4B-Instruct DATA_PATH=... OUTPUT_DIR=... bash examples/scale/servers.sh [flags of the trainer]
# vLLM comes from an environment of its own (VLLM=path/to/bin/vllm): it pins another transformers.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODEL_PATH="${MODEL_PATH:-models/Qwen3-4B-Instruct}"
DATA_PATH="${DATA_PATH:-datas/converted_hotpotqa_2000.json}"
OUTPUT_DIR="${OUTPUT_DIR:-output/MemoryAgent4B}"
read -ra SERVER_GPUS <<< "${SERVER_GPUS:-0 1 2 3}"
TRAINER_GPUS="${TRAINER_GPUS:-4,5,6,7}"
PORT="${PORT:-8000}"

run() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
start() { if [ -n "${DRY_RUN:-}" ]; then run "$@"; else "$@" & fi; }

urls=()
for at in "${!SERVER_GPUS[@]}"; do
    # VLLM_SERVER_DEV_MODE: the endpoints by which new weights are loaded. Nobody but the trainer should reach these ports.
    start env CUDA_VISIBLE_DEVICES="${SERVER_GPUS[$at]}" VLLM_SERVER_DEV_MODE=1 "${VLLM:-vllm}" serve "$MODEL_PATH" \
        --host 127.0.0.1 --port "$((PORT + at))" --served-model-name policy \
        --logprobs-mode processed_logprobs --generation-config vllm --max-model-len "${MAX_MODEL_LEN:-8192}"
    urls+=("http://127.0.0.1:$((PORT + at))")
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
if [ -z "${DRY_RUN:-}" ]; then
    for url in "${urls[@]}"; do
        until curl -sf "$url/health" >/dev/null; do
            [ "$(jobs -rp | wc -l)" = "${#urls[@]}" ] || { echo "Error: a server has ended; its message stands above." >&2; exit 1; }
            sleep 2
        done
    done
fi

processes="$(tr ',' '\n' <<< "$TRAINER_GPUS" | wc -l)"
run env CUDA_VISIBLE_DEVICES="$TRAINER_GPUS" accelerate launch \
    --config_file "${ACCELERATE_CONFIG:-examples/scale/fsdp2.yaml}" --num_processes "$processes" \
    examples/train_mem_grpo.py \
    --model_name_or_path "$MODEL_PATH" --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" \
    --rollout_servers "${urls[@]}" \
    --batch_size 32 --num_generations 16 --chunk_size 2500 --max_chunk_number 6 --max_prompt_length 5500 --max_generate_length 1024 \
    --lr 1e-6 --gradient_checkpointing True --save_steps 10 "$@"
