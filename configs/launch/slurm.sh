#!/usr/bin/env bash
# One run as a Slurm job: sbatch configs/launch/slurm.sh finetune --data.root photos --run.folder out
# Several nodes: sbatch --nodes 2 …. Many runs: arelu-meta sweep SPEC --launcher submitit.
# Two minutes before its time is up (or when it is pre-empted) the run writes a checkpoint and ends with 130; the job
# goes back into the queue, and --run.resume auto goes on from there. Slurm itself queues it again when a node fails.
#SBATCH --job-name=arelu-meta
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=arelu-meta-%j.log
# On your cluster, too: --gpus-per-node=8 --cpus-per-task=64 --partition=…
set -uo pipefail
task=$1
shift
# sbatch copies this script away; the job starts in the repository.
root=${ARELU_META_ROOT:-$SLURM_SUBMIT_DIR}

again() {
    echo "time is up: a checkpoint is written, and the job goes back into the queue"
    kill -TERM "$step" 2>/dev/null # srun passes it on to every process of the run
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again USR1 TERM

export HEAD=${SLURMD_NODENAME:-$(hostname)} NODES=$SLURM_JOB_NUM_NODES JOB=$SLURM_JOB_ID
export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}} RESTARTS=0 PORT=$((20000 + SLURM_JOB_ID % 10000))
# Each node's one task starts as many processes as it has GPUs.
srun --kill-on-bad-exit=1 bash "$root/configs/launch/node.sh" "$task" "$@" &
step=$!
wait "$step"
