#!/usr/bin/env bash
# One task of an array job: fills its share of a folder of cases, in a process of its own. SLURM, PBS, Kubernetes.
#
#   sbatch --array=0-99 array_job.sh CASES OUT 100 [options of infer]
#
# Task k of 100 takes the sub-folders k, k + 100, k + 200 … of CASES, by name, so CASES must stay as it is until all tasks
# are done. It writes to OUT/filled/k-of-100 and OUT/reports/k-of-100, which belong to it alone. Run again, it goes on
# where it stopped. INPAINTING is the command, if it is not brats-inpainting; a container must see CASES, OUT and TMPDIR
# under their own names.
#SBATCH --job-name=inpainting
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#PBS -N inpainting
set -euo pipefail
shopt -s nullglob
LC_ALL=C # one order of names on all machines

usage="Usage, in an array job: array_job.sh CASES OUT SHARES [options of infer]"
cases=$(realpath -e "${1:?$usage}") out=$(realpath -m "${2:?$usage}") shares=${3:?$usage}
shift 3
task=${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${JOB_COMPLETION_INDEX:?$usage}}}
if ((task >= shares)); then
    echo "Task $task is not one of $shares: they count from 0." >&2
    exit 2
fi
share=$(printf '%05d-of-%05d' "$task" "$shares")
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
fi

links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
entries=("$cases"/*)
mine=0
for ((i = task; i < ${#entries[@]}; i += shares)); do
    if [ -d "${entries[i]}" ]; then
        ln -s "${entries[i]}" "$links/"
        mine=$((mine + 1))
    elif [[ ${entries[i]} == *.nii* ]]; then
        echo "${entries[i]}: lies beside the cases. Give each case a folder of its own." >&2
        exit 2
    fi
done
echo "share $share: $mine of ${#entries[@]}, on $(uname -n)"
if ((mine == 0)); then
    exit 0
fi

read -ra command <<<"${INPAINTING:-brats-inpainting}"
mkdir -p "$out"
"${command[@]}" infer --data-path "$links" --output-path "$out/filled/$share" --report-path "$out/reports/$share" \
    --resume "$@"
