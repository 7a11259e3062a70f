"""2 x 2 max-pooling and AReLU of the stacked tasks of a meta-batch, each differentiable twice.

On a CPU numba's loops compute them (`stacked_numba`); elsewhere, in other dtypes and without numba, torch's operators
(`stacked_aten`).
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from arelu_meta.meta import stacked_aten


@cache
def _numba() -> Any:
    try:
        return importlib.import_module("arelu_meta.meta.stacked_numba")
    except ImportError:
        return stacked_aten


def _operators(*tensors: Tensor) -> Any:
    x, dtypes = tensors[0], {tensor.dtype for tensor in tensors}
    known = x.device.type == "cpu" and dtypes in ({torch.float32}, {torch.float64}) and x.dim() <= 5
    return _numba() if known and x.numel() else stacked_aten


class Pool(torch.autograd.Function):
    """2 × 2 max-pooling with stride 2 of (T, …, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Keep where the maxima are."""
        operators = _operators(x)
        y, places = operators.pool(x)
        ctx.save_for_backward(places)
        ctx.size, ctx.operators = x.shape[-2:], operators
        found: Tensor = y
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Send each window's gradient to where its maximum was."""
        found: Tensor = _Scatter.apply(grad, *ctx.saved_tensors, ctx.size, ctx.operators)
        return found


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, places: Tensor, size: torch.Size, operators: Any) -> Tensor:
        ctx.save_for_backward(places)
        ctx.operators = operators
        found: Tensor = operators.scatter(grad, places, size)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.operators.gather(by_x, *ctx.saved_tensors), None, None, None


class Slopes(torch.autograd.Function):
    """`x` times `above` where x >= 0 and times `below` elsewhere; the slopes are one a task."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, above: Tensor, below: Tensor) -> Tensor:
        """Keep x and the slopes."""
        ctx.save_for_backward(x, above, below)
        found: Tensor = _operators(x, above, below).slopes_forward(x, above, below)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x and of the slopes."""
        found: tuple[Tensor, ...] = _SlopesBackward.apply(grad, *ctx.saved_tensors)
        return found


class _SlopesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, above, below)
        found: tuple[Tensor, ...] = _operators(grad, x, above, below).slopes_backward(grad, x, above, below)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_x: Tensor, by_above: Tensor, by_below: Tensor) -> tuple[Tensor, ...]:
        grad, x, above, below = ctx.saved_tensors
        operators = _operators(by_x, *ctx.saved_tensors)
        found: tuple[Tensor, ...] = operators.slopes_double_backward(grad, x, above, below, by_x, by_above, by_below)
        return found
