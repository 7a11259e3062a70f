"""The CPU kernels' loops: one pass over memory each, compiled by numba, run on torch's own OpenMP threads.

A kernel takes one `job`, 8-byte words in a row: a counter from which its threads draw blocks, the number of elements,
three addresses, two slopes, and two sums for each block. The pointer's type says what the elements are, so that one
function serves float32, float64 and bfloat16 (read as int16 words, since numba has no such type).

Why torch's threads: a pool of our own fights torch's workers, which go on spinning for a while after each operation.
"""

# numba types none of its decorators.
# mypy: disable-error-code="untyped-decorator"

import ctypes
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

_BLOCK = 1 << 15  # what a thread draws at a time; its sums have a place of their own, so no thread's pace changes them
_RUN = 1 << 12  # what is summed in float32 before float64 takes over: 64 to 256 elements a vector lane
_COUNTER, _SIZE, _INPUT, _OTHER, _OUTPUT, _POSITIVE, _NEGATIVE, _SUMS = range(8)

_ELEMENTS = {torch.float32: types.float32, torch.float64: types.float64, torch.bfloat16: types.int16}
# Sums may be reordered, or they would not be vectorised. Infinities and nans keep their meaning.
_FAST = {"reassoc", "contract"}


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
    def identity(element: Any) -> Any:
        return element

    def widen(element: Any) -> Any:
        return np.uint32(np.uint32(np.uint16(element)) << np.uint32(16)).view(np.float32)

    return widen if element == types.int16 else identity


def _narrow(value: Any, element: Any) -> Any:
    """Round a value to the type of `element`; to bfloat16 as torch rounds, to nearest, ties to even."""
    raise NotImplementedError


@overload(_narrow)
def _narrow_for(value: Any, element: Any) -> Any:
    def identity(value: Any, element: Any) -> Any:
        return value

    def narrow(value: Any, element: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16)
        return np.int16(rounded if value == value else np.uint32(0x7FC0))

    return narrow if element == types.int16 else identity


def _exp_minus(u: Any) -> Any:
    """Return exp(-u) for u >= 0."""
    raise NotImplementedError


@overload(_exp_minus)
def _exp_minus_for(u: Any) -> Any:
    # libm's expf would keep the loop from being vectorised. Cody and Waite's reduction to |r| <= ln(2) / 2, then the
    # Taylor polynomial, whose remainder there is one rounding of float32. From 87 on the result is no normal number: 0.
    log2e, high, low = np.float32(math.log2(math.e)), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c2, c3, c4, c5, c6 = (np.float32(1 / math.factorial(k)) for k in range(2, 7))
    one, half, limit, zero = np.float32(1), np.float32(0.5), np.float32(87), np.float32(0)

    def polynomial(u: Any) -> Any:
        v = -u if u < limit else -limit
        n = np.floor(v * log2e + half)
        r = (v - n * high) - n * low
        p = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * c6)))))
        scale = np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        return p * scale if u < limit else zero

    def exact(u: Any) -> Any:
        return math.exp(-u)

    return exact if u == types.float64 else polynomial


def _upper_tail(z: Any) -> Any:
    """Return the standard normal's probability above z, for z >= 0."""
    raise NotImplementedError


@overload(_upper_tail)
def _upper_tail_for(z: Any) -> Any:
    # Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by 1.5e-7 at the most, float32's own size.
    p = np.float32(0.3275911 / math.sqrt(2))
    a1, a2, a3, a4, a5 = (
        np.float32(a / 2) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    )
    one, half = np.float32(1), np.float32(0.5)

    def polynomial(z: Any) -> Any:
        t = one / (one + p * z)
        return t * (a1 + t * (a2 + t * (a3 + t * (a4 + t * a5)))) * _exp_minus(half * z * z)

    def exact(z: Any) -> Any:
        return 0.5 * math.erfc(z * math.sqrt(0.5))

    return exact if z == types.float64 else polynomial


# The activations' derivatives, each in its argument's own type: a plain 0.5 would pull float32 up to float64.


@njit
def _d_nothing(v: Any) -> Any:
    return type(v)(0)


@njit
def _d_relu(v: Any) -> Any:
    return type(v)(1) if v > 0 else type(v)(0)


@njit
def _d_relu6(v: Any) -> Any:
    return type(v)(1) if v > 0 and v < 6 else type(v)(0)


