"""From decoded images to batches: timm's transforms, and an order that only the seed and the epoch decide."""

import atexit
import contextlib
import math
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arelu_meta.data.image_io import to_channels
from arelu_meta.data.splits import ImageSet
from arelu_meta.errors import InputError
from arelu_meta.runs.progress import progress
from arelu_meta.runs.signals import deaf_children

_BEFORE_CROPS = 1.5  # of the model's side: a random crop is cut from that much and scaled


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
        range: of pixels of more than 8 bits, as its training images were read: LOW-HIGH, or auto where there were none.
        fit: how an image becomes a square: crop, pad or squash.
        prepared: whether its run's data set gave tensors, which it takes as they are: nobody here can prepare an image.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    range: str = "auto"
    fit: str = "crop"
    prepared: bool = False

    def crop(self) -> dict[str, Any]:
        """Return timm's arguments for how evaluation makes a square of an image."""
        if self.fit == "crop":
            return {"crop_pct": self.crop_pct}
        return {"crop_pct": 1.0, "crop_mode": {"pad": "border", "squash": "squash"}[self.fit]}


def build_transform(
    spec: InputSpec, training: bool, mirrored: bool = True, policy: str | None = None
) -> Callable[[Image.Image], Tensor]:
    """Make timm's transform from a decoded image to a tensor of shape (channels, image_size, image_size), float32.

    Args:
        spec: what the model takes.
        training: random crops (and mirror images) instead of the centre.
        mirrored: whether a mirror image means the same.
        policy: one of timm's automatic augmentations, as rand-m6-n2, beside the crops.
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
        auto_augment=policy if training else None,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        **spec.crop(),
    )
    return partial(_transform, transform, spec, training)


def check_augmentation(name: str) -> None:
    """Refuse an unknown data.augmentation.

    Args:
        name: none, crop, auto, or one of timm's policies.

    Raises:
        InputError: with what is allowed.
    """
    if name in ("auto", "none", "crop"):
        return
    spec = InputSpec(8, 3, (0.5,) * 3, (0.5,) * 3)
    try:
        build_transform(spec, training=True, policy=name)(Image.new("RGB", (8, 8)))
    except (AssertionError, ValueError, KeyError, NotImplementedError, IndexError, TypeError) as error:
        raise InputError(
            f"data.augmentation: {name!r} is not known; give auto, none, crop or one of timm's policies, as rand-m6-n2"
        ) from error


def _transform(
    transform: Callable[[Image.Image], Tensor], spec: InputSpec, training: bool, image: Image.Image | Tensor
) -> Tensor:
    if isinstance(image, Tensor):  # of a prepared set
        return image
    image = to_channels(image, spec.channels, spec.range)
    if spec.fit != "crop" and training:
        image = _whole_square(image, spec, math.ceil(_BEFORE_CROPS * spec.image_size))
    elif spec.fit == "pad" and max(image.size) > spec.image_size * min(image.size):  # timm would scale it to nothing
        image = _whole_square(image, spec, spec.image_size)
    return transform(image)


def _whole_square(image: Image.Image, spec: InputSpec, side: int) -> Image.Image:
    """Pad or squash an image to a square."""
    from timm.data.transforms import str_to_pil_interp

    how = str_to_pil_interp(spec.interpolation)
    if spec.fit == "squash":
        return image.resize((side, side), how)
    scale = side / max(image.size)
    width, height = (max(1, round(scale * one)) for one in image.size)
    fill = tuple(round(255 * value) for value in spec.mean)
    square = Image.new(image.mode, (side, side), fill if spec.channels > 1 else fill[0])
    square.paste(image.resize((width, height), how), ((side - width) // 2, (side - height) // 2))
    return square


def note_crop(images: ImageSet, inputs: InputSpec) -> tuple[str, ...]:
    """Say where the square that is cut from an image leaves out more than a third of it, in more than a tenth of them.

    Args:
        images: to train on.
        inputs: what the model takes.
    """
    if inputs.fit != "crop" or images.known_sizes is None:
        return ()
    wide = int((images.known_sizes.min(1) < 2 / 3 * images.known_sizes.max(1)).sum())
    if wide <= len(images) / 10:
        return ()
    return (
        f"the square that is cut from the middle leaves out more than a third of {wide} of {len(images)} training "
        "images; --data.fit pad or squash keeps all of each",
    )


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Images whose augmentation only the seed, the epoch and the image's position decide, in whatever process."""

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int | None) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """Fetch a batch, as torch's loader asks to: the generators are put back once and not for every image."""
        if self.seed is None:
            return [self._transformed(index) for _, index in keys]
        found = []
        with _random_apart():
            for epoch, index in keys:
                _seed_all(np.random.SeedSequence([self.seed, epoch, index]).generate_state(3))
                found.append(self._transformed(index))
        return found

    def _transformed(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


@contextlib.contextmanager
def _random_apart() -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators back to what they were before the block; NumPy's takes 0.4 ms."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_all(seeds: NDArray[Any]) -> None:
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Which images stand in which batch, as (epoch, index).

    Args:
        images: how many there are.
        batch_size: images a batch, over all processes.
        seed: of the order; None keeps it.
        share: this process's rank, and how many there are; of each batch it takes every n-th image.
    """

    def __init__(self, images: int, batch_size: int, seed: int | None, share: tuple[int, int]) -> None:
        self.images, self.batch_size, self.seed, self.share = images, batch_size, seed, share
        self.epoch = self.skip = 0

    def batches(self) -> list[NDArray[np.int64]]:
        """List this epoch's batches whole, over all processes."""
        if self.seed is None:
            order = np.arange(self.images)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.images, generator=generator).numpy()
        cut = [order[start : start + self.batch_size] for start in range(0, self.images, self.batch_size)]
        # Batch normalisation has no variance over one image, and every process needs one.
        smallest = min(self.batch_size, max(2, self.share[1]))
        if self.seed is not None and len(cut) > 1 and len(cut[-1]) < smallest:
            cut.pop()
        return cut

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, processes = self.share
        for batch in self.batches()[self.skip :]:
            if len(mine := batch[rank::processes]):
                yield [(self.epoch, int(index)) for index in mine]


