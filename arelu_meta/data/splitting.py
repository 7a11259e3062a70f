"""Which images are trained on, validated on and tested on, where the data does not say: cut by the seed."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from arelu_meta.data.provenance import Provenance
from arelu_meta.data.sets import ImageSet, Splits, concatenate, note_copies, note_shared
from arelu_meta.errors import InputError

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
