"""Pooling and slopes of stacked tasks by numba's loops on a CPU: what `stacked_aten` does, several times faster.

Only for float32 and float64 with elements, of at most five dimensions (tasks, images, channels, height, width). What
is not laid out as a loop reads it is copied first.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from numba import types
from torch import Tensor

from arelu_meta.activations.kernels_cpu import compiled, run_on_team
from arelu_meta.meta.stacked_loops import FIRST, HEIGHT, ITEM, LOOPS, SECOND, SIZE, TASKS, TENSORS, WIDTH, WORDS

_ELEMENTS = {torch.float32: types.float32, torch.float64: types.float64}


@cache
def _compiled(name: str, dtype: torch.dtype) -> tuple[int, Any]:
    return compiled(LOOPS[name], _ELEMENTS[dtype])


def _run(name: str, tensors: list[tuple[Tensor, list[int]]], outer: list[int], sizes: dict[int, int]) -> None:
    """Run a loop.

    Args:
        name: a key of `LOOPS`.
        tensors: each with its strides over `outer`.
        outer: the sizes of three dimensions, of which tasks come first.
        sizes: what else the job says, by its place there.
    """
    first = tensors[0][0]
    job = (ctypes.c_int64 * WORDS)()
    job[TASKS], job[FIRST], job[SECOND] = outer
    job[ITEM] = first.element_size()
    for place, size in sizes.items():
        job[place] = size
    for index, (tensor, strides) in enumerate(tensors):
        at = TENSORS + 4 * index
        job[at : at + 4] = [tensor.data_ptr(), *strides]
    run_on_team(_compiled(name, first.dtype), job, outer[0])


def _in_order_of(x: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Make a tensor whose dimensions lie in memory in the order of those of `x`."""
    order = sorted(range(x.dim()), key=lambda dim: -x.stride()[dim])
    inverse = sorted(range(x.dim()), key=order.__getitem__)
    return x.new_empty([shape[dim] for dim in order], dtype=dtype).permute(inverse)


def _as_next_read(x: Tensor, shape: list[int]) -> Tensor:
    """Make a tensor (tasks, images, …) laid out images first, as a convolution by groups, the likely next, reads it."""
    if len(shape) < 4:
        return x.new_empty(shape)
    return x.new_empty(shape[1], shape[0], *shape[2:]).transpose(0, 1)


def _is_expanded(x: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


def _with_rows(x: Tensor) -> Tensor:
    """Make sure that each image is one piece of memory."""
    dense = x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] and not _is_expanded(x)
    return x if dense else x.contiguous()


def _over_images(name: str, x: Tensor, y: Tensor, places: Tensor) -> None:
    missing = 5 - x.dim()
    placed = [(tensor, [*tensor.stride()[:-2], *[0] * missing]) for tensor in (x, y, places)]
    _run(name, placed, [*x.shape[:-2], *[1] * missing], {HEIGHT: x.shape[-2], WIDTH: x.shape[-1]})


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima and their places, int8: 0 to 3 in a window, by row, then column; the first of equals.

    The places lie in memory in the order of the images, and `scatter` gives its images theirs.
    """
    x = _with_rows(x)
    shape = [*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2]
    y, places = _as_next_read(x, shape), _in_order_of(x, shape, torch.int8)
    _over_images("pool", x, y, places)
    return y, places


def scatter(y: Tensor, places: Tensor, size: torch.Size) -> Tensor:
    """Return images (T, …, H, W) that are 0 but where the maxima were."""
    x = _in_order_of(places, [*places.shape[:-2], *size], y.dtype)
    _over_images("scatter", x, _with_rows(y), places)
    return x


def gather(x: Tensor, places: Tensor) -> Tensor:
    """Return what lies where the maxima were."""
    y = _as_next_read(x, list(places.shape))
    _over_images("gather", _with_rows(x), y, places)
    return y


def _merged(tensors: list[Tensor]) -> list[tuple[int, list[int]]]:
    """Return sizes and strides of what is left of the dimensions after the first, where neighbours in memory merge."""
    x = tensors[0]
    merged: list[tuple[int, list[int]]] = []
    for dim in sorted(range(1, x.dim()), key=lambda dim: -x.stride()[dim]):
        size, strides = x.shape[dim], [tensor.stride(dim) for tensor in tensors]
        if size == 1:
            continue
        if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = merged[-1][0] * size, strides
        else:
            merged.append((size, strides))
    return merged


def _is_readable(merged: list[tuple[int, list[int]]]) -> bool:
    return len(merged) <= 3 and (not merged or all(stride == 1 for stride in merged[-1][1]))


def _dense(x: Tensor) -> Tensor:
    """Make sure that x fills one piece of memory, in whatever order of its dimensions."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x if not _is_expanded(x) and span == x.numel() and _is_readable(_merged([x])) else x.contiguous()


def _like(x: Tensor) -> Tensor:
    return _in_order_of(x, list(x.shape), x.dtype)


def _is_laid_out_like(x: Tensor, other: Tensor) -> bool:
    return all(x.stride(dim) == other.stride(dim) for dim, size in enumerate(x.shape) if size > 1)


def _over_elements(name: str, x: Tensor, *others: Tensor) -> None:
    """Run a loop over tensors like x, which is dense, and over slopes, which are one element a task."""
    is_slope = [other.shape != x.shape for other in others]
    full = [x, *(other for other, slope in zip(others, is_slope, strict=True) if not slope)]
    if not _is_readable(_merged(full)):
        full = [x, *(other if _is_laid_out_like(x, other) else _like(x).copy_(other) for other in full[1:])]
    merged = [(1, [0] * len(full))] * 3 + _merged(full)
    (first, firsts), (second, seconds), (size, _) = merged[-3:]
    remaining = iter(range(1, len(full)))
    placed = [(x, [x.stride(0), firsts[0], seconds[0]])]
    for other, slope in zip(others, is_slope, strict=True):
        if slope:
            placed.append((other, [other.stride(0), 0, 0]))
        else:
            at = next(remaining)
            placed.append((full[at], [full[at].stride(0), firsts[at], seconds[at]]))
    _run(name, placed, [len(x), first, second], {SIZE: size})


def slopes_forward(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Return x times its side's slope."""
    x = _dense(x)
    y = _like(x)
    _over_elements("slopes_forward", x, above, below, y)
    return y


def slopes_backward(grad: Tensor, x: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and of the slopes."""
    x = _dense(x)
    to_x, to_above, to_below = _like(x), x.new_empty(above.shape), x.new_empty(below.shape)
    _over_elements("slopes_backward", x, above, below, grad, to_x, to_above, to_below)
    return to_x, to_above, to_below


def slopes_double_backward(
    grad: Tensor, x: Tensor, above: Tensor, below: Tensor, by_x: Tensor, by_above: Tensor, by_below: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `slopes_backward`'s four inputs, given those of its results."""
    x = _dense(x)
    to_grad, to_x, to_above, to_below = _like(x), _like(x), x.new_empty(above.shape), x.new_empty(below.shape)
    given = above, below, grad, by_x, by_above, by_below
    _over_elements("slopes_double_backward", x, *given, to_grad, to_x, to_above, to_below)
    return to_grad, to_x, to_above, to_below
