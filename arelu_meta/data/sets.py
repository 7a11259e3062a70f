"""What labelled images are: a set of them, and a set's training, validation and test parts."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_meta.data.reading import DIGEST_BYTES, shorten

Labels = NDArray[np.int64]
Digests = NDArray[np.uint64]


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


def digest_pixels(images: Iterable[Image.Image | NDArray[Any]]) -> Digests:
    """Compute a number an image, the same for equal pixels.

    Args:
        images: decoded.
    """
    pixels = (np.ascontiguousarray(image) for image in images)
    found = (shorten(hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()) for array in pixels)
    return np.fromiter(found, dtype=np.uint64)


def digest_texts(texts: Iterable[str]) -> Digests:
    """Compute a number an image from what tells it apart from all others, where decoding it would take long.

    Args:
        texts: such as a set's name, a part's, and the image's place in it.
    """
    return np.fromiter((shorten(hashlib.sha256(text.encode()).digest()) for text in texts), dtype=np.uint64)


def encode(digests: Digests) -> str:
    """Write digests as text, 8 characters each.

    Args:
        digests: in the order to keep.
    """
    parts = digests.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :DIGEST_BYTES]
    return base64.b64encode(parts.tobytes()).decode()


def decode(text: str) -> Digests:
    """Read what `encode` wrote.

    Args:
        text: which anyone may have written.

    Raises:
        ValueError: if it is none; TypeError likewise.
    """
    parts = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    whole = np.zeros((len(parts), 8), dtype=np.uint8)
    whole[:, :DIGEST_BYTES] = parts
    return whole.view("<u8").ravel().astype(np.uint64)


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
        test_seen: how many test images the model is or was trained or validated on; None where nobody knows.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mirrored: bool = True
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    own_test: bool = False
    test_seen: int | None = 0

    def describe(self) -> dict[str, Any]:
        """List every image of every part, with its digest, for split.json."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "classes": list(self.train.classes),
            **{name: list(part.names) for name, part in parts.items()},
            **{f"{name}_digests": encode(part.digests()) for name, part in parts.items()},
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
