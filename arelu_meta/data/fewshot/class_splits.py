"""Classes divided into those to train on and those to test on: by the seed, or by a file."""

import csv
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from arelu_meta.config import TaskConfig
from arelu_meta.data.image_io import compose, encode
from arelu_meta.data.splits import ImageSet, Labels, Provenance, note_copies, note_shared
from arelu_meta.errors import InputError, nearest_names


@dataclass(frozen=True)
class AlphabetSet(ImageSet):
    """Images of characters, of which a task takes all its classes from one alphabet; a class is ALPHABET/CHARACTER.

    Source: Lake et al. 2015, the one-shot classification of 20 characters within an alphabet.
    """


def alphabet_of(name: str) -> str:
    """Return the alphabet of a class.

    Args:
        name: ALPHABET/CHARACTER; a name without an alphabet has the empty one.
    """
    return name.rpartition("/")[0]


def within_alphabets(images: ImageSet) -> AlphabetSet:
    """Let a set's tasks take all their classes from one alphabet.

    Args:
        images: whose classes are named ALPHABET/CHARACTER.
    """
    return AlphabetSet(**{item.name: getattr(images, item.name) for item in fields(ImageSet)})


def of_classes(images: ImageSet, labels: Labels) -> ImageSet:
    """Keep the images of some classes.

    Args:
        images: a set.
        labels: the classes to keep.
    """
    return images.subset(np.flatnonzero(np.isin(images.labels, labels)))


