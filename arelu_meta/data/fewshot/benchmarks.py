"""From a config's data to classes that are trained on and classes that are not; the literature's benchmarks by name."""

import contextlib
import io
import itertools
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.catalogue import CATALOGUE, pointer
from arelu_meta.data.fewshot.class_splits import (
    ClassSplits,
    checked_splits,
    divide_by_file,
    divide_by_seed,
    of_classes,
)
from arelu_meta.data.fewshot.omniglot import ALPHABETS, is_bright, load_alphabets, read_all_alphabets
from arelu_meta.data.image_folder import describe_parts, find_root, read_folder, read_folders, training_parts
from arelu_meta.data.image_io import Reading, digest_texts, to_channels
from arelu_meta.data.named_datasets import (
    GIVEN,
    NAMED_SETS,
    folders_around,
    kept_inside,
    load_digits,
    load_images,
    load_part,
    named_root,
    remove_empty,
)
from arelu_meta.data.splits import ImageSet, concatenate
from arelu_meta.errors import InputError, import_learn2learn, nearest_names

_MODES = ("train", "validation", "test")
_OMNIGLOT_PARTS = (1100, 1200)  # training characters, and those with the validation characters
_TURNS = 4


BENCHMARKS = {  # how learn2learn names their loaders
    "omniglot": "FullOmniglot",
    "mini-imagenet": "MiniImagenet",
    "tiered-imagenet": "TieredImagenet",
    "cifar-fs": "CIFARFS",
    "fc100": "FC100",
    "cub": "CUBirds200",
}
# What a loader raises where files are missing, damaged, or cannot be fetched.
_DAMAGED = (pickle.UnpicklingError, zipfile.BadZipFile, tarfile.TarError, EOFError)
_FAILURES = (*_DAMAGED, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError)


def load_benchmark(name: str, config: DataConfig, seed: int) -> ClassSplits:
    """Load a benchmark with the literature's division of its classes.

    Args:
        name: a key of `BENCHMARKS`.
        config: root (default: the data home), and download.
        seed: of Omniglot's division, which the literature draws at random.

    Returns:
        The parts. Omniglot: 1,100 characters to train on, 100 to validate and 423 to test on, and of every character
        its quarter turns, as characters of their own.

    Raises:
        MissingExtraError: if learn2learn is not installed.
        InputError: if the data is not there and cannot be downloaded, or Omniglot is to be turned a second time.

    Source: Vinyals et al. 2016 (Omniglot, mini-ImageNet, in Ravi and Larochelle's division), Ren et al. 2018
    (tiered-ImageNet), Bertinetto et al. 2019 (CIFAR-FS), Oreshkin et al. 2018 (FC100), Triantafillou et al. 2020 (CUB).
    """
    if name == "omniglot" and config.rotations:
        raise InputError("data.rotations: omniglot has its quarter turns among its classes already; leave it out")
    make = getattr(import_learn2learn(f"data.name {name}").vision.datasets, BENCHMARKS[name])
    if name == "omniglot":
        return _omniglot(_open(name, make, config), seed)
    sets = (_image_set(_open(name, partial(make, mode=mode), config), f"{name} {mode}") for mode in _MODES)
    train, validation, test = sets
    return ClassSplits(train, validation, test, (f"classes divided as in {name}",))


def _open(name: str, make: Callable[..., Any], config: DataConfig) -> Any:
    root = named_root(config)
    before = folders_around(root)
    try:
        with kept_inside():
            return make(root=str(root), download=False)
    except _FAILURES as error:
        missing = error
    remove_empty(folders_around(root) - before)
    where = f"data.name: {name!r} is missing or damaged in {str(root)!r}"
    if not config.download:
        raise InputError(
            f"{where} ({_reason(missing)}); put it there, or give --data.download true{pointer(name)}"
        ) from missing
    print(f"downloading {name} ({CATALOGUE[name].size}) to {root}", flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), kept_inside():
            return make(root=str(root), download=True)
    except _FAILURES as error:
        remove_empty(folders_around(root) - before)
        raise InputError(
            f"{where} and could not be downloaded ({_reason(error)}); put it there{pointer(name)}"
        ) from error


def _reason(error: BaseException) -> str:
    """Say in a few words what is wrong; a failed connection repeats itself at length."""
    text = str(error).split("\n")[0] or type(error).__name__
    return text if len(text) <= 120 else f"{type(error).__name__}: {text[:100]}…"


