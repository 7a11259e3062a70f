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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_meta.activations.arelu import ALPHA_MAX, ALPHA_MIN, AReLU, arelu
from arelu_meta.meta.stacked_conv import Conv, Patches, convolve_patches
from arelu_meta.meta.stacked_geometry import Geometry, output_size, pair
from arelu_meta.meta.stacked_maps import Pool, Slopes


def _stacked(tensor: Tensor | None, dim: int | None, tasks: int) -> Tensor | None:
    """Move the task dimension to the front, or give every task the same tensor."""
    if tensor is None:
        return None
    return tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _VmapConv(torch.autograd.Function):
    """The convolution as `torch.vmap` sees it."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, kept: Patches) -> Tensor:
        stride, padding, dilation, groups = geometry
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry, kept: Patches
    ) -> tuple[Tensor, int]:
        x_dim, w_dim, bias_dim, *_ = in_dims
        tasks = info.batch_size
        images = _stacked(x, x_dim, tasks)
        assert images is not None
        if w_dim is None and bias_dim is None:  # frozen: the same weights for all tasks, and no gradient of them
            return _VmapConv.forward(images.flatten(0, 1), w, bias, geometry, kept).unflatten(0, (tasks, -1)), 0
        weights, biases = _stacked(w, w_dim, tasks), _stacked(bias, bias_dim, tasks)
        assert weights is not None
        patches = kept.of(images, weights, geometry)
        if patches is None:
            return Conv.apply(images, weights, biases, geometry), 0
        size = output_size(images, weights, geometry)
        return convolve_patches(patches, weights, biases, [images.shape[1], *size]), 0


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
        return Pool.apply(x.movedim(in_dims[0], 0)), 0


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
        return Slopes.apply(values, *[slope.reshape(shape) for slope in slopes if slope is not None]), 0


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

    def __init__(self) -> None:
        super().__init__()
        self._patches = Patches()

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
        geometry = Geometry(pair(stride), pair(padding), pair(dilation), groups)
        y: Tensor = _VmapConv.apply(input, weight, bias, geometry, self._patches)
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
    plain = pair(padding) == [0, 0] and pair(dilation) == [1, 1] and not ceil_mode and not return_indices
    steps = kernel_size if stride is None or stride == [] else stride
    return plain and pair(kernel_size) == [2, 2] and pair(steps) == [2, 2] and input.dim() >= 3
