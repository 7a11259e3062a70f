"""From decoded images to batches: timm's transforms, and an order that only the seed and the epoch decide."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from arelu_meta.data.images import ImageSet
from arelu_meta.data.reading import to_channels


@dataclass(frozen=True)
class InputSpec:
    """What a model takes.

    Args:
        image_size: side in pixels.
        channels: 1 or 3.
        mean: subtracted from [0, 1] pixels, one value a channel.
        std: divided by, one value a channel.
        interpolation: bilinear or bicubic.
        crop_pct: the share of the shorter side that evaluation keeps, from the centre.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


def build_transform(spec: InputSpec, training: bool, mirrored: bool = True) -> Callable[[Image.Image], Tensor]:
    """Make timm's transform from a decoded image to a tensor of shape (channels, image_size, image_size), float32.

    Args:
        spec: what the model takes.
        training: random crops (and mirror images) instead of the centre.
        mirrored: whether a mirror image means the same.
    """
    from timm.data import create_transform

    transform = create_transform(
        input_size=(spec.channels, spec.image_size, spec.image_size),
        is_training=training,
        # Characters lose their meaning in tight crops, and pretrained features theirs in very tight ones.
        scale=(0.35, 1.0) if mirrored else (0.8, 1.0),
        ratio=(3 / 4, 4 / 3) if mirrored else (0.9, 1.1),
        hflip=0.5 if mirrored else 0.0,
        color_jitter=None,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
    )
    return partial(_transform, transform, spec.channels)


def _transform(transform: Callable[[Image.Image], Tensor], channels: int, image: Image.Image) -> Tensor:
    return transform(to_channels(image, channels))


class _Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class Batches:
    """Batches of images and labels, shuffled anew each epoch where they are for training.

    Args:
        images: the labelled images.
        transform: from an image to a tensor.
        batch_size: images a batch; the last may be smaller, but never a single image while training.
        seed: of the order; None keeps it.
    """

    def __init__(
        self, images: ImageSet, transform: Callable[[Image.Image], Tensor], batch_size: int, seed: int | None = None
    ) -> None:
        self.images, self.seed = images, seed
        self.generator = torch.Generator()
        leftover = len(images) % batch_size
        self.loader: DataLoader[Any] = DataLoader(
            _Transformed(images, transform),
            batch_size=batch_size,
            shuffle=seed is not None,
            generator=self.generator if seed is not None else None,
            # Batch normalisation has no variance over one image.
            drop_last=seed is not None and leftover == 1 and len(images) > 1,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int) -> DataLoader[Any]:
        """Return the loader for one pass, its order set by the seed and the epoch's number.

        Args:
            number: of the epoch, from 1.
        """
        if self.seed is not None:
            self.generator.manual_seed(self.seed * 1_000_003 + number)
        return self.loader


def unlabelled_batches(images: ImageSet, spec: InputSpec, most: int = 256, batch_size: int = 32) -> list[Tensor]:
    """Take a few batches of images, evenly spread over a set, for what looks at inputs and not at labels.

    Args:
        images: the set.
        spec: what the model takes.
        most: images in all.
        batch_size: images a batch.

    Returns:
        Tensors of shape (batch, channels, image_size, image_size), float32.
    """
    chosen = images.subset(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    batches = Batches(chosen, build_transform(spec, training=False), batch_size)
    return [batch for batch, _ in batches.epoch(0)]
