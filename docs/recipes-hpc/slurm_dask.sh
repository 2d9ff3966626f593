#!/usr/bin/env bash
# One SLURM job that is a Dask cluster of its own: a scheduler, a worker per task, and infer, which hands the cases out.
#
#   sbatch --ntasks=16 slurm_dask.sh --data-path CASES --output-path FILLED --report-path REPORT
#
# For GPUs, one a worker, add --gpus-per-task=1. Needs brats-inpainting[cluster] in PATH on every node.
#SBATCH --job-name=inpainting
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=1G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

folder=$(mktemp -d "$PWD/dask-$SLURM_JOB_ID.XXXXXX") # shared by the nodes; a stale file would lead workers astray
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
export DASK_TEMPORARY_DIRECTORY=${TMPDIR:-/tmp} DASK_LOGGING__DISTRIBUTED=warning

dask scheduler --scheduler-file "$folder/scheduler.json" --port 0 --dashboard-address :0 &
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    dask worker --scheduler-file "$folder/scheduler.json" --nthreads "$SLURM_CPUS_PER_TASK" --nworkers 1 \
    --memory-limit "$((SLURM_CPUS_PER_TASK * ${SLURM_MEM_PER_CPU:-1024}))MiB" --no-dashboard --death-timeout 300 &
until [ -s "$folder/scheduler.json" ]; do
    kill -0 %1 # or the scheduler has failed
    sleep 1
done
brats-inpainting infer --cluster "$folder/scheduler.json" --resume "$@"
