"""What a convolution of stacked tasks has besides its tensors."""

from typing import Any, NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """A convolution's settings, each for height and width."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def pair(value: Any) -> list[int]:
    """Return a convolution's setting for both dimensions, as PyTorch reads it."""
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def output_size(x: Tensor, w: Tensor, geometry: Geometry) -> list[int]:
    """Return height and width of the result.

    Args:
        x: images, shape (T, N, C, H, W).
        w: weights, shape (T, O, C, kH, kW).
        geometry: the convolution's.
    """
    steps = zip(x.shape[3:], w.shape[3:], geometry.stride, geometry.padding, geometry.dilation, strict=True)
    return [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in steps]
