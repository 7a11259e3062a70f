"""A meta-batch over several processes: each takes some of the tasks, and their meta-gradients are added up."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


def share_of(tasks: Sequence[int], rank: int, processes: int) -> Sequence[int]:
    """Take one process's tasks.

    Args:
        tasks: the numbers of the whole meta-batch.
        rank: of this process, from 0.
        processes: how many there are.

    Returns:
        Every `processes`-th; none where there are fewer tasks than processes.
    """
    return tasks[rank::processes]


def reduce_meta_gradient(model: nn.Module, own: int, total: int) -> None:
    """Turn each process's meta-gradient, the mean over its own tasks, into the mean over all tasks of all processes.

    Args:
        model: whose `.grad` changes in place; its processes agree on which parameters are trained.
        own: how many tasks this process has computed; a process without any takes part all the same.
        total: how many tasks all processes have computed.

    Source: the mean of Finn et al. 2017, algorithm 2, line 10, over processes.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.mul_(own / total)
        if dist.is_initialized():
            dist.all_reduce(parameter.grad)
