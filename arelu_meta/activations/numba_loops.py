"""The CPU kernels' loops, which numba compiles: one pass over memory each.

A loop takes one `job`, 8-byte words in a row: a counter from which its threads draw blocks, the number of elements and
of those in a block, five addresses, four slopes, and two sums for each block. A block's sums have a place of their own,
so that no thread's pace changes the result. The pointer's type says what the elements are, so that one function serves
float32, float64 and bfloat16 (read as int16 words, since numba has no such type).

All that computes stands in this one file: numba's cache on disk is out of date when the file changes, and only then.
"""

# numba types none of its decorators.
# mypy: disable-error-code="untyped-decorator"

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import overload

from arelu_meta.activations.numba_team import draw_block, elements_at, words_of

_RUN = 1 << 12  # what is summed in float32 before float64 takes over: 64 to 256 elements a vector lane
_FEW = 1 << 10  # elements whose sums are taken by themselves, see `_sums_for`
COUNTER, SIZE, BLOCK, INPUT, OTHER, THIRD, OUTPUT, SECOND_OUTPUT = range(8)
POSITIVE, NEGATIVE, POSITIVE_SHARE, NEGATIVE_SHARE, SUMS = range(8, 13)
"""Where in a job what lies; the sums come last, two for each block."""

# Sums may be reordered, or they would not be vectorised. Infinities and nans keep their meaning.
_FAST = {"reassoc", "contract"}


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
def _came_from_below(v: Any) -> bool:
    # AReLU's input was on the negative side, where nan is, too.
    return not v >= 0 or math.copysign(type(v)(1), v) < 0


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


@njit
def _hides_nothing(v: Any, y: Any) -> bool:
    return False


def _hides_input(v: Any, y: Any) -> Any:
    """Return True if AReLU's y, divided by its slope, is not v to within a rounding: it is no normal number."""
    raise NotImplementedError


@overload(_hides_input)
def _hides_input_for(v: Any, y: Any) -> Any:
    # A product grows on the positive side and shrinks on the negative; a nan hides nothing. bfloat16 rounds to
    # infinity what is not far below float32's largest number.
    info = np.finfo(np.float64 if y == types.float64 else np.float32)
    most, least = info.max * type(info.max)(1 - 2.0**-8), -info.smallest_normal

    def hides(v: Any, y: Any) -> Any:
        return y > (most if v >= 0 else least)

    return hides


_VALUES = {"arelu": _arelu, "given": _given, "relu": _relu, "relu6": _relu6}


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
    hides = _hides_input if name == "arelu" else _hides_nothing

    def run(job: Any, kind: Any) -> Any:
        words = carray(words_of(job), SUMS)
        size, block, slopes = words[SIZE], words[BLOCK], words.view(np.float64)
        sums = carray(words_of(job), SUMS + 2 * ((size + block - 1) // block))[SUMS:].view(np.float64)
        x, other = carray(elements_at(job, words[INPUT]), size), carray(elements_at(job, words[OTHER]), size)
        out = carray(elements_at(job, words[OUTPUT]), size)
        wide = type(_widen(x[0]))
        positive, negative = wide(slopes[POSITIVE]), wide(slopes[NEGATIVE])
        number = draw_block(job)
        while number * block < size:
            start, end = number * block, (number + 1) * block
            outs = out[start:end]
            xs = outs if x_is_out else x[start:end]
            others = outs if other_is_out else other[start:end]
            hidden = False
            for i in range(outs.size):
                v = _widen(xs[i])
                y = value(v, positive if v >= 0 else negative, others[i])
                hidden |= hides(v, y)
                outs[i] = _narrow(y, xs[i])
            sums[2 * number] = hidden
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
        words = carray(words_of(job), SUMS)
        size, block, slopes = words[SIZE], words[BLOCK], words.view(np.float64)
        sums = carray(words_of(job), SUMS + 2 * ((size + block - 1) // block))[SUMS:].view(np.float64)
        values, grad = carray(elements_at(job, words[INPUT]), size), carray(elements_at(job, words[OTHER]), size)
        out = carray(elements_at(job, words[OUTPUT]), size)
        wide = type(_widen(values[0]))
        positive, negative, zero = wide(slopes[POSITIVE]), wide(slopes[NEGATIVE]), wide(0)
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
        words = carray(words_of(job), SUMS)
        size, block, slopes = words[SIZE], words[BLOCK], words.view(np.float64)
        sums = carray(words_of(job), SUMS + 2 * ((size + block - 1) // block))[SUMS:].view(np.float64)
        values, grad = carray(elements_at(job, words[INPUT]), size), carray(elements_at(job, words[OTHER]), size)
        third, out = carray(elements_at(job, words[THIRD]), size), carray(elements_at(job, words[OUTPUT]), size)
        out2 = carray(elements_at(job, words[SECOND_OUTPUT]), size)
        wide = type(_widen(values[0]))
        positive, negative, zero = wide(slopes[POSITIVE]), wide(slopes[NEGATIVE]), wide(0)
        positive_share, negative_share = wide(slopes[POSITIVE_SHARE]), wide(slopes[NEGATIVE_SHARE])
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
