"""A folder of images: one sub-folder a class, with or without train, val and test above them."""

import itertools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from arelu_meta.config import DataConfig
from arelu_meta.data.catalogue import pointer
from arelu_meta.data.image_io import (
    Checked,
    Reading,
    check_files,
    choose_range,
    compose,
    is_candidate,
    is_of_a_system,
    read_image,
)
from arelu_meta.data.splits import (
    ImageSet,
    Provenance,
    Splits,
    fill_splits,
    split_whole,
)
from arelu_meta.errors import InputError, counted
from arelu_meta.validation import expanded

# A part by its name alone, whatever it holds; other names say it by one of their words.
PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
_ENDS = "(ing|s|sets?|data|images?|imgs?|split|part)*"
_WORDS = {
    "train": f"(train|trainval|trn|learn){_ENDS}",
    "validation": f"(val|valid|validation|dev|development){_ENDS}",
    "test": f"(test|tst|eval|evaluation|hold|holdout|held|heldout|unseen|query){_ENDS}",
}


_TABLES = ("labels.csv", "metadata.csv", "train.csv")  # what such files are called
_PLAINLY = Reading()


def data_home() -> Path:
    """Return where data lies by default: $ARELU_META_DATA, else ~/.cache/arelu-meta/data."""
    return expanded(os.environ.get("ARELU_META_DATA") or "~/.cache/arelu-meta/data")


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
    raise InputError(
        f"data.root: {root!r} does not exist; give a folder with one sub-folder a class{pointer(given.name)}"
    )


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
    """List the folders whose sub-folders a config reads as classes; none where a name or a CSV tells the images.

    Args:
        config: name, root and labels.

    Raises:
        InputError: if the root or the CSV is missing.
    """
    if config.labels is not None:
        find_labels(config)
        return []
    if config.root is None or (config.name or "folder").lower() != "folder":
        return []
    root = find_root(config.root)
    return list(part_folders(root).values()) or [root]


def find_labels(config: DataConfig) -> Path:
    """Find the CSV of data.labels: as it is given, below the data home, or in data.root.

    Args:
        config: labels and root.

    Raises:
        InputError: if there is none.
    """
    given = expanded(config.labels or "")
    places = [Path(), data_home()] + ([find_root(config.root)] if config.root is not None else [])
    found = next((place / given for place in places if (place / given).is_file()), None)
    if found is None:
        kind = "is a folder" if given.is_dir() else "does not exist"
        raise InputError(f"data.labels: {config.labels!r} {kind}; give a CSV with the columns file,label")
    return found


def load_folder(root: Path, seed: int, reading: Reading = _PLAINLY, seen: Provenance | None = None) -> Splits:
    """Load a folder of images: a sub-folder a class, with or without `train`, `val` and `test` above them.

    Args:
        root: the folder.
        seed: of the split, where the folder has none.
        reading: how files are read.
        seen: what the model was trained on before.

    Returns:
        The three parts. Where there is `val` but no `test`, `val` is the test set (as on ImageNet) and validation
        images are cut from the training images.

    Raises:
        InputError: naming the class without images, or the first file that is not an image.
    """
    parts = training_parts(root)
    if not parts:
        whole = read_folder(root, root, reading)
        splits = split_whole(whole, seed, seen=seen)
        notes = (*_note_strays(root), *_note_same_below(whole.names), *splits.notes, *whole.remarks)
        return replace(splits, skipped=whole.skipped, notes=notes)
    loaded = read_folders(parts, root, reading)
    places = {part: f"{folder.name}/" for part, folder in parts.items()}
    filled = splits_of_parts(loaded, places, f"data.root: {str(root)!r}", seed, seen)
    used = parts if "test" in parts else {"test" if part == "validation" else part: parts[part] for part in parts}
    return replace(
        filled,
        notes=(*describe_parts(root, used), *filled.notes, *loaded["train"].remarks),
        skipped=tuple(name for images in loaded.values() for name in images.skipped),
    )