class _Loader(DataLoader[Any]):
    """Torch's loader, whose workers' errors are one sentence here, too: it would put their tracebacks into them.

    Its workers end when this process tells them to, or ends.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).strip().rpartition(f"{InputError.__name__}: ")[2]) from error

    def _get_iterator(self) -> Any:
        with deaf_children():
            return super()._get_iterator()


@atexit.register
def _end_workers() -> None:
    """End data workers that are left: Python would ask deaf or stopped ones to end, and wait for it for ever."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call their end an error
    for worker in workers:
        worker.kill()


class Batches:
    """Batches of images and labels, shuffled anew each epoch where they are for training.

    Order and augmentation depend on the seed, the epoch and the image alone: any number of workers or processes gives
    the same batches.

    Args:
        images: the labelled images.
        transform: from an image to a tensor.
        batch_size: images a batch, over all processes; the last may be smaller, but never a single image while
            training.
        seed: of the order and the augmentation; None keeps the order, for evaluation.
        workers: processes that decode and transform; they live on from epoch to epoch.
        share: this process's rank, and how many there are; it gets every n-th image of each batch.
        pinned: hand out page-locked tensors, which a GPU fetches faster.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        seed: int | None = None,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
        pinned: bool = False,
    ) -> None:
        self.images, self.transform = images, transform
        self.order = BatchOrder(len(images), batch_size, seed, share)
        self.loader = _Loader(
            _Transformed(images, transform, seed),
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            # Of its own: a loader draws a number at each start, and one that goes on in mid-epoch starts once more.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, number: int, skip: int = 0) -> DataLoader[Any]:
        """Return the loader for one pass, its order set by the seed and the epoch's number.

        Args:
            number: of the epoch, from 1.
            skip: batches to leave out, since they were trained on before the run was interrupted.
        """
        self.order.epoch, self.order.skip = number, skip
        return self.loader


def choose_workers(asked: int | str, device: torch.device, images: int) -> int:
    """Choose how many processes decode images.

    Args:
        asked: data.workers.
        device: what computes; on a CPU the workers would take its cores away from it.
        images: in the set.
    """
    if isinstance(asked, int):
        return asked
    return 0 if device.type == "cpu" or images < 64 else min(8, os.cpu_count() or 1)


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
    if asked is False or images.prepared:
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
