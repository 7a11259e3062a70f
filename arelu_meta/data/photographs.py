"""A few photographs that are always at hand, for what needs real images and no labels."""

import numpy as np
from PIL import Image

from arelu_meta.data.images import ImageSet

_NAMES = ("china.jpg", "flower.jpg")


def sample_photographs() -> ImageSet:
    """Cut scikit-learn's two sample photographs, a temple and a flower, into their quarters.

    Returns:
        Eight images of 213 × 320 pixels, all of one class.
    """
    names = tuple(f"{quarter}/{name}" for name in _NAMES for quarter in range(4))
    return ImageSet(("photograph",), np.zeros(len(names), dtype=np.int64), names, _read_quarter)


def _read_quarter(name: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    quarter, _, file = name.partition("/")
    image = Image.fromarray(load_sample_image(file))
    width, height = image.width // 2, image.height // 2
    left, top = (int(quarter) % 2) * width, (int(quarter) // 2) * height
    return image.crop((left, top, left + width, top + height))
