"""The operators on a CPU: loops that numba compiles, each one pass over memory, on torch's own OpenMP threads.

A loop takes one `job`, 8-byte words in a row: a counter from which its threads draw blocks, the number of elements and
of those in a block, five addresses, four slopes, and two sums for each block. A block's sums have a place of their own,
so that no thread's pace changes the result. The pointer's type says what the elements are, so that one function serves
float32, float64 and bfloat16 (read as int16 words, since numba has no such type). Reading a scalar on the host costs
nothing on a CPU, so slopes go to the loops as numbers, and gradients come back so.

All that computes stands in this one file: numba's cache on disk is out of date when the file changes, and only then.

What was tried, forward and backward of 32x64x56x56 float32 on 2 cores, in units of `nn.ReLU` in the same run
(`arelu-meta bench op` prints the figures of what is here):

- the paper's formula 7.1;
- torch's operators on the whole tensor, `leaky_relu` and two dot products, 2.0;
- torch's operators on pieces that fit the cache, five to seven each, 1.6 to 1.8: every operator makes the threads wait
  for each other, and on a busy machine that is what takes the time;
- one pass, compiled by numba, on two Python threads, 2.6: torch's workers spin for a while after every operation, and
  a pool of our own competes with them; numba's own `prange` 1.7;
- the same on the threads that torch itself uses, here, 1.03.
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

from arelu_meta.activations.kernels_torch import BASES, alpha_limits

_RUN = 1 << 12  # what is summed in float32 before float64 takes over: 64 to 256 elements a vector lane
_LEAST, _LARGEST = 2.0**-126, 3.38e38  # beyond, an output may hide its input: bfloat16's bounds, and the others' too
_FEW = 1 << 10  # elements whose sums are taken by themselves, see `_sums_for`
COUNTER, SIZE, BLOCK, INPUT, OTHER, THIRD, OUTPUT, SECOND_OUTPUT = range(8)
POSITIVE, NEGATIVE, POSITIVE_SHARE, NEGATIVE_SHARE, SUMS = range(8, 13)
"""Where in a job what lies; the sums come last, two for each block."""

# Sums may be reordered, or they would not be vectorised. Infinities and nans keep their meaning.
_FAST = {"reassoc", "contract"}

# A job and what lies in it


@intrinsic
def draw_block(_: Any, job: Any) -> Any:
    """Take the next block's number; no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.bitcast(arguments[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(job), generate


@intrinsic
def words_of(_: Any, job: Any) -> Any:
    """See the job as its words."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(job), generate


@intrinsic
def elements_at(_: Any, job: Any, address: Any) -> Any:
    """Point at elements of the job's type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(job))

    return job(job, types.int64), generate


# Numbers


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


def _bits(v: Any) -> Any:
    """See a number as an unsigned integer."""
    raise NotImplementedError


@overload(_bits)
def _bits_for(v: Any) -> Any:
    def bits32(v: Any) -> Any:
        return np.float32(v).view(np.uint32)

    def bits64(v: Any) -> Any:
        return np.float64(v).view(np.uint64)

    return bits64 if v == types.float64 else bits32


@njit
def _came_from_below(y: Any) -> Any:
    # From AReLU's output: its input was on the negative side, where nan is, too.
    return _bits(y) > _bits(type(y)(math.inf))


@njit
def _rank(y: Any) -> Any:
    """Order AReLU's outputs so that those that hide their input come last.

    As bits these lie side by side: what is too large on the positive side, where a product grows, then -0.0 and what is
    too small on the negative side, where it shrinks. One subtraction makes them the largest integers.
    """
    bits = _bits(y)
    return type(bits)(bits - _bits(type(y)(-_LEAST)))


@njit
def _no_rank(y: Any) -> Any:
    return _bits(type(y)(0))


@njit
def _arelu(v: Any, slope: Any, activated: Any) -> Any:
    # Adding 0.0 turns -0.0 into 0.0, so that a sign bit in the output always means the negative side.
    return (v + type(v)(0)) * slope


@njit
def _given(v: Any, slope: Any, activated: Any) -> Any:
    return _widen(activated) + v * slope


