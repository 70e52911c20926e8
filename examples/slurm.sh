#!/usr/bin/env bash
# A Slurm array with a task for each model:
#
#     sbatch --array=0-1 examples/slurm.sh atlas atlas-reference
#     dvc repro --pull && lensmith report                  # on the head, when all are done
#
#SBATCH --job-name=lensmith
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --output=lensmith-%A-%a.log
#SBATCH --requeue
set -euo pipefail
models=("$@")
model=${models[$SLURM_ARRAY_TASK_ID]}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# Slurm runs a copy of this file; the lab is the folder in which sbatch was called.
cd "$SLURM_SUBMIT_DIR"
exec bash examples/chain.sh "$(git remote get-url origin)" "$(git rev-parse HEAD)" "$model"
