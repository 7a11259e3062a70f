"""The operators' CPU kernels: one pass over memory each, compiled by numba, run on torch's own OpenMP threads.

A kernel takes one `job`, 8-byte words in a row: a counter from which its threads draw blocks, the number of elements,
three addresses, two slopes, and two sums for each block. The pointer's type says what the elements are, so that one
function serves float32, float64 and bfloat16 (read as int16 words, since numba has no such type).

Why torch's threads: a pool of our own fights torch's workers, which go on spinning for a while after each operation.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

_BLOCK = 1 << 15  # what a thread draws at a time; its sums have a place of their own, so no thread's pace changes them
_RUN = 1 << 12  # what is summed in float32 before float64 takes over: 64 to 256 elements a vector lane
_COUNTER, _SIZE, _INPUT, _OTHER, _OUTPUT, _POSITIVE, _NEGATIVE, _SUMS = range(8)

_ELEMENTS = {torch.float32: types.float32, torch.float64: types.float64, torch.bfloat16: types.int16}
KINDS = ("relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish")
"""The activations whose gated residual has a backward kernel of its own."""


@intrinsic
def _draw_block(_: Any, job: Any) -> Any:
    """Take the next block's number; no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.bitcast(arguments[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(job), generate


@intrinsic
def _words(_: Any, job: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(job), generate


@intrinsic
def _elements_at(_: Any, job: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(job))

    return job(job, types.int64), generate


def _widen(element: Any) -> Any:
    """Turn an element into the type that is computed in; a bfloat16 is the upper half of a float32."""
    raise NotImplementedError


@overload(_widen)
def _widen_for(element: Any) -> Any:
    if element != types.int16:
        return lambda element: element
    return lambda element: np.uint32(np.uint32(np.uint16(element)) << np.uint32(16)).view(np.float32)


def _narrow(value: Any, element: Any) -> Any:
    """Round a value to the type of `element`; to bfloat16 as torch rounds, to nearest, ties to even."""
    raise NotImplementedError


@overload(_narrow)
def _narrow_for(value: Any, element: Any) -> Any:
    if element != types.int16:
        return lambda value, element: value

    def narrow(value: Any, element: Any) -> Any:
        bits = value.view(np.uint32)
        odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16)
        return np.int16(rounded if value == value else np.uint32(0x7FC0))

    return narrow


def _exp_minus(u: Any) -> Any:
    """Return exp(-u) for u >= 0."""
    raise NotImplementedError


@overload(_exp_minus)
def _exp_minus_for(u: Any) -> Any:
    if u == types.float64:
        return lambda u: math.exp(-u)

    # libm's expf would keep the loop from being vectorised. Cody and Waite's reduction to |r| <= ln(2) / 2, then the
    # Taylor polynomial, whose remainder there is one rounding of float32. From 87 on the result is no normal number: 0.
    log2e, high, low = np.float32(math.log2(math.e)), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c2, c3, c4, c5, c6 = (np.float32(1 / math.factorial(k)) for k in range(2, 7))
    one, half, limit, zero = np.float32(1), np.float32(0.5), np.float32(87), np.float32(0)

    def exp_minus(u: Any) -> Any:
        v = -u if u < limit else -limit
        n = np.floor(v * log2e + half)
        r = (v - n * high) - n * low
        p = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * c6)))))
        scale = np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        return p * scale if u < limit else zero

    return exp_minus


@njit(inline="always")
def _d_relu(v):  # type: ignore[no-untyped-def]
    return type(v)(v > 0)


if __name__ == "__main__":
    pass