def splits_of_parts(
    loaded: Mapping[str, ImageSet], places: Mapping[str, str], where: str, seed: int, seen: Provenance | None
) -> Splits:
    """Number the parts' classes alike, and cut what is missing from the training images.

    Args:
        loaded: `train`, and `validation` and `test` or not.
        places: where each part lies, for notes and errors.
        where: what the errors start with.
        seed: of the cuts.
        seen: what the model was trained on before.

    Returns:
        The three parts. Where there is validation but no test, it is the test set (as on ImageNet).

    Raises:
        InputError: naming a class that is not trained on, or is too small to be cut.
    """
    found, said = dict(loaded), []
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
        said.append(f"{places['validation']} is the test set; validation images are cut from the training images")
    classes = found["train"].classes
    for part, images in found.items():
        for name in images.classes:
            if name not in classes:
                place = places["validation" if part not in loaded else part]
                raise InputError(
                    f"{where}: class {name!r} is in {place} and not in {places['train']}; give it training images, or "
                    "take it out"
                )
        if absent := [name for name in classes if name not in images.classes]:
            named = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            said.append(f"no {part} image of {len(absent)} of {len(classes)} classes ({named})")
        labels = np.array([classes.index(name) for name in images.classes], dtype=np.int64)[images.labels]
        found[part] = replace(images, classes=classes, labels=labels)
    filled = fill_splits(found["train"], found.get("validation"), found.get("test"), seed, seen)
    return replace(filled, notes=(*said, *filled.notes))


def describe_parts(root: Path, parts: dict[str, Path]) -> list[str]:
    """Say which sub-folders of a root were read as which part, and what was not read.

    Args:
        root: a folder of images.
        parts: what `part_folders` found; an empty one says nothing.
    """
    if not parts:
        return _note_strays(root)
    uses = {"train": "training", "validation": "validation", "test": "test"}
    said = ", ".join(f"{folder.relative_to(root).as_posix()}/ ({uses[part]})" for part, folder in parts.items())
    read = {folder.relative_to(root).parts[0] for folder in parts.values()}
    left = [folder for folder in _class_folders(root) if folder.name not in read]
    named = ", ".join(f"{folder.name}/" for folder in left[:5]) + (", …" if len(left) > 5 else "")
    classes = {compose(child.name) for folder in parts.values() for child in _class_folders(folder)}
    alike = any(classes & {compose(child.name) for child in _class_folders(folder)} for folder in left)
    hint = " (the same classes are in there: a name with train, val or test in it would say what for)" if alike else ""
    unread = [f"not read: {named}{hint}"] if left else []
    strays = [note for folder in (root, *parts.values()) for note in _note_strays(folder)]
    return [f"read from {said}", *unread, *strays]


def _note_same_below(names: Sequence[str]) -> list[str]:
    """Say that all classes hold the same folders, which may be the classes that are meant."""
    below: dict[str, set[str]] = {}
    for name in names:
        place = name.split("/")
        below.setdefault(place[0], set()).add(place[1] if len(place) > 2 else "")
    same = sorted(next(iter(below.values())))
    if any(found != set(same) for found in below.values()) or len(same) < 2 or "" in same:
        return []
    named = ", ".join(f"{one}/" for one in same[:3]) + (", …" if len(same) > 3 else "")
    return [f"every class holds {named}, read as one; if those are the classes, let the names above say train and test"]


def _note_strays(folder: Path) -> list[str]:
    """Say that images lie beside the folders of the classes, of which they are none."""
    strays = sum(is_candidate(path) for path in folder.iterdir())
    return [f"not read: {counted(strays, 'image')} in {folder.name}/ itself, beside its folders"] if strays else []


def part_folders(root: Path) -> dict[str, Path]:
    """Find the train, val and test folders of a root: as classes they would be learned, and nobody would know.

    `train`, `Training`, `val`, `TEST` are parts if they hold folders. Other names are parts if one of their words is
    such a word (`seg_train`, `test_images`, `devSet`, `eval`), they hold folders and no images, and the names of these
    folders are found in another part, too, or every folder of the root is named so. All others are classes, whose
    images may lie deeper.

    Args:
        root: a folder of images.

    Returns:
        Those of `train`, `validation` and `test` that are there, in this order.

    Raises:
        InputError: if two folders are the same part, or one could be two.
    """
    folders = _class_folders(root)
    named = {one: words for one in folders if (words := _parts_of(one.name))}
    below = {one: {compose(child.name) for child in _class_folders(_innermost(one))} for one in named}
    chosen = [one for one in named if below[one] and one.name.lower() in itertools.chain(*PARTS.values())]
    spelt = [one for one in named if below[one] and one not in chosen and not _holds_images(one)]
    if len(chosen) + len(spelt) < len(folders):
        spelt = [one for one in spelt if any(below[one] & below[other] for other in {*chosen, *spelt} - {one})]
    if chosen or len(folders) == 1 or len({part for one in spelt for part in named[one]}) > 1:
        chosen += spelt
    parts: dict[str, Path] = {}
    for part, folder in [(part, folder) for part in PARTS for folder in sorted(chosen) if part in named[folder]]:
        if len(named[folder]) > 1:
            raise InputError(
                f"data.root: {str(root)!r}: {folder.name}/ could be the {' or the '.join(named[folder])} images; "
                "rename it so that it says one of them"
            )
        if part in parts and not folder.samefile(parts[part]):
            raise InputError(
                f"data.root: {str(root)!r} has {parts[part].name}/ and {folder.name}/, which are both the {part} "
                f"images; keep one, or put what is in both into one"
            )
        parts.setdefault(part, _innermost(folder))
    return parts