def _image_set(dataset: Any, name: str) -> ImageSet:
    """Make one of learn2learn's data sets an image set of its classes; its name tells its images from all others."""
    labels, names = _labels_of(dataset)
    present = np.unique(labels)
    classes = tuple(names[int(label)] if names is not None else str(label) for label in present)
    return ImageSet(
        classes=classes,
        labels=np.searchsorted(present, labels).astype(np.int64),
        names=tuple(str(index) for index in range(len(labels))),
        read=partial(_read, dataset),
        known_digests=digest_texts(f"{name} {index}" for index in range(len(labels))),
    )


def _labels_of(dataset: Any) -> tuple[np.ndarray[Any, Any], dict[int, str] | None]:
    """Find every image's label, and the labels' names where the loader knows them, without decoding an image."""
    if hasattr(dataset, "class_idx"):  # mini-ImageNet
        return np.asarray(dataset.y).astype(np.int64), {label: str(name) for name, label in dataset.class_idx.items()}
    if hasattr(dataset, "targets"):  # CIFAR-FS, a torchvision folder
        return np.asarray(dataset.targets), dict(enumerate(dataset.classes))
    if hasattr(dataset, "labels"):  # FC100, tiered-ImageNet
        return np.asarray(dataset.labels).astype(np.int64), None
    names = {label: Path(path).parent.name for path, label in dataset.data}  # CUB: paths with their labels
    return np.asarray([label for _, label in dataset.data]), names


def _read(dataset: Any, name: str) -> Image.Image:
    image = dataset[int(name)][0]
    if isinstance(image, torch.Tensor):  # mini-ImageNet: (3, 84, 84), 0 to 255
        image = Image.fromarray(image.permute(1, 2, 0).round().clamp(0, 255).byte().numpy())
    return to_channels(image, 3)


def _omniglot(dataset: Any, seed: int) -> ClassSplits:
    """Divide Omniglot's 1,623 characters at random, as Santoro et al. 2016 and the MAML paper do."""
    background, evaluation = dataset.dataset.datasets
    characters = [*background._characters, *evaluation._characters]
    later = len(background._characters)
    labels = [label for _, label in background._flat_character_images]
    labels += [label + later for _, label in evaluation._flat_character_images]
    classes = tuple(str(character).replace(os.sep, "/") for character in characters)
    whole = ImageSet(
        classes=classes,
        labels=np.asarray(labels, dtype=np.int64),
        names=tuple(str(index) for index in range(len(labels))),
        read=partial(_read_character, dataset),
        channels=1,
        known_digests=digest_texts(f"omniglot {index}" for index in range(len(labels))),
    )
    order = np.random.default_rng([seed, 2]).permutation(len(classes))
    train, validation, test = np.split(order, _omniglot_cuts(len(classes)))
    parts = [turned(of_classes(whole, part)) for part in (train, validation, test)]
    note = f"{len(train)}, {len(validation)} and {len(test)} characters, and their quarter turns as further ones"
    return ClassSplits(parts[0], parts[1], parts[2], (note,), inverted=True)


def _omniglot_cuts(characters: int) -> list[int]:
    """Cut where the literature does, or in the same proportions where only part of the data is there."""
    if characters == 1623:
        return list(_OMNIGLOT_PARTS)
    return [round(characters * cut / 1623) for cut in _OMNIGLOT_PARTS]


def _read_character(dataset: Any, name: str) -> Image.Image:
    return to_channels(dataset[int(name)][0], 1)


def turned(images: ImageSet) -> ImageSet:
    """Add every class turned by 90, 180 and 270 degrees, as classes of their own.

    Args:
        images: some classes of which may be empty.

    Returns:
        Four times the images and the classes.
    """
    names = [f"{turn}:{name}" for turn in range(_TURNS) for name in images.names]
    classes = [_turned_name(name, turn) for turn in range(_TURNS) for name in images.classes]
    labels = np.concatenate([images.labels + turn * len(images.classes) for turn in range(_TURNS)])
    digests = None if images.known_digests is None else np.tile(images.known_digests, _TURNS)
    read = _Turned(images.read)
    return ImageSet(tuple(classes), labels, tuple(names), read, images.channels, images.skipped, digests)


def _turned_name(name: str, turn: int) -> str:
    """Name a turned class; a turned alphabet is another alphabet, so that no task of one has a character twice."""
    alphabet, slash, character = name.rpartition("/")
    if not turn:
        return name
    return f"{alphabet} turned by {90 * turn}/{character}" if slash else f"{name} turned by {90 * turn}"


