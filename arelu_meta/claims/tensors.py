"""Small images held in memory whole, as 8-bit tensors: decoded once, shared by all processes of a study."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_meta.config import DataConfig
from arelu_meta.data.images import ImageSet, concatenate, load_images
from arelu_meta.data.named import NAMED_SETS, load_part, pixels_in_memory
from arelu_meta.data.reading import to_channels

_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Tensors:
    """A whole set.

    Args:
        train_images: shape (images, channels, side, side), uint8.
        train_labels: shape (images,), int64.
        test_images: as train_images.
        test_labels: as train_labels.
        classes: how many.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def side(self) -> int:
        """Side of an image, in pixels."""
        return self.train_images.shape[2]

    def share(self, share: float) -> "Tensors":
        """Return the first part of the training and of the test images, to measure times on.

        Args:
            share: of either, above 0 and at most 1.
        """
        train, test = (max(1, round(share * len(labels))) for labels in (self.train_labels, self.test_labels))
        return Tensors(
            *(self.train_images[:train], self.train_labels[:train]),
            *(self.test_images[:test], self.test_labels[:test]),
            self.classes,
        )

    def to(self, device: torch.device) -> "Tensors":
        """Return the set on a device."""
        parts = {part: getattr(self, part).to(device) for part in _PARTS}
        return Tensors(**parts, classes=self.classes)


@dataclass(frozen=True)
class Shelf:
    """Where a set lies on disk, for processes that start with nothing; they share its pages.

    Args:
        folder: one .npy a tensor.
        classes: how many.
    """

    folder: str
    classes: int

    def open(self) -> Tensors:
        """Map the set into memory."""
        arrays = {part: np.load(Path(self.folder) / f"{part}.npy", mmap_mode="c") for part in _PARTS}
        return Tensors(**{part: torch.from_numpy(array) for part, array in arrays.items()}, classes=self.classes)


@contextmanager
def shelved(tensors: Tensors) -> Iterator[Shelf]:
    """Lay a set on disk while the block runs: shared memory would be 64 MB small in a container."""
    with TemporaryDirectory(prefix="arelu-meta-") as folder:
        for part in _PARTS:
            np.save(Path(folder) / f"{part}.npy", getattr(tensors, part).numpy())
        yield Shelf(folder, tensors.classes)


_opened: dict[str, Tensors] = {}  # by folder and device: a process opens each set once


def opened(shelf: Shelf, device: str) -> Tensors:
    """Return a set that may have been opened in this process before.

    Args:
        shelf: where it lies.
        device: where it is to be.
    """
    place = f"{shelf.folder} {device}"
    if place not in _opened:
        _opened[place] = shelf.open().to(torch.device(device))
    return _opened[place]


def load_tensors(config: DataConfig, seed: int, side: int | None = None, channels: int | None = None) -> Tensors:
    """Load a whole set: all training images (nothing is chosen by validation) and the test images.

    Args:
        config: name and root.
        seed: of the split, where the data has none.
        side: pixels to scale to; default: as the first image is.
        channels: 1 or 3; default: the set's own.

    Raises:
        InputError: if the data is missing or unusable.
    """
    spec = NAMED_SETS.get((config.name or "").lower())
    if spec is not None and spec.test is not None and config.per_class is None:
        name = str(config.name).lower()
        train, test = (load_part(name, part, config) for part in (spec.train, spec.test))
    else:
        splits = load_images(config, seed)
        train, test = concatenate([splits.train, splits.validation]), splits.test
    side = side or train[0][0].size[0]
    channels = channels or train.channels
    return Tensors(*as_tensors(train, side, channels), *as_tensors(test, side, channels), len(train.classes))


def as_tensors(images: ImageSet, side: int, channels: int) -> tuple[Tensor, Tensor]:
    """Decode a whole set.

    Args:
        images: the set.
        side: pixels to scale to.
        channels: 1 or 3.

    Returns:
        Images of shape (images, channels, side, side), uint8, and labels of shape (images,), int64.
    """
    held = pixels_in_memory(images) if images.channels == channels else None
    if held is not None and held.shape[1:3] == (side, side):
        pixels = held[:, None] if channels == 1 else np.ascontiguousarray(held.transpose(0, 3, 1, 2))
    else:
        pixels = np.empty((len(images), channels, side, side), dtype=np.uint8)
        for number in range(len(images)):
            pixels[number] = _pixels(images[number][0], side, channels)
    return torch.from_numpy(pixels), torch.from_numpy(np.asarray(images.labels, dtype=np.int64))


def _pixels(image: Image.Image, side: int, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    found = np.asarray(to_channels(image, channels), dtype=np.uint8)
    return found[None] if channels == 1 else found.transpose(2, 0, 1)


def scaled(images: Tensor, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Tensor:
    """Turn 8-bit images into floats: [0, 1] first, then normalised.

    Args:
        images: shape (…, channels, side, side), uint8.
        mean: one value a channel, or one for all.
        std: the same.
    """
    values = images.float().div_(255)
    if tuple(mean) == (0.0,) and tuple(std) == (1.0,):
        return values
    shape = (-1, 1, 1)
    return values.sub_(values.new_tensor(mean).view(shape)).div_(values.new_tensor(std).view(shape))