def _parts_of(name: str) -> list[str]:
    """List the parts that a folder's name speaks of, by its words."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return [part for part, pattern in _WORDS.items() if any(re.fullmatch(pattern, word) for word in words)]


def _innermost(folder: Path) -> Path:
    """Go down where a folder holds nothing but one of its own name, as archives leave it: seg_train/seg_train."""
    inner = folder / folder.name
    return (
        inner if _class_folders(folder) == [inner] and _class_folders(inner) and not _holds_images(folder) else folder
    )


def _holds_images(folder: Path) -> bool:
    return any(is_candidate(path) for path in folder.iterdir())


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
    """List the sub-folders that are classes: all but hidden ones, a system's, and links that lead back up."""
    try:
        return sorted(
            child
            for child in folder.iterdir()
            if not is_of_a_system(child.name) and child.is_dir() and not _leads_back(child, folder)
        )
    except OSError as error:
        raise _unreadable(where, folder, error) from error


def _leads_back(child: Path, start: Path) -> bool:
    """Say whether a folder is a link to one that holds it, or the start: its images would be all classes' images."""
    if not child.is_symlink():
        return False
    target = child.resolve()
    return any(place.resolve().is_relative_to(target) for place in (child.parent, start))


def read_folder(
    folder: Path, root: Path, reading: Reading, where: str = "data.root", may_lack: bool = False
) -> ImageSet:
    """Read a folder with one sub-folder a class; images may lie deeper.

    Args:
        folder: what holds the classes.
        root: what names are relative to.
        reading: how files are read.
        where: the flag that named it, for errors.
        may_lack: whether classes may be without an image, as in what is tested on.

    Returns:
        The images; `skipped` lists the files left out.

    Raises:
        InputError: naming the class or the file.
    """
    return read_folders({"": folder}, root, reading, where, ("",) if may_lack else ())[""]