@dataclass(frozen=True)
class ClassSplits:
    """Images whose classes are divided: what is tested on was never trained on.

    Args:
        train: classes to meta-train on.
        validation: classes to choose the best checkpoint by; or other images of the training classes; or None.
        test: unseen classes.
        notes: what a reader of the results should know.
        inverted: whether dark strokes on white are to be turned into bright ones on black.
        test_seen: how many of the test classes are not unseen; None where nobody knows.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    notes: tuple[str, ...] = ()
    inverted: bool = False
    test_seen: int | None = 0

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
            **{f"{name}_classes": present_classes(part) for name, part in parts.items() if part is not None},
            **{name: list(part.names) for name, part in parts.items() if part is not None},
            **{f"{name}_digests": encode(part.digests()) for name, part in parts.items() if part is not None},
        }


def note_seen(splits: ClassSplits, seen: Provenance) -> ClassSplits:
    """Count the test classes that are not unseen, to the model as it came or by images that training has too.

    Args:
        splits: the classes.
        seen: what the model was trained on before.
    """
    notes, before = [], set(seen.classes_seen(splits.test))
    if before:
        notes.append(f"{len(before)} of {len(present_classes(splits.test))} test classes were seen by the checkpoint")
    others = [part for part in (splits.train, splits.validation) if part is not None]
    here = np.isin(splits.test.digests(), np.concatenate([part.digests() for part in others]))
    copied = set(present_classes(splits.test.subset(np.flatnonzero(here))))
    notes += note_shared(splits.test, "test", others, "training or validation")
    unknown = not (before | copied) and not seen.complete
    if unknown:
        notes.append("the checkpoint is from before version 0.2: whether it has seen the test classes is not known")
    count = None if unknown else len(before | copied)
    return replace(splits, notes=(*splits.notes, *notes), test_seen=count)


def present_classes(images: ImageSet) -> list[str]:
    """List the names of the classes that have an image.

    Args:
        images: a set, of which some classes may be empty.
    """
    return [images.classes[label] for label in np.unique(images.labels)]


def check_class_sizes(images: ImageSet, task: TaskConfig, use: str = "") -> None:
    """Refuse images from which a task cannot be drawn.

    Args:
        images: the classes to draw from.
        task: ways, shots, queries.
        use: what they are for, as in " to train on", for the sentence.

    Raises:
        InputError: naming the ways, or the class that is too small.
    """
    labels, counts = np.unique(images.labels[images.distinct()], return_counts=True)
    if isinstance(images, AlphabetSet):
        _check_alphabets(images, task.ways)
    if len(labels) < task.ways:
        raise InputError(
            f"task.ways: {task.ways} is more than the {len(labels)} classes here{use}; "
            + (f"give at most {len(labels)}" if len(labels) > 1 else "at least 2 are needed")
        )
    smallest = int(counts.argmin())
    if counts[smallest] < task.shots + task.queries:
        different = "different " if counts.sum() < len(images) else ""
        raise InputError(
            f"task.shots + task.queries: {task.shots} + {task.queries} is more than class "
            f"{images.classes[labels[smallest]]!r} has ({counts[smallest]} {different}images here); give at most that "
            "many"
        )


def alphabet_sizes(images: ImageSet) -> dict[str, int]:
    """Count the classes of each alphabet.

    Args:
        images: whose classes are named ALPHABET/CHARACTER.
    """
    alphabets, counts = np.unique([alphabet_of(name) for name in present_classes(images)], return_counts=True)
    return {str(alphabet): int(count) for alphabet, count in zip(alphabets, counts, strict=True)}


def _check_alphabets(images: AlphabetSet, ways: int) -> None:
    sizes = alphabet_sizes(images)
    largest = max(sizes, key=lambda alphabet: sizes[alphabet])
    if sizes[largest] < ways:
        raise InputError(
            f"task.ways: {ways} is more than the characters of any alphabet here ({largest!r} has the most, "
            f"{sizes[largest]}); give at most {sizes[largest]}"
        )


_FIELD = "task.split_file"
_PARTS = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation"}
_PARTS |= {"test": "test", "testing": "test"}


def divide_by_file(images: ImageSet, file: str) -> ClassSplits:
    """Divide a set's classes as a file says.

    Args:
        images: the whole set.
        file: its names are classes, or alphabets, which stand for all their characters; classes that it does not name
            are left out. Without validation classes the last checkpoint is kept.

    Returns:
        The parts.

    Raises:
        InputError: if the file cannot be read, names a class that is not there, or one class in two parts.
    """
    named = read_split_file(file)
    label_of = {name: label for label, name in enumerate(images.classes)}
    of_alphabet: dict[str, list[str]] = {}
    for name in present_classes(images):
        of_alphabet.setdefault(alphabet_of(name), []).append(name)
    home: dict[str, str] = {}
    chosen: dict[str, list[int]] = {}
    for part, names in named.items():
        for name in names:
            classes = [name] if name in label_of else of_alphabet.get(name) if name else None
            if not classes:
                known = [*label_of, *filter(None, of_alphabet)]
                raise InputError(f"{_FIELD}: class {name!r} of {file!r} is not there; {nearest_names(name, known)}")
            for one in classes:
                if home.setdefault(one, part) != part:
                    raise InputError(
                        f"{_FIELD}: class {one!r} is in {home[one]} and in {part} of {file!r}; give it to one of them"
                    )
                chosen.setdefault(part, []).append(label_of[one])
    sets = {part: of_classes(images, np.array(labels)) for part, labels in chosen.items()}
    left_out = len(present_classes(images)) - len(home)
    notes = [f"classes divided by {file}"]
    notes += [f"{left_out} classes that it does not name are left out"] if left_out else []
    notes += [] if "validation" in sets else ["it names no classes to validate on: the last checkpoint is kept"]
    return ClassSplits(sets["train"], sets.get("validation"), sets["test"], tuple(notes))


def read_split_file(file: str) -> dict[str, list[str]]:
    """Read which classes are to train, to validate and to test on.

    Args:
        file: `*.json` or `*.csv`.

    Returns:
        The names of each part that the file has, `train` and `test` among them.

    Raises:
        InputError: if it is missing, or not of this form.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{_FIELD}: {file!r} does not exist or is not a file; give a JSON or CSV file")
    if path.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"{_FIELD}: {file!r} ends in {path.suffix!r}; give a .json or .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _pairs_of_json(text, file) if path.suffix.lower() == ".json" else _pairs_of_csv(text, file)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # ValueError: a number of endless digits, too
        raise InputError(f"{_FIELD}: {file!r} cannot be read ({error}); give a JSON or CSV file") from error
    parts: dict[str, list[str]] = {}
    for part, name in pairs:
        if part.lower() not in _PARTS:
            raise InputError(f"{_FIELD}: {file!r} has a part {part!r}; give train, validation and test")
        parts.setdefault(_PARTS[part.lower()], []).append(compose(name))
    for part in ("train", "test"):
        if part not in parts:
            raise InputError(
                f"{_FIELD}: {file!r} names no class for {part}; give train and test, and validation or not"
            )
    return parts


