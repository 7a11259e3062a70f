"""Running averages of batch normalisation, where tasks are computed at once: updated as task after task does it.

Under `torch.vmap` no layer can update its averages in place. Since a layer in training normalises by the batch at hand,
whatever its averages are, they may as well be updated afterwards, by statistics that were noted on the way.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def updates_averages(module: nn.Module) -> bool:
    """Say whether a module is a batch normalisation that updates its running averages at each call."""
    tracking = isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    return tracking and module.training


@contextlib.contextmanager
def averages_kept(model: nn.Module) -> Iterator[None]:
    """Within this, a model may be tried out: afterwards its running averages are as before.

    Args:
        model: any.
    """
    layers = [module for module in model.modules() if updates_averages(module)]
    buffers = [buffer for layer in layers for name in _BUFFERS if (buffer := getattr(layer, name)) is not None]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


class RunningAverages:
    """The averages of a model whose twin is run under `torch.vmap`.

    Args:
        model: whose averages are updated.
        twin: of the same structure; its layers lose the averages that the model's update, and share the others.
    """

    def __init__(self, model: nn.Module, twin: nn.Module) -> None:
        self._layers: list[tuple[nn.Module, _BatchNorm]] = []
        self._noted: list[tuple[_BatchNorm, Tensor, Tensor]] = []
        for original, mine in zip(model.modules(), twin.modules(), strict=True):
            if not (isinstance(original, _BatchNorm) and isinstance(mine, _BatchNorm)):
                continue
            updates = updates_averages(original)
            mine.track_running_stats = original.track_running_stats and not updates
            for name in _BUFFERS:
                setattr(mine, name, None if updates else getattr(original, name))
            if updates:
                self._layers.append((mine, original))

    def map(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Run the twin for all tasks at once, noting the statistics of its layers where there are any to note.

        Args:
            function: of one task; calls the twin.
            arguments: stacked, their first dimension the tasks'.

        Returns:
            What it returns, stacked.
        """
        if not self._layers:
            found: Tensor = torch.vmap(function, randomness="error")(*arguments)
            return found
        order: list[_BatchNorm] = []

        def noting(*one: Any) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            seen: list[tuple[Tensor, Tensor]] = []

            def note(original: _BatchNorm, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                order.append(original)
                seen.append(_statistics(inputs[0], original))

            hooks = [mine.register_forward_pre_hook(partial(note, original)) for mine, original in self._layers]
            try:
                return function(*one), seen
            finally:
                for hook in hooks:
                    hook.remove()

        found, statistics = torch.vmap(noting, randomness="error")(*arguments)
        self._noted += [(layer, *pair) for layer, pair in zip(order, statistics, strict=True)]
        return found

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages by all that was noted: the first task's calls, then the second's, and so on."""
        calls: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}
        for layer, mean, variance in self._noted:
            calls.setdefault(layer, []).append((mean, variance))
        self._noted = []
        for layer, pairs in calls.items():
            means, variances = (torch.stack(part, 1).flatten(0, 1) for part in zip(*pairs, strict=True))
            _average(layer, means, variances)


@torch.no_grad()
def _statistics(images: Tensor, layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return a batch's mean and unbiased variance by channel, in the averages' dtype."""
    assert layer.running_mean is not None
    values = images.detach().to(layer.running_mean.dtype)
    over = [dim for dim in range(values.dim()) if dim != 1]
    variance, mean = torch.var_mean(values, over, correction=1)
    return mean, variance


def _average(layer: _BatchNorm, means: Tensor, variances: Tensor) -> None:
    """Update a layer's averages by one batch after the other, their statistics of shape (batches, channels).

    Source: torch.nn.BatchNorm2d: average = (1 - factor) * average + factor * statistic; without a momentum the factor
    makes it the plain mean of all batches so far.
    """
    count, before = len(means), 0
    if layer.num_batches_tracked is not None:
        before = int(layer.num_batches_tracked)
        layer.num_batches_tracked += count
    factors = [1 / (before + n + 1) if layer.momentum is None else layer.momentum for n in range(count)]
    weights, left = [0.0] * count, 1.0  # unrolled: what later batches leave of each
    for number in reversed(range(count)):
        weights[number] = factors[number] * left
        left *= 1 - factors[number]
    for average, values in ((layer.running_mean, means), (layer.running_var, variances)):
        assert average is not None
        average.mul_(left).add_(values.new_tensor(weights) @ values)
