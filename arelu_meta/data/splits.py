"""Labelled images, and which are trained, validated and tested on: as the data brings them, else cut by the seed."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_meta.data.image_io import Digests, compose, decode, digest_pixels, encode
from arelu_meta.errors import InputError

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, decoded when they are asked for.

    Args:
        classes: the classes' names; a label is an index into them.
        labels: shape (images,), int64.
        names: a path below the data's root, or an index into a named set; one an image.
        read: decodes image i of `names`, as 8-bit grey or RGB.
        channels: 1 for grey sets, 3 otherwise.
        skipped: files left out, when the set was read, because they are not images.
        known_digests: shape (images,), uint64: equal for equal images (`digests` computes them where they are None).
        known_sizes: shape (images, 2), int64: width and height of each, where they are known.
        range: of pixels of more than 8 bits, as its data set's were read; auto where there are none.
        remarks: what is to be said of how it was read.
        prepared: whether `read` gives tensors that the network takes as they are.
        random: whether each reading of an image may give another one.
    """

    classes: tuple[str, ...]
    labels: Labels
    names: tuple[str, ...]
    read: Callable[[str], Image.Image]
    channels: int = 3
    skipped: tuple[str, ...] = ()
    known_digests: Digests | None = None
    known_sizes: Labels | None = None
    range: str = "auto"
    remarks: tuple[str, ...] = ()
    prepared: bool = False
    random: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.read(self.names[index]), int(self.labels[index])

    def subset(self, indices: Sequence[int] | Labels) -> "ImageSet":
        """Keep some images, all classes.

        Args:
            indices: positions in this set.
        """
        digests = None if self.known_digests is None else self.known_digests[indices]
        names = tuple(self.names[index] for index in indices)
        sizes = None if self.known_sizes is None else self.known_sizes[indices]
        return replace(self, labels=self.labels[indices], names=names, known_digests=digests, known_sizes=sizes)

    def digests(self) -> Digests:
        """Return a number an image: of its file's bytes or of its pixels, the same for equal images."""
        if self.known_digests is not None:
            return self.known_digests
        return digest_pixels(self.read(name) for name in self.names)

    def keys(self) -> list[tuple[int, int]]:
        """Return a pair an image: its label and its digest, the same for copies within a class alone."""
        return list(zip(self.labels.tolist(), self.digests().tolist(), strict=True))

    def distinct(self) -> Labels:
        """Return the places of the images that are no copies of an earlier one of their class."""
        first: dict[tuple[int, int], int] = {}
        return np.array([n for n, key in enumerate(self.keys()) if first.setdefault(key, n) == n], dtype=np.int64)

    def independent(self) -> float:
        """Return how many images that are no copies say as much of a share as these do; fewer where some are copies.

        Where no digests are known, all count.

        Source: Kish 1965, the effective number of a sample of clusters of unequal size.
        """
        if self.known_digests is None:
            return float(len(self))
        copies = np.unique(self.known_digests, return_counts=True)[1]
        return float(len(self) ** 2 / (copies.astype(np.float64) ** 2).sum())


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images with the same classes.

    Args:
        train: what is learned from.
        validation: what the best epoch is chosen by.
        test: what is reported; nothing is chosen by it.
        mirrored: whether an image and its mirror image mean the same (not so for characters).
        notes: what a reader of the results should know.
        skipped: files left out because they are not images.
        own_test: whether the data brought the test set.
        labelled: whether a file of its own says the labels, which names then do not tell.
        test_seen: how many test images the model is or was trained or validated on; None where nobody knows.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mirrored: bool = True
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    own_test: bool = False
    labelled: bool = False
    test_seen: int | None = 0

    def describe(self) -> dict[str, Any]:
        """List every image of every part, with its digest, for split.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "classes": list(self.train.classes),
            **{name: list(part.names) for name, part in parts.items()},
            **{f"{name}_digests": encode(part.digests()) for name, part in parts.items()},
            **{f"{name}_labels": part.labels.tolist() for name, part in parts.items() if self.labelled},
            "notes": list(self.notes),
            "skipped": list(self.skipped),
        }


def concatenate(parts: Sequence[ImageSet]) -> ImageSet:
    """Put sets together; classes of the same name become one.

    Args:
        parts: at least one set.

    Returns:
        All images, the parts one behind the other.
    """
    if len(parts) == 1:
        return parts[0]
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    position = {name: label for label, name in enumerate(classes)}
    numbers = [position[part.classes[label]] for part in parts for label in part.labels]
    names = [f"{number}:{name}" for number, part in enumerate(parts) for name in part.names]
    read = _ReadAny(tuple(part.read for part in parts))
    skipped = tuple(name for part in parts for name in part.skipped)
    digested = [part.known_digests for part in parts if part.known_digests is not None]
    digests = np.concatenate(digested) if len(digested) == len(parts) else None
    known = [part.known_sizes for part in parts if part.known_sizes is not None]
    return ImageSet(
        classes=classes,
        labels=np.array(numbers, dtype=np.int64),
        names=tuple(names),
        read=read,
        channels=parts[0].channels,
        skipped=skipped,
        known_digests=digests,
        known_sizes=np.concatenate(known) if len(known) == len(parts) else None,
        range=parts[0].range,
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        prepared=parts[0].prepared,
        random=any(part.random for part in parts),
    )


def note_copies(parts: Iterable[ImageSet | None]) -> tuple[str, ...]:
    """Count and name the images that are copies of others of their class and part; nothing where there are none.

    Args:
        parts: of what was read.
    """
    twins = []
    for part in parts:
        first: dict[tuple[int, int], str] = {}
        for key, name in zip(part.keys(), part.names, strict=True) if part is not None else ():
            if first.setdefault(key, name) != name:
                twins.append((name, first[key]))
    return (f"{len(twins)} images are copies of others of their class ({_listed(twins)})",) if twins else ()


def count_tested(splits: Sequence[Mapping[str, Any]]) -> int:
    """Count the images that any of several runs was tested on: seeds share some of them, or all, by copies too.

    Args:
        splits: what each run's split.json holds; 0.1's names its images alone.
    """
    try:
        return len(np.unique(np.concatenate([decode(split["test_digests"]) for split in splits])))
    except (KeyError, TypeError, ValueError):
        return len({str(image) for split in splits for image in split["test"]})


def note_tested_copies(images: ImageSet) -> tuple[str, ...]:
    """Say how many images that are tested on are copies of others: the interval counts each but once.

    Args:
        images: that are tested on.
    """
    copies = len(images) - len(np.unique(images.digests()))
    told = f"{copies} of {len(images)} test images are copies of others of them: the interval counts each but once"
    return (told,) if copies else ()


def note_shared(images: ImageSet, part: str, others: Sequence[ImageSet], other_parts: str) -> tuple[str, ...]:
    """Count and name the images of a part that are in other parts too, whatever class they have there.

    Args:
        images: of the part.
        part: its name.
        others: the other parts.
        other_parts: their names.
    """
    known = {
        digest: (name, other.classes[label])
        for other in others
        for name, label, digest in zip(other.names, other.labels.tolist(), other.digests().tolist(), strict=True)
    }
    named = zip(images.names, images.labels.tolist(), images.digests().tolist(), strict=True)
    shared = [(name, images.classes[label], *known[digest]) for name, label, digest in named if digest in known]
    if not shared:
        return ()
    note = f"{len(shared)} of {len(images)} {part} images are {other_parts} images too"
    elsewhere = sum(own != other for _, own, _, other in shared)
    told = f", {elsewhere} of them of another class" if elsewhere else ""
    return (f"{note}{told} ({_listed([(name, other) for name, _, other, _ in shared])})",)


def _listed(twins: Sequence[tuple[str, str]]) -> str:
    told = ", ".join(f"{one} = {other}" for one, other in twins[:3])
    return told + (", …" if len(twins) > 3 else "")


@dataclass(frozen=True)
class _ReadAny:
    """Reads an image of any of several sets; the name starts with the set's number."""

    reads: tuple[Callable[[str], Image.Image], ...]

    def __call__(self, name: str) -> Image.Image:
        number, _, rest = name.partition(":")
        return self.reads[int(number)](rest)


