"""Images whose classes are divided into those to train on and those to test on, and what a task needs of them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from arelu_meta.config import TaskConfig
from arelu_meta.data.images import ImageSet, Labels
from arelu_meta.data.provenance import Provenance
from arelu_meta.data.sets import encode, note_shared
from arelu_meta.errors import InputError


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