@njit
def _d_hardswish(v: Any) -> Any:
    middle = v * type(v)(1 / 3) + type(v)(0.5)
    return type(v)(0) if v <= -3 else (middle if v < 3 else type(v)(1))


@njit
def _saturate(v: Any) -> Any:
    """Keep v where the smooth derivatives are neither 0 nor 1 yet, so that no square of it overflows; nan stays."""
    limit = type(v)(100)
    return limit if v > limit else (-limit if v < -limit else v)


@njit
def _d_silu(v: Any) -> Any:
    one, v = type(v)(1), _saturate(v)
    e = _exp_minus(abs(v))
    s = one / (one + e) if v >= 0 else e / (one + e)
    return s + v * s * (one - s)


@njit
def _d_gelu(v: Any) -> Any:
    one, v = type(v)(1), _saturate(v)
    tail = _upper_tail(abs(v))
    density = type(v)(1 / math.sqrt(2 * math.pi)) * _exp_minus(type(v)(0.5) * v * v)
    return (one - tail if v >= 0 else tail) + v * density


@njit
def _d_gelu_tanh(v: Any) -> Any:
    one, v = type(v)(1), _saturate(v)
    c, k = type(v)(0.044715), type(v)(2 * math.sqrt(2 / math.pi))
    u = k * (v + c * v * v * v)
    e = _exp_minus(abs(u))
    s = one / (one + e) if v >= 0 else e / (one + e)
    return s + v * s * (one - s) * k * (one + type(v)(3) * c * v * v)


@njit
def _below_zero(v: Any) -> bool:
    return not v >= 0


@njit
def _has_sign_bit(v: Any) -> bool:
    return math.copysign(type(v)(1), v) < 0


def _arelu_forward(job: Any) -> None:
    words = carray(_words(job), _SUMS)
    size, slopes = words[_SIZE], words.view(np.float64)
    x, out = carray(_elements_at(job, words[_INPUT]), size), carray(_elements_at(job, words[_OUTPUT]), size)
    wide = type(_widen(x[0]))
    positive, negative = wide(slopes[_POSITIVE]), wide(slopes[_NEGATIVE])
    start = _draw_block(job) * _BLOCK
    while start < size:
        xs, outs = x[start : start + _BLOCK], out[start : start + _BLOCK]
        for i in range(xs.size):
            v = _widen(xs[i])
            # -0.0 becomes 0.0, so that a sign bit in the output always means the negative side.
            outs[i] = _narrow(v * positive + wide(0) if v >= 0 else v * negative, xs[i])
        start = _draw_block(job) * _BLOCK


def _add_attention(job: Any) -> None:
    words = carray(_words(job), _SUMS)
    size, slopes = words[_SIZE], words.view(np.float64)
    x, out = carray(_elements_at(job, words[_INPUT]), size), carray(_elements_at(job, words[_OUTPUT]), size)
    activated = carray(_elements_at(job, words[_OTHER]), size)
    wide = type(_widen(x[0]))
    positive, negative = wide(slopes[_POSITIVE]), wide(slopes[_NEGATIVE])
    start = _draw_block(job) * _BLOCK
    while start < size:
        end = start + _BLOCK
        xs, others, outs = x[start:end], activated[start:end], out[start:end]
        for i in range(xs.size):
            v = _widen(xs[i])
            outs[i] = _narrow(_widen(others[i]) + v * (positive if v >= 0 else negative), xs[i])
        start = _draw_block(job) * _BLOCK


def _backward(job: Any, kind: Any) -> Any:
    """Write `grad * (derivative(v) + slope)`, and sum `grad * v` on either side of zero."""
    raise NotImplementedError


