#!/usr/bin/env bash
# One run on several nodes: sbatch --nodes=4 experiments/launch/slurm.sh experiments/imagenet/resnet.py:resnet50 /shared/runs/resnet50
# (further words go to `jaxcnn train`). One task a GPU; with --ntasks-per-node=1 one task takes all GPUs of its node.
# The workdir is a folder that all nodes see, or s3://BUCKET/RUN. JAX learns of the other tasks from SLURM, so no address is given here.
#SBATCH --job-name=jaxcnn
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail

config=${1:?usage: sbatch slurm.sh CONFIG WORKDIR [--config.KEY=VALUE …]}
workdir=${2:?usage: sbatch slurm.sh CONFIG WORKDIR [--config.KEY=VALUE …]}
shift 2

# SIGTERM, before the time is up or when the job is preempted, goes to the tasks: all save at one step and end with 143.
# When one task dies, JAX ends the others after --heartbeat-timeout (60 s) and prints its number; a user's error ends all at once.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=0 "${JAXCNN:-jaxcnn}" train --config "$config" --workdir "$workdir" "$@"
code=$?
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID" # goes on where it stopped
fi
exit "$code"
