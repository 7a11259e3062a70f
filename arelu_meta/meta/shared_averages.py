"""Running averages of batch normalisation over several processes: as one process updates them, task after task.

An update is affine in the averages before it, whichever engine made it. So each process updates by its own tasks, and
the updates are then carried out one after the other, in the order of the tasks.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_meta.meta.averages import updates_averages
from arelu_meta.runs.distributed import Ranks


@contextlib.contextmanager
def averages_in_order(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Within this, each process computes its own tasks; afterwards all have one process's running averages.

    Args:
        model: in training mode as its normalisation asks for; the same in all processes.
        ranks: the processes, the first with the first tasks.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and updates_averages(module)]
    if ranks.processes == 1 or not layers:
        yield
        return
    before = [[buffer.clone() for buffer in _averages(layer)] for layer in layers]
    tracked = [_tracked(layer) for layer in layers]
    yield
    _carry_out(layers, before, tracked, ranks)


@torch.no_grad()
def _carry_out(
    layers: Sequence[_BatchNorm], before: Sequence[Sequence[Tensor]], tracked: Sequence[int], ranks: Ranks
) -> None:
    """Replace each layer's averages, updated by this process, by those that all processes' updates give."""
    counts = torch.zeros(ranks.processes, len(layers), dtype=torch.int64)
    counts[ranks.rank] = torch.tensor([_tracked(layer) - count for layer, count in zip(layers, tracked, strict=True)])
    calls: list[list[int]] = ranks.total(counts).T.tolist()
    kept, parts = [], []
    for layer, averages, count, of_all in zip(layers, before, tracked, calls, strict=True):
        left, weight, own_left = _composition(layer.momentum, count, of_all, ranks.rank)
        kept += [left * old for old in averages]
        parts += [weight * (new - own_left * old) for new, old in zip(_averages(layer), averages, strict=True)]
    # One message for all layers.
    summed = ranks.total(torch.cat(parts)).split([len(part) for part in parts])
    buffers = [buffer for layer in layers for buffer in _averages(layer)]
    for buffer, old, new in zip(buffers, kept, summed, strict=True):
        buffer.copy_(old + new)
    for layer, count, of_all in zip(layers, tracked, calls, strict=True):
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.fill_(count + sum(of_all))


def _averages(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _tracked(layer: _BatchNorm) -> int:
    assert layer.num_batches_tracked is not None
    return int(layer.num_batches_tracked)


def _composition(momentum: float | None, before: int, calls: Sequence[int], rank: int) -> tuple[float, float, float]:
    """Say what is left of a layer's averages, and what one process's update counts.

    Args:
        momentum: of the layer; None makes its averages the plain mean of all batches.
        before: how many batches they were made of.
        calls: of each process since.
        rank: the process.

    Returns:
        What is left of the averages after all processes; what this one's addition is multiplied by; and what is left
        of the averages after this process alone.

    Source: torch.nn.BatchNorm2d: average = (1 - factor) * average + factor * statistic.
    """
    if momentum is None:
        total, own = max(1, before + sum(calls)), max(1, before + calls[rank])
        return before / total if sum(calls) else 1.0, own / total, before / own if calls[rank] else 1.0
    left = [(1 - momentum) ** count for count in calls]
    return math.prod(left), math.prod(left[rank + 1 :]), left[rank]
