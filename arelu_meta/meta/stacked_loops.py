"""Pooling and slopes of stacked tasks on a CPU: numba's loops, one pass over memory each, on torch's own threads.

PyTorch's operators would take four to nine passes, with a temporary each. A loop takes one `job`: a counter from which
the threads draw tasks, sizes, then an address and three strides for each tensor. A task is one thread's, and its sums
are added up in one order, so that no number of threads changes a result. A loop that sums writes nothing beside it:
what writes is vectorised or not by where its arrays lie.
"""

# numba types none of its decorators.
# mypy: disable-error-code="untyped-decorator"

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from arelu_meta.activations.kernels_cpu import draw_block, elements_at, words_of

COUNTER, TASKS, FIRST, SECOND, SIZE, HEIGHT, WIDTH, ITEM, TENSORS = range(9)
"""Where in a job what lies; from the last on four words a tensor. A window's place is 0 to 3, by row, then column."""
WORDS = TENSORS + 4 * 11
_RUN = 1 << 12  # what is summed in the elements' own type before float64 takes over
_FAST = {"reassoc", "contract"}  # sums may be reordered, or they would not be vectorised; infinities and nans stay


@intrinsic
def bytes_at(_: Any, address: Any) -> Any:
    """Point at bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.int8)(types.int64), generate


@njit
def _offset(words: Any, tensor: Any, task: Any, first: Any, second: Any) -> Any:
    at = TENSORS + 4 * tensor
    return task * words[at + 1] + first * words[at + 2] + second * words[at + 3]


@njit
def _plane(job: Any, words: Any, tensor: Any, task: Any, first: Any, second: Any, size: Any) -> Any:
    offset = _offset(words, tensor, task, first, second)
    return carray(elements_at(job, words[TENSORS + 4 * tensor] + words[ITEM] * offset), size)


@njit
def _places(words: Any, tensor: Any, task: Any, first: Any, second: Any, size: Any) -> Any:
    return carray(bytes_at(words[TENSORS + 4 * tensor] + _offset(words, tensor, task, first, second)), size)


@njit(error_model="numpy", fastmath=_FAST)
def _add_up(values: Any, firsts: Any, seconds: Any) -> Any:
    """Sum `firsts * seconds` apart for values on either side of zero."""
    zero = type(values[0])(0)
    all_above, all_below = 0.0, 0.0
    for start in range(0, values.size, _RUN):
        vs, fs, ss = values[start : start + _RUN], firsts[start : start + _RUN], seconds[start : start + _RUN]
        above, below = zero, zero
        for i in range(vs.size):
            product = fs[i] * ss[i]
            above += product if vs[i] >= 0 else zero
            below += zero if vs[i] >= 0 else product
        all_above += above
        all_below += below
    return all_above, all_below


@njit(error_model="numpy")
def _slopes_forward(job: Any) -> None:
    """From x and each task's slopes above and below zero: their product."""
    words = carray(words_of(job), WORDS)
    size = words[SIZE]
    task = draw_block(job)
    while task < words[TASKS]:
        above, below = _plane(job, words, 1, task, 0, 0, 1)[0], _plane(job, words, 2, task, 0, 0, 1)[0]
        for first in range(words[FIRST]):
            for second in range(words[SECOND]):
                x = _plane(job, words, 0, task, first, second, size)
                y = _plane(job, words, 3, task, first, second, size)
                for i in range(size):
                    y[i] = x[i] * (above if x[i] >= 0 else below)
        task = draw_block(job)


@njit(error_model="numpy")
def _slopes_backward(job: Any) -> None:
    """From x, slopes and y's gradient: the gradients of x and of each slope."""
    words = carray(words_of(job), WORDS)
    size = words[SIZE]
    task = draw_block(job)
    while task < words[TASKS]:
        above, below = _plane(job, words, 1, task, 0, 0, 1)[0], _plane(job, words, 2, task, 0, 0, 1)[0]
        to_above, to_below = 0.0, 0.0
        for first in range(words[FIRST]):
            for second in range(words[SECOND]):
                x = _plane(job, words, 0, task, first, second, size)
                grad = _plane(job, words, 3, task, first, second, size)
                to_x = _plane(job, words, 4, task, first, second, size)
                for i in range(size):
                    to_x[i] = grad[i] * (above if x[i] >= 0 else below)
                more_above, more_below = _add_up(x, grad, x)
                to_above += more_above
                to_below += more_below
        _plane(job, words, 5, task, 0, 0, 1)[0] = to_above
        _plane(job, words, 6, task, 0, 0, 1)[0] = to_below
        task = draw_block(job)


