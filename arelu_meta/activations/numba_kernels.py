"""The operators on a CPU: the scalars' part, around the loops that numba compiles.

Reading a scalar on the host costs nothing on a CPU, so slopes go to the loops as numbers, and gradients come back so.
"""

import math
from functools import cache

import torch
from torch import Tensor

from arelu_meta.activations.aten_kernels import ALPHA_MAX, ALPHA_MIN, BASES
from arelu_meta.activations.numba_loops import run


@cache
def _limits(dtype: torch.dtype) -> tuple[float, float]:
    # alpha is compared with the limits as its own dtype rounds them: float32's 0.01 lies below 0.01.
    low, high = torch.tensor([ALPHA_MIN, ALPHA_MAX], dtype=dtype).tolist()
    return low, high


def _clamped(alpha: Tensor) -> tuple[float, bool]:
    """Return alpha within its limits, and whether it was there already; a nan stays one."""
    low, high = _limits(alpha.dtype)
    value = alpha.item()
    return (low, False) if value < low else (high, False) if value > high else (value, True)


def _sigmoid(beta: Tensor) -> tuple[float, float]:
    """Return sigmoid(beta) and its derivative, both to full relative precision."""
    value = beta.item()
    e = math.exp(-abs(value))
    return (1 if value >= 0 else e) / (1 + e), e / (1 + e) ** 2


def arelu_forward(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> None:
    """Do what `aten_kernels.arelu_forward` does, for dense tensors that are laid out alike."""
    run("arelu_forward", x, None, out, 1 + _sigmoid(beta)[0], _clamped(alpha)[0])


def arelu_backward(y: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `aten_kernels.arelu_backward` does, in one pass over dense tensors that are laid out alike."""
    sigmoid, d_sigmoid = _sigmoid(beta)
    negative, in_range = _clamped(alpha)
    grad_x = torch.empty_like(y)
    above, below = run("arelu", y, grad, grad_x, 1 + sigmoid, negative)
    grad_alpha = torch.full_like(alpha, below / negative if in_range else 0)
    return grad_x, grad_alpha, torch.full_like(beta, above / (1 + sigmoid) * d_sigmoid)


def gated_forward(
    kind: str | None, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor
) -> Tensor:
    """Do what `aten_kernels.gated_forward` does, for dense tensors that are laid out alike."""
    # The base is torch's own, to the last bit. While the gate is shut this is all there is to compute.
    out = torch.empty_like(x) if kind is None else BASES[kind](x)
    source = out if activated is None else activated
    gate = t.item()
    if gate != 0:
        run("add_attention", x, source, out, gate * _sigmoid(beta)[0], gate * _clamped(alpha)[0])
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
    above, below = run(kind or "attention", x, grad, grad_x, gate * sigmoid, gate * negative)
    grad_alpha = torch.full_like(alpha, gate * below if in_range else 0)
    grad_beta = torch.full_like(beta, gate * above * d_sigmoid)
    return grad_x, grad_alpha, grad_beta, torch.full_like(t, sigmoid * above + negative * below)
