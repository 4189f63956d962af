#!/bin/bash
# A grid on several machines by Slurm and Ray: sbatch docs/slurm.sh --preset paper
# Adapt the lines of #SBATCH. The environment with lora-bench[ray], the models, the data and the results folder must
# have the same paths on all machines. A job that ends early is given again, and continues.
#SBATCH --job-name=lora-bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
set -euo pipefail

# Only processes with the token of this job may join its cluster.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)}"
export RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# On each machine: start Ray there, on the first one the command too, and end Ray when that has ended.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- \
    lora-bench run --engine ray --address auto "$@"
