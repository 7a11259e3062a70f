"""Images as a person gives them: folders, files, Pillow's images or tensors, read one batch at a time."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_meta.config import MOST_PIXELS
from arelu_meta.data.fewshot.task_sampler import Pool, to_pixels
from arelu_meta.data.image_folder import check_encodable, list_files
from arelu_meta.data.image_io import LimitError, fault_of, read_image, to_channels
from arelu_meta.data.loaders import InputSpec, build_transform
from arelu_meta.errors import InputError

OneImage = str | Path | Image.Image | Tensor
GivenImages = OneImage | Sequence[OneImage]
_GREY = 16  # channels of a grey photograph differ by no more, after JPEG
Prepare = Callable[[Image.Image], Tensor]


def whole_image(inputs: InputSpec, inverted: bool) -> Prepare:
    """Prepare images as episodes do: the whole of one, squeezed to the model's square, no crop.

    Args:
        inputs: what the model takes.
        inverted: turn dark strokes on white into bright ones on black.
    """

    def prepare(image: Image.Image) -> Tensor:
        pixels = to_pixels(image, inputs)
        pixels = 255 - pixels if inverted else pixels
        return Pool(pixels[None], torch.zeros(1, dtype=torch.int64), inputs.mean, inputs.std).images([0])[0]

    return prepare


def centre_crop(inputs: InputSpec) -> Prepare:
    """Prepare images as fine-tuning tests them.

    Args:
        inputs: what the model takes.
    """
    return build_transform(inputs, training=False)


@dataclass(frozen=True)
class Source:
    """Images that are read when they are needed.

    Args:
        items: what was given, folders replaced by the files in them.
        inputs: what the model takes.
        prepare: from a decoded image to the model's tensor.
        where: the flag or argument that named them, for errors.
        skip_broken: leave out files that are not images.
        max_pixels: of the largest image, see `Reading`.
    """

    items: tuple[OneImage, ...]
    inputs: InputSpec
    prepare: Prepare
    where: str = "images"
    skip_broken: bool = False
    max_pixels: int = MOST_PIXELS

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Tensor | None:
        """Return one image as the model takes it, or None where it is left out.

        Args:
            index: its place in `items`.

        Raises:
            InputError: if a file is no image, or a tensor does not fit the model.
        """
        item = self.items[index]
        if isinstance(item, Tensor):
            return self._normalised(item)
        if self.inputs.prepared:
            raise InputError(
                f"{self.where}: the run was trained on tensors that its data set made of images, in a way it does not "
                "know; give tensors that the same transform made"
            )
        if isinstance(item, Image.Image):
            return self.prepare(to_channels(item, self.inputs.channels, self.inputs.range))
        try:
            return self.prepare(read_image(Path(item), self.inputs.channels, self.inputs.range, self.max_pixels))
        except OSError as error:
            if self.skip_broken and not isinstance(error, LimitError):
                return None
            raise InputError(f"{self.where}: {str(item)!r} {fault_of(error)}") from error

    def batches(self, size: int, advance: Callable[[int], None] = lambda _: None) -> Iterator[tuple[list[int], Tensor]]:
        """Read images batch by batch; no more than one batch is in memory.

        Args:
            size: images a batch.
            advance: told how many images were read, for a progress bar.

        Yields:
            The images' places, and the images, shape (images, channels, height, width).
        """
        for first in range(0, len(self), size):
            places = range(first, min(first + size, len(self)))
            found = [(place, image) for place in places if (image := self.read(place)) is not None]
            advance(len(places))
            if found:
                yield [place for place, _ in found], torch.stack([image for _, image in found])

    def sample(self, most: int) -> Tensor | None:
        """Read images evenly spread over all of them, or None where none can be read.

        Args:
            most: how many at the most.
        """
        spread = torch.linspace(0, len(self) - 1, min(most, len(self))).round().long().tolist()
        found = [image for place in spread if (image := self.read(place)) is not None]
        return torch.stack(found) if found else None

    def _normalised(self, image: Tensor) -> Tensor:
        inputs = self.inputs
        if inputs.prepared:
            return image.detach().float().cpu()
        wanted = (inputs.channels, inputs.image_size, inputs.image_size)
        if tuple(image.shape) != wanted:
            raise InputError(
                f"{self.where}: a tensor of shape {tuple(image.shape)} does not fit the model, which takes {wanted}; "
                "resize it, or give files or Pillow images, which are resized here"
            )
        values = image.detach().float() / 255 if image.dtype == torch.uint8 else image.detach().float()
        if not (image.dtype == torch.uint8 or image.is_floating_point()) or not 0 <= values.min() <= values.max() <= 1:
            raise InputError(
                f"{self.where}: a tensor of {image.dtype} with values from {image.min():.4g} to {image.max():.4g}; "
                "give uint8, or floats from 0 to 1, which are normalised here"
            )
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (inputs.mean, inputs.std))
        return (values.cpu() - mean) / std


def gather(images: GivenImages, where: str = "images") -> tuple[OneImage, ...]:
    """List images one by one: folders are searched, a batch of tensors is taken apart.

    Args:
        images: a file, a folder, a Pillow image, a tensor of shape (channels, height, width) or (images, channels,
            height, width), or several of them.
        where: the flag or argument that named them, for errors.

    Raises:
        InputError: if there is none, or a path does not exist.
    """
    found: list[OneImage] = []
    for item in [images] if isinstance(images, str | Path | Image.Image | Tensor) else images:
        if isinstance(item, Tensor):
            found += list(item) if item.dim() == 4 else [item]
        elif isinstance(item, str | Path):
            found += _files(Path(item), where)
        elif isinstance(item, Image.Image):
            found.append(item)
        else:
            raise InputError(f"{where}: a {type(item).__name__} is no image; give paths, Pillow images or tensors")
    if not found:
        raise InputError(f"{where}: none given; give image files or folders")
    return tuple(found)


def tell_skipped(count: int) -> None:
    """Say how many files were left out, not on standard output, which others read line by line.

    Args:
        count: files that are no images; nothing is said of none.
    """
    if count:
        print(f"files skipped because they are not images: {count}", file=sys.stderr)


def in_colour(path: Path, max_pixels: int = MOST_PIXELS) -> bool:
    """Say whether an image file has any colour in it.

    Args:
        path: an image.
        max_pixels: see `Reading`.
    """
    pixels = np.asarray(read_image(path, 3, max_pixels=max_pixels).resize((32, 32))).astype(int)
    return int(np.ptp(pixels, axis=2).max()) > _GREY


def _files(path: Path, where: str) -> list[Path]:
    if path.is_dir():
        below, others = list_files(path, where)
        if others:
            print(f"files passed over, no images by their ending: {len(others)}", file=sys.stderr)
        if not below:
            raise InputError(f"{where}: folder {str(path)!r} holds no image; give files or folders with images")
    elif path.is_file():
        below = [path]
    else:
        raise InputError(f"{where}: {str(path)!r} does not exist; give image files or folders")
    for file in below:
        check_encodable(file, where)
    return below
