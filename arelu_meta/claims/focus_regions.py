"""Where the object is in an image: boxes from a CSV, or masks from a folder."""

import csv
import math
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageDraw

from arelu_meta.data.images import find_candidates
from arelu_meta.data.reading import fault_of, read_image
from arelu_meta.errors import InputError

_COLUMNS = ("image", "x0", "y0", "x1", "y1")
Regions = Callable[[str, Image.Image], Image.Image | None]
"""From an image's name and the image to a grey picture of its size, white where the object is; None if unknown."""


def read_regions(boxes: str | None, masks: str | None) -> Regions | None:
    """Read where the objects are.

    Args:
        boxes: a CSV with the columns image, x0, y0, x1, y1, in pixels.
        masks: a folder of pictures.

    Returns:
        None where neither is given.

    Raises:
        InputError: if both are given, or a file is missing or is not what it should be.
    """
    if boxes is not None and masks is not None:
        raise InputError(f"focus.masks: {masks!r} does not go with focus.boxes; give one of them")
    if boxes is not None:
        return _of_boxes(Path(boxes).expanduser())
    return None if masks is None else _of_masks(Path(masks).expanduser())


def _of_boxes(path: Path) -> Regions:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"focus.boxes: {str(path)!r} has no column {missing[0]!r}; give the columns {','.join(_COLUMNS)}"
                )
            by_image: dict[str, list[tuple[float, ...]]] = {}
            for number, row in enumerate(reader, 2):
                by_image.setdefault(_key(str(row["image"])), []).append(_box(path, number, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"focus.boxes: {str(path)!r} cannot be read as a CSV ({error}); give another") from error

    def region(name: str, image: Image.Image) -> Image.Image | None:
        found = by_image.get(_key(name))
        if found is None:
            return None
        drawn = Image.new("L", image.size)
        for x0, y0, x1, y1 in found:
            if x0 >= image.width or y0 >= image.height:
                raise InputError(
                    f"focus.boxes: {x0:g},{y0:g},{x1:g},{y1:g} in {str(path)!r} lies outside {name!r} of "
                    f"{image.width} x {image.height} pixels; give boxes in pixels of the images as they lie there"
                )
            # Pillow counts the last pixel in; a box ends before it.
            corners = (round(x0), round(y0), max(round(x0), round(x1) - 1), max(round(y0), round(y1) - 1))
            ImageDraw.Draw(drawn).rectangle(corners, fill=255)
        return drawn

    return region


def _box(path: Path, line: int, row: dict[str, str]) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in _COLUMNS[1:])
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = math.nan
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        shown = ",".join(str(row[name]) for name in _COLUMNS[1:])
        raise InputError(
            f"focus.boxes: {shown!r} in line {line} of {str(path)!r} is no box; give 0 <= x0 < x1 and 0 <= y0 < y1"
        )
    return x0, y0, x1, y1


def _of_masks(folder: Path) -> Regions:
    if not folder.is_dir():
        raise InputError(f"focus.masks: {str(folder)!r} is no folder; give one with a picture an image")
    files = {_key(str(path.relative_to(folder).with_suffix(""))): path for path in find_candidates(folder)}

    def region(name: str, image: Image.Image) -> Image.Image | None:
        file = files.get(_key(str(PurePath(name).with_suffix(""))))
        if file is None:
            return None
        try:
            mask = read_image(file, 1)
        except OSError as error:
            raise InputError(f"focus.masks: {str(file)!r} {fault_of(error)}") from error
        if mask.size != image.size:
            raise InputError(
                f"focus.masks: {str(file)!r} has {mask.size[0]} x {mask.size[1]} pixels and its image "
                f"{image.size[0]} x {image.size[1]}; give masks of the images' size"
            )
        values = np.asarray(mask)
        return Image.fromarray(((values * 2.0 > values.max()) * 255).astype(np.uint8))

    return region


def _key(name: str) -> str:
    return PurePath(name.replace("\\", "/")).as_posix()
