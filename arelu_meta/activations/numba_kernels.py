"""The operators on a CPU: numba's loops, run on torch's own OpenMP threads, and the scalars' part around them.

Reading a scalar on the host costs nothing on a CPU, so slopes go to the loops as numbers, and gradients come back so.

Why torch's threads: a pool of our own fights torch's workers, which go on spinning for a while after each operation.
"""

import ctypes
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba import cfunc, types
from torch import Tensor

from arelu_meta.activations.aten_kernels import BASES, alpha_limits
from arelu_meta.activations.numba_loops import BLOCK, LOOPS, NEGATIVE, POSITIVE, SUMS

_ELEMENTS = {torch.float32: types.float32, torch.float64: types.float64, torch.bfloat16: types.int16}


@cache
def _compiled(name: str, dtype: torch.dtype) -> tuple[int, Any]:
    """Compile a loop for one dtype, up to a second the first time, or load it from numba's cache on disk, 10 ms."""
    signature = types.void(types.CPointer(_ELEMENTS[dtype]))
    try:
        compiled = cfunc(signature, cache=True)(LOOPS[name])
    except RuntimeError:  # no folder that can be written: compile in every process
        compiled = cfunc(signature)(LOOPS[name])
    _keep_alive.append(compiled)
    return compiled.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)


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


def _run(
    name: str, x: Tensor, other: Tensor | None, out: Tensor, positive: float, negative: float
) -> tuple[float, float]:
    """Run a loop on as many of torch's threads as there is work for.

    Args:
        name: a key of `LOOPS`.
        x: the values: float32, float64 or bfloat16 on a CPU, dense.
        other: the gradient, or the base's output, of x's dtype and layout; None where the loop reads none.
        out: where the result goes, of x's dtype and layout. It may be x of AReLU's forward, and the given output.
        positive: the slope where x >= 0 (in AReLU's backward: where the output has no sign bit).
        negative: the slope elsewhere.

    Returns:
        A backward's sums of `grad * x` on the positive side and on the negative side, the same for any number of
        threads; a forward's are 0.
    """
    size = x.numel()
    blocks = -(-size // BLOCK)
    words = SUMS + 2 * blocks
    job = (ctypes.c_int64 * words)(0, size, x.data_ptr(), 0 if other is None else other.data_ptr(), out.data_ptr())
    reals = (ctypes.c_double * words).from_buffer(job)
    reals[POSITIVE], reals[NEGATIVE] = positive, negative
    address, call = _compiled(name if out is not x and out is not other else f"{name}_in_place", x.dtype)
    threads = min(blocks, torch.get_num_threads())
    team = _team() if threads > 1 else None
    if team is None:
        call(ctypes.addressof(job))
    else:
        team(address, ctypes.addressof(job), threads, 0)
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


def arelu_forward(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> None:
    """Do what `aten_kernels.arelu_forward` does, for dense tensors that are laid out alike."""
    _run("arelu_forward", x, None, out, 1 + _sigmoid(beta)[0], _clamped(alpha)[0])


def arelu_backward(y: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `aten_kernels.arelu_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    grad_x = torch.empty_like(y)
    above, below = _run("arelu_backward", y, grad, grad_x, 1 + sigmoid, negative)
    grad_alpha = _as_tensor(alpha, below / negative if in_range else 0)
    return grad_x, grad_alpha, _as_tensor(beta, above / (1 + sigmoid) * d_sigmoid)


def gated_forward(
    kind: str | None, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor
) -> Tensor:
    """Do what `aten_kernels.gated_forward` does, for dense tensors that are laid out alike."""
    gate = t.item()
    slopes = gate * _sigmoid(beta)[0], gate * _clamped(alpha)[0]
    if gate != 0 and f"{kind}_forward" in LOOPS:
        out = torch.empty_like(x)
        _run(f"{kind}_forward", x, None, out, *slopes)
        return out
    # The base is torch's own, to the last bit. While the gate is shut this is all there is to compute.
    out = torch.empty_like(x) if kind is None else BASES[kind](x)
    source = out if activated is None else activated
    if gate != 0:
        _run("given_forward", x, source, out, *slopes)
    elif source is not out:
        out.copy_(source)
    return out


def gated_backward(
    kind: str | None, x: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `aten_kernels.gated_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    gate = t.item()
    grad_x = torch.empty_like(x)
    above, below = _run(f"{kind or 'given'}_backward", x, grad, grad_x, gate * sigmoid, gate * negative)
    grad_alpha = _as_tensor(alpha, gate * below if in_range else 0)
    grad_beta = _as_tensor(beta, gate * above * d_sigmoid)
    return grad_x, grad_alpha, grad_beta, _as_tensor(t, sigmoid * above + negative * below)