@dataclass(frozen=True)
class _Turned:
    """Reads an image and turns it; the name starts with the number of quarter turns."""

    read: Callable[[str], Image.Image]

    def __call__(self, name: str) -> Image.Image:
        turn, _, rest = name.partition(":")
        return self.read(rest).rotate(90 * int(turn), expand=True)


def load_class_splits(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    """Load images and divide their classes into training, validation and test classes.

    Args:
        config: name and root; Omniglot's alphabets and the benchmarks of the literature are divided as they are there.
        task: ways, shots and queries, which every part must allow; the file that divides the classes, and whether a
            task's characters are all of one alphabet.
        seed: of the division.

    Returns:
        The parts, no test class among the training classes.

    Raises:
        InputError: if there are too few classes for the ways, or too few images in one for shots plus queries.
    """
    return checked_splits(_load_divided(config, task, seed), task)


def _load_divided(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    name = name_of(config)
    if name == GIVEN:
        raise InputError(
            "data.name: 'given' stands for tasks or a data set that Python code handed over; hand them over again, as "
            "metatrain(config, tasks=tasks), or name other images by --data.root"
        )
    if name in BENCHMARKS:
        if task.split_file is not None:
            raise InputError(f"task.split_file: {name} brings its own division; leave it out")
        return load_benchmark(name, config, seed)
    if task.split_file is not None:
        splits = divide_by_file(concatenate(load_whole(config)), task.split_file)
        return replace(splits, inverted=name in ALPHABETS and is_bright(splits.train))
    if name in ALPHABETS:
        return load_alphabets(config, task, seed)
    parts = load_whole(config)
    own = _own_division(parts, config) if name == "folder" else None
    return own or divide_by_seed(concatenate(parts), task, seed)


def name_of(config: DataConfig) -> str:
    """Return data.name as it is looked up: folder or digits where none is given.

    Args:
        config: name and root.
    """
    return (config.name or ("folder" if config.root else "digits")).lower()


def load_whole(config: DataConfig) -> list[ImageSet]:
    """Load every image of a set, its own parts apart.

    Args:
        config: name, root, skip_broken, download.

    Returns:
        One set, or the training, validation and test parts that the data brings (fewer where it brings fewer).
    """
    name = name_of(config)
    if name == "digits":
        return [load_digits()]
    if name in ALPHABETS:
        return [read_all_alphabets(config)]
    if name in BENCHMARKS:
        splits = load_benchmark(name, config, 0)
        return [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    if name in NAMED_SETS:
        spec = NAMED_SETS[name]
        arguments = [part for part in (spec.train, spec.validation, spec.test) if part is not None]
        return [load_part(name, part, config) for part in arguments]
    if name != "folder":
        _refuse_name(config)
    if config.root is None:
        load_images(config, 0)  # says what is wrong
    root = find_root(config.root or "")
    folders = training_parts(root)
    if not folders:
        return [read_folder(root, root, Reading.of(config))]
    return list(read_folders(folders, root, Reading.of(config)).values())


def _refuse_name(config: DataConfig) -> None:
    known = ["folder", "digits", *ALPHABETS, *BENCHMARKS, *NAMED_SETS]
    nearest = nearest_names((config.name or "").lower(), known)
    try:
        find_root(config.name or "")
    except InputError:
        raise InputError(f"data.name: {config.name!r} is not known; {nearest}") from None
    raise InputError(f"data.name: {config.name!r} is not known; {nearest}; a folder goes by --data.root {config.name}")


def _own_division(parts: list[ImageSet], config: DataConfig) -> ClassSplits | None:
    """Keep the division of a folder whose train, val and test sub-folders hold different classes.

    Raises:
        InputError: if they hold some classes in common and others not: no division by class, and none by image.
    """
    held = [set(part.classes) for part in parts]
    if len(parts) < 2 or all(one <= held[0] for one in held):  # a part may lack some
        return None
    root = find_root(config.root or "")
    found = training_parts(root)
    folders = [folder.name for folder in found.values()]
    for (first, a), (second, b) in itertools.combinations(zip(folders, held, strict=True), 2):
        if a & b:
            raise InputError(
                f"data.root: class {min(a & b)!r} is in {first}/ and in {second}/ of {config.root!r}, and other "
                "classes are in one alone; give each class to one part, or all classes to all"
            )
    notes = ("classes divided as in the folder", *describe_parts(root, found))
    return ClassSplits(parts[0], parts[1] if len(parts) == 3 else None, parts[-1], notes)
