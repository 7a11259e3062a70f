"""Convolution of the stacked tasks of a meta-batch, each task with its own weights.

`torch.vmap` has rules for it; those here compute the same faster where a meta-step spends its time:

- weights that all tasks share, as in the first inner step, make one convolution of all images;
- the second derivative is two grouped convolutions more, where PyTorch's own formula loops over the groups, that is
  over the tasks;
- where few weights meet each pixel, as in a first layer, the images' patches are laid out once for all inner steps,
  and a convolution is a product of matrices, several times faster on a CPU than one grouped by tasks.

Each is differentiable twice, which is what second-order MAML needs. Shapes: T tasks, N images a task.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arelu_meta.meta.stacked_geometry import Geometry

_aten = torch.ops.aten


_FEW_WEIGHTS = 64  # that meet a pixel: an output of 5 x 5 grey or 3 x 3 colour pixels
_MOST_PATCHES = 1 << 24  # elements
_LANES = 8  # numbers of 4 bytes in a vector of AVX2
_FEW_PIXELS = 16  # of a result: below, filling up costs what it saves


def _grouped(x: Tensor) -> Tensor:
    """Lay (T, N, C, H, W) out as (N, T * C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)


def _ungrouped(x: Tensor, tasks: int) -> Tensor:
    apart: Tensor = x.unflatten(1, (tasks, -1))
    return apart.transpose(0, 1)


def _is_shared(w: Tensor) -> bool:
    """Say whether every task has the same weights, as in the first inner step, where they are one tensor expanded."""
    return w.stride(0) == 0


def _forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    tasks = len(x)
    if _is_shared(w) and (bias is None or _is_shared(bias)):
        first = None if bias is None else bias[0]
        together = F.conv2d(x.flatten(0, 1), w[0], first, stride, padding, dilation, groups)
        return together.view(tasks, -1, *together.shape[1:])
    flat = None if bias is None else bias.flatten()
    y = F.conv2d(_grouped(x), w.flatten(0, 1), flat, stride, padding, dilation, tasks * groups)
    return _ungrouped(y, tasks)


