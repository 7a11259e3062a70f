"""How many tasks are computed at once, in training and in evaluation: what fits, and one where a CPU is faster so."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from arelu_meta.data.episodes import TaskBatch

_SHARE_OF_MEMORY = 0.5
# Bytes that a task keeps for its backward, above which a CPU is no faster with several tasks at once: memory traffic,
# not the number of calls, is then what a meta-step costs. Measured: engine_times.csv.
_LARGE_TASK = 24 << 20
_FEW_TASKS = 2  # what several at once save on a CPU does not pay for their set-up; likewise


def tasks_at_once(compute: Callable[[TaskBatch], object], tasks: TaskBatch, count: int | None = None) -> int:
    """Say how many tasks at once are fastest and fit, by what one of them keeps for its backward.

    Args:
        compute: does with one task, whose graph it makes, what is to be done with all.
        tasks: some, on the device; the first is tried.
        count: how many there are in all; default: `tasks`.

    Returns:
        At least 1; it may be more than there are tasks.
    """
    device = tasks.support_images.device
    count = len(tasks) if count is None else count
    if count == 1 or (device.type == "cpu" and count <= _FEW_TASKS):
        return 1
    a_task = _kept_bytes(compute, tasks)
    return 1 if device.type == "cpu" and a_task > _LARGE_TASK else fitting_tasks(a_task, device)


def _kept_bytes(compute: Callable[[TaskBatch], object], tasks: TaskBatch) -> int:
    """Count a task's images and what is kept for its backward; the other tasks lie in the same storage, uncounted."""
    images = (tasks.support_images, tasks.query_images)
    whole = {part.untyped_storage().data_ptr() for part in images}
    # All are held to the end: an address that is used again would count once, or twice, from run to run otherwise.
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in whole:
            kept.setdefault(place, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute(next(tasks.split(1)))
    own = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return own + sum(part.nbytes for part in images) // len(tasks)


def fitting_tasks(bytes_a_task: int, device: torch.device) -> int:
    """Say how many tasks fit half of the memory that is free.

    Args:
        bytes_a_task: what each needs.
        device: whose memory.

    Returns:
        At least 1.
    """
    return max(1, int(_free_bytes(device) * _SHARE_OF_MEMORY) // max(1, bytes_a_task))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return 1 << 31
