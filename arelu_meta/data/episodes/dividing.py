"""From a config's data to classes that are trained on and classes that are not."""

import itertools
from dataclasses import replace

import numpy as np

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.episodes.benchmarks import BENCHMARKS, load_benchmark
from arelu_meta.data.episodes.class_file import divide_by_file
from arelu_meta.data.episodes.omniglot import ALPHABETS, is_bright, load_alphabets, read_all_alphabets
from arelu_meta.data.episodes.splits import (
    ClassSplits,
    alphabet_of,
    alphabet_sizes,
    check_class_sizes,
    of_classes,
    within_alphabets,
)
from arelu_meta.data.images import (
    ImageSet,
    concatenate,
    describe_parts,
    find_root,
    load_images,
    read_folder,
    read_folders,
    training_parts,
)
from arelu_meta.data.named import NAMED_SETS, load_digits, load_part
from arelu_meta.data.reading import Reading
from arelu_meta.data.sets import note_copies
from arelu_meta.errors import InputError, nearest_names

_HELD_OUT_IMAGES = 0.2


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
    splits = _keep_to_alphabets(_load_divided(config, task, seed), task)
    for part, use in ((splits.train, "train"), (splits.validation, "validate"), (splits.test, "test")):
        if part is not None:
            check_class_sizes(part, task, f" to {use} on")
    parts = [splits.train, splits.validation, splits.test]
    return replace(splits, notes=(*splits.notes, *note_copies(parts), *splits.train.remarks))


def _load_divided(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    name = name_of(config)
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
    return own or _divide(concatenate(parts), task, seed)


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
    if classes < 4 * ways:
        test = max(ways, round(0.4 * classes))
        return classes - test, 0, test
    test, validation = max(ways, round(0.25 * classes)), max(ways, round(0.15 * classes))
    return classes - test - validation, validation, test


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


def _divide(images: ImageSet, task: TaskConfig, seed: int) -> ClassSplits:
    present = np.unique(images.labels)
    counts = class_counts(len(present), task.ways)
    order = np.random.default_rng([seed, 2]).permutation(present)
    train, validation, test = np.split(order, np.cumsum(counts)[:2])
    unseen = of_classes(images, test)
    if len(validation):
        return ClassSplits(of_classes(images, train), of_classes(images, validation), unseen)
    seen, held_out = _hold_out(of_classes(images, train), task, seed)
    return ClassSplits(seen, held_out, unseen, (_held_out_note(held_out),))


def _held_out_note(held_out: ImageSet | None) -> str:
    if held_out is None:
        return "too few classes and images to validate on: the last checkpoint is kept"
    return "too few classes to validate on unseen ones: validated on other images of the training classes"


def _hold_out(images: ImageSet, task: TaskConfig, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """Set other images of the same classes aside for validation, where there are enough of every class."""
    needed, digests = task.shots + task.queries, images.digests()
    first = images.distinct()
    random_order = np.random.default_rng([seed, 3])
    drawn: list[int] = []
    for label in np.unique(images.labels):
        members = random_order.permutation(first[images.labels[first] == label])
        count = max(needed, round(_HELD_OUT_IMAGES * len(members)))
        if len(members) - count < needed:
            return images, None
        copied = np.isin(digests, digests[members[:count]]) & (images.labels == label)
        drawn += np.flatnonzero(copied).tolist()
    return images.subset(np.setdiff1d(np.arange(len(images)), drawn)), images.subset(sorted(drawn))


def _keep_to_alphabets(splits: ClassSplits, task: TaskConfig) -> ClassSplits:
    """Let test tasks, or all, take their classes from one alphabet, where that is asked for."""
    if task.alphabets == "mixed":
        return splits
    test, notes = keep_to_alphabets(splits.test, task, "test")
    splits = replace(splits, test=test, notes=(*splits.notes, *notes))
    if task.alphabets == "one":
        train, notes = keep_to_alphabets(splits.train, task, "training")
        splits = replace(splits, train=train, notes=(*splits.notes, *notes))
        if splits.validation is not None:
            validation, notes = keep_to_alphabets(splits.validation, task, "validation")
            splits = replace(splits, validation=validation, notes=(*splits.notes, *notes))
    return splits


def keep_to_alphabets(images: ImageSet, task: TaskConfig, part: str) -> tuple[ImageSet, list[str]]:
    """Let a set's tasks take all their classes from one alphabet; alphabets with fewer classes than ways are left out.

    Args:
        images: whose classes are named ALPHABET/CHARACTER.
        task: ways.
        part: whose tasks they are, for the notes.

    Returns:
        The images, and a note on what is left out.

    Raises:
        InputError: if the classes have no alphabets.
    """
    if not all(alphabet_of(name) for name in images.classes):
        raise InputError(
            f"task.alphabets: {task.alphabets!r} needs characters of several alphabets; give --data.name alphabets "
            "with a folder ALPHABET/CHARACTER/IMAGE, or omniglot-small"
        )
    sizes = alphabet_sizes(images)
    small = [alphabet for alphabet, size in sizes.items() if size < task.ways]
    if not 0 < len(small) < len(sizes):
        return within_alphabets(images), []
    left = [number for number, name in enumerate(images.classes) if alphabet_of(name) not in small]
    note = f"no {part} tasks of {', '.join(small)}: fewer than {task.ways} characters"
    return within_alphabets(of_classes(images, np.array(left))), [note]