def read_folders(
    folders: Mapping[str, Path],
    root: Path,
    reading: Reading,
    where: str = "data.root",
    may_lack: Collection[str] = ("validation", "test"),
) -> dict[str, ImageSet]:
    """Read folders of one data set, each with one sub-folder a class; pixels have the same range in all.

    Args:
        folders: what holds the classes, by any name.
        root: what names are relative to.
        reading: how files are read.
        where: the flag that named it, for errors.
        may_lack: the names of those whose classes may be without an image.

    Returns:
        The images by the same names. Names of classes are composed (NFC): two folders whose names look the same are
        one class. `skipped` lists the files left out, `remarks` says what was passed over and how pixels are read.

    Raises:
        InputError: naming the class or the file.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    passed: list[Path] = []
    for key, folder in folders.items():
        classes: dict[str, list[Path]] = {}
        for child in _class_folders(folder, where):
            check_encodable(child, where)
            files, others = list_files(child, where)
            classes.setdefault(compose(child.name), []).extend(files)
            passed += others
        needed = 1 if key in may_lack else 2
        if len(classes) < needed:
            tables = [folder / name for name in _TABLES if (folder / name).is_file()]
            instead = f"; if {tables[0].name} has its labels, give --data.labels {tables[0]}" if tables else ""
            raise InputError(
                f"{where}: {str(folder)!r} has {len(classes)} sub-folders; at least {needed} classes are needed"
                f"{instead}"
            )
        found[key] = classes
    sets = sets_of_files(found, root, reading, where, may_lack, {key: str(folder) for key, folder in folders.items()})
    remarks = _note_passed(passed)
    return {key: replace(images, remarks=(*images.remarks, *remarks)) for key, images in sets.items()}


def sets_of_files(
    found: Mapping[str, Mapping[str, Sequence[Path]]],
    root: Path,
    reading: Reading,
    where: str,
    may_lack: Collection[str] = ("validation", "test"),
    places: Mapping[str, str] | None = None,
) -> dict[str, ImageSet]:
    """Check files whose classes are known, and make sets of them; pixels have the same range in all.

    Args:
        found: the files of each class of each set.
        root: what names are relative to; a file that lies elsewhere goes by its whole path.
        reading: how files are read.
        where: the flag that named them, for errors.
        may_lack: the sets whose classes may be without an image that is read.
        places: where each set lies, for errors; default: where.

    Returns:
        The images by the same names; `skipped` lists the files left out, `remarks` says how pixels are read.

    Raises:
        InputError: naming the class or the file.
    """
    paths = [path for classes in found.values() for files in classes.values() for path in files]
    for path in paths:
        check_encodable(path, where)
    checked = check_files(paths, reading.max_pixels)
    broken = {path: one for path, one in checked.items() if one.digest is None}
    refused = [path for path, one in broken.items() if one.too_large or not reading.skip_broken]
    if refused:
        first = min(refused)
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        fault = broken[first].fault
        if not os.access(first, os.R_OK):
            fault = "may not be read by this user; remove it or give --data.skip_broken"
        raise InputError(f"{where}: {str(first)!r}{more} {fault}")
    range, remarks = _range_of(checked, reading)
    read = partial(_read_below, root, range, reading.max_pixels)
    sets = {}
    for key, classes in found.items():
        whole = {name: [path for path in files if path not in broken] for name, files in classes.items()}
        if absent := [name for name, files in whole.items() if not files]:
            if key not in may_lack or len(absent) == len(whole):
                place = (places or {}).get(key, where)
                raise InputError(
                    f"{where}: class {absent[0]!r} in {place!r} has no image; every class needs at least one"
                )
            whole = {name: files for name, files in whole.items() if files}
        kept = [path for files in whole.values() for path in files]
        skipped = sorted(path for files in classes.values() for path in files if path in broken)
        sets[key] = ImageSet(
            classes=tuple(whole),
            labels=np.repeat(np.arange(len(whole)), [len(files) for files in whole.values()]),
            names=tuple(_name_below(path, root) for path in kept),
            read=read,
            skipped=tuple(_name_below(path, root) for path in skipped),
            known_digests=np.array([checked[path].digest for path in kept], dtype=np.uint64),
            known_sizes=np.array([checked[path].size for path in kept], dtype=np.int64),
            range=range,
            remarks=remarks,
        )
    return sets


def _name_below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _range_of(checked: Mapping[Path, Checked], reading: Reading) -> tuple[str, tuple[str, ...]]:
    """Decide the range of pixels of more than 8 bits once for all files, and say so; auto where there are none."""
    extremes = [one.extremes for one in checked.values() if one.extremes is not None]
    if not extremes:
        return "auto", ()
    low, high = min(one[0] for one in extremes), max(one[1] for one in extremes)
    chosen = reading.range if reading.range != "auto" else choose_range(low, high)
    files = counted(len(extremes), "image")
    said = f"{files} of more than 8 bits, whose pixels go from {low:g} to {high:g}: read as {chosen}"
    return chosen, (said if reading.range != "auto" else f"{said} (--data.range LOW-HIGH says otherwise)",)


def _note_passed(passed: Sequence[Path]) -> tuple[str, ...]:
    """Say how many files were passed over, and which endings they have; nothing where there are none."""
    kinds = sorted({path.suffix.lower() or "none" for path in passed})
    named = ", ".join(kinds[:4]) + (", …" if len(kinds) > 4 else "")
    return (f"{counted(len(passed), 'file')} passed over: no images by their ending ({named})",) if passed else ()


def find_candidates(folder: Path, where: str = "data.root") -> list[Path]:
    """List the files below a folder that are images by their ending; hidden and system folders are not searched.

    Args:
        folder: searched to any depth, through links to other folders too, but each folder once.
        where: the flag that named it, for errors.

    Raises:
        InputError: if a folder in it cannot be read: its images would be missing, and nobody would know.
    """
    return list_files(folder, where)[0]


def list_files(folder: Path, where: str) -> tuple[list[Path], list[Path]]:
    """List the files below a folder that are images by their ending, and those that are not, as `find_candidates`.

    Args:
        folder: searched to any depth.
        where: the flag that named it, for errors.
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
        folders[:] = [name for name in folders if not is_of_a_system(name) and not _leads_back(here / name, folder)]
        found += [here / name for name in files]
    try:
        everything = sorted(path for path in found if not is_of_a_system(path.name) and path.is_file())
        images = [path for path in everything if is_candidate(path)]
        return images, sorted({*everything} - {*images})
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


def _read_below(root: Path, range: str, max_pixels: int, name: str) -> Image.Image:
    try:
        return read_image(root / name, 3, range, max_pixels)
    except OSError as error:
        raise InputError(f"data.root: {str(root / name)!r} could not be read any more ({error})") from error
