"""Pooling and slopes of stacked tasks by torch's operators, for every device and dtype.

Shapes: x (T, …), the same for its gradients; slopes and their gradients (T, 1, …), of as many dimensions.
"""

import torch
from torch import Tensor


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima and where they lie in their image, (T, …, H // 2, W // 2); the first of equals, as PyTorch."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    corners = [x[..., down:height:2, right:width:2] for down in (0, 1) for right in (0, 1)]
    top, bottom = torch.maximum(*corners[:2]), torch.maximum(*corners[2:])
    y = torch.maximum(top, bottom)
    inside = torch.where(bottom > top, (corners[3] > corners[2]) + x.shape[-1], (corners[1] > corners[0]).long())
    rows = torch.arange(0, height, 2, device=x.device) * x.shape[-1]
    columns = torch.arange(0, width, 2, device=x.device)
    return y, inside + (rows[:, None] + columns)


def scatter(y: Tensor, places: Tensor, size: torch.Size) -> Tensor:
    """Return images (T, …, H, W) that are 0 but where the maxima were."""
    zeros = y.new_zeros(*y.shape[:-2], size.numel())
    return zeros.scatter_(-1, places.flatten(-2), y.flatten(-2)).view(*y.shape[:-2], *size)


def gather(x: Tensor, places: Tensor) -> Tensor:
    """Return what lies where the maxima were."""
    return x.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)


def slopes_forward(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Return x times its side's slope."""
    return x.clamp_min(0).mul_(above).add_(x.clamp_max(0).mul_(below))


def slopes_backward(grad: Tensor, x: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x and of the slopes."""
    positive = (x >= 0).to(x.dtype)
    upper = grad * positive
    lower = grad - upper
    inner = list(range(1, x.dim()))
    to_above = (upper * x).sum(inner, keepdim=True)
    to_below = (lower * x).sum(inner, keepdim=True)
    return upper.mul_(above).add_(lower.mul_(below)), to_above, to_below


def slopes_double_backward(
    grad: Tensor, x: Tensor, above: Tensor, below: Tensor, by_x: Tensor, by_above: Tensor, by_below: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `slopes_backward`'s four inputs, given those of its results."""
    positive = (x >= 0).to(x.dtype)
    inner = list(range(1, x.dim()))
    upper = by_x * positive
    lower = by_x - upper
    to_above = (upper * grad).sum(inner, keepdim=True)
    to_below = (lower * grad).sum(inner, keepdim=True)
    to_grad = upper.mul_(above).add_(lower.mul_(below))
    to_grad.add_(x.clamp_min(0).mul_(by_above)).add_(x.clamp_max(0).mul_(by_below))
    gained = positive * by_above
    gained.add_((1 - positive).mul_(by_below)).mul_(grad)
    return to_grad, gained, to_above, to_below