def _backward(
    grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry, to_x: bool, to_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input and of each task's weights."""
    stride, padding, dilation, groups = geometry
    tasks, common = len(x), (stride, padding, dilation, False, [0, 0])
    grad_x = grad_w = None
    if to_x and _is_shared(w):
        flat = (grad.flatten(0, 1), x.flatten(0, 1), w[0])
        found = _aten.convolution_backward(*flat, None, *common, groups, [True, False, False])[0]
        grad_x, to_x = found.unflatten(0, (tasks, -1)), False
    if to_x:
        grad_x = _to_images(grad, x, w, geometry)
    if to_w:  # apart: asked for both at once, oneDNN takes longer than for one after the other
        flat = (_grouped(grad), _grouped(x), w.flatten(0, 1))
        found = _aten.convolution_backward(*flat, None, *common, tasks * groups, [False, True, False])[1]
        grad_w = found.unflatten(0, (tasks, -1))
    return grad_x, grad_w


def _to_images(grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the images.

    Where a task's channels are no multiple of a vector's length, oneDNN goes by matrices (`gemm:jit` in its log), and
    its compiled loops are faster, the channels filled up with zeros.
    """
    stride, padding, dilation, groups = geometry
    tasks, channels, outputs = len(x), x.shape[2], w.shape[1]
    more, more_outputs = -channels % _LANES, -outputs % _LANES
    filled = (channels + more) * (outputs + more_outputs)
    if (
        (more or more_outputs)
        and filled <= 2 * channels * outputs
        and groups == 1
        and grad.shape[3] * grad.shape[4] >= _FEW_PIXELS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
    ):
        grad = F.pad(grad, (0, 0, 0, 0, 0, more_outputs))
        w = F.pad(w, (0, 0, 0, 0, 0, more, 0, more_outputs))
        x = x.new_empty(*x.shape[:2], channels + more, *x.shape[3:])  # its shape alone is looked at
    common = (stride, padding, dilation, False, [0, 0], tasks * groups, [True, False, False])
    found: Tensor = _aten.convolution_backward(_grouped(grad), _grouped(x), w.flatten(0, 1), None, *common)[0]
    return _ungrouped(found, tasks)[:, :, :channels]


class Conv(torch.autograd.Function):
    """A convolution with weights (T, O, C, kH, kW) of images (T, N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return images (T, N, O, H, W); the bias is (T, O)."""
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _forward(x, w, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weights and bias."""
        x, w = ctx.saved_tensors
        to_x, to_w, to_bias, _ = ctx.needs_input_grad
        return *_ConvBackward.apply(grad, x, w, ctx.geometry, to_x, to_w, to_bias), None


class _ConvBackward(torch.autograd.Function):
    """`Conv`'s backward, whose own backward is made of the same convolutions."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, geometry: Geometry, to_x: bool, to_w: bool, to_bias: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, x, w)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return *_backward(grad, x, w, geometry, to_x, to_w), grad.sum((1, 3, 4)) if to_bias else None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, by_x: Tensor | None, by_w: Tensor | None, by_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, w = ctx.saved_tensors
        to_grad, to_x, to_w, *_ = ctx.needs_input_grad
        geometry = ctx.geometry
        by_grad = found_x = found_w = None
        if to_grad:
            by_grad = None if by_x is None else _forward(by_x, w, None, geometry)
            if by_w is not None:
                more = _forward(x, by_w, by_bias, geometry)  # the bias's part costs nothing here
                by_grad = more if by_grad is None else by_grad + more
            elif by_bias is not None:
                apart = by_bias[:, None, :, None, None]
                by_grad = apart.expand(grad.shape) if by_grad is None else by_grad + apart
        # Linear in `grad`: the input's gradient as if the weights were by_w, the weights' as if the input were by_x.
        to_x, to_w = to_x and by_w is not None, to_w and by_x is not None
        if to_x or to_w:
            found_x, found_w = _backward(
                grad, x if by_x is None else by_x, w if by_w is None else by_w, geometry, to_x, to_w
            )
        return by_grad, found_x, found_w, None, None, None, None


class Patches:
    """Images' patches laid out as matrices, kept for the inner steps that follow.

    Only for images that need no gradient, of which a meta-step looks at two sets, support and query.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def of(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor | None:
        """Lay out the patches that a convolution looks at.

        Args:
            x: images, shape (T, N, C, H, W).
            w: weights, shape (T, O, C, kH, kW).
            geometry: the convolution's.

        Returns:
            Shape (T, C * kH * kW, N * oH * oW), or None where a grouped convolution is the better way.
        """
        weights = w[0, 0].numel()
        few = geometry.groups == 1 and weights <= _FEW_WEIGHTS and x.numel() * weights // x.shape[2] <= _MOST_PATCHES
        if not few or x.requires_grad or x.is_inference() or x.device.type != "cpu":
            return None  # an inference tensor does not tell when it changes
        key = (x.data_ptr(), x._version, x.shape, x.stride(), w.shape[3:], str(geometry))
        if key not in self._kept:
            if len(self._kept) == 2:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = x, _patches(x, w.shape[3:], geometry)  # x is kept, so that its address stays its own
        return self._kept[key][1]


def _patches(x: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    vertical, horizontal = geometry.padding
    x = F.pad(x, (horizontal, horizontal, vertical, vertical))
    for dim, (size, stride, dilation) in enumerate(zip(kernel, geometry.stride, geometry.dilation, strict=True), 3):
        x = x.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x.permute(0, 2, 5, 6, 1, 3, 4).reshape(len(x), -1, x.shape[1] * x.shape[3] * x.shape[4])


def convolve_patches(patches: Tensor, w: Tensor, bias: Tensor | None, shape: list[int]) -> Tensor:
    """Convolve images whose patches are laid out.

    Args:
        patches: of `Patches`.
        w: weights, shape (T, O, C, kH, kW).
        bias: shape (T, O), or None.
        shape: images a task, height and width of the result.

    Returns:
        Shape (T, N, O, height, width), in memory by output channel before image.
    """
    flat = w.flatten(2)
    y = torch.bmm(flat, patches) if bias is None else torch.baddbmm(bias.unsqueeze(2), flat, patches)
    apart: Tensor = y.unflatten(2, shape)
    return apart.transpose(1, 2)