def _pairs_of_json(text: str, file: str) -> list[tuple[str, str]]:
    """Read (part, class) pairs; a part that stands twice in the file counts twice."""
    found = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    if not isinstance(found, list) or not all(_is_part(item) for item in found):
        raise InputError(f'{_FIELD}: {file!r} is of another form than {{"train": ["a", "b"], "test": ["c", "d"]}}')
    return [(part, name) for part, names in found for name in names]


def _is_part(item: Any) -> bool:
    """Say whether something is a part's name with a list of texts; JSON's numbers are no names."""
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], list)):
        return False
    return all(isinstance(name, str) for name in item[1])


def _pairs_of_csv(text: str, file: str) -> list[tuple[str, str]]:
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"class", "part"} <= set(rows[0]) or any(None in (row["class"], row["part"]) for row in rows):
        raise InputError(f"{_FIELD}: {file!r} needs a first line `class,part`, and both in every line below it")
    return [(row["part"].strip(), row["class"]) for row in rows]


_HELD_OUT_IMAGES = 0.2


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


def divide_by_seed(images: ImageSet, task: TaskConfig, seed: int) -> ClassSplits:
    """Divide a set's classes at random, into as many for each part as `class_counts` says.

    Args:
        images: the whole set.
        task: ways, shots, queries.
        seed: of the division.

    Raises:
        InputError: if there are fewer than twice as many classes as ways.
    """
    present = np.unique(images.labels)
    counts = class_counts(len(present), task.ways)
    order = np.random.default_rng([seed, 2]).permutation(present)
    train, validation, test = np.split(order, np.cumsum(counts)[:2])
    unseen = of_classes(images, test)
    if len(validation):
        return ClassSplits(of_classes(images, train), of_classes(images, validation), unseen)
    seen, held_out = _hold_out(of_classes(images, train), task, seed)
    return ClassSplits(seen, held_out, unseen, (_held_out_note(held_out),))


def divide_given(
    images: ImageSet, validation: ImageSet | None, test: ImageSet | None, task: TaskConfig, seed: int
) -> ClassSplits:
    """Divide the classes of a data set that was handed over; those of its parts stay where they were handed over.

    Args:
        images: whose classes are divided where there is no test set.
        validation: of classes to validate on, or None.
        test: of classes to test on, or None.
        task: ways, shots, queries, which every part must allow; a file that divides the classes.
        seed: of the division.

    Raises:
        InputError: if there are too few classes, or too few images in one.
    """
    if test is not None or validation is not None:
        if task.split_file is not None:
            raise InputError(f"{_FIELD}: {task.split_file!r} is not read where test or validation is given")
        if test is None:
            raise InputError("test: validation is given without it; give classes to test on, too, or neither")
        notes = () if validation is not None else ("no classes to validate on were given: the last checkpoint is kept",)
        splits = ClassSplits(images, validation, test, notes)
    elif task.split_file is not None:
        splits = divide_by_file(images, task.split_file)
    else:
        splits = divide_by_seed(images, task, seed)
    return checked_splits(splits, task)


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


def checked_splits(splits: ClassSplits, task: TaskConfig) -> ClassSplits:
    """Make sure that every part of divided classes has what tasks need, and note what is to be said of them.

    Args:
        splits: the parts.
        task: ways, shots, queries; whether a task's characters are all of one alphabet.

    Raises:
        InputError: if there are too few classes for the ways, or too few images in one for shots plus queries.
    """
    splits = keep_test_to_alphabets(splits, task)
    for part, use in ((splits.train, "train"), (splits.validation, "validate"), (splits.test, "test")):
        if part is not None:
            check_class_sizes(part, task, f" to {use} on")
    parts = [splits.train, splits.validation, splits.test]
    return replace(splits, notes=(*splits.notes, *note_copies(parts), *splits.train.remarks))


def keep_test_to_alphabets(splits: ClassSplits, task: TaskConfig) -> ClassSplits:
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