@njit(error_model="numpy")
def _slopes_double_backward(job: Any) -> None:
    """From x, slopes, y's gradient and those of `_slopes_backward`'s results: the gradients of its four inputs."""
    words = carray(words_of(job), WORDS)
    size = words[SIZE]
    task = draw_block(job)
    while task < words[TASKS]:
        above, below = _plane(job, words, 1, task, 0, 0, 1)[0], _plane(job, words, 2, task, 0, 0, 1)[0]
        by_above, by_below = _plane(job, words, 5, task, 0, 0, 1)[0], _plane(job, words, 6, task, 0, 0, 1)[0]
        to_above, to_below = 0.0, 0.0
        for first in range(words[FIRST]):
            for second in range(words[SECOND]):
                x = _plane(job, words, 0, task, first, second, size)
                grad = _plane(job, words, 3, task, first, second, size)
                by_x = _plane(job, words, 4, task, first, second, size)
                to_grad = _plane(job, words, 7, task, first, second, size)
                for i in range(size):
                    share = by_above if x[i] >= 0 else by_below
                    to_grad[i] = by_x[i] * (above if x[i] >= 0 else below) + x[i] * share
                to_x = _plane(job, words, 8, task, first, second, size)
                for i in range(size):
                    to_x[i] = grad[i] * (by_above if x[i] >= 0 else by_below)
                more_above, more_below = _add_up(x, by_x, grad)
                to_above += more_above
                to_below += more_below
        _plane(job, words, 9, task, 0, 0, 1)[0] = to_above
        _plane(job, words, 10, task, 0, 0, 1)[0] = to_below
        task = draw_block(job)


@njit(error_model="numpy")
def _pool_row(top: Any, bottom: Any, maxima: Any, places: Any) -> Any:
    """Pool two rows without a nan, and say whether one was there; without branches, which would be mispredicted."""
    has_nan = np.int32(0)
    for c in range(maxima.size):
        a, b, d, e = top[2 * c], top[2 * c + 1], bottom[2 * c], bottom[2 * c + 1]
        upper, lower = max(a, b), max(d, e)
        right_above, right_below, is_below = np.int32(b > a), np.int32(e > d), np.int32(lower > upper)
        has_nan |= np.int32(a != a) | np.int32(b != b) | np.int32(d != d) | np.int32(e != e)
        maxima[c] = max(upper, lower)
        places[c] = right_above + (2 + right_below - right_above) * is_below
    return has_nan


@njit(error_model="numpy")
def _pool_row_with_nan(top: Any, bottom: Any, maxima: Any, places: Any) -> None:
    """Pool two rows as PyTorch does, where a nan is the maximum."""
    for c in range(maxima.size):
        most, place = top[2 * c], 0
        for k in range(1, 4):
            value = bottom[2 * c + k - 2] if k > 1 else top[2 * c + 1]
            if value > most or value != value:
                most, place = value, k
        maxima[c] = most
        places[c] = place


@njit(error_model="numpy")
def _pool_plane(x: Any, y: Any, places: Any, rows: Any, columns: Any, width: Any) -> None:
    """From an image: each window's maximum, and its place, the first of equals."""
    for r in range(rows):
        top, bottom = x[2 * r * width :][:width], x[(2 * r + 1) * width :][:width]
        maxima, wheres = y[r * columns :][:columns], places[r * columns :][:columns]
        if _pool_row(top, bottom, maxima, wheres):
            _pool_row_with_nan(top, bottom, maxima, wheres)


@njit(error_model="numpy")
def _scatter_plane(x: Any, y: Any, places: Any, rows: Any, columns: Any, width: Any) -> None:
    """From windows and places: an image that is 0 but there."""
    x[:] = type(x[0])(0)
    for r in range(rows):
        for c in range(columns):
            place = places[r * columns + c]
            x[(2 * r + (place >> 1)) * width + 2 * c + (place & 1)] = y[r * columns + c]


@njit(error_model="numpy")
def _gather_plane(x: Any, y: Any, places: Any, rows: Any, columns: Any, width: Any) -> None:
    """From an image and places: windows of what lies there."""
    for r in range(rows):
        for c in range(columns):
            place = places[r * columns + c]
            y[r * columns + c] = x[(2 * r + (place >> 1)) * width + 2 * c + (place & 1)]


_POOL, _SCATTER, _GATHER = range(3)


@njit(error_model="numpy")
def _over_images(job: Any, what: Any) -> None:
    """Do one of three things with each image, its windows and their places."""
    words = carray(words_of(job), WORDS)
    height, width = words[HEIGHT], words[WIDTH]
    rows, columns = height // 2, width // 2
    windows = rows * columns
    task = draw_block(job)
    while task < words[TASKS]:
        for first in range(words[FIRST]):
            for second in range(words[SECOND]):
                x = _plane(job, words, 0, task, first, second, height * width)
                y = _plane(job, words, 1, task, first, second, windows)
                places = _places(words, 2, task, first, second, windows)
                if what == _POOL:
                    _pool_plane(x, y, places, rows, columns, width)
                elif what == _SCATTER:
                    _scatter_plane(x, y, places, rows, columns, width)
                else:
                    _gather_plane(x, y, places, rows, columns, width)
        task = draw_block(job)


LOOPS: dict[str, Callable[[Any], None]] = {
    "slopes_forward": lambda job: _slopes_forward(job),
    "slopes_backward": lambda job: _slopes_backward(job),
    "slopes_double_backward": lambda job: _slopes_double_backward(job),
    "pool": lambda job: _over_images(job, _POOL),
    "scatter": lambda job: _over_images(job, _SCATTER),
    "gather": lambda job: _over_images(job, _GATHER),
}
