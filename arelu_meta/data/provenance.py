"""What a model has seen: which images and classes its run, and those that it came from, trained and validated on."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arelu_meta.data.sets import Digests, ImageSet, decode, encode

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


def compose(name: str) -> str:
    """Write a name with composed letters: a file system may have taken them apart.

    Args:
        name: of a class or a file.
    """
    return unicodedata.normalize("NFC", name)
