"""Images of several classes as one tensor, decoded once, to draw tasks from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_meta.data.episodes.splits import AlphabetSet, alphabet_of
from arelu_meta.data.images import ImageSet
from arelu_meta.data.loading import InputSpec
from arelu_meta.data.reading import to_channels
from arelu_meta.runs.progress import progress


@dataclass(frozen=True)
class Pool:
    """Images of several classes as one tensor, to draw tasks from.

    Args:
        pixels: shape (images, channels, side, side), uint8.
        labels: shape (images,), int64.
        mean: of normalisation, one value a channel, for pixels in [0, 1].
        std: likewise.
        groups: shape (images,), int64, where a task takes all its classes from one group, such as an alphabet.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    groups: Tensor | None = None

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return some images as the model takes them, float32."""
        shape = (-1, 1, 1)  # of the last three dimensions, whatever stands before them
        found = self.pixels[indices].float()
        mean, std = (torch.tensor(value, device=found.device).view(shape) for value in (self.mean, self.std))
        return found.div_(255).sub_(mean).div_(std)

    def to(self, device: torch.device) -> "Pool":
        """Return the pool on a device, or as it is where it would take more than a quarter of a GPU's free memory."""
        if device.type == "cuda" and self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
            return self
        return replace(self, pixels=self.pixels.to(device))


def to_pixels(image: Image.Image, inputs: InputSpec) -> Tensor:
    """Squeeze a whole image to the model's square.

    Args:
        image: 8-bit grey or RGB.
        inputs: side and channels.

    Returns:
        Shape (channels, side, side), uint8.
    """
    size = (inputs.image_size, inputs.image_size)
    array = np.array(to_channels(image, inputs.channels).resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(array).view(*size, -1).permute(2, 0, 1)


def load_pool(images: ImageSet, inputs: InputSpec, inverted: bool = False, rotations: bool = False) -> Pool:
    """Decode and resize every image once; copies within a class are left out, or a query would be a support image.

    Args:
        images: the classes to draw tasks from.
        inputs: side, channels and normalisation.
        inverted: turn dark strokes on white into bright ones on black.
        rotations: add every class turned by 90, 180 and 270 degrees, as classes of their own.
    """
    images = images.subset(images.distinct())
    pixels = torch.empty(len(images), inputs.channels, inputs.image_size, inputs.image_size, dtype=torch.uint8)
    with progress("reading images", len(images), "images") as bar:
        for index in range(len(images)):
            pixels[index] = to_pixels(images[index][0], inputs)
            bar.advance(1)
    labels = torch.from_numpy(images.labels)
    groups = _groups_of(images) if isinstance(images, AlphabetSet) else None
    if inverted:
        pixels = 255 - pixels
    if rotations:
        labels = _for_each_turn(labels)
        groups = None if groups is None else _for_each_turn(groups)  # a turned alphabet is another one
        pixels = torch.cat([pixels.rot90(turn, (2, 3)) for turn in range(4)])
    return Pool(pixels, labels, inputs.mean, inputs.std, groups)


def _for_each_turn(numbers: Tensor) -> Tensor:
    count = int(numbers.max()) + 1
    return torch.cat([numbers + turn * count for turn in range(4)])


def _groups_of(images: AlphabetSet) -> Tensor:
    alphabets = [alphabet_of(name) for name in images.classes]
    number = {alphabet: place for place, alphabet in enumerate(sorted(set(alphabets)))}
    return torch.tensor([number[alphabets[label]] for label in images.labels.tolist()])


def unlabelled_images(images: ImageSet, inputs: InputSpec, inverted: bool = False, most: int = 256) -> list[Tensor]:
    """Take a batch of images as tasks hold them, evenly spread over a set, for what looks at inputs only.

    Args:
        images: the set.
        inputs: side, channels and normalisation.
        inverted: turn dark strokes on white into bright ones on black.
        most: images in all.

    Returns:
        One tensor of shape (images, channels, side, side), float32.
    """
    spread = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
    pool = load_pool(images.subset(spread.tolist()), inputs, inverted)
    return [pool.images(range(len(pool.labels)))]
