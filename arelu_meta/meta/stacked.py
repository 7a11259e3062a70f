"""Operators on the stacked tasks of a meta-batch, each task with its own weights: convolution, max-pooling, AReLU.

`torch.vmap` has rules for all of them; those here compute the same faster where a meta-step spends its time:

- a convolution whose weights all tasks share, as in the first inner step, is one convolution of all images;
- a convolution's second derivative is two grouped convolutions more, where PyTorch's own formula loops
  over the groups, that is over the tasks;
- 2 × 2 max-pooling compares four shifted views instead of walking through windows;
- AReLU keeps its input, and no mask or product.

Each is differentiable twice, which is what second-order MAML needs. Shapes: T tasks, N images a task.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_meta.activations.arelu import ALPHA_MAX, ALPHA_MIN, AReLU, arelu

_aten = torch.ops.aten


class _Geometry(NamedTuple):
    """What a convolution has besides its tensors."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _grouped(x: Tensor) -> Tensor:
    """Lay (T, N, C, H, W) out as (N, T * C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)


def _ungrouped(x: Tensor, tasks: int) -> Tensor:
    apart: Tensor = x.unflatten(1, (tasks, -1))
    return apart.transpose(0, 1)


def _is_shared(w: Tensor) -> bool:
    """Say whether every task has the same weights, as in the first inner step, where they are one tensor expanded."""
    return w.stride(0) == 0


def _forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
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
    grad: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, to_x: bool, to_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input and of each task's weights."""
    stride, padding, dilation, groups = geometry
    tasks, common = len(x), (stride, padding, dilation, False, [0, 0])
    grad_x = grad_w = None
    if to_x and _is_shared(w):
        flat = (grad.flatten(0, 1), x.flatten(0, 1), w[0])
        found = _aten.convolution_backward(*flat, None, *common, groups, [True, False, False])[0]
        grad_x, to_x = found.unflatten(0, (tasks, -1)), False
    if to_x or to_w:
        flat = (_grouped(grad), _grouped(x), w.flatten(0, 1))
        found = _aten.convolution_backward(*flat, None, *common, tasks * groups, [to_x, to_w, False])
        grad_x = _ungrouped(found[0], tasks) if to_x else grad_x
        grad_w = found[1].unflatten(0, (tasks, -1)) if to_w else None
    return grad_x, grad_w


class _Conv(torch.autograd.Function):
    """A convolution with weights (T, O, C, kH, kW) of images (T, N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _forward(x, w, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        to_x, to_w, to_bias, _ = ctx.needs_input_grad
        return *_ConvBackward.apply(grad, x, w, ctx.geometry, to_x, to_w, to_bias), None


class _ConvBackward(torch.autograd.Function):
    """`_Conv`'s backward, whose own backward is made of the same convolutions."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, to_x: bool, to_w: bool, to_bias: bool
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


class _Pool(torch.autograd.Function):
    """2 × 2 max-pooling with stride 2 of (…, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, places = _pool(x)
        ctx.save_for_backward(places)
        ctx.size = x.shape[-2:]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        found: Tensor = _Scatter.apply(grad, places, ctx.size)
        return found


class _Scatter(torch.autograd.Function):
    """Put each window's value where its maximum was."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, places: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(places)
        zeros = grad.new_zeros(*grad.shape[:-2], size.numel())
        return zeros.scatter_(-1, places.flatten(-2), grad.flatten(-2)).view(*grad.shape[:-2], *size)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return by_x.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape), None, None


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima and where they lie in their image; the first of equals, as PyTorch does."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    corners = [x[..., down:height:2, right:width:2] for down in (0, 1) for right in (0, 1)]
    top, bottom = torch.maximum(*corners[:2]), torch.maximum(*corners[2:])
    y = torch.maximum(top, bottom)
    inside = torch.where(bottom > top, (corners[3] > corners[2]) + x.shape[-1], (corners[1] > corners[0]).long())
    rows = torch.arange(0, height, 2, device=x.device) * x.shape[-1]
    columns = torch.arange(0, width, 2, device=x.device)
    return y, inside + (rows[:, None] + columns)


