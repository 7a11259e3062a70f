#!/usr/bin/env bash
# One run over several nodes, which share a file system; start this on each of them, with the first one's name:
#   HEAD=node1 NODES=2 configs/launch/node.sh finetune --data.root photos --run.folder out
# The nodes meet at HEAD:PORT; where one is lost, the others wait until it is back, and the run goes on from its last
# checkpoint.
set -euo pipefail
task=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "${NODES:-2}" --nproc_per_node "${GPUS:-8}" \
    --rdzv_backend c10d --rdzv_endpoint "${HEAD:?give the first node}:${PORT:-29400}" --rdzv_id "${JOB:-arelu-meta}" \
    --max-restarts "${RESTARTS:-3}" "$root/tasks/$task.py" --run.resume auto "$@"
