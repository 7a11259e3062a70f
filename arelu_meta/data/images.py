"""Labelled images: a folder of photographs, a torchvision set or the embedded digits, split once by the seed."""

import itertools
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.provenance import Provenance
from arelu_meta.data.reading import check_files, is_candidate, read_image
from arelu_meta.data.sets import ImageSet, Labels, Splits, concatenate
from arelu_meta.data.splitting import fill_splits, note_overlaps, overlapping, split_whole, take_fold, thin
from arelu_meta.errors import InputError, nearest_names

__all__ = [
    "ImageSet",
    "Labels",
    "Splits",
    "check_encodable",
    "class_holders",
    "concatenate",
    "data_home",
    "fill_splits",
    "find_candidates",
    "find_root",
    "load_folder",
    "load_images",
    "part_folders",
    "read_folder",
    "split_whole",
    "training_parts",
]

_PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def data_home() -> Path:
    """Return where data lies by default: $ARELU_META_DATA, else ~/.cache/arelu-meta/data."""
    return Path(os.environ.get("ARELU_META_DATA") or "~/.cache/arelu-meta/data").expanduser()


def find_root(root: str) -> Path:
    """Find a folder of images: as it is given, else below the data home.

    Args:
        root: data.root.

    Returns:
        The folder.

    Raises:
        InputError: if there is none.
    """
    given = Path(os.path.expanduser(root))  # noqa: PTH111 (pathlib's raises where there is no such user)
    for candidate in (given, data_home() / given):
        if _is_folder_to_read(candidate):
            return candidate
    if given.is_file():
        raise InputError(f"data.root: {root!r} is a file; give a folder with one sub-folder a class")
    raise InputError(f"data.root: {root!r} does not exist; give a folder with one sub-folder a class")


def _is_folder_to_read(path: Path) -> bool:
    try:
        if not path.is_dir():
            return False
        (path / "train").is_dir()  # raises where what lies in the folder may not be looked at
    except PermissionError as error:
        raise _unreadable("data.root", path, error) from error
    return True


def _unreadable(where: str, folder: Path | str, error: OSError) -> InputError:
    return InputError(f"{where}: {str(folder)!r} cannot be read ({error.strerror}); give another")


def class_holders(config: DataConfig) -> list[Path]:
    """List the folders whose sub-folders a config reads as classes; none for a set that goes by another name.

    Args:
        config: name and root.

    Raises:
        InputError: if the root is missing.
    """
    if config.root is None or (config.name or "folder").lower() != "folder":
        return []
    root = find_root(config.root)
    return list(part_folders(root).values()) or [root]


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
    splits = note_overlaps(_load(config, seed, seen))
    if config.folds is not None:
        splits = take_fold(splits, config.folds, config.fold or 1, seed)
    if config.per_class is not None:
        splits = replace(splits, train=thin(splits.train, config.per_class, seed))
    return replace(splits, test_seen=_count_seen(splits, seen or Provenance()))


def _count_seen(splits: Splits, seen: Provenance) -> int | None:
    """Count the test images that are not new to the model; None where nobody knows what it has seen."""
    count = int((seen.has_seen(splits.test) | overlapping(splits)).sum())
    return count if count or seen.complete else None


def _load(config: DataConfig, seed: int, seen: Provenance | None) -> Splits:
    from arelu_meta.data.mnist_m import load_mnist_m
    from arelu_meta.data.named import NAMED_SETS, load_digits, load_named

    name = (config.name or ("folder" if config.root else "digits")).lower()
    if name == "folder":
        if config.root is None:
            raise InputError("data.root: missing; data.name folder needs a folder with one sub-folder a class")
        return load_folder(find_root(config.root), seed, config.skip_broken, seen)
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


def load_folder(root: Path, seed: int, skip_broken: bool = False, seen: Provenance | None = None) -> Splits:
    """Load a folder of images: a sub-folder a class, with or without `train`, `val` and `test` above them.

    Args:
        root: the folder.
        seed: of the split, where the folder has none.
        skip_broken: leave out files that are not images.
        seen: what the model was trained on before.

    Returns:
        The three parts. Where there is `val` but no `test`, `val` is the test set (as on ImageNet) and validation
        images are cut from the training images.

    Raises:
        InputError: naming the class without images, or the first file that is not an image.
    """
    parts = training_parts(root)
    if not parts:
        whole = read_folder(root, root, skip_broken)
        return replace(split_whole(whole, seed, seen=seen), skipped=whole.skipped)
    notes = []
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        notes.append(f"{parts['test'].name}/ is the test set; validation images are cut from the training images")
    loaded = {part: read_folder(folder, root, skip_broken) for part, folder in parts.items()}
    for part, images in loaded.items():
        if images.classes != loaded["train"].classes:
            odd = sorted(set(images.classes) ^ set(loaded["train"].classes))
            raise InputError(f"data.root: {str(root)!r}: class {odd[0]!r} is not in both train and {part}")
    filled = fill_splits(loaded["train"], loaded.get("validation"), loaded.get("test"), seed, seen)
    return replace(
        filled,
        notes=(*notes, *filled.notes),
        skipped=tuple(name for images in loaded.values() for name in images.skipped),
    )