class _Slopes(torch.autograd.Function):
    """`x` times `above` where x >= 0 and times `below` elsewhere; the slopes are one a task."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, above: Tensor, below: Tensor) -> Tensor:
        ctx.save_for_backward(x, above, below)
        return x.clamp_min(0).mul_(above).add_(x.clamp_max(0).mul_(below))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _SlopesBackward.apply(grad, *ctx.saved_tensors)
        return found


class _SlopesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, above, below)
        positive = (x >= 0).to(x.dtype)
        upper = grad * positive
        lower = grad - upper
        inner = list(range(1, x.dim()))
        to_above = (upper * x).sum(inner, keepdim=True)
        to_below = (lower * x).sum(inner, keepdim=True)
        return upper.mul_(above).add_(lower.mul_(below)), to_above, to_below

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_x: Tensor, by_above: Tensor, by_below: Tensor) -> tuple[Tensor, ...]:
        grad, x, above, below = ctx.saved_tensors
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


def _stacked(tensor: Tensor | None, dim: int | None, tasks: int) -> Tensor | None:
    """Move the task dimension to the front, or give every task the same tensor."""
    if tensor is None:
        return None
    return tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _VmapConv(torch.autograd.Function):
    """The convolution as `torch.vmap` sees it."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        stride, padding, dilation, groups = geometry
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry
    ) -> tuple[Tensor, int]:
        x_dim, w_dim, bias_dim, _ = in_dims
        tasks = info.batch_size
        images = _stacked(x, x_dim, tasks)
        assert images is not None
        if w_dim is None and bias_dim is None:  # frozen: the same weights for all tasks, and no gradient of them
            return _VmapConv.forward(images.flatten(0, 1), w, bias, geometry).unflatten(0, (tasks, -1)), 0
        weights = _stacked(w, w_dim, tasks)
        assert weights is not None
        return _Conv.apply(images, weights, _stacked(bias, bias_dim, tasks), geometry), 0


class _VmapPool(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return _Pool.apply(x.movedim(in_dims[0], 0)), 0


class _VmapSlopes(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
        return torch.where(x >= 0, above, below) * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, int]:
        stacked = [_stacked(part, dim, info.batch_size) for part, dim in zip((x, above, below), in_dims, strict=True)]
        values, *slopes = stacked
        assert values is not None
        shape = (-1, *[1] * (values.dim() - 1))
        return _Slopes.apply(values, *[slope.reshape(shape) for slope in slopes if slope is not None]), 0


class _StackedAReLU(nn.Module):
    """AReLU under vmap, with the parameters of the AReLU that it stands for."""

    def __init__(self, original: AReLU) -> None:
        super().__init__()
        self.alpha, self.beta = original.alpha, original.beta

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.alpha.dtype or x.dtype != self.beta.dtype:
            return arelu(x, self.alpha, self.beta)
        outside = (self.alpha < ALPHA_MIN) | (self.alpha > ALPHA_MAX)
        below = torch.where(outside, self.alpha.detach().clamp(ALPHA_MIN, ALPHA_MAX), self.alpha)
        y: Tensor = _VmapSlopes.apply(x, 1 + torch.sigmoid(self.beta), below)
        return y


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def twin(model: nn.Module) -> nn.Module:
    """Copy a model's structure, not its tensors, with this module's AReLU in place of its own and nothing in place.

    Args:
        model: is not changed; its parameters and buffers are the copy's, under the same names.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, memo)
    for module in list(made.modules()):
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # what lies before it may be a view here
        for name, child in module.named_children():
            if type(child) is AReLU and not _has_hooks(child):
                setattr(module, name, _StackedAReLU(child))
    return made


class StackedOperators(TorchFunctionMode):
    """Within `with StackedOperators():`, calls under vmap of conv2d and of 2 × 2 max-pooling are this module's."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Route a call."""
        kwargs = kwargs or {}
        if function is F.conv2d or function is torch.conv2d:
            found = self._conv2d(*args, **kwargs)
            if found is not None:
                return found
        elif function is F.max_pool2d and _is_two_by_two(*args, **kwargs):
            x = args[0] if args else kwargs["input"]
            if _is_stacked(x):
                return _VmapPool.apply(x)
        return function(*args, **kwargs)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or input.dim() != 4 or not (_is_stacked(input) or _is_stacked(weight)):
            return None
        if not (input.dtype == weight.dtype and (bias is None or bias.dtype == input.dtype)):
            return None  # autocast: its own rules choose the dtype
        if torch.is_autocast_enabled(input.device.type):
            return None
        geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
        y: Tensor = _VmapConv.apply(input, weight, bias, geometry)
        return y


def _is_stacked(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def _is_two_by_two(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    plain = _pair(padding) == [0, 0] and _pair(dilation) == [1, 1] and not ceil_mode and not return_indices
    steps = kernel_size if stride is None or stride == [] else stride
    return plain and _pair(kernel_size) == [2, 2] and _pair(steps) == [2, 2] and input.dim() >= 3