_NOTHING: Digests = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Provenance:
    """What a model has seen, in its own run and in those of the checkpoints that it came from.

    Args:
        trained: digests of the images that it was trained on.
        validated: of those that its best epoch was chosen by.
        tested: of those that its own run was tested on.
        classes: names of the classes that it was trained on, composed (NFC).
        complete: False where one of them does not say what it was trained on.
    """

    trained: Digests = field(default_factory=lambda: _NOTHING)
    validated: Digests = field(default_factory=lambda: _NOTHING)
    tested: Digests = field(default_factory=lambda: _NOTHING)
    classes: frozenset[str] = frozenset()
    complete: bool = True

    def joined(self, train: ImageSet, validation: ImageSet | None, test: ImageSet) -> "Provenance":
        """Add what a run trains and validates on.

        Args:
            train: images; of classes without one nothing is learned.
            validation: images, or None.
            test: images.
        """
        validated = _NOTHING if validation is None else validation.digests()
        return Provenance(
            np.union1d(self.trained, train.digests()),
            np.union1d(self.validated, validated),
            np.unique(test.digests()),
            self.classes | {compose(train.classes[label]) for label in np.unique(train.labels)},
            self.complete,
        )

    def has_seen(self, images: ImageSet) -> NDArray[np.bool_]:
        """Return True for each image of a set that the model was trained or validated on.

        Args:
            images: any.
        """
        return np.isin(images.digests(), self.trained) | np.isin(images.digests(), self.validated)

    def count_seen(self, images: ImageSet) -> int | None:
        """Count the images that the model was trained or validated on; None where nobody knows whether there are any.

        Args:
            images: any.
        """
        count = int(self.has_seen(images).sum())
        return count if count or self.complete else None

    def classes_seen(self, images: ImageSet) -> list[str]:
        """List the classes of a set that are not unseen: by their name, or since one of their images was seen.

        Args:
            images: any.
        """
        by_image = set(images.labels[self.has_seen(images)].tolist())
        present = np.unique(images.labels).tolist()
        names = {label: images.classes[label] for label in present}
        return [name for label, name in names.items() if label in by_image or compose(name) in self.classes]

    def as_header(self) -> dict[str, Any]:
        """Write it for a model file's header, in 8 characters an image."""
        return {
            "trained": encode(self.trained),
            "validated": encode(self.validated),
            "tested": encode(self.tested),
            "classes": sorted(self.classes),
            "complete": self.complete,
        }

    @classmethod
    def of_header(cls, content: Mapping[str, Any]) -> "Provenance":
        """Read what `as_header` wrote; nothing was seen of what an empty header does not say, and it is incomplete.

        Args:
            content: which anyone may have written.

        Raises:
            ValueError: if no run wrote it; TypeError likewise.
        """
        classes, complete = content.get("classes", []), content.get("complete", False)
        if not isinstance(complete, bool) or not all(isinstance(name, str) for name in classes):
            raise TypeError("its header's provenance is no run's")
        trained, validated, tested = (decode(content.get(part, "")) for part in ("trained", "validated", "tested"))
        return cls(trained, validated, tested, frozenset(classes), complete)


