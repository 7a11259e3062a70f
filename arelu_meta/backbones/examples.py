"""What a model is called with when it is traced."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Example = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""A tensor, or several inputs by place or by name."""


def example_input(model: nn.Module) -> Tensor | None:
    """Make zeros of the size that a model says it takes.

    Args:
        model: a timm model, or any module with `pretrained_cfg` or `default_cfg`.

    Returns:
        Shape (1, channels, height, width), of the model's dtype, on its device; None if the model does not say.
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = (config or {}).get("input_size")
    parameter = next((item for item in model.parameters() if item.is_floating_point()), None)
    if size is None or parameter is None:
        return None
    # A model made for another size than its published one says so where it cuts the image into patches.
    sides = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(sides, tuple) and len(sides) == 2:
        size = (size[0], *sides)
    return torch.zeros(1, *_with_its_channels(model, size), dtype=parameter.dtype, device=parameter.device)


def _with_its_channels(model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    # pretrained_cfg keeps the published channels; a model made with in_chans=1 has others in its first convolution.
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return size if first is None or first.groups > 1 or first.in_channels > 4 else (first.in_channels, *size[1:])


def on_meta(example: Example) -> Example:
    """Take the data out of an example.

    Args:
        example: any; its tensors' shapes and dtypes stay.
    """
    moved: Example = tree_map_only(Tensor, lambda x: x.to("meta"), example)
    return moved


def two_of(example: Example) -> Example:
    """Make one image two: batch normalisation has no variance over one value a channel.

    Args:
        example: any; one that is not a single image stays as it is.
    """
    tensors = [x for x in tree_leaves(example) if isinstance(x, Tensor)]
    if not tensors or any(x.ndim == 0 or len(x) != 1 for x in tensors):
        return example
    doubled: Example = tree_map_only(Tensor, lambda x: x.expand(2, *x.shape[1:]), example)
    return doubled


def call_with(model: nn.Module, example: Example) -> object:
    """Call a model with an example: a tuple's parts by place, a dict's by name, if those are its arguments' names.

    Args:
        model: any module.
        example: a tensor, or several inputs.
    """
    if isinstance(example, dict):
        try:
            inspect.signature(model.forward).bind(**example)
        except TypeError:
            return model(example)
        return model(**example)
    return model(example) if isinstance(example, Tensor) else model(*example)
