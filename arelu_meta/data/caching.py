"""Decoded images kept in memory, so that a JPEG is decoded once and not in every epoch."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_meta.data.images import ImageSet
from arelu_meta.runs.progress import progress

_MOST_BYTES, _MOST_SHARE, _SAMPLE = 10**9, 0.1, 16


@dataclass(frozen=True)
class _FromMemory:
    pixels: Mapping[str, NDArray[np.uint8]]

    def __call__(self, name: str) -> Image.Image:
        return Image.fromarray(self.pixels[name])


def decoded_bytes(images: ImageSet) -> int:
    """Count what a set takes once it is decoded, from its images' sizes; estimate it from a few where they are unknown.

    Args:
        images: the set.

    Returns:
        Bytes.
    """
    if images.known_sizes is not None:
        return int(images.known_sizes.prod(axis=1).sum()) * 3
    chosen = np.unique(np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int))
    sizes = [np.asarray(images[index][0]).nbytes for index in chosen]
    return int(np.mean(sizes) * len(images))


def keep_decoded(images: ImageSet, asked: bool | str = "auto", beside: ImageSet | None = None) -> ImageSet:
    """Decode a set once, into memory, where it is asked for or small.

    Args:
        images: the set.
        asked: true, false, or auto: where the images take at most a gigabyte and a tenth of the machine's memory.
        beside: another set that is to be kept likewise, and counts too.

    Returns:
        The same images, read from memory; or the set itself.

    Raises:
        InputError: if an image cannot be read.
    """
    if asked is False:
        return images
    if asked == "auto":
        held = sum(decoded_bytes(one) for one in (images, beside) if one is not None)
        if held > min(_MOST_BYTES, _MOST_SHARE * _memory()):
            return images
    pixels: dict[str, NDArray[np.uint8]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("decoding images", len(images), "images") as bar:
        for name, image in zip(images.names, pool.map(images.read, images.names), strict=True):
            pixels[name] = np.asarray(image)
            bar.advance(1)
    return replace(images, read=_FromMemory(pixels))


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
