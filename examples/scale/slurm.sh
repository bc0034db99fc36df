#!/usr/bin/env bash
# sbatch examples/scale/slurm.sh        (partition, account and time are yours to add: sbatch --partition=gpu --time=24:00:00 ...)
# MemAgent on two machines of eight GPUs. Paths come from the environment; --output_dir must be a folder that all machines see.
# DRY_RUN=1 prints the command of a machine instead of running it. A run that is stopped goes on when the job is sent again.
#SBATCH --job-name=memfactory
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --output=memfactory-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"

MODEL_PATH="${MODEL_PATH:-models/Qwen3-4B-Instruct}"
DATA_PATH="${DATA_PATH:-datas/converted_hotpotqa_2000.json}"
OUTPUT_DIR="${OUTPUT_DIR:-output/MemoryAgent4B}"
GPUS="${SLURM_GPUS_ON_NODE:-8}"
NODES="${SLURM_NNODES:-1}"
FIRST="${FIRST_NODE:-$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1 || hostname)}"

command=(
    accelerate launch
    --config_file "${ACCELERATE_CONFIG:-examples/scale/multi_node.yaml}"
    --num_machines "$NODES"
    --num_processes "$((NODES * GPUS))"
    --machine_rank '$SLURM_NODEID'  # each machine fills in its own
    --main_process_ip "$FIRST"
    --main_process_port "$((29500 + ${SLURM_JOB_ID:-0} % 1000))"
    examples/train_mem_grpo.py
    --model_name_or_path "$MODEL_PATH"
    --data_path "$DATA_PATH"
    --output_dir "$OUTPUT_DIR"
    --resume True
    --batch_size 32
    --num_generations 16
    --chunk_size 2500
    --max_chunk_number 6
    --max_prompt_length 5500
    --max_generate_length 1024
    --lr 1e-6
    --gradient_checkpointing True
    --save_steps 10
    "$@"
)
line="exec"
for word in "${command[@]}"; do
    if [ "$word" = '$SLURM_NODEID' ]; then line+=" \"\$SLURM_NODEID\""; else line+=" $(printf %q "$word")"; fi
done
if [ -n "${DRY_RUN:-}" ]; then
    echo "$line"
else
    srun --kill-on-bad-exit=1 bash -c "$line"
fi
