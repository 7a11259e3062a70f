"""Grad-CAM of a classifier on images, and how well it is focused."""

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from arelu_meta.backbones.saving import ModelSpec
from arelu_meta.claims.focus_regions import Regions
from arelu_meta.claims.ledger import Row
from arelu_meta.data.loading import InputSpec, build_transform
from arelu_meta.errors import InputError, MissingExtraError

_SHOWN = 128  # pixels of a picture in the strip
Map = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """An image to look at.

    Args:
        name: its path below the folder, or its place in a named set.
        image: decoded.
        label: its class's name, or None where nobody says.
    """

    name: str
    image: Image.Image
    label: str | None


def import_grad_cam() -> Any:
    """Import the package grad-cam.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_grad_cam
    except ImportError as error:
        raise MissingExtraError(
            f"grad-cam: cannot be imported ({error}); the study focus needs it: pip install arelu-meta[focus]"
        ) from error
    return pytorch_grad_cam


def last_map(model: nn.Module, inputs: InputSpec) -> nn.Module:
    """Find the module that hands on the last map of features with more than one pixel.

    Args:
        model: a classifier.
        inputs: what it takes.

    Raises:
        InputError: if there is none, as in a transformer or a network of linear layers.
    """
    last: list[nn.Module] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        width = getattr(model, "num_features", None)
        channels_last = output.dim() == 4 and output.shape[-1] == width != output.shape[1]
        if channels_last or (output.dim() == 3 and output.shape[1] > 1):
            last.clear()  # tokens: the maps before them are not what decides
        elif output.dim() == 4 and min(output.shape[2:]) > 1:
            last[:] = [module]

    hooks = [module.register_forward_hook(look) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            size = (1, inputs.channels, inputs.image_size, inputs.image_size)
            model.eval()(torch.zeros(size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise InputError(
            f"model.name: a {type(model).__name__} at {inputs.image_size} px has no map of features of more than one "
            "pixel for Grad-CAM; give a convolutional network, or a larger data.image_size"
        )
    return last[0]


def look(model: nn.Module, spec: ModelSpec, seen: Sequence[Seen], regions: Regions | None, shown: int) -> list[Row]:
    """Measure a classifier's focus on images.

    Args:
        model: on the device to compute on; in evaluation mode afterwards.
        spec: of the model.
        seen: the images.
        regions: where the objects are, or None.
        shown: of how many images to keep pictures.

    Returns:
        One row an image: `image`, `explained` (the class: its own where the model knows it, else the likeliest),
        `right` (whether that is the likeliest; None where the image's own is not known), `entropy` (of the map, as a
        share of an even map's), `inside` (share of the map's energy inside the object) and `area` (of the object in
        what the model sees; both None where it is not known), and for the first ones `picture` and `overlay` (JPEG in
        base64).

    Source: Selvaraju et al. 2017, Grad-CAM, through the package grad-cam.
    """
    package = import_grad_cam()
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    transform, device = build_transform(spec.inputs, training=False), next(model.parameters()).device
    plain = replace(spec.inputs, channels=1, mean=(0.0,), std=(1.0,))
    masked = build_transform(plain, training=False)
    model.eval().requires_grad_(True)
    rows = []
    with package.GradCAM(model=model, target_layers=[last_map(model, spec.inputs)]) as cam:
        for number, one in enumerate(seen):
            tensor = transform(one.image)[None].to(device)
            with torch.no_grad():
                likeliest = int(model(tensor).argmax())
            known = one.label in spec.classes
            target = spec.classes.index(str(one.label)) if known else likeliest
            found: Map = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(target)])[0]
            region = None if regions is None else regions(one.name, one.image)
            inside = None if region is None else masked(region)[0].numpy() > 0.5
            row: Row = {
                "image": one.name,
                "explained": spec.classes[target],
                "right": likeliest == target if known else None,
                "entropy": entropy(found),
                **share_inside(found, inside),
            }
            if number < shown:
                row |= _pictures(one.image, spec.inputs, found)
            rows.append(row)
    return rows


def entropy(found: Map) -> float:
    """Give a map's entropy as a share of that of an even map: 0 is a single point, 1 is everywhere.

    Args:
        found: at least 0; an empty map shows no place before another and counts as even.
    """
    total = float(found.sum(dtype=np.float64))
    if total <= 0:
        return 1.0
    shares = found.astype(np.float64).ravel() / total
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(found.size)))


def share_inside(found: Map, inside: NDArray[np.bool_] | None) -> dict[str, float | None]:
    """Give the share of a map's energy inside the object, and the object's area, which an even map would have.

    Args:
        found: at least 0; an empty map counts as even.
        inside: of the same shape; None or empty where the object is not known or not in sight.
    """
    if inside is None or not inside.any():
        return {"inside": None, "area": None}
    area, total = float(inside.mean()), float(found.sum(dtype=np.float64))
    return {"inside": float(found[inside].sum(dtype=np.float64)) / total if total > 0 else area, "area": area}


def _pictures(image: Image.Image, inputs: InputSpec, found: Map) -> dict[str, str]:
    """Draw what the model sees, and the map over it."""
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image

    as_seen = build_transform(replace(inputs, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3), training=False)
    pixels = as_seen(image).permute(1, 2, 0).clamp(0, 1).numpy()
    over = show_cam_on_image(pixels, found, use_rgb=True, colormap=cv2.COLORMAP_INFERNO)
    return {"picture": _encoded((pixels * 255).astype(np.uint8)), "overlay": _encoded(over)}


def _encoded(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_SHOWN, _SHOWN)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
