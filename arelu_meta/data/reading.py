"""Read image files of any kind that Pillow knows, the way a person would see them."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from arelu_meta.runs.progress import progress

# What cameras, systems and editors leave beside photographs; nobody means them as images.
_IGNORED_NAMES = {"thumbs.db", "desktop.ini"}


def is_candidate(path: Path) -> bool:
    """Say whether a file is meant as an image: everything but hidden files and system litter.

    Args:
        path: a file.
    """
    return not path.name.startswith(".") and path.name.lower() not in _IGNORED_NAMES and path.is_file()


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8-bit grey or RGB: transparency over white, 16 bits scaled down, palette and CMYK resolved.

    Args:
        image: any mode.
        channels: 1 or 3.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files come as integers up to 65,535; float files as whatever the writer meant, stretched to fit.
        high = (
            65535.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else max(values.max(initial=0), 255.0)
        )
        image = Image.fromarray(np.clip(values / high * 255, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image.convert("L" if channels == 1 else "RGB")


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """Read one image upright (EXIF), in 8-bit grey or RGB.

    Args:
        path: any file that Pillow reads.
        channels: 1 or 3.

    Returns:
        The decoded image.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: if it is not a whole image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to speak; a broken image raises
        with Image.open(path) as image:
            return to_channels(ImageOps.exif_transpose(image), channels)


def _is_broken(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            # Decoding to a small size reads the file to its end, at a fraction of the cost.
            image.draft("RGB", (64, 64))
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError):
        return True
    return False


def find_broken(paths: Sequence[Path]) -> list[Path]:
    """List the files that are not whole images.

    Args:
        paths: files; each is decoded once, at reduced size where the format allows.

    Returns:
        Those that Pillow cannot read to the end, in the order given.
    """
    broken: list[Path] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        with progress("checking images", len(paths), "images") as bar:
            for path, bad in zip(paths, pool.map(_is_broken, paths), strict=True):
                bar.advance(1, broken=len(broken))
                if bad:
                    broken.append(path)
    return broken
