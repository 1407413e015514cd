#!/usr/bin/env bash
#SBATCH --job-name=radjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# One service on the nodes of a job, from a checkout that all of them share:
#
#   sbatch --nodes=2 configs/deploy/slurm.sh LAUNCH_FILE [--set SECTION.KEY=VALUE …]
#
# The first node takes the requests. 'scancel --signal=TERM --full JOB' drains the service.
set -euo pipefail

launch_file=$1
shift
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 3000 * 3)) # of each job its own, and the two that follow
export RADJAX=${RADJAX:-$PWD/.venv/bin/radjax}

# shellcheck disable=SC2016  the variables are those of each task
exec srun --kill-on-bad-exit=1 bash -c 'exec "$RADJAX" serve "$@" --set "distributed.rank=$SLURM_PROCID"' radjax \
  "$launch_file" \
  --set "distributed.hosts=$SLURM_JOB_NUM_NODES" \
  --set "distributed.coordinator=$first:$port" \
  "$@"