@njit
def _relu(v: Any, slope: Any, activated: Any) -> Any:
    return (type(v)(0) if v < 0 else v) + v * slope


@njit
def _relu6(v: Any, slope: Any, activated: Any) -> Any:
    return (type(v)(0) if v < 0 else (type(v)(6) if v > 6 else v)) + v * slope


# Loops


_VALUES = {"arelu": _arelu, "given": _given, "relu": _relu, "relu6": _relu6}


@njit
def _unpacked(job: Any) -> Any:
    """See a job as its sizes, its blocks' sums, its inputs, its outputs, and its slopes in the type to compute in."""
    words = carray(words_of(job), SUMS)
    size, block, slopes = words[SIZE], words[BLOCK], words.view(np.float64)
    sums = carray(words_of(job), SUMS + 2 * ((size + block - 1) // block))[SUMS:].view(np.float64)
    first, second = carray(elements_at(job, words[INPUT]), size), carray(elements_at(job, words[OTHER]), size)
    third, out = carray(elements_at(job, words[THIRD]), size), carray(elements_at(job, words[OUTPUT]), size)
    out2 = carray(elements_at(job, words[SECOND_OUTPUT]), size)
    wide = type(_widen(first[0]))
    either_side = wide(slopes[POSITIVE]), wide(slopes[NEGATIVE])
    shares = wide(slopes[POSITIVE_SHARE]), wide(slopes[NEGATIVE_SHARE])
    return size, block, sums, (first, second, third), (out, out2), either_side, shares


def _forward(job: Any, kind: Any) -> Any:
    """Write AReLU of x, or `base(x) + slope * x`; the base's value is given, unless it is as cheap as reading it.

    Of AReLU's blocks the first sum says whether an output hides its input.
    """
    raise NotImplementedError


@overload(_forward, prefer_literal=True, jit_options={"error_model": "numpy"})
def _forward_for(job: Any, kind: Any) -> Any:
    name, in_place = kind.literal_value.removesuffix("_in_place"), kind.literal_value.endswith("_in_place")
    value = _VALUES[name]
    # The compiler is told which arrays are one: it does not vectorise what might overlap.
    x_is_out, other_is_out = in_place and name == "arelu", in_place or name != "given"
    rank = _rank if name == "arelu" else _no_rank

    def run(job: Any, kind: Any) -> Any:
        size, block, sums, (x, other, _), (out, _), (positive, negative), _ = _unpacked(job)
        number = draw_block(job)
        while number * block < size:
            start, end = number * block, (number + 1) * block
            outs = out[start:end]
            xs = outs if x_is_out else x[start:end]
            others = outs if other_is_out else other[start:end]
            highest = rank(positive)
            for i in range(outs.size):
                v = _widen(xs[i])
                y = value(v, positive if v >= 0 else negative, others[i])
                highest = max(highest, rank(y))
                outs[i] = _narrow(y, xs[i])
            sums[2 * number] = highest > rank(type(positive)(_LARGEST))
            number = draw_block(job)

    return run


def _sums_for(is_negative: Any) -> Any:
    """Make the function that sums products on either side of zero and writes nothing.

    A loop that also writes asks where its arrays lie: where less than a vector's length is between two of them, as
    between small ones, it goes element by element, and adds in another order. So the sums of few elements would depend
    on the allocator, in their last bit.
    """

    @njit(error_model="numpy", fastmath=_FAST)
    def add_up(signs: Any, firsts: Any, seconds: Any) -> Any:
        zero = type(_widen(signs[0]))(0)
        above, below = zero, zero
        for i in range(signs.size):
            product = _widen(firsts[i]) * _widen(seconds[i])
            side = is_negative(_widen(signs[i]))
            above += zero if side else product
            below += product if side else zero
        return above, below

    return add_up


def _backward(job: Any, kind: Any) -> Any:
    """Write `grad * (derivative(v) + slope)`, and sum `grad * v` on either side of zero."""
    raise NotImplementedError


@overload(_backward, prefer_literal=True, jit_options={"error_model": "numpy", "fastmath": _FAST})
def _backward_for(job: Any, kind: Any) -> Any:
    derivative = _DERIVATIVES[kind.literal_value]
    is_negative = _came_from_below if kind.literal_value == "arelu" else _below_zero
    add_up = _sums_for(is_negative)

    def run(job: Any, kind: Any) -> Any:
        size, block, sums, (values, grad, _), (out, _), (positive, negative), _ = _unpacked(job)
        zero = type(positive)(0)
        number = draw_block(job)
        while number * block < size:
            above, below = 0.0, 0.0
            for start in range(number * block, min(size, (number + 1) * block), _RUN):
                end = min(start + _RUN, size)
                vs, gs, outs = values[start:end], grad[start:end], out[start:end]
                few_above, few_below = add_up(vs, vs, gs) if size < _FEW else (zero, zero)
                run_above, run_below = zero, zero
                for i in range(vs.size):
                    v, g = _widen(vs[i]), _widen(gs[i])
                    side = is_negative(v)
                    outs[i] = _narrow(g * (derivative(v) + (negative if side else positive)), vs[i])
                    product = g * v
                    run_above += zero if side else product
                    run_below += product if side else zero
                above += few_above if size < _FEW else run_above
                below += few_below if size < _FEW else run_below
            sums[2 * number], sums[2 * number + 1] = above, below
            number = draw_block(job)

    return run


def _double_backward(job: Any) -> Any:
    """Write `third * slope + v * share` and `other * share`, and sum `other * third` by the sign bit of v."""
    raise NotImplementedError


@overload(_double_backward, jit_options={"error_model": "numpy", "fastmath": _FAST})
def _double_backward_for(job: Any) -> Any:
    add_up = _sums_for(_came_from_below)

    def run(job: Any) -> Any:
        size, block, sums, (values, grad, third), (out, out2), (positive, negative), shares = _unpacked(job)
        (positive_share, negative_share), zero = shares, type(positive)(0)
        number = draw_block(job)
        while number * block < size:
            above, below = 0.0, 0.0
            for start in range(number * block, min(size, (number + 1) * block), _RUN):
                end = min(start + _RUN, size)
                vs, gs, ts, outs, outs2 = (
                    values[start:end], grad[start:end], third[start:end], out[start:end], out2[start:end]
                )  # fmt: skip
                few_above, few_below = add_up(vs, gs, ts) if size < _FEW else (zero, zero)
                run_above, run_below = zero, zero
                for i in range(vs.size):
                    v, g, t = _widen(vs[i]), _widen(gs[i]), _widen(ts[i])
                    side = _came_from_below(v)
                    share = negative_share if side else positive_share
                    outs[i] = _narrow(t * (negative if side else positive) + v * share, vs[i])
                    outs2[i] = _narrow(g * share, vs[i])
                    product = g * t
                    run_above += zero if side else product
                    run_below += product if side else zero
                above += few_above if size < _FEW else run_above
                below += few_below if size < _FEW else run_below
            sums[2 * number], sums[2 * number + 1] = above, below
            number = draw_block(job)

    return run


_DERIVATIVES = {
    "arelu": _d_nothing,
    "given": _d_nothing,
    "relu": _d_relu,
    "relu6": _d_relu6,
    "hardswish": _d_hardswish,
    "silu": _d_silu,
    "gelu": _d_gelu,
    "gelu_tanh": _d_gelu_tanh,
}
# By name, the forwards and the backwards; a line each, for numba caches a function by its name and its line.
LOOPS: dict[str, Callable[[Any], None]] = {
    "arelu_forward": lambda job: _forward(job, "arelu"),
    "arelu_forward_in_place": lambda job: _forward(job, "arelu_in_place"),
    "given_forward": lambda job: _forward(job, "given"),
    "given_forward_in_place": lambda job: _forward(job, "given_in_place"),
    "relu_forward": lambda job: _forward(job, "relu"),
    "relu6_forward": lambda job: _forward(job, "relu6"),
    "arelu_backward": lambda job: _backward(job, "arelu"),
    "given_backward": lambda job: _backward(job, "given"),
    "relu_backward": lambda job: _backward(job, "relu"),
    "relu6_backward": lambda job: _backward(job, "relu6"),
    "hardswish_backward": lambda job: _backward(job, "hardswish"),
    "silu_backward": lambda job: _backward(job, "silu"),
    "gelu_backward": lambda job: _backward(job, "gelu"),
    "gelu_tanh_backward": lambda job: _backward(job, "gelu_tanh"),
    "arelu_double_backward": lambda job: _double_backward(job),
}


# Running a loop


def compiled(loop: Callable[[Any], None], element: Any) -> tuple[int, Any]:
    """Compile a loop for one type of elements, up to a second the first time, or load it from numba's cache on disk.

    Returns:
        Its address, and a Python function that calls it with a job's address.
    """
    signature = types.void(types.CPointer(element))
    try:
        machine_code = cfunc(signature, cache=True)(loop)
    except (RuntimeError, OSError):  # no folder that can be written: compile in every process
        machine_code = cfunc(signature)(loop)
    _keep_alive.append(machine_code)
    return machine_code.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine_code.address)


_keep_alive: list[Any] = []


@cache
def _team() -> Any:
    """Find the entry point of the OpenMP library that torch itself uses; None where it has none (Windows)."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
        start = library.GOMP_parallel  # looked up in the libraries that torch's own was linked with, too
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def run_on_team(machine_code: tuple[int, Any], job: Any, blocks: int) -> None:
    """Run a loop on as many of torch's threads as there are blocks for.

    Args:
        machine_code: of `compiled`.
        job: a ctypes array.
        blocks: how many the job has.
    """
    address, call = machine_code
    threads = min(blocks, torch.get_num_threads())
    team = _team() if threads > 1 else None
    if team is None:
        call(ctypes.addressof(job))
    else:
        team(address, ctypes.addressof(job), threads, 0)


_ELEMENTS = {torch.float32: types.float32, torch.float64: types.float64, torch.bfloat16: types.int16}

# How many elements a thread takes at a time: torch's own grain, and where there are enough of them a size at which
# reading ahead pays (32x64x56x56 float32, 2 cores: 0.93 ms forward, with small blocks 1.07, `relu` into a given tensor
# 0.95). The choice looks at the size alone, so that sums are the same for any number of threads.
_SMALL_BLOCK, _LARGE_BLOCK = 1 << 15, 1 << 17


@cache
def _compiled(name: str, dtype: torch.dtype) -> tuple[int, Any]:
    return compiled(LOOPS[name], _ELEMENTS[dtype])


def _run(
    name: str,
    tensors: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    slopes: tuple[float, ...],
) -> tuple[float, float]:
    """Run a loop on as many of torch's threads as there is work for.

    Args:
        name: a key of `LOOPS`.
        tensors: what the loop reads, up to three: float32, float64 or bfloat16 on a CPU, dense, alike in dtype and
            layout. First the values; then the gradient, or the base's output.
        outputs: where results go, likewise; up to two. The first may be one of `tensors` in a loop that has an
            `_in_place` form.
        slopes: on the positive and on the negative side, and the double backward's shares on either.

    Returns:
        A backward's two sums, for the positive and for the negative side, the same for any number of threads. Of
        `arelu_forward` the first is how many blocks have outputs that hide their input; other forwards' are 0.
    """
    size = tensors[0].numel()
    block = _SMALL_BLOCK if size < 4 * _LARGE_BLOCK else _LARGE_BLOCK
    blocks = -(-size // block)
    words = SUMS + 2 * blocks
    job = (ctypes.c_int64 * words)(0, size, block)
    for index, tensor in enumerate(tensors):
        job[INPUT + index] = tensor.data_ptr()
    for index, tensor in enumerate(outputs):
        job[OUTPUT + index] = tensor.data_ptr()
    reals = (ctypes.c_double * words).from_buffer(job)
    for index, slope in enumerate(slopes):
        reals[POSITIVE + index] = slope
    in_place = any(outputs[0] is tensor for tensor in tensors)
    run_on_team(_compiled(f"{name}_in_place" if in_place else name, tensors[0].dtype), job, blocks)
    return sum(reals[SUMS::2]), sum(reals[SUMS + 1 :: 2])


def _clamped(alpha: Tensor) -> tuple[float, bool]:
    """Return alpha within its limits, and whether it was there already; a nan stays one."""
    low, high = alpha_limits(alpha.dtype)
    value = alpha.item()
    return (low, False) if value < low else (high, False) if value > high else (value, True)


def _sigmoid(beta: Tensor) -> tuple[float, float]:
    """Return sigmoid(beta) and its derivative, both to full relative precision."""
    value = beta.item()
    e = math.exp(-abs(value))
    return (1 if value >= 0 else e) / (1 + e), e / (1 + e) ** 2


def _as_tensor(like: Tensor, value: float) -> Tensor:
    try:
        return torch.full_like(like, value)
    except RuntimeError:  # beyond the dtype's range, where any other operator would say inf
        return torch.full_like(like, math.copysign(math.inf, value))


def arelu_forward(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> bool:
    """Do what `kernels_torch.arelu_forward` does, for dense tensors that are laid out alike."""
    hidden_blocks, _ = _run("arelu_forward", (x,), (out,), (1 + _sigmoid(beta)[0], _clamped(alpha)[0]))
    return hidden_blocks == 0


def arelu_backward(
    kept: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, keeps_input: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `kernels_torch.arelu_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    grad_x, slopes = torch.empty_like(kept), (1 + sigmoid, negative)
    above, below = _run("given_backward" if keeps_input else "arelu_backward", (kept, grad), (grad_x,), slopes)
    if not keeps_input:
        above, below = above / slopes[0], below / slopes[1]
    return grad_x, _as_tensor(alpha, below if in_range else 0), _as_tensor(beta, above * d_sigmoid)


def arelu_double_backward(
    y: Tensor,
    grad: Tensor,
    alpha: Tensor,
    beta: Tensor,
    first: tuple[Tensor, Tensor],
    to_first: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `kernels_torch.arelu_double_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    positive = 1 + sigmoid
    to_alpha, to_beta = to_first[1].item() if in_range else 0, to_first[2].item()
    to_y, to_grad = torch.empty_like(y), torch.empty_like(y)
    shares = to_beta * d_sigmoid / positive, to_alpha / negative
    above, below = _run("arelu_double_backward", (y, grad, to_first[0]), (to_grad, to_y), (positive, negative, *shares))
    below -= to_alpha * first[0].item() / negative
    above = above * d_sigmoid + to_beta * first[1].item() * (1 - 2 * sigmoid - d_sigmoid / positive)
    return to_y, to_grad, _as_tensor(alpha, below if in_range else 0), _as_tensor(beta, above)


def gated_forward(
    kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor, overwrite: bool = False
) -> Tensor:
    """Do what `kernels_torch.gated_forward` does, for dense tensors that are laid out alike."""
    gate = t.item()
    slopes = gate * _sigmoid(beta)[0], gate * _clamped(alpha)[0]
    if activated is None:
        if gate == 0:
            return BASES[kind](x)  # the base is torch's own, to the last bit
        out = torch.empty_like(x)
        _run(f"{kind}_forward", (x,), (out,), slopes)
        return out
    out = activated if overwrite else torch.empty_like(x)
    if gate != 0:
        _run("given_forward", (x, activated), (out,), slopes)
    elif out is not activated:
        out.copy_(activated)
    return out


def gated_backward(
    kind: str, x: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `kernels_torch.gated_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    gate = t.item()
    grad_x = torch.empty_like(x)
    above, below = _run(f"{kind}_backward", (x, grad), (grad_x,), (gate * sigmoid, gate * negative))
    grad_alpha = _as_tensor(alpha, gate * below if in_range else 0)
    grad_beta = _as_tensor(beta, gate * above * d_sigmoid)
    return grad_x, grad_alpha, grad_beta, _as_tensor(t, sigmoid * above + negative * below)
