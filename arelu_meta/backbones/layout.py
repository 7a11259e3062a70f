"""In which order of memory a backbone computes fastest."""

from typing import Literal

import torch
from torch import nn


def suit_layout(model: nn.Module, device: torch.device, asked: bool | Literal["auto"] = "auto") -> bool:
    """Put the weights in channels-last order; what the model computes stays the same to rounding.

    Args:
        model: changed in place, on the device. It takes images of either order.
        device: that it computes on.
        asked: whether to; auto does so on a CPU where the network has depthwise convolutions, for oneDNN computes
            those in blocks of channels, and would bring images and gradients into them and back at every layer.

    Returns:
        Whether it did.

    Source: `arelu-meta bench finetune` (rows `relu` and `relu-contiguous`).
    """
    if asked == "auto":
        asked = device.type == "cpu" and any(map(_is_depthwise, model.modules()))
    if asked:
        model.to(memory_format=torch.channels_last)
    return asked


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
