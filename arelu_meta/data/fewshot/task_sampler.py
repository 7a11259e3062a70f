"""Images of several classes as one tensor, decoded once, and tasks drawn from it, a whole meta-batch at once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_meta.config import TaskConfig
from arelu_meta.data.fewshot.class_splits import AlphabetSet, alphabet_of
from arelu_meta.data.fewshot.tasks import Episode, TaskBatch
from arelu_meta.data.image_io import to_channels
from arelu_meta.data.loaders import InputSpec
from arelu_meta.data.splits import ImageSet, Labels
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import progress


@dataclass(frozen=True)
class Pool:
    """Images of several classes as one tensor, to draw tasks from.

    Args:
        pixels: shape (images, channels, side, side), uint8; or of any shape as the model takes them, float32.
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
        """Return some images as the model takes them, float32; those of a prepared set, or features, as they are."""
        if self.pixels.is_floating_point():
            return self.pixels[indices]
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
    found = []
    with progress("reading images", len(images), "images") as bar:
        for index in range(len(images)):
            image = images[index][0]
            found.append(torch.as_tensor(image) if images.prepared else to_pixels(image, inputs))
            bar.advance(1)
    pixels = torch.stack(found)
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


Floats = np.ndarray[Any, np.dtype[np.float64]]


class TensorSampler:
    """Draws a whole meta-batch of tasks at once, straight from a pool's tensors; it needs no learn2learn.

    A task's random numbers are a function of the seed and the task's number alone, so task i of a seed is the same in
    any batch, order and process. Classes, and images of a class, are drawn uniformly without replacement.

    Args:
        pool: the images; batches lie on the device of its pixels.
        task: ways, shots, queries.
        seed: of the tasks, any text.

    Raises:
        InputError: if there are fewer classes than ways, or a class has fewer images than shots plus queries.
    """

    def __init__(self, pool: Pool, task: TaskConfig, seed: str) -> None:
        self.pool, self.task = pool, task
        labels = pool.labels.cpu().numpy()
        self._order = np.argsort(labels, kind="stable")
        _, self._first, self._sizes = np.unique(labels[self._order], return_index=True, return_counts=True)
        self._groups = (
            None if pool.groups is None else _Groups(pool.groups.cpu().numpy()[self._order[self._first]], task)
        )
        if len(self._sizes) < task.ways:
            raise InputError(
                f"task.ways: {task.ways} is more than the {len(self._sizes)} classes here; "
                f"give at most {len(self._sizes)}"
            )
        if self._sizes.min() < task.shots + task.queries:
            raise InputError(
                f"task.shots + task.queries: {task.shots} + {task.queries} is more than the smallest class has "
                f"({self._sizes.min()} images); give at most that many"
            )
        self._key = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))

    def positions(self, tasks: Sequence[int]) -> Labels:
        """Draw which images make up tasks.

        Args:
            tasks: their numbers, each at least 0.

        Returns:
            Shape (tasks, ways, shots + queries), int64: places in the pool.
        """
        ways, per_class = self.task.ways, self.task.shots + self.task.queries
        numbers = np.asarray(tasks, dtype=np.uint64)
        count = ways * (1 + per_class)
        draws = _uniform(self._key, numbers, count + 1)
        if self._groups is None:
            classes = _without_replacement(draws[:, :ways], np.array(len(self._sizes)))
        else:
            classes = self._groups.classes(draws[:, count], draws[:, :ways])
        members = _without_replacement(draws[:, ways:count].reshape(-1, ways, per_class), self._sizes[classes])
        found: Labels = self._order[self._first[classes][..., None] + members]
        return found

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers and gather their images at once."""
        ways, shots = self.task.ways, self.task.shots
        positions = torch.from_numpy(self.positions(tasks)).to(self.pool.pixels.device)

        def gather(part: Tensor) -> tuple[Tensor, Tensor]:
            labels = torch.arange(ways, device=part.device).repeat_interleave(part.shape[2])
            return self.pool.images(part.flatten(1)), labels.repeat(len(part), 1)

        return TaskBatch(*gather(positions[:, :, :shots]), *gather(positions[:, :, shots:]))

    def sample(self, index: int) -> Episode:
        """Draw task number `index`."""
        return self.batch([index])[0]


class _Groups:
    """Classes by group, such as characters by alphabet; groups with fewer classes than ways are never drawn.

    Args:
        groups: each class's, shape (classes,), int64.
        task: ways.

    Raises:
        InputError: if no group has enough classes.
    """

    def __init__(self, groups: Labels, task: TaskConfig) -> None:
        self._order = np.argsort(groups, kind="stable")
        _, first, sizes = np.unique(groups[self._order], return_index=True, return_counts=True)
        if sizes.max() < task.ways:
            raise InputError(
                f"task.ways: {task.ways} is more than the {sizes.max()} classes of the largest group here; "
                f"give at most {sizes.max()}"
            )
        self._first, self._sizes = first[sizes >= task.ways], sizes[sizes >= task.ways]

    def classes(self, which: Floats, draws: Floats) -> Labels:
        """Draw each task's group and classes from numbers in [0, 1), shape (tasks,) and (tasks, ways)."""
        group = (which * len(self._sizes)).astype(np.int64)
        found: Labels = self._order[self._first[group][:, None] + _without_replacement(draws, self._sizes[group])]
        return found


def _uniform(key: np.uint64, tasks: np.ndarray[Any, np.dtype[np.uint64]], draws: int) -> Floats:
    """Hash (key, task, draw) to numbers in [0, 1), shape (tasks, draws).

    Source: SplitMix64's finaliser, Steele, Lea and Flood 2014, applied once for the task and once for the draw.
    """
    stream = _mix(key + tasks * np.uint64(0x9E3779B97F4A7C15))
    counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    return np.ldexp((_mix(stream[:, None] + counters) >> np.uint64(11)).astype(np.float64), -53)


def _mix(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _without_replacement(draws: Floats, counts: Labels) -> Labels:
    """Turn uniform numbers (…, k) into k different places below `counts` (…), every ordered choice equally likely."""
    chosen: list[Labels] = []  # ascending
    places = []
    for number in range(draws.shape[-1]):
        place = (draws[..., number] * (counts - number)).astype(np.int64)
        for earlier in chosen:  # skip what is taken: the place counts those that are left
            place = place + (place >= earlier)
        places.append(place)
        chosen = _insert(chosen, place)
    return np.stack(places, -1)


def _insert(ascending: list[Labels], new: Labels) -> list[Labels]:
    result = []
    for value in ascending:
        result.append(np.minimum(value, new))
        new = np.maximum(value, new)
    return [*result, new]
