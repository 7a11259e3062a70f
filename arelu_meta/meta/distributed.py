"""A meta-batch over several processes: each takes some of the tasks, and their meta-gradients are added up.

No wrapper around the model (DDP): inner steps differentiate functional copies of its weights, which hooks on its
parameters know nothing of.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.data.fewshot import TaskBatch
from arelu_meta.errors import RunError, SharedRunError
from arelu_meta.meta.engine import Engine
from arelu_meta.meta.normalization import updates_averages
from arelu_meta.runs.distributed import Ranks

T = TypeVar("T")


def share_of(tasks: Sequence[int], rank: int, processes: int) -> Sequence[int]:
    """Take one process's tasks.

    Args:
        tasks: the numbers of the whole meta-batch.
        rank: of this process, from 0.
        processes: how many there are.

    Returns:
        As many as any other's, or one fewer, and those that follow the process's before: in the end none where there
        are fewer tasks than processes.
    """
    return tasks[_first(len(tasks), rank, processes) : _first(len(tasks), rank + 1, processes)]


def _first(tasks: int, rank: int, processes: int) -> int:
    return -(-tasks * rank // processes)


def shared_meta_gradient(
    engine: Engine, model: nn.Module, draw: Callable[[Sequence[int]], TaskBatch], tasks: Sequence[int], ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Compute this process's part of a meta-step, and add up all parts: what one process alone would have computed.

    Running averages alone are not quite one process's: they become the mean of the processes'.

    Args:
        engine: of the model.
        model: without gradients; afterwards its `.grad` is the whole meta-batch's.
        draw: gives tasks by their numbers, on the model's device; task i is the same in every process.
        tasks: the numbers of the whole meta-batch.
        ranks: the processes.

    Returns:
        Every task's query loss and query accuracy, in the order of `tasks`.
    """
    own = share_of(tasks, *ranks.share)
    if ranks.processes == 1:
        return engine.meta_gradient(draw(own))
    measures = torch.zeros(2, len(tasks), dtype=torch.float64)
    if own:
        losses, accuracies = engine.meta_gradient(draw(own))
        measures[:, share_of(range(len(tasks)), *ranks.share)] = torch.stack(
            [losses.double().cpu(), accuracies.double().cpu()]
        )
    reduce_meta_gradient(model, len(own), len(tasks), ranks)
    if updates_averages(model):
        _reduce_averages(model, len(own) / len(tasks), ranks)
    losses, accuracies = ranks.total(measures)
    return losses, accuracies


def reduce_meta_gradient(model: nn.Module, own: int, total: int, ranks: Ranks) -> None:
    """Turn each process's meta-gradient, the mean over its own tasks, into the mean over all tasks of all processes.

    Args:
        model: whose `.grad` changes in place; its processes agree on which parameters are trained. A parameter that
            has no gradient in any process has none afterwards.
        own: how many tasks this process has computed; a process without any takes part all the same.
        total: how many tasks all processes have computed.
        ranks: the processes.

    Source: the mean of Finn et al. 2017, algorithm 2, line 10, over processes.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        return
    # One message for all: the gradients, and behind them whether each was there.
    parts = [torch.zeros_like(p) if p.grad is None else p.grad * (own / total) for p in learning]
    there = parts[0].new_tensor([float(p.grad is not None) for p in learning])
    summed = ranks.total(torch.cat([part.flatten() for part in parts] + [there]))
    *gradients, there = summed.split([part.numel() for part in parts] + [len(learning)])
    for parameter, gradient, count in zip(learning, gradients, there.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None


@torch.no_grad()
def _reduce_averages(model: nn.Module, share: float, ranks: Ranks) -> None:
    """Give all processes the mean of their running averages, each weighing as its share of the tasks.

    One process would update them task after task; a moving average over so many updates is nearly that. Their counts
    of batches become the mean, too, so that a checkpoint is the same whichever process wrote it.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    averages = [buffer for layer in layers for buffer in layer.buffers()]
    summed = ranks.total(torch.cat([buffer.flatten() for buffer in averages]) * share)
    for buffer, mean in zip(averages, summed.split([buffer.numel() for buffer in averages]), strict=True):
        buffer.copy_((mean if buffer.is_floating_point() else mean.round()).view_as(buffer))


def gather_shares(compute: Callable[[Sequence[int]], list[T]], tasks: Sequence[int], ranks: Ranks) -> list[T]:
    """Compute something of each task, every process for its own, and bring it together in every process.

    Args:
        compute: gives one value a task, which pickle takes.
        tasks: the numbers of all.
        ranks: the processes.

    Returns:
        One value a task, in the order of `tasks`.

    Raises:
        RunError: in all processes, if one's share raises it: the others would wait for a value that never comes.
    """
    found: list[T] = []
    failure = None
    try:
        found = compute(share_of(tasks, *ranks.share))
    except RunError as error:
        failure = error
    parts = ranks.gather((found, None if failure is None else str(failure)))
    if message := next((message for _, message in parts if message is not None), None):
        raise SharedRunError(message) from failure
    return [value for values, _ in parts for value in values]