def part_folders(root: Path) -> dict[str, Path]:
    """Find the train, val and test folders of a root, unless they hold images themselves: then they are classes.

    `Training` and `TEST` are some, too: as classes they would be learned, and nobody would know.

    Args:
        root: a folder of images.

    Returns:
        Those of `train`, `validation` and `test` that are there, in this order.

    Raises:
        InputError: if two folders are the same part.
    """
    parts: dict[str, Path] = {}
    folders = _class_folders(root)
    for part, names in _PARTS.items():
        for folder in [one for one in folders if one.name.lower() in names and _class_folders(one)]:
            if part in parts and not folder.samefile(parts[part]):
                raise InputError(
                    f"data.root: {str(root)!r} has {parts[part].name}/ and {folder.name}/, which are both the {part} "
                    f"images; keep one, or put what is in both into one"
                )
            parts.setdefault(part, folder)
    return parts


def training_parts(root: Path) -> dict[str, Path]:
    """Find the train, val and test folders of a root to train on.

    Args:
        root: a folder of images.

    Returns:
        Those that are there, `train` among them; none where the root holds classes.

    Raises:
        InputError: if there is val or test, but nothing to train on.
    """
    parts = part_folders(root)
    if parts and "train" not in parts:
        there = " and ".join(f"{folder.name}/" for folder in parts.values())
        raise InputError(f"data.root: {str(root)!r} has {there} but no train/; put the training images there")
    return parts


def _class_folders(folder: Path, where: str = "data.root") -> list[Path]:
    """List the sub-folders that are classes: all but hidden ones and links that lead back up."""
    try:
        return sorted(
            child
            for child in folder.iterdir()
            if child.is_dir() and not child.name.startswith(".") and not _leads_back(child, folder)
        )
    except OSError as error:
        raise _unreadable(where, folder, error) from error


def _leads_back(child: Path, start: Path) -> bool:
    """Say whether a folder is a link to one that holds it, or the start: its images would be all classes' images."""
    if not child.is_symlink():
        return False
    target = child.resolve()
    return any(place.resolve().is_relative_to(target) for place in (child.parent, start))


def read_folder(folder: Path, root: Path, skip_broken: bool, where: str = "data.root") -> ImageSet:
    """Read a folder with one sub-folder a class; images may lie deeper.

    Args:
        folder: what holds the classes.
        root: what names are relative to.
        skip_broken: leave out files that are not images.
        where: the flag that named it, for errors.

    Returns:
        The images; `skipped` lists the files left out.

    Raises:
        InputError: naming the class or the file.
    """
    found = {child.name: find_candidates(child, where) for child in _class_folders(folder, where)}
    for path in itertools.chain([folder / name for name in found], *found.values()):
        check_encodable(path, where)
    if len(found) < 2:
        raise InputError(f"{where}: {str(folder)!r} has {len(found)} sub-folders; at least 2 classes are needed")
    digests = check_files([path for paths in found.values() for path in paths])
    broken = {path for path, digest in digests.items() if digest is None}
    if broken and not skip_broken:
        first = min(broken)
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        fault = "is not a whole image" if os.access(first, os.R_OK) else "may not be read by this user"
        raise InputError(f"{where}: {str(first)!r}{more} {fault}; remove it or give --data.skip_broken")
    for name, paths in found.items():
        found[name] = [path for path in paths if path not in broken]
        if not found[name]:
            raise InputError(f"{where}: class {name!r} in {str(folder)!r} has no image; every class needs at least one")
    classes = tuple(found)
    return ImageSet(
        classes=classes,
        labels=np.array([label for label, name in enumerate(classes) for _ in found[name]], dtype=np.int64),
        names=tuple(path.relative_to(root).as_posix() for paths in found.values() for path in paths),
        read=partial(_read_below, root),
        skipped=tuple(sorted(path.relative_to(root).as_posix() for path in broken)),
        known_digests=np.array([digests[path] for paths in found.values() for path in paths], dtype=np.uint64),
    )


def find_candidates(folder: Path, where: str = "data.root") -> list[Path]:
    """List the files below a folder that are meant as images; hidden folders, such as editors leave, are not searched.

    Args:
        folder: searched to any depth, through links to other folders too, but each folder once.
        where: the flag that named it, for errors.

    Raises:
        InputError: if a folder in it cannot be read: its images would be missing, and nobody would know.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(where, str(error.filename), error) from error

    found: list[Path] = []
    searched: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(place)
        if (real := here.resolve()) in searched:  # a link to where we were: it could lead in a circle
            folders.clear()
            continue
        searched.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(here / name, folder)]
        found += [here / name for name in files]
    try:
        return sorted(path for path in found if is_candidate(path))
    except PermissionError as error:  # of a folder whose names alone may be read
        raise _unreadable(where, str(error.filename), error) from error


def check_encodable(path: Path, where: str) -> None:
    """Refuse a name that no file of ours could hold.

    Args:
        path: of an image or a class.
        where: the flag that named it, for errors.

    Raises:
        InputError: if the name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the name {str(path)!r} is not UTF-8; rename it (convmv does)") from error


def _read_below(root: Path, name: str) -> Image.Image:
    try:
        return read_image(root / name)
    except OSError as error:
        raise InputError(f"data.root: {str(root / name)!r} could not be read any more ({error})") from error
