"""Characters of several alphabets: Omniglot's small background sets, and any folder ALPHABET/CHARACTER/*.png."""

from pathlib import Path

import numpy as np

from arelu_meta.config import DataConfig, TaskConfig
from arelu_meta.data.catalogue import CATALOGUE
from arelu_meta.data.fewshot.class_splits import ClassSplits, alphabet_of, alphabet_sizes, of_classes, present_classes
from arelu_meta.data.image_folder import find_root, read_folders
from arelu_meta.data.image_io import Reading, compose, is_candidate, is_of_a_system
from arelu_meta.data.splits import ImageSet, concatenate
from arelu_meta.errors import InputError

_SMALL = CATALOGUE["omniglot-small"].folders
_WHOLE = ("images_background", "images_evaluation")
_HELD_OUT, _TESTED = 0.15, 0.3
_BRIGHT = 127
ALPHABETS = ("omniglot-small", "alphabets")


def load_alphabets(config: DataConfig, task: TaskConfig, seed: int) -> ClassSplits:
    """Divide characters so that no test character's alphabet was trained on.

    Args:
        config: `omniglot-small` trains on Omniglot's first small background set and tests on the alphabets of the
            second that the first lacks; `alphabets` does so with a folder's two sets where it holds Omniglot's, and
            otherwise keeps about a third of the alphabets for the test.
        task: ways; and whether tasks stay within an alphabet, for then whole alphabets are validated on.
        seed: of the division.

    Returns:
        The parts, mixed alphabets in each.

    Raises:
        InputError: if the data is missing, or a part has too few characters.
    """
    folders = _folders_of(config)
    sets = [read_alphabets(folder, Reading.of(config)) for folder in folders]
    if len(sets) == 1:
        known, tested = _divide_alphabets(sets[0], seed)
    else:
        known, second = sets
        seen = {alphabet_of(name) for name in known.classes}
        unseen = [label for label, name in enumerate(second.classes) if alphabet_of(name) not in seen]
        tested = of_classes(second, np.array(unseen, dtype=np.int64))
    return _hold_out(known, tested, task, seed, config.name or "")


def read_all_alphabets(config: DataConfig) -> ImageSet:
    """Read every character, Omniglot's two sets put together.

    Args:
        config: name, root, skip_broken.
    """
    return concatenate([read_alphabets(folder, Reading.of(config)) for folder in _folders_of(config)])


def read_alphabets(folder: Path, reading: Reading) -> ImageSet:
    """Read ALPHABET/CHARACTER/*.png: a class is a character of one alphabet.

    Args:
        folder: holds the alphabets.
        reading: how files are read.

    Returns:
        Grey images, classes named ALPHABET/CHARACTER.

    Raises:
        InputError: naming an image that lies in no character's folder, or what `read_folder` refuses.
    """
    alphabets = sorted(child for child in folder.iterdir() if child.is_dir() and not is_of_a_system(child.name))
    for alphabet in alphabets:
        for path in sorted(alphabet.iterdir()):
            if is_candidate(path):
                raise InputError(
                    f"data.root: {str(path)!r} lies in no character's folder; give ALPHABET/CHARACTER/IMAGE"
                )
    if not alphabets:
        raise InputError(f"data.root: {str(folder)!r} holds no alphabet; give ALPHABET/CHARACTER/IMAGE")
    parts = list(read_folders({one.name: one for one in alphabets}, folder, reading, may_lack=()).values())
    first = np.cumsum([0, *(len(part.classes) for part in parts)])
    return ImageSet(
        classes=tuple(
            f"{compose(place.name)}/{name}"
            for place, part in zip(alphabets, parts, strict=True)
            for name in part.classes
        ),
        labels=np.concatenate([part.labels + start for part, start in zip(parts, first[:-1], strict=True)]),
        names=tuple(name for part in parts for name in part.names),
        read=parts[0].read,  # names are relative to the folder that holds all alphabets
        channels=1,
        skipped=tuple(name for part in parts for name in part.skipped),
        known_digests=np.concatenate([part.digests() for part in parts]),
        known_sizes=np.concatenate([part.known_sizes for part in parts if part.known_sizes is not None]),
        range=parts[0].range,
        remarks=parts[0].remarks,
    )


