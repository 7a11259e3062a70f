"""A model's copy for `torch.vmap` over tasks, with operators of its own where PyTorch's are slow.

- AReLU multiplies by a slope instead of choosing element by element.
- Max-pooling gathers its maxima, which costs less than max-pooling's own derivatives.
- A convolution of the images themselves, as a first layer is, is one product with the images' patches, which are laid
  out once for all inner steps: as a convolution grouped by tasks it would be slow for so few channels.

All are plain differentiable operators, so that every order of derivative is autograd's.
"""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.arelu import AReLU
from arelu_meta.activations.kernels_torch import attention_slopes

_FEW_WEIGHTS = 64  # that meet a pixel: an output of 5 x 5 grey or 3 x 3 colour pixels
_MOST_PATCHES = 1 << 19  # elements a task


class _AReLU(AReLU):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.alpha.dtype or x.dtype != self.beta.dtype:
            return super().forward(x)
        added, below = attention_slopes(self.alpha, self.beta)
        y: Tensor = (below + (x >= 0).to(x.dtype) * (1 + added - below)) * x
        return y


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Any:
        if x.dim() != 4 or self.return_indices:
            return super().forward(x)
        with torch.no_grad():
            # With channels innermost PyTorch finds the maxima three times as fast.
            innermost = x.movedim(1, -1).contiguous().movedim(-1, 1)
            how = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
            _, places = F.max_pool2d(innermost, *how, return_indices=True)
        return x.flatten(2).gather(2, places.flatten(2)).unflatten(2, places.shape[2:])


class _Geometry(NamedTuple):
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    stride: tuple[int, ...]


class _Kept:
    """What was laid out so far; a class, since torch copies a dictionary among arguments."""

    def __init__(self) -> None:
        self.patches: dict[tuple[int, _Geometry], tuple[Tensor, Tensor]] = {}


class _Patches(torch.autograd.Function):
    """Lay the patches of images (N, C, H, W) out as a matrix (C * kH * kW, N * oH * oW); of the same images once."""

    generate_vmap_rule = False

    @staticmethod
    def forward(images: Tensor, geometry: _Geometry, kept: _Kept) -> Tensor:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise NotImplementedError("only under vmap")

    @staticmethod
    def vmap(info: Any, in_dims: Any, images: Tensor, geometry: _Geometry, kept: _Kept) -> tuple[Tensor, int]:
        key = (id(images), geometry)
        if key not in kept.patches:
            apart = images.movedim(in_dims[0], 0)
            patches = F.unfold(apart.flatten(0, 1), *geometry).unflatten(0, (info.batch_size, -1))
            kept.patches[key] = (
                images,
                patches.transpose(1, 2).flatten(2),
            )  # the images, too, so that their id stays theirs
        return kept.patches[key][1], 0


class _Conv2d(nn.Conv2d):
    kept: _Kept

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_cheaper_as_product(input, weight):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        geometry = _Geometry(self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        patches, flat = _Patches.apply(input, geometry, self.kept), weight.flatten(1)
        found: Tensor = flat @ patches if bias is None else torch.addmm(bias[:, None], flat, patches)
        found = found.unflatten(1, (len(input), *self._size(input)))
        return found.transpose(0, 1)

    def _is_cheaper_as_product(self, input: Tensor, weight: Tensor) -> bool:
        if input.device.type != "cpu" or input.dim() != 4 or not torch._C._functorch.is_batchedtensor(input):
            return False
        if self.groups != 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        # Autocast has rules of its own that choose the dtype.
        if torch.is_autocast_enabled("cpu") or torch._C._functorch.get_unwrapped(input).requires_grad:
            return False
        outputs, weights = len(weight), weight[0].numel()
        height, width = self._size(input)
        return outputs <= weights <= _FEW_WEIGHTS and len(input) * height * width * weights <= _MOST_PATCHES

    def _size(self, input: Tensor) -> tuple[int, int]:
        padding: tuple[int, int] = self.padding  # type: ignore[assignment]
        settings = zip(input.shape[2:], self.kernel_size, self.dilation, padding, self.stride, strict=True)
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, pad, stride in settings
        )
        return height, width


_OWN: dict[type[nn.Module], type[nn.Module]] = {AReLU: _AReLU, nn.MaxPool2d: _MaxPool2d, nn.Conv2d: _Conv2d}


class VmappedCopy:
    """A model's structure, not its tensors, with this module's operators and nothing in place.

    Args:
        model: is not changed; its parameters and buffers are the copy's, under the same names.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._original, self.module = model, copy.deepcopy(model, memo)
        self._kept = _Kept()
        for module in self.module.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # what lies before it may be a view here
            if type(module) in _OWN:
                module.__class__ = _OWN[type(module)]
            if isinstance(module, _Conv2d):
                module.kept = self._kept

    def follow_mode(self) -> None:
        """Put each layer into the mode in which it is in the model."""
        for mine, original in zip(self.module.modules(), self._original.modules(), strict=True):
            mine.training = original.training

    def forget_images(self) -> None:
        """Let go of the images whose patches were laid out."""
        self._kept.patches.clear()
