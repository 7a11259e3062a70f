"""The operators on CUDA: Triton kernels that read the scalars on the device, so that the host never waits.

A backward writes the input's gradient and each program's two sums in one pass; then a single program adds the sums in
a fixed order and turns them into the scalars' gradients. Nothing is atomic, so the result is deterministic.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from arelu_meta.activations.kernels_torch import alpha_limits, arelu_double_backward

__all__ = ["arelu_backward", "arelu_double_backward", "arelu_forward", "gated_backward", "gated_forward"]

# Triton types none of its decorators.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: ANN001, ANN202

_BLOCK = 2048
_LARGEST_INT32 = 2**31 - 1
_MOST_TILES = 8  # blocks to a program, so that the sums of a large tensor are few
_KINDS = {"given": 0, "arelu": 1, "relu": 2, "relu6": 3, "hardswish": 4, "silu": 5, "gelu": 6, "gelu_tanh": 7}
_GIVEN, _ARELU, _RELU, _RELU6 = (tl.constexpr(number) for number in range(4))
_HARDSWISH, _SILU, _GELU, _GELU_TANH = (tl.constexpr(number) for number in range(4, 8))
_WORDS = {torch.float64: tl.int64, torch.float32: tl.int32, torch.float16: tl.int16, torch.bfloat16: tl.int16}


@triton.jit
def _scalars(alpha_ptr, beta_ptr, low, high, wide: tl.constexpr):
    """Read sigmoid(beta), its derivative, alpha within its limits, and whether it was there already."""
    alpha, beta = tl.load(alpha_ptr).to(wide), tl.load(beta_ptr).to(wide)
    e = tl.exp(-tl.abs(beta))
    sigmoid = tl.where(beta >= 0, 1.0, e) / (1.0 + e)
    outside = (alpha < low) | (alpha > high)
    negative = tl.where(alpha < low, low, tl.where(alpha > high, high, alpha)).to(wide)
    return sigmoid, e / ((1.0 + e) * (1.0 + e)), negative, outside


@triton.jit
def _arelu_forward(x_ptr, out_ptr, alpha_ptr, beta_ptr, size, low, high, wide: tl.constexpr, block: tl.constexpr):
    sigmoid, _, negative, _ = _scalars(alpha_ptr, beta_ptr, low, high, wide)
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0).to(wide)
    # Adding 0.0 turns -0.0 into 0.0, so that a sign bit in the output always means the negative side.
    y = tl.where(x >= 0, x * (1.0 + sigmoid) + 0.0, x * negative)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=offsets < size)


@triton.jit
def _gated_forward(
    x_ptr, other_ptr, out_ptr, alpha_ptr, beta_ptr, t_ptr, size, low, high,
    kind: tl.constexpr, in_place: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    sigmoid, _, negative, _ = _scalars(alpha_ptr, beta_ptr, low, high, wide)
    t = tl.load(t_ptr).to(wide)
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    if in_place:
        # While the gate is shut the base's output already is the result: nothing is read, nothing written.
        size = tl.where(t == 0, 0, size)
    mask = offsets < size
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(wide)
    if kind == _RELU:
        # As torch has it on CUDA: -0.0 becomes 0.0, and nan stays.
        base = tl.where(x <= 0, 0.0, x)
    elif kind == _RELU6:
        base = tl.where(x <= 0, 0.0, tl.where(x >= 6, 6.0, x))
    else:
        base = tl.load(other_ptr + offsets, mask=mask, other=0.0).to(wide)
    total = base + t * tl.where(x >= 0, sigmoid, negative) * x
    # Not left to the sum: 0 * inf is nan, and -0.0 + 0.0 is 0.0.
    y = tl.where(t == 0, base, total)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _derivative(v, kind: tl.constexpr):
    # Beyond 100 the smooth ones are 0 or 1, and no square overflows below; nan stays.
    near = tl.where(v > 100, 100.0, tl.where(v < -100, -100.0, v))
    if kind == _RELU:
        slope = tl.where(v > 0, 1.0, 0.0)
    elif kind == _RELU6:
        slope = tl.where((v > 0) & (v < 6), 1.0, 0.0)
    elif kind == _HARDSWISH:
        slope = tl.where(v <= -3, 0.0, tl.where(v < 3, v / 3 + 0.5, 1.0))
    elif kind == _SILU:
        slope = _logistic_slope(near, near, 1.0)
    elif kind == _GELU:
        density = tl.exp(-0.5 * near * near) * 0.3989422804014327
        slope = 0.5 * (1.0 + tl.erf(near * 0.7071067811865476)) + near * density
    else:
        # 0.5 * (1 + tanh(u)) is sigmoid(2u).
        tl.static_assert(kind == _GELU_TANH)
        u = 1.5957691216057308 * (near + 0.044715 * near * near * near)
        slope = _logistic_slope(near, u, 1.5957691216057308 * (1.0 + 0.134145 * near * near))
    return slope


@triton.jit
def _logistic_slope(v, u, du):
    """Return the derivative of `v * sigmoid(u)`, given that of u."""
    e = tl.exp(-tl.abs(u))
    sigmoid = tl.where(u >= 0, 1.0, e) / (1.0 + e)
    return sigmoid + v * sigmoid * (1.0 - sigmoid) * du


@triton.jit
def _backward(
    v_ptr, grad_ptr, out_ptr, sums_ptr, alpha_ptr, beta_ptr, t_ptr, size, low, high,
    kind: tl.constexpr, tiles: tl.constexpr, word: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    sigmoid, _, negative, _ = _scalars(alpha_ptr, beta_ptr, low, high, wide)
    if kind == _ARELU:
        positive = 1.0 + sigmoid
    else:
        t = tl.load(t_ptr).to(wide)
        positive, negative = t * sigmoid, t * negative
    above, below = tl.zeros((block,), wide), tl.zeros((block,), wide)
    for tile in range(tiles):
        offsets = (tl.program_id(0).to(tl.int64) * tiles + tile) * block + tl.arange(0, block)
        stored = tl.load(v_ptr + offsets, mask=offsets < size, other=0.0)
        grad = tl.load(grad_ptr + offsets, mask=offsets < size, other=0.0).to(wide)
        v = stored.to(wide)
        if kind == _ARELU:
            is_negative = (stored.to(word, bitcast=True) < 0) | (v != v)
            slope = tl.where(is_negative, negative, positive)
        else:
            is_negative = ~(v >= 0)
            slope = tl.where(is_negative, negative, positive)
            if kind != _GIVEN:
                slope += _derivative(v, kind)
        above += tl.where(is_negative, 0.0, grad * v)
        below += tl.where(is_negative, grad * v, 0.0)
        tl.store(out_ptr + offsets, (grad * slope).to(out_ptr.dtype.element_ty), mask=offsets < size)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(above))
    tl.store(sums_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(below))


@triton.jit(do_not_specialize=["programs"])
def _finish(
    sums_ptr, to_alpha_ptr, to_beta_ptr, to_t_ptr, alpha_ptr, beta_ptr, t_ptr, programs, low, high,
    kind: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    sigmoid, d_sigmoid, negative, outside = _scalars(alpha_ptr, beta_ptr, low, high, wide)
    above, below = tl.zeros((block,), tl.float64), tl.zeros((block,), tl.float64)
    for start in range(0, programs, block):
        offsets = start + tl.arange(0, block)
        above += tl.load(sums_ptr + offsets, mask=offsets < programs, other=0.0).to(tl.float64)
        below += tl.load(sums_ptr + programs + offsets, mask=offsets < programs, other=0.0).to(tl.float64)
    all_above, all_below = tl.sum(above), tl.sum(below)
    if kind == _ARELU:
        to_alpha, to_beta = all_below / negative, all_above / (1.0 + sigmoid) * d_sigmoid
    else:
        t = tl.load(t_ptr).to(wide)
        to_alpha, to_beta = t * all_below, t * all_above * d_sigmoid
        to_t = sigmoid * all_above + negative * all_below
        tl.store(to_t_ptr, to_t.to(to_t_ptr.dtype.element_ty))
    tl.store(to_alpha_ptr, tl.where(outside, 0.0, to_alpha).to(to_alpha_ptr.dtype.element_ty))
    tl.store(to_beta_ptr, to_beta.to(to_beta_ptr.dtype.element_ty))


_Key = tuple[Any, ...]
_compiled: dict[_Key, Any] = {}


def _launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    constants: tuple[Any, ...],
    types: tuple[Any, ...],
) -> None:
    """Launch a kernel, the second time without Triton's look-up, which takes longer than a small kernel itself.

    Args:
        kernel: takes the other arguments in this order, and the block's size at the end.
        programs: how many.
        tensors: the first says on which device.
        numbers: an integer, and floats.
        constants: known when compiling; plain integers, which with the tensors' dtypes say what must be compiled.
        types: likewise; the dtypes say them.
    """
    if not programs:
        return
    device = tensors[0].get_device()
    pointers = [tensor.data_ptr() for tensor in tensors]
    arguments = (*numbers, *constants, *types, _BLOCK)
    size = int(numbers[0]) if kernel is not _finish else 0  # which is compiled alike for any number
    key = _key(kernel, device, tensors, pointers, size, constants)
    # Below 0 it is a CPU, in Triton's interpreter.
    here = device < 0 or device == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(device):
        if key is not None and (known := _compiled.get(key)) is not None:
            known[(programs, 1, 1)](*pointers, *arguments)
            return
        # Said in so many words, or Triton 3.9 warns that its default will change.
        compiled = kernel[(programs,)](*tensors, *arguments, enable_fp_fusion=True)
        if key is not None and compiled is not None:
            _compiled[key] = compiled


def _key(
    kernel: Any, device: int, tensors: tuple[Tensor, ...], pointers: list[int], size: int, constants: tuple[Any, ...]
) -> _Key | None:
    """Name what Triton compiles anew for; None for rare cases that are left to it: odd addresses, a single element."""
    union = 0
    for pointer in pointers:
        union |= pointer
    if union % 16 or size == 1:
        return None
    dtypes = [tensor.dtype for tensor in tensors]
    return (kernel.__name__, device, size % 16 == 0, size > _LARGEST_INT32, *constants, *dtypes)


def _tiles_of(count: int, each: int) -> int:
    return -(-count // each)  # rounded up, as triton.cdiv does, which takes longer


def _wide(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def arelu_forward(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> bool:
    """Do what `kernels_torch.arelu_forward` does, for dense tensors that are laid out alike."""
    numbers = (x.numel(), *alpha_limits(alpha.dtype))
    _launch(_arelu_forward, _tiles_of(x.numel(), _BLOCK), (x, out, alpha, beta), numbers, (), (_wide(x),))
    return True


def arelu_backward(
    kept: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, keeps_input: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `kernels_torch.arelu_backward` does, in one pass over dense tensors that are laid out alike."""
    assert not keeps_input
    grad_x, to_alpha, to_beta, _ = _gradients("arelu", kept, grad, alpha, beta, None)
    return grad_x, to_alpha, to_beta