TEST_SHARE, VALIDATION_SHARE = 0.25, 0.10


def split_whole(images: ImageSet, seed: int, mirrored: bool = True, seen: Provenance | None = None) -> Splits:
    """Cut test and validation images from a set that has no split.

    Args:
        images: all of them.
        seed: of the cut.
        mirrored: see `Splits`.
        seen: see `fill_splits`.

    Raises:
        InputError: if a class has fewer than 3 images.
    """
    return replace(fill_splits(images, None, None, seed, seen), mirrored=mirrored)


def fill_splits(
    train: ImageSet, validation: ImageSet | None, test: ImageSet | None, seed: int, seen: Provenance | None = None
) -> Splits:
    """Cut the parts that are missing from the training images, stratified by class; equal images stay in one part.

    Args:
        train: the training images.
        validation: validation images, if the data brings them.
        test: test images, if the data brings them.
        seed: of the cuts.
        seen: what the model was trained and validated on before: such images are tested on only where a class has too
            few others, and those it was trained on are validated on likewise.

    Raises:
        InputError: if a class is too small to be cut.
    """
    whole, own_test = len(train), test is not None
    copies = note_copies([train, validation, test])
    seen = seen or Provenance()
    if test is None:
        needed = 2 if validation is not None else 3
        test, train = _cut(train, TEST_SHARE, seed, needed, last=seen.has_seen(train))
    if validation is None:
        # A share of all images, not of what the test set has left.
        share = min(0.5, VALIDATION_SHARE * whole / len(train))
        validation, train = _cut(train, share, seed + 1, needed=2, last=np.isin(train.digests(), seen.trained))
    return Splits(train, validation, test, notes=copies, own_test=own_test)


def overlapping(splits: Splits) -> NDArray[np.bool_]:
    """Return True for each test image that is a training or validation image too, of whatever class.

    Args:
        splits: the three parts.
    """
    others = np.union1d(splits.train.digests(), splits.validation.digests())
    return np.isin(splits.test.digests(), others)


def note_overlaps(splits: Splits) -> Splits:
    """Name the images that are in two parts, as the data brings them: test images among them are counted as seen.

    Args:
        splits: the three parts.
    """
    notes = (
        note_shared(splits.validation, "validation", [splits.train], "training"),
        note_shared(splits.test, "test", [splits.train, splits.validation], "training or validation"),
    )
    return replace(splits, notes=(*splits.notes, *itertools.chain(*notes)))