@overload(_backward, prefer_literal=True, jit_options={"error_model": "numpy", "fastmath": _FAST})
def _backward_for(job: Any, kind: Any) -> Any:
    derivative = _DERIVATIVES[kind.literal_value]
    is_negative = _has_sign_bit if kind.literal_value == "arelu" else _below_zero

    def run(job: Any, kind: Any) -> Any:
        words = carray(_words(job), _SUMS)
        size, slopes = words[_SIZE], words.view(np.float64)
        sums = carray(_words(job), _SUMS + 2 * ((size + _BLOCK - 1) // _BLOCK))[_SUMS:].view(np.float64)
        values, grad = carray(_elements_at(job, words[_INPUT]), size), carray(_elements_at(job, words[_OTHER]), size)
        out = carray(_elements_at(job, words[_OUTPUT]), size)
        wide = type(_widen(values[0]))
        positive, negative, zero = wide(slopes[_POSITIVE]), wide(slopes[_NEGATIVE]), wide(0)
        block = _draw_block(job)
        while block * _BLOCK < size:
            above, below = 0.0, 0.0
            for start in range(block * _BLOCK, min(size, (block + 1) * _BLOCK), _RUN):
                end = min(start + _RUN, size)
                vs, gs, outs = values[start:end], grad[start:end], out[start:end]
                run_above, run_below = zero, zero
                for i in range(vs.size):
                    v, g = _widen(vs[i]), _widen(gs[i])
                    side = is_negative(v)
                    outs[i] = _narrow(g * (derivative(v) + (negative if side else positive)), vs[i])
                    product = g * v
                    run_above += zero if side else product
                    run_below += product if side else zero
                above += run_above
                below += run_below
            sums[2 * block], sums[2 * block + 1] = above, below
            block = _draw_block(job)

    return run


_DERIVATIVES = {
    "arelu": _d_nothing,
    "attention": _d_nothing,
    "relu": _d_relu,
    "relu6": _d_relu6,
    "hardswish": _d_hardswish,
    "silu": _d_silu,
    "gelu": _d_gelu,
    "gelu_tanh": _d_gelu_tanh,
}
_KERNELS: dict[str, Callable[[Any], None]] = {
    "arelu_forward": _arelu_forward,
    "add_attention": _add_attention,
    "arelu": lambda job: _backward(job, "arelu"),
    "attention": lambda job: _backward(job, "attention"),
    "relu": lambda job: _backward(job, "relu"),
    "relu6": lambda job: _backward(job, "relu6"),
    "hardswish": lambda job: _backward(job, "hardswish"),
    "silu": lambda job: _backward(job, "silu"),
    "gelu": lambda job: _backward(job, "gelu"),
    "gelu_tanh": lambda job: _backward(job, "gelu_tanh"),
}


@cache
def _compiled(name: str, dtype: torch.dtype) -> Any:
    """Compile a kernel for one dtype, or load it from numba's cache on disk; a second or so the first time."""
    signature = types.void(types.CPointer(_ELEMENTS[dtype]))
    fast = _FAST if name not in ("arelu_forward", "add_attention") else False
    try:
        compiled = cfunc(signature, cache=True, error_model="numpy", fastmath=fast)(_KERNELS[name])
    except RuntimeError:  # no folder that can be written: compile in every process
        compiled = cfunc(signature, error_model="numpy", fastmath=fast)(_KERNELS[name])
    return compiled, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)


@cache
def _team() -> Any:
    """Find the entry point of the OpenMP library that torch itself uses; None where it has none (Windows)."""
    suffix = {"darwin": "dylib"}.get(sys.platform, "so")
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        start = library.GOMP_parallel  # looked up in the libraries that torch's own was linked with, too
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def run(
    name: str, x: Tensor, other: Tensor | None, out: Tensor, positive: float, negative: float
) -> tuple[float, float]:
    """Run a kernel on as many of torch's threads as there is work for.

    Args:
        name: `arelu_forward` or `add_attention`; or a backward: `arelu`, `attention`, or a base's name.
        x: the values: float32, float64 or bfloat16 on a CPU, dense.
        other: the gradient, or the base's output, of x's dtype and layout; None where the kernel reads none.
        out: where the result goes, of x's dtype and layout; it may be x or `other`.
        positive: the slope where x >= 0 (of AReLU's backward: where the output has no sign bit).
        negative: the slope elsewhere.

    Returns:
        A backward's sums of `grad * x` on the positive side and on the negative side; the same for any number of
        threads. A forward leaves them 0.
    """
    size = x.numel()
    blocks = -(-size // _BLOCK)
    job = (ctypes.c_int64 * (_SUMS + 2 * blocks))(
        0, size, x.data_ptr(), 0 if other is None else other.data_ptr(), out.data_ptr()
    )
    reals = (ctypes.c_double * (_SUMS + 2 * blocks)).from_buffer(job)
    reals[_POSITIVE], reals[_NEGATIVE] = positive, negative
    kernel, call = _compiled(name, x.dtype)
    threads = min(blocks, torch.get_num_threads())
    team = _team() if threads > 1 else None
    if team is None:
        call(ctypes.addressof(job))
    else:
        team(kernel.address, ctypes.addressof(job), threads, 0)
    return sum(reals[_SUMS::2]), sum(reals[_SUMS + 1 :: 2])