def gated_forward(
    kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor, overwrite: bool = False
) -> Tensor:
    """Do what `kernels_torch.gated_forward` does, for dense tensors that are laid out alike."""
    out = activated if overwrite and activated is not None else torch.empty_like(x)
    tensors = (x, out if activated is None else activated, out, alpha, beta, t)
    constants = (_KINDS[kind if activated is None else "given"], out is activated)
    _launch(
        _gated_forward, _tiles_of(x.numel(), _BLOCK), tensors, (x.numel(), *alpha_limits(alpha.dtype)), constants,
        (_wide(x),),
    )  # fmt: skip
    return out


def gated_backward(
    kind: str, x: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `kernels_torch.gated_backward` does, in one pass over dense tensors that are laid out alike."""
    return _gradients(kind, x, grad, alpha, beta, t)


def _gradients(
    kind: str, values: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, t: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, to_alpha, to_beta = torch.empty_like(values), torch.empty_like(alpha), torch.empty_like(beta)
    to_t = to_beta if t is None else torch.empty_like(t)  # AReLU has none, and its kernels neither read nor write it
    blocks = _tiles_of(values.numel(), _BLOCK)
    tiles = _MOST_TILES if blocks >= 4096 else 1
    programs = _tiles_of(blocks, tiles)
    sums = values.new_empty(2 * programs, dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    scalars, limits, wide = (alpha, beta, beta if t is None else t), alpha_limits(alpha.dtype), _wide(values)
    tensors, constants = (values, grad, grad_x, sums, *scalars), (_KINDS[kind], tiles)
    _launch(_backward, programs, tensors, (values.numel(), *limits), constants, (_WORDS[values.dtype], wide))
    _launch(_finish, 1, (sums, to_alpha, to_beta, to_t, *scalars), (programs, *limits), (_KINDS[kind],), (wide,))
    return grad_x, to_alpha, to_beta, to_t