def take_fold(splits: Splits, folds: int, fold: int, seed: int) -> Splits:
    """Cut images anew for cross-validation: one of several stratified folds is the test set, once each.

    Args:
        splits: a test set that the data brought is left alone; all else is pooled.
        folds: how many there are.
        fold: which is tested on, from 1.
        seed: of the folds, and of the validation images, which are cut from the others.

    Raises:
        InputError: if a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    pool = _pool([splits.train, splits.validation] + ([] if splits.own_test else [splits.test]))
    counts = np.bincount(pool.labels, minlength=len(pool.classes))
    # Beside the fold, validation takes one image of a class, training at least one; half of 3 may be 2.
    needed = max(folds, 4 if folds == 2 else 3)
    if counts.min() < needed:
        name = pool.classes[int(counts.argmin())]
        raise InputError(
            f"data.folds: {folds} is more than class {name!r} allows, which has {counts.min()} images; give fewer, or "
            f"at least {needed} images a class"
        )
    # Equal images are tested on in one fold: in another one they would have been trained on.
    groups = np.unique(pool.keys(), axis=0, return_inverse=True)[1].ravel()
    repeated = len(np.unique(groups)) < len(groups)
    kind = StratifiedGroupKFold if repeated else StratifiedKFold
    cuts = kind(folds, shuffle=True, random_state=seed % 2**32).split(
        pool.labels, pool.labels, groups if repeated else None
    )
    rest, tested = list(cuts)[fold - 1]
    train, test = pool.subset(rest), pool.subset(tested)
    validation, train = _cut(train, min(0.5, VALIDATION_SHARE * len(pool) / len(train)), seed + 1, needed=2)
    notes = ("the data's own test set is left alone: folds are cut from its other images",) if splits.own_test else ()
    return replace(splits, train=train, validation=validation, test=test, notes=splits.notes + notes)


def _pool(parts: Sequence[ImageSet]) -> ImageSet:
    """Put parts of one set together again, in an order that does not depend on how they were cut."""
    names = [name for part in parts for name in part.names]
    if len(set(names)) < len(names) or len({id(part.read) for part in parts}) > 1:
        return concatenate(parts)
    order = sorted(range(len(names)), key=names.__getitem__)
    # The set put together keeps what it knows of each image, and its names, which tell the parts apart already.
    return replace(concatenate(parts), names=tuple(names), read=parts[0].read).subset(order)


def _cut(
    images: ImageSet, share: float, seed: int, needed: int, last: NDArray[np.bool_] | None = None
) -> tuple[ImageSet, ImageSet]:
    """Draw a share of every class, at least one image, and all copies of what is drawn; return it and the rest.

    Args:
        images: all of them.
        share: of each class.
        seed: of the draw.
        needed: different images that a class must have; one fewer than that is left behind.
        last: images that are drawn only where a class has too few others.
    """
    random = np.random.default_rng([seed, 0])
    digests, drawn = images.digests(), np.zeros(len(images), dtype=bool)
    for label, name in enumerate(images.classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < needed:
            raise InputError(
                f"data.root: class {name!r} has {len(members)} images; at least {needed} are needed to split them"
            )
        firsts = members[np.sort(np.unique(digests[members], return_index=True)[1])]
        different = members if len(firsts) < needed else firsts  # copies alone are told apart all the same
        count = min(max(1, round(share * len(different))), len(different) - needed + 1)
        order = random.permutation(different)
        if last is not None:
            order = order[np.argsort(last[order], kind="stable")]
        drawn[order[:count]] = True
        if different is firsts:
            drawn[members] = np.isin(digests[members], digests[order[:count]])
    return images.subset(np.flatnonzero(drawn)), images.subset(np.flatnonzero(~drawn))


def thin(images: ImageSet, per_class: int, seed: int) -> ImageSet:
    """Keep `per_class` images of every class; fewer are a subset of more.

    Args:
        images: the training images.
        per_class: how many of each class.
        seed: of the choice.

    Raises:
        InputError: if a class has fewer.
    """
    counts = np.bincount(images.labels, minlength=len(images.classes))
    if (fewest := int(counts.min())) < per_class:
        name = images.classes[int(counts.argmin())]
        raise InputError(
            f"data.per_class: {per_class} is more than class {name!r} leaves for training; give at most {fewest}"
        )
    random = np.random.default_rng([seed, 1])
    kept: list[int] = []
    for label in range(len(images.classes)):
        members = np.flatnonzero(images.labels == label)
        kept += random.permutation(members)[:per_class].tolist()
    return images.subset(sorted(kept))
