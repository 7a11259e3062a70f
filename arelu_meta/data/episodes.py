"""Few-shot episodes: N-way K-shot tasks whose test classes were never trained on.

They are drawn straight from tensors, a whole meta-batch at once, or through learn2learn's task sets.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.images import ImageSet, Labels, concatenate, find_root, load_images, read_folder, training_parts
from arelu_meta.data.loading import InputSpec
from arelu_meta.data.named import NAMED_SETS, load_digits, load_part
from arelu_meta.data.reading import to_channels
from arelu_meta.errors import InputError
from arelu_meta.extras import import_learn2learn
from arelu_meta.runs.progress import progress

_HELD_OUT_IMAGES = 0.2

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Episode:
    """One task.

    Args:
        support_images: shape (ways * shots, channels, height, width), float32, normalised.
        support_labels: shape (ways * shots,), int64 in [0, ways).
        query_images: shape (ways * queries, channels, height, width), float32, normalised.
        query_labels: shape (ways * queries,), int64 in [0, ways).
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    def to(self, device: torch.device) -> "Episode":
        """Return the task on a device."""
        parts = (self.support_images, self.support_labels, self.query_images, self.query_labels)
        return Episode(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of one size, stacked: every tensor of an `Episode` with a leading dimension of tasks.

    Args:
        support_images: shape (tasks, ways * shots, channels, height, width), float32, normalised.
        support_labels: shape (tasks, ways * shots), int64 in [0, ways).
        query_images: shape (tasks, ways * queries, channels, height, width), float32, normalised.
        query_labels: shape (tasks, ways * queries), int64 in [0, ways).
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.support_images, self.support_labels, self.query_images, self.query_labels

    def __len__(self) -> int:
        return len(self.support_labels)

    def __getitem__(self, number: int) -> Episode:
        """Return one of the tasks."""
        return Episode(*(part[number] for part in self._parts()))

    def split(self, size: int) -> Iterator["TaskBatch"]:
        """Yield batches of at most `size` tasks."""
        for first in range(0, len(self), size):
            yield TaskBatch(*(part[first : first + size] for part in self._parts()))

    def to(self, device: torch.device) -> "TaskBatch":
        """Return the tasks on a device."""
        return TaskBatch(*(part.to(device) for part in self._parts()))


class Sampler(Protocol):
    """Draws tasks; task i of a seed is always the same."""

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers."""
        ...


@dataclass(frozen=True)
class ClassSplits:
    """Images whose classes are divided: what is tested on was never trained on.

    Args:
        train: classes to meta-train on.
        validation: classes to choose the best checkpoint by; or other images of the training classes; or None.
        test: unseen classes.
        notes: what a reader of the results should know.
        inverted: whether dark strokes on white are to be turned into bright ones on black.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    notes: tuple[str, ...] = ()
    inverted: bool = False

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files left out because they are not images."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        return tuple(dict.fromkeys(name for part in parts for name in part.skipped))

    def describe(self) -> dict[str, Any]:
        """List the classes and images of every part, for split.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "notes": list(self.notes),
            "skipped": list(self.skipped),
            **{f"{name}_classes": _present(part) for name, part in parts.items() if part is not None},
            **{name: list(part.names) for name, part in parts.items() if part is not None},
        }


def _present(images: ImageSet) -> list[str]:
    return [images.classes[label] for label in np.unique(images.labels)]


def load_class_splits(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    """Load images and divide their classes into training, validation and test classes.

    Args:
        config: name and root; `omniglot-small` trains on Omniglot's first small background set and tests on the
            alphabets of the second that the first lacks.
        task: ways, shots and queries, which every part must allow.
        seed: of the division.

    Returns:
        The parts, no test class among the training classes.

    Raises:
        InputError: if there are too few classes for the ways, or too few images in one for shots plus queries.
    """
    if (config.name or "").lower() == "omniglot-small":
        splits = _omniglot_small(config, task, seed)
    else:
        parts = load_whole(config)
        own = _own_division(parts)
        splits = own or _divide(concatenate(parts), task, seed)
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            check_class_sizes(part, task)
    return splits


def load_whole(config: DataConfig) -> list[ImageSet]:
    """Load every image of a set, its own parts apart.

    Args:
        config: name, root, skip_broken, download.

    Returns:
        One set, or the training, validation and test parts that the data brings (fewer where it brings fewer).
    """
    name = (config.name or ("folder" if config.root else "digits")).lower()
    if name == "digits":
        return [load_digits()]
    if name in NAMED_SETS:
        spec = NAMED_SETS[name]
        arguments = [part for part in (spec.train, spec.validation, spec.test) if part is not None]
        return [load_part(name, part, config) for part in arguments]
    if name != "folder" or config.root is None:
        load_images(config, 0)  # says what is wrong
    root = find_root(config.root or "")
    folders = training_parts(root)
    if not folders:
        return [read_folder(root, root, config.skip_broken)]
    return [read_folder(folder, root, config.skip_broken) for folder in folders.values()]


def class_counts(classes: int, ways: int) -> tuple[int, int, int]:
    """Decide how many classes to train, validate and test on.

    Args:
        classes: how many there are.
        ways: classes a task.

    Returns:
        Counts that add up to `classes`, each of at least `ways`; the middle one is 0 where there are too few classes
        for three parts.

    Raises:
        InputError: if there are fewer than twice as many classes as ways.
    """
    if classes < 2 * ways:
        allowed = f"give at most {classes // 2}" if classes >= 4 else "at least 4 classes are needed"
        raise InputError(
            f"task.ways: {ways} is too many for {classes} classes, half of which stay unseen for the test; {allowed}"
        )
    if classes < 3 * ways:
        test = max(ways, round(0.4 * classes))
        return classes - test, 0, test
    test, validation = max(ways, round(0.25 * classes)), max(ways, round(0.15 * classes))
    return classes - test - validation, validation, test


def _own_division(parts: list[ImageSet]) -> ClassSplits | None:
    """Keep the division of a folder whose train, val and test sub-folders hold different classes."""
    if len(parts) < 2 or any(set(a.classes) & set(b.classes) for a, b in itertools.combinations(parts, 2)):
        return None
    return ClassSplits(
        parts[0], parts[1] if len(parts) == 3 else None, parts[-1], ("classes divided as in the folder",)
    )


def _divide(images: ImageSet, task: TaskConfig, seed: int) -> ClassSplits:
    present = np.unique(images.labels)
    counts = class_counts(len(present), task.ways)
    order = np.random.default_rng([seed, 2]).permutation(present)
    train, validation, test = np.split(order, np.cumsum(counts)[:2])
    unseen = _of_classes(images, test)
    if len(validation):
        return ClassSplits(_of_classes(images, train), _of_classes(images, validation), unseen)
    seen, held_out = _hold_out(_of_classes(images, train), task, seed)
    return ClassSplits(seen, held_out, unseen, (_held_out_note(held_out),))


def _held_out_note(held_out: ImageSet | None) -> str:
    if held_out is None:
        return "too few classes and images to validate on: the last checkpoint is kept"
    return "too few classes to validate on unseen ones: validated on other images of the training classes"


def _of_classes(images: ImageSet, labels: Labels) -> ImageSet:
    return images.subset(np.flatnonzero(np.isin(images.labels, labels)))


def _hold_out(images: ImageSet, task: TaskConfig, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """Set other images of the same classes aside for validation, where there are enough of every class."""
    needed = task.shots + task.queries
    random_order = np.random.default_rng([seed, 3])
    drawn: list[int] = []
    for label in np.unique(images.labels):
        members = random_order.permutation(np.flatnonzero(images.labels == label))
        count = max(needed, round(_HELD_OUT_IMAGES * len(members)))
        if len(members) - count < needed:
            return images, None
        drawn += members[:count].tolist()
    return images.subset(np.setdiff1d(np.arange(len(images)), drawn)), images.subset(sorted(drawn))


def _omniglot_small(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    root = find_root(config.root or "omniglot-small")
    folders = [root / f"images_background_small{number}" for number in (1, 2)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"data.root: {str(root)!r} has no {folder.name}/; give the folder that holds both sets")
    first, second = (_read_alphabets(folder, config.skip_broken) for folder in folders)
    known = {name.split("/")[0] for name in first.classes}
    unseen = [label for label, name in enumerate(second.classes) if name.split("/")[0] not in known]
    order = np.random.default_rng([seed, 2]).permutation(len(first.classes))
    held = max(task.ways, round(0.15 * len(order)))
    if len(order) - held < task.ways or len(unseen) < task.ways:
        most = min(len(order) // 2, len(unseen))
        raise InputError(f"task.ways: {task.ways} is too many for omniglot-small; give at most {most}")
    return ClassSplits(
        _of_classes(first, order[held:]),
        _of_classes(first, order[:held]),
        _of_classes(second, np.array(unseen)),
        inverted=True,
    )


def _read_alphabets(folder: Path, skip_broken: bool) -> ImageSet:
    """Read ALPHABET/CHARACTER/*.png: a class is a character of one alphabet."""
    images = read_folder(folder, folder, skip_broken)
    characters = [name.rpartition("/")[0] for name in images.names]
    classes = tuple(sorted(set(characters)))
    labels = np.array([classes.index(name) for name in characters], dtype=np.int64)
    return replace(images, classes=classes, labels=labels, channels=1)


def check_class_sizes(images: ImageSet, task: TaskConfig) -> None:
    """Refuse images from which a task cannot be drawn.

    Args:
        images: the classes to draw from.
        task: ways, shots, queries.

    Raises:
        InputError: naming the ways, or the class that is too small.
    """
    labels, counts = np.unique(images.labels, return_counts=True)
    if len(labels) < task.ways:
        raise InputError(
            f"task.ways: {task.ways} is more than the {len(labels)} classes here; give at most {len(labels)}"
        )
    smallest = int(counts.argmin())
    if counts[smallest] < task.shots + task.queries:
        raise InputError(
            f"task.shots + task.queries: {task.shots} + {task.queries} is more than class "
            f"{images.classes[labels[smallest]]!r} has ({counts[smallest]} images here); give at most that many"
        )


@dataclass(frozen=True)
class Pool:
    """Images of several classes as one tensor, to draw tasks from.

    Args:
        pixels: shape (images, channels, side, side), uint8.
        labels: shape (images,), int64.
        mean: of normalisation, one value a channel, for pixels in [0, 1].
        std: likewise.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return some images as the model takes them, float32."""
        shape = (1, -1, 1, 1)
        scaled = self.pixels[indices].float() / 255
        mean, std = (torch.tensor(value, device=scaled.device).view(shape) for value in (self.mean, self.std))
        return (scaled - mean) / std


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
    """Decode and resize every image once.

    Args:
        images: the classes to draw tasks from.
        inputs: side, channels and normalisation.
        inverted: turn dark strokes on white into bright ones on black.
        rotations: add every class turned by 90, 180 and 270 degrees, as classes of their own.
    """
    pixels = torch.empty(len(images), inputs.channels, inputs.image_size, inputs.image_size, dtype=torch.uint8)
    with progress("reading images", len(images), "images") as bar:
        for index in range(len(images)):
            pixels[index] = to_pixels(images[index][0], inputs)
            bar.advance(1)
    labels = torch.from_numpy(images.labels)
    if inverted:
        pixels = 255 - pixels
    if rotations:
        classes = len(images.classes)
        labels = torch.cat([labels + turn * classes for turn in range(4)])
        pixels = torch.cat([pixels.rot90(turn, (2, 3)) for turn in range(4)])
    return Pool(pixels, labels, inputs.mean, inputs.std)


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


class _Indices(torch.utils.data.Dataset[tuple[int, int]]):
    """What learn2learn samples from: positions and labels; the images are gathered at once afterwards."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.labels[index]


class TaskSampler:
    """Draws tasks from a pool through learn2learn's task sets; task i of a seed is always the same.

    Args:
        pool: the images.
        task: ways, shots, queries.
        seed: of the tasks, any text.

    Raises:
        MissingExtraError: if learn2learn is not installed.
    """

    def __init__(self, pool: Pool, task: TaskConfig, seed: str) -> None:
        l2l = import_learn2learn()
        self.pool, self.task, self.seed = pool, task, seed
        dataset = l2l.data.MetaDataset(_Indices(pool.labels))
        transforms = [
            l2l.data.transforms.NWays(dataset, n=task.ways),
            l2l.data.transforms.KShots(dataset, k=task.shots + task.queries),
            l2l.data.transforms.LoadData(dataset),
            l2l.data.transforms.RemapLabels(dataset),
            l2l.data.transforms.ConsecutiveLabels(dataset),
        ]
        self.tasks = l2l.data.Taskset(dataset, task_transforms=transforms)

    def sample(self, index: int) -> Episode:
        """Draw task number `index`.

        Args:
            index: at least 0.

        Returns:
            The task, on the CPU. Python's random state is as before.
        """
        state = random.getstate()  # learn2learn draws from Python's global generator
        random.seed(f"{self.seed} {index}")
        try:
            positions, labels = self.tasks.sample()
        finally:
            random.setstate(state)
        per_class = self.task.shots + self.task.queries
        images = self.pool.images(positions)
        images = images.view(self.task.ways, per_class, *images.shape[1:])
        labels = labels.view(self.task.ways, per_class)
        shots = self.task.shots
        return Episode(
            images[:, :shots].flatten(0, 1),
            labels[:, :shots].flatten(),
            images[:, shots:].flatten(0, 1),
            labels[:, shots:].flatten(),
        )

    def batch(self, tasks: Sequence[int]) -> TaskBatch:
        """Draw tasks by their numbers, one after the other."""
        episodes = [self.sample(index) for index in tasks]
        return TaskBatch(
            torch.stack([one.support_images for one in episodes]),
            torch.stack([one.support_labels for one in episodes]),
            torch.stack([one.query_images for one in episodes]),
            torch.stack([one.query_labels for one in episodes]),
        )


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
        draws = _uniform(self._key, numbers, ways * (1 + per_class))
        classes = _without_replacement(draws[:, :ways], np.array(len(self._sizes)))
        members = _without_replacement(draws[:, ways:].reshape(-1, ways, per_class), self._sizes[classes])
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


def _uniform(key: np.uint64, tasks: np.ndarray[Any, np.dtype[np.uint64]], draws: int) -> Floats:
    """Hash (key, task, draw) to numbers in [0, 1), shape (tasks, draws).

    Source: SplitMix64's finaliser, Steele, Lea and Flood 2014, applied once for the task and once for the draw.
    """
    stream = _mix(key + tasks * np.uint64(0x9E3779B97F4A7C15))
    counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    return (_mix(stream[:, None] + counters) >> np.uint64(11)) * 2.0**-53


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