def is_of_alphabets(folder: Path) -> bool:
    """Say whether a folder is laid out as ALPHABET/CHARACTER/IMAGE: two levels above every image.

    Args:
        folder: of images.
    """
    classes = [child for child in folder.iterdir() if child.is_dir() and not is_of_a_system(child.name)]
    below = [[inner.is_dir() for inner in child.iterdir() if not is_of_a_system(inner.name)] for child in classes]
    return bool(below) and all(kinds and all(kinds) for kinds in below)


def _folders_of(config: DataConfig) -> list[Path]:
    """Find Omniglot's two sets below a root, or the root itself."""
    small = (config.name or "").lower() == "omniglot-small"
    if config.root is None and not small:
        raise InputError("data.root: missing; data.name alphabets needs a folder ALPHABET/CHARACTER/IMAGE")
    root = find_root(config.root or "omniglot-small")
    if small:
        for name in _SMALL:
            if not (root / name).is_dir():
                raise InputError(f"data.root: {str(root)!r} has no {name}/; give the folder that holds both sets")
    pair = next((pair for pair in (_SMALL, _WHOLE) if all((root / name).is_dir() for name in pair)), None)
    return [root] if pair is None else [root / name for name in pair]


def _divide_alphabets(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    alphabets = sorted(alphabet_sizes(images))
    if len(alphabets) < 2:
        raise InputError(f"data.root: one alphabet, {alphabets[0]!r}; give at least two, of which one stays unseen")
    order = np.random.default_rng([seed, 4]).permutation(alphabets)
    tested = set(order[: max(1, round(_TESTED * len(order)))].tolist())
    return _of_alphabets(images, set(alphabets) - tested), _of_alphabets(images, tested)


def _of_alphabets(images: ImageSet, alphabets: set[str]) -> ImageSet:
    return of_classes(images, np.array([n for n, name in enumerate(images.classes) if alphabet_of(name) in alphabets]))


def _hold_out(known: ImageSet, tested: ImageSet, task: TaskConfig, seed: int, name: str) -> ClassSplits:
    """Hold characters back to validate on, or an alphabet where tasks are to stay within one."""
    inverted = is_bright(known)
    rng = np.random.default_rng([seed, 2])
    if task.alphabets == "one":
        sizes = alphabet_sizes(known)
        fitting = [name for name in sorted(sizes) if sizes[name] >= task.ways]
        if len(fitting) < 2:
            note = "too few alphabets to validate on: the last checkpoint is kept"
            return ClassSplits(known, None, tested, (note,), inverted)
        held = {str(rng.permutation(fitting)[0])}
        train, validation = _of_alphabets(known, set(sizes) - held), _of_alphabets(known, held)
        return ClassSplits(train, validation, tested, inverted=inverted)
    present = np.unique(known.labels)
    order = rng.permutation(present)
    count = max(task.ways, round(_HELD_OUT * len(order)))
    unseen = len(present_classes(tested))
    if len(order) - count < task.ways or unseen < task.ways:
        most = min(len(order) // 2, unseen)
        raise InputError(f"task.ways: {task.ways} is too many for {name}; give at most {most}")
    return ClassSplits(of_classes(known, order[count:]), of_classes(known, order[:count]), tested, inverted=inverted)


def is_bright(images: ImageSet) -> bool:
    """Say whether strokes are dark on white, by what most of a few images is.

    Args:
        images: of characters.
    """
    chosen = np.linspace(0, len(images) - 1, min(8, len(images))).round().astype(int)
    means = [float(np.asarray(images[int(index)][0].convert("L")).mean()) for index in chosen]
    return float(np.median(means)) > _BRIGHT
