"""From a config's data to labelled images: a folder, the embedded digits, torchvision's sets by name, MNIST-M."""

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.catalogue import pointer
from arelu_meta.data.image_folder import data_home, find_root, load_folder, part_folders, read_folder
from arelu_meta.data.image_io import (
    Digests,
    Reading,
    digest_pixels,
    digest_texts,
    to_channels,
)
from arelu_meta.data.labels_file import load_labels
from arelu_meta.data.splits import (
    ImageSet,
    Labels,
    Provenance,
    Splits,
    fill_splits,
    note_overlaps,
    note_tested_copies,
    overlapping,
    split_whole,
    take_fold,
    thin,
)
from arelu_meta.errors import InputError, nearest_names


@contextlib.contextmanager
def kept_inside() -> Iterator[None]:
    """Refuse tar members that leave their folder, or are no plain files, inside the block, whoever unpacks them.

    torchvision and learn2learn call `extractall` without a filter, which before Python 3.14 trusts every name. Members
    of zip files lose `..` and leading slashes in zipfile itself.

    Raises:
        tarfile.FilterError: from whatever unpacks, naming the member.

    Source: PEP 706.
    """
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        if before is None:
            del tarfile.TarFile.extraction_filter
        else:
            tarfile.TarFile.extraction_filter = before


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class NamedSet:
    """How torchvision names a set's parts.

    Args:
        kind: the class in `torchvision.datasets`.
        train: arguments of its training part.
        test: arguments of its test part; None where it has none.
        validation: arguments of its validation part; None where it has none.
        grey: whether images have one channel.
        mirrored: whether an image and its mirror image mean the same.
    """

    kind: str
    train: dict[str, Any] = field(default_factory=lambda: {"train": True})
    test: dict[str, Any] | None = field(default_factory=lambda: {"train": False})
    validation: dict[str, Any] | None = None
    grey: bool = False
    mirrored: bool = True


