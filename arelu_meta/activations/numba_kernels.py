"""The operators on a CPU: numba's loops, run on torch's own OpenMP threads, and the scalars' part around them.

Reading a scalar on the host costs nothing on a CPU, so slopes go to the loops as numbers, and gradients come back so.

What was tried, forward and backward of 32x64x56x56 float32 on 2 cores, in units of `nn.ReLU` in the same run
(`arelu-meta bench op` prints the figures of what is here):

- the paper's formula 7.1;
- torch's operators on the whole tensor, `leaky_relu` and two dot products, 2.0 (DESIGN, fact 3);
- torch's operators on pieces that fit the cache, five to seven each, 1.6 to 1.8: every operator makes the threads wait
  for each other, and on a busy machine that is what takes the time;
- one pass, compiled by numba, on two Python threads, 2.6: torch's workers spin for a while after every operation, and
  a pool of our own competes with them;
- the same on the threads that torch itself uses, here, 1.17, and 0.97 in place.
"""

import ctypes
import math
from functools import cache
from typing import Any

import torch
from numba import types
from torch import Tensor

from arelu_meta.activations.aten_kernels import BASES, alpha_limits
from arelu_meta.activations.numba_loops import INPUT, LOOPS, OUTPUT, POSITIVE, SUMS
from arelu_meta.activations.numba_team import compiled, run_on_team

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
    """Do what `aten_kernels.arelu_forward` does, for dense tensors that are laid out alike."""
    hidden_blocks, _ = _run("arelu_forward", (x,), (out,), (1 + _sigmoid(beta)[0], _clamped(alpha)[0]))
    return hidden_blocks == 0


def arelu_backward(
    kept: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, keeps_input: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `aten_kernels.arelu_backward` does, in one pass over dense tensors that are laid out alike."""
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
    """Do what `aten_kernels.arelu_double_backward` does, in one pass over dense tensors that are laid out alike."""
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
    """Do what `aten_kernels.gated_forward` does, for dense tensors that are laid out alike."""
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
    """Do what `aten_kernels.gated_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    gate = t.item()
    grad_x = torch.empty_like(x)
    above, below = _run(f"{kind}_backward", (x, grad), (grad_x,), (gate * sigmoid, gate * negative))
    grad_alpha = _as_tensor(alpha, gate * below if in_range else 0)
    grad_beta = _as_tensor(beta, gate * above * d_sigmoid)
    return grad_x, grad_alpha, grad_beta, _as_tensor(t, sigmoid * above + negative * below)
