"""The operators written in torch's own: for every device and dtype, and differentiable once more.

`kernels.py` uses them where no compiled kernel serves, and wherever a backward is itself differentiated. Like every
module of kernels this has five functions; `kernels_cpu` and `kernels_cuda` have the same five.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA_MIN, ALPHA_MAX = 0.01, 0.99

BASES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
}
"""The activations over which the gated residual's backward is one operator."""

EXACT = ("relu", "relu6")
"""Those that a kernel computes as torch does to the last bit, and so takes into its forward."""


def _clamp(alpha: Tensor) -> Tensor:
    # `Tensor.clamp` blocks the gradient at its bounds from torch 2.14 on: an alpha that lies on one would be stuck.
    return torch.where(_outside(alpha), alpha.detach().clamp(ALPHA_MIN, ALPHA_MAX), alpha)


@cache
def alpha_limits(dtype: torch.dtype) -> tuple[float, float]:
    """Return alpha's bounds as its dtype rounds them: float32's 0.01 lies below 0.01, and is still within bounds.

    Args:
        dtype: alpha's.
    """
    low, high = torch.tensor([ALPHA_MIN, ALPHA_MAX], dtype=dtype).tolist()
    return low, high


def _outside(alpha: Tensor) -> Tensor:
    return (alpha < ALPHA_MIN) | (alpha > ALPHA_MAX)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_slopes(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return sigmoid(beta) and the clamped alpha, 0-d: AReLU is (1 + the first) x above zero and the second x below."""
    return torch.sigmoid(_wide(beta.reshape(()))), _wide(_clamp(alpha.reshape(())))


def _sigmoid_slope(beta: Tensor) -> Tensor:
    # Not s * (1 - s), whose second factor is all rounding where beta is large.
    beta = _wide(beta.reshape(()))
    return torch.sigmoid(beta) * torch.sigmoid(-beta)


def arelu_forward(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor) -> bool:
    """Write AReLU of x into `out`, which may be x.

    Args:
        x: any shape, any floating dtype.
        out: shape and dtype of x. Its sign bit says which side x was on, even where a product underflowed to -0.0.
        alpha: one element.
        beta: one element.

    Returns:
        Whether x can be read off `out` again to within a rounding, where the host can know without waiting for the
        device: on a CPU; elsewhere True. It cannot where a product left the range of its dtype's normal numbers.
    """
    sigmoid, negative = attention_slopes(alpha, beta)
    # Adding 0.0 turns an input of -0.0, which is on the positive side, into 0.0.
    y = (torch.where(x >= 0, 1 + sigmoid, negative) * (x + 0.0)).to(x.dtype)
    shows_input = not x.is_cpu or bool((_is_normal(y) | (x == 0)).all())
    out.copy_(y)
    return shows_input


def _is_normal(y: Tensor) -> Tensor:
    info, size = torch.finfo(y.dtype), y.abs()
    return (size >= info.smallest_normal) & (size <= info.max)


def arelu_backward(
    kept: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, keeps_input: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute AReLU's gradients, from its output if from nothing more.

    Args:
        kept: what `arelu_forward` wrote. A nan counts as negative, as it does forwards.
        grad: the output's gradient, of the output's shape and dtype.
        alpha: one element.
        beta: one element.
        keeps_input: whether `kept` is AReLU's input instead.

    Returns:
        The gradients of x, alpha and beta, of their shapes and dtypes. Summed in float32 at least.
    """
    sigmoid, negative = attention_slopes(alpha, beta)
    is_negative = ~(kept >= 0) if keeps_input else _came_from_below(kept)
    slopes = torch.where(is_negative, negative, 1 + sigmoid)
    product = _wide(grad) * (_wide(kept) if keeps_input else _wide(kept) / slopes)
    below = torch.where(is_negative, product, 0).sum()
    above = torch.where(is_negative, 0, product).sum()
    grad_alpha = (below * ~_outside(alpha)).to(alpha.dtype)
    grad_beta = (above * _sigmoid_slope(beta)).to(beta.dtype).reshape(beta.shape)
    return (grad * slopes).to(kept.dtype), grad_alpha, grad_beta


def _came_from_below(y: Tensor) -> Tensor:
    return torch.signbit(y) | y.isnan()


def arelu_double_backward(
    y: Tensor,
    grad: Tensor,
    alpha: Tensor,
    beta: Tensor,
    first: tuple[Tensor, Tensor],
    to_first: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of `arelu_backward`'s results, in a third of the operators that autograd would record.

    Args:
        y: what `arelu_backward` was given.
        grad: likewise.
        alpha: likewise.
        beta: likewise.
        first: the gradients of alpha and beta that it returned.
        to_first: the gradients of its three results.

    Returns:
        The gradients of y, grad, alpha and beta, of their shapes and dtypes.
    """
    sigmoid, negative = attention_slopes(alpha, beta)
    positive, d_sigmoid = 1 + sigmoid, _sigmoid_slope(beta)
    to_x, to_alpha, to_beta = to_first[0], to_first[1].reshape(()), to_first[2].reshape(())
    # With x = y / slope: grad_x = grad * slope, grad_alpha = sum(grad * x) below, grad_beta = sum(grad * x) * s' above.
    inside = ~_outside(alpha.reshape(()))
    is_negative = _came_from_below(y)
    slopes = torch.where(is_negative, negative, positive)
    shares = torch.where(is_negative, to_alpha * inside / negative, to_beta * d_sigmoid / positive)
    product = _wide(grad) * to_x
    below = torch.where(is_negative, product, 0).sum() - to_alpha * first[0].reshape(()) / negative
    above = torch.where(is_negative, 0, product).sum() * d_sigmoid
    above = above + to_beta * first[1].reshape(()) * (1 - 2 * sigmoid - d_sigmoid / positive)
    return (
        (grad * shares).to(y.dtype),
        (to_x * slopes + y * shares).to(grad.dtype),
        (below * inside).to(alpha.dtype).reshape(alpha.shape),
        above.to(beta.dtype).reshape(beta.shape),
    )


def gated_forward(
    kind: str, x: Tensor, activated: Tensor | None, alpha: Tensor, beta: Tensor, t: Tensor, overwrite: bool = False
) -> Tensor:
    """Compute `base(x) + t * elsa(x)`.

    Args:
        kind: a key of `BASES`, or "given".
        x: any shape, any floating dtype, dense.
        activated: the base's output, laid out as x; None only where the kind is one of `EXACT`.
        alpha: one element.
        beta: one element.
        t: one element.
        overwrite: whether `activated` is nobody else's, and may hold the result.

    Returns:
        A new tensor of x's shape, dtype and layout; at `t = 0` the base's output, bit for bit.
    """
    if activated is None:
        activated = BASES[kind](x)
    sigmoid, negative = attention_slopes(alpha, beta)
    gate = _wide(t.reshape(()))
    total = (activated + gate * (torch.where(x >= 0, sigmoid, negative) * x)).to(x.dtype)
    # Not left to the sum: 0 * inf is nan, and -0.0 + 0.0 is 0.0.
    return torch.where(gate == 0, activated, total)


def gated_backward(
    kind: str, x: Tensor, grad: Tensor, alpha: Tensor, beta: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gated residual's gradients from its input.

    Args:
        kind: a key of `BASES`, or "given" for the attention's share alone.
        x: what `gated_forward` was given.
        grad: the output's gradient, of x's shape and dtype.
        alpha: one element.
        beta: one element.
        t: one element.

    Returns:
        The gradients of x, alpha, beta and t, of their shapes and dtypes. Summed in float32 at least.
    """
    sigmoid, negative = attention_slopes(alpha, beta)
    gate = _wide(t.reshape(()))
    is_positive = x >= 0
    product = _wide(grad) * _wide(x)
    above = torch.where(is_positive, product, 0).sum()
    below = torch.where(is_positive, 0, product).sum()
    grad_alpha = (gate * below * ~_outside(alpha)).to(alpha.dtype)
    grad_beta = (gate * above * _sigmoid_slope(beta)).to(beta.dtype).reshape(beta.shape)
    grad_t = (sigmoid * above + negative * below).to(t.dtype).reshape(t.shape)
    grad_x = grad * (gate * torch.where(is_positive, sigmoid, negative))
    if kind != "given":
        grad_x = grad_x + _base_gradient(kind, x, grad)
    return grad_x.to(x.dtype), grad_alpha, grad_beta, grad_t


def _base_gradient(kind: str, x: Tensor, grad: Tensor) -> Tensor:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if again and x.requires_grad else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(BASES[kind](x), x, grad, create_graph=again)
    return gradient