_SPLIT: dict[str, Any] = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLIT_VAL: dict[str, Any] = {**_SPLIT, "validation": {"split": "val"}}
_GREY: dict[str, Any] = {"grey": True, "mirrored": False}
NAMED_SETS: dict[str, NamedSet] = {
    "mnist": NamedSet("MNIST", **_GREY),
    "fashionmnist": NamedSet("FashionMNIST", grey=True),
    "kmnist": NamedSet("KMNIST", **_GREY),
    "qmnist": NamedSet("QMNIST", **_GREY),
    "emnist": NamedSet("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}, **_GREY),
    "usps": NamedSet("USPS", **_GREY),
    "semeion": NamedSet("SEMEION", {"download": False}, None, **_GREY),
    "omniglot": NamedSet("Omniglot", {"background": True}, None, **_GREY),
    "svhn": NamedSet("SVHN", **_SPLIT, mirrored=False),
    "cifar10": NamedSet("CIFAR10"),
    "cifar100": NamedSet("CIFAR100"),
    "stl10": NamedSet("STL10", **_SPLIT),
    "flowers102": NamedSet("Flowers102", **_SPLIT_VAL),
    "food101": NamedSet("Food101", **_SPLIT),
    "oxfordiiitpet": NamedSet("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "fgvcaircraft": NamedSet("FGVCAircraft", **_SPLIT_VAL),
    "dtd": NamedSet("DTD", **_SPLIT_VAL),
    "gtsrb": NamedSet("GTSRB", **_SPLIT, mirrored=False),
    "stanfordcars": NamedSet("StanfordCars", **_SPLIT),
    "country211": NamedSet("Country211", {"split": "train"}, {"split": "test"}, {"split": "valid"}, mirrored=False),
    "renderedsst2": NamedSet("RenderedSST2", **_SPLIT_VAL, mirrored=False),
    "pcam": NamedSet("PCAM", **_SPLIT_VAL),
    "sun397": NamedSet("SUN397", {}, None),
    "eurosat": NamedSet("EuroSAT", {}, None),
    "caltech101": NamedSet("Caltech101", {}, None),
    "caltech256": NamedSet("Caltech256", {}, None),
    "imagenette": NamedSet("Imagenette", {"split": "train"}, {"split": "val"}),
    "imagenet": NamedSet("ImageNet", {"split": "train"}, {"split": "val"}),
    "places365": NamedSet("Places365", {"split": "train-standard"}, {"split": "val"}),
}


def load_digits() -> ImageSet:
    """Load scikit-learn's digits: 1,797 grey images of 8 × 8 pixels, 10 classes, embedded in the package.

    Source: Alpaydin and Kaynak 1998, the test part of "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    pixels = np.rint(bunch.images / 16 * 255).astype(np.uint8)
    return ImageSet(
        classes=tuple(str(name) for name in bunch.target_names),
        labels=bunch.target.astype(np.int64),
        names=tuple(str(index) for index in range(len(pixels))),
        read=partial(_read_array, pixels),
        channels=1,
        known_digests=digest_pixels(pixels),
    )


def _read_array(pixels: np.ndarray[Any, np.dtype[np.uint8]], name: str) -> Image.Image:
    return Image.fromarray(pixels[int(name)])


def load_named(name: str, config: DataConfig, seed: int) -> Splits:
    """Load a torchvision set by name, its own split kept and what is missing of it cut.

    Args:
        name: a key of `NAMED_SETS`.
        config: root (default: the data home) and download.
        seed: of the cuts.

    Raises:
        InputError: if it is not there and cannot be downloaded.
    """
    spec = NAMED_SETS[name]
    parts = [
        None if arguments is None else load_part(name, arguments, config)
        for arguments in (spec.train, spec.validation, spec.test)
    ]
    train, validation, test = parts
    assert train is not None
    return replace(fill_splits(train, validation, test, seed), mirrored=spec.mirrored)


def load_part(name: str, arguments: dict[str, Any], config: DataConfig) -> ImageSet:
    """Load one part of a torchvision set.

    Args:
        name: a key of `NAMED_SETS`.
        arguments: what tells the part, such as `{"train": True}`.
        config: root and download.

    Raises:
        InputError: if it is not there and cannot be downloaded.
    """
    spec = NAMED_SETS[name]
    dataset = open_part(name, arguments, config)
    labels = _labels(dataset)
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = [str(item) for item in classes] if classes else [str(label) for label in range(labels.max() + 1)]
    if len(names) <= labels.max():  # some sets count their labels from 1
        names += [str(label) for label in range(len(names), labels.max() + 1)]
    return ImageSet(
        classes=tuple(names),
        labels=labels,
        names=tuple(str(index) for index in range(len(labels))),
        read=_ReadItem(dataset, 1 if spec.grey else 3),
        channels=1 if spec.grey else 3,
        known_digests=_digests(dataset, name, arguments, len(labels)),
    )


def _digests(dataset: Any, name: str, arguments: dict[str, Any], images: int) -> Digests:
    """Tell images apart by their pixels where torchvision holds them decoded, else by their place in the set."""
    held = getattr(dataset, "data", None)
    if held is not None and hasattr(held, "shape") and len(held) == images:
        return digest_pixels(np.asarray(held))
    return digest_texts(f"{name} {sorted(arguments.items())} {index}" for index in range(images))


def open_part(name: str, arguments: dict[str, Any], config: DataConfig) -> Any:
    """Open one part of a torchvision set, as torchvision has it.

    Args:
        name: a key of `NAMED_SETS`.
        arguments: what tells the part.
        config: root and download.

    Raises:
        InputError: if it is not there and cannot be downloaded.
    """
    import torchvision.datasets

    make: Callable[..., Any] = getattr(torchvision.datasets, NAMED_SETS[name].kind)
    root = named_root(config)
    before = folders_around(root)
    try:
        with kept_inside():
            return make(root, **arguments)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        missing = error
    if not config.download:
        remove_empty(folders_around(root) - before)
        raise InputError(
            f"data.name: {name!r} is missing or damaged in {str(root)!r} ({missing}); give --data.download true"
            f"{pointer(name)}"
        )
    try:
        # torchvision reports its own tries; one sentence is left of them if all fail.
        with contextlib.redirect_stdout(io.StringIO()), kept_inside():
            return make(root, **{**arguments, "download": True})
    except (RuntimeError, OSError, TypeError, ValueError, tarfile.TarError) as error:
        remove_empty(folders_around(root) - before)
        reason = str(error).split("\n")[0].rstrip(":")
        raise InputError(
            f"data.name: {name!r} is missing or damaged in {str(root)!r} and could not be downloaded ({reason}); "
            f"put it there{pointer(name)}"
        ) from error


def folders_around(root: Path) -> set[Path]:
    """List a folder, those above it and two levels below: all that a loader makes before it downloads.

    Args:
        root: need not be there.
    """
    return {path for path in (root, *root.parents, *root.glob("*"), *root.glob("*/*")) if path.is_dir()}


def remove_empty(folders: set[Path]) -> None:
    """Remove what a loader made and left empty: it would take it for the data the next time.

    Args:
        folders: those that it made, empty or not.
    """
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):  # not empty: a download that may go on
            folder.rmdir()


def named_root(config: DataConfig) -> Path:
    """Return the folder that a set's data lies in: data.root, also below the data home, or the data home.

    Args:
        config: its root.
    """
    if config.root is None:
        return data_home()
    given = Path(os.path.expanduser(config.root))  # noqa: PTH111 (pathlib's raises where there is no such user)
    below = data_home() / given
    return below if below.is_dir() and not given.is_dir() else given


def labels_held(dataset: Any) -> list[Any] | None:
    """Find the labels that a data set holds apart from its images, or None.

    Args:
        dataset: torchvision's, or one that keeps them as its sets do.
    """
    for attribute in ("targets", "labels", "_labels", "y"):
        found: Any = getattr(dataset, attribute, None)
        if hasattr(found, "__len__") and len(found) == len(dataset):
            return list(found)
    for attribute in ("_samples", "samples", "_flat_character_images"):
        found = getattr(dataset, attribute, None)
        if hasattr(found, "__len__") and len(found) == len(dataset):
            return [sample[1] for sample in found]
    return None


def _labels(dataset: Any) -> Labels:
    held = labels_held(dataset)
    return np.asarray(
        [item[1] for item in map(dataset.__getitem__, range(len(dataset)))] if held is None else held
    ).astype(np.int64)


@dataclass(frozen=True)
class _ReadItem:
    """Reads an image of a torchvision set; the name is its index."""

    dataset: Any
    channels: int

    def __call__(self, name: str) -> Image.Image:
        return to_channels(self.dataset[int(name)][0], self.channels)


def pixels_in_memory(images: ImageSet) -> Pixels | None:
    """Return the images of a set that torchvision holds decoded, as reading one after the other gives them.

    Args:
        images: any set.

    Returns:
        Shape (images, height, width) of grey ones and (images, height, width, 3) of others, uint8; None where they are
        decoded one by one.
    """
    if not isinstance(images.read, _ReadItem):
        return None
    held = getattr(images.read.dataset, "data", None)
    if held is None or isinstance(held, list):
        return None
    pixels = np.asarray(held)
    if pixels.dtype != np.uint8 or pixels.shape[3:] != (() if images.channels == 1 else (3,)):
        return None
    return pixels[np.array(images.names, dtype=np.int64)]


NAME = "mnist-m"
_SIDE = 28
_PHOTOGRAPHS = "cifar10-subset"
MNIST_M_NEEDS = ("mnist", _PHOTOGRAPHS, "cifar10")  # the digits, and either of the others


def load_mnist_m(config: DataConfig, seed: int) -> Splits:
    """Blend MNIST's digits over CIFAR-10's photographs: training digits over training ones, test over test ones.

    Which photograph, and which part of it, is decided by the digit's number alone: the set is always the same.

    Args:
        config: root (default: the data home) and download.
        seed: of the validation images, which are cut from the training images.

    Returns:
        60,000 training (some of them for validation) and 10,000 test images, RGB, 28 x 28, where MNIST is whole.

    Raises:
        InputError: if MNIST or the photographs are missing.

    Source: Ganin and Lempitsky 2015, section 4: the absolute difference of a digit and a patch of a photograph.
    """
    parts = []
    for number, arguments in enumerate((NAMED_SETS["mnist"].train, NAMED_SETS["mnist"].test)):
        assert arguments is not None
        digits = load_part("mnist", arguments, config)
        photographs = _photographs(config, "test" if number else "train")
        parts.append(replace(digits, read=_Blended(digits, photographs, number), channels=3))
    return replace(fill_splits(parts[0], None, parts[1], seed), mirrored=False)


def _photographs(config: DataConfig, part: str) -> ImageSet:
    for home in (named_root(config), data_home()):
        folders = part_folders(home / _PHOTOGRAPHS) if (home / _PHOTOGRAPHS).is_dir() else {}
        if part in folders:
            return read_folder(folders[part], home / _PHOTOGRAPHS, Reading(skip_broken=True))
    try:
        return load_part("cifar10", {"train": part == "train"}, config)
    except InputError as error:
        raise InputError(
            f"data.name: {NAME!r} needs photographs, and neither {_PHOTOGRAPHS!r} nor CIFAR-10 lies in "
            f"{str(named_root(config))!r}; put one there, or give --data.download true{pointer(NAME)}"
        ) from error


@dataclass(frozen=True)
class _Blended:
    """Reads a digit over its photograph.

    Args:
        digits: of one part, grey.
        photographs: of the same part.
        part: 0 for training, 1 for the test, so that the same number has another photograph in each.
    """

    digits: ImageSet
    photographs: ImageSet
    part: int

    def __call__(self, name: str) -> Image.Image:
        draw = np.random.default_rng([self.part, int(name)])
        photograph = self.photographs[int(draw.integers(len(self.photographs)))][0].convert("RGB")
        if min(photograph.size) < _SIDE:
            photograph = photograph.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        left, top = (int(draw.integers(side - _SIDE + 1)) for side in photograph.size)
        patch = np.asarray(photograph.crop((left, top, left + _SIDE, top + _SIDE)), dtype=np.int16)
        digit = np.asarray(self.digits.read(name), dtype=np.int16)[..., None]
        return Image.fromarray(np.abs(patch - digit).astype(np.uint8))


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


GIVEN = "given"
"""What a config says of data sets that Python code handed over."""


def load_images(config: DataConfig, seed: int, seen: Provenance | None = None) -> Splits:
    """Load the images that a config names, split into training, validation and test.

    A split that the data brings is kept; what is missing of it is cut, stratified by class, with the seed. The test
    set is chosen first and depends on nothing but the seed; `per_class` thins out the training images only.

    Args:
        config: name, root, per_class, folds, fold (the first where none is named), skip_broken, download.
        seed: of the split.
        seen: what the model was trained on before; where the split is ours, other images are tested on.

    Returns:
        The three parts.

    Raises:
        InputError: if the data is missing or unusable, naming the folder, class or file.
    """
    return finish_splits(_load(config, seed, seen), config, seed, seen)


def finish_splits(splits: Splits, config: DataConfig, seed: int, seen: Provenance | None) -> Splits:
    """Take the fold and the number of training images that a config asks for, and count what was seen.

    Args:
        splits: all images.
        config: per_class, folds, fold.
        seed: of the folds and of the choice.
        seen: what the model was trained on before.

    Raises:
        InputError: if a class has too few images for either.
    """
    if config.folds is not None:
        splits = take_fold(splits, config.folds, config.fold or 1, seed)
    if config.per_class is not None:
        splits = replace(splits, train=thin(splits.train, config.per_class, seed))
    splits = note_overlaps(replace(splits, notes=(*splits.notes, *note_tested_copies(splits.test))))
    return replace(splits, test_seen=_count_seen(splits, seen or Provenance()))


def _count_seen(splits: Splits, seen: Provenance) -> int | None:
    """Count the test images that are not new to the model; None where nobody knows what it has seen."""
    count = int((seen.has_seen(splits.test) | overlapping(splits)).sum())
    return count if count or seen.complete else None


def _load(config: DataConfig, seed: int, seen: Provenance | None) -> Splits:
    name = (config.name or ("folder" if config.root or config.labels else "digits")).lower()
    if config.labels is not None:
        if name != "folder":
            raise InputError(f"data.name: {config.name!r} has labels of its own; leave it out, or data.labels")
        return load_labels(config, seed, seen)
    if name == "folder":
        if config.root is None:
            raise InputError("data.root: missing; data.name folder needs a folder with one sub-folder a class")
        return load_folder(find_root(config.root), seed, Reading.of(config), seen)
    if name == GIVEN:
        raise InputError(
            "data.name: 'given' stands for data sets that Python code handed over; hand them over again, as "
            "finetune(config, train=dataset) or evaluate(run, data=dataset), or give --data.root"
        )
    if name == "digits":
        return split_whole(load_digits(), seed, mirrored=False, seen=seen)
    if name == "omniglot-small":
        raise InputError(
            "data.name: 'omniglot-small' is divided for few-shot tasks; only arelu-meta metatrain takes it"
        )
    if name == "mnist-m":
        return load_mnist_m(config, seed)
    if name not in NAMED_SETS:
        known = ["folder", "digits", "omniglot-small", "mnist-m", *NAMED_SETS]
        folder = f"; a folder goes by --data.root {config.name}" if _is_folder(config.name or "") else ""
        raise InputError(f"data.name: {config.name!r} is not known; {nearest_names(name, known)}{folder}")
    return load_named(name, config, seed)


def _is_folder(name: str) -> bool:
    return any((place / name).is_dir() for place in (Path(), data_home()))
