"""Classes divided by a file: JSON such as `{"train": [...], "test": [...]}`, or CSV with the columns class and part."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from arelu_meta.data.episodes.splits import ClassSplits, alphabet_of, of_classes, present_classes
from arelu_meta.data.images import ImageSet
from arelu_meta.data.provenance import compose
from arelu_meta.errors import InputError, nearest_names

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
