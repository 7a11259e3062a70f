#!/usr/bin/env bash
# One run on the GPUs of one machine: configs/launch/one-machine.sh finetune --data.root photos --run.folder out
# Each process takes its share of every batch (finetune) or of the tasks (metatrain). A process that dies ends the run;
# torchrun then starts all of them again, and the run goes on from its last checkpoint. GPUS=2: two; RESTARTS=0: never.
set -euo pipefail
task=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node "${GPUS:-8}" \
    --max-restarts "${RESTARTS:-3}" "$root/tasks/$task.py" --run.resume auto "$@"
