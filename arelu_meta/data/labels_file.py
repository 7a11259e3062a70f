"""`data.labels`: a CSV that gives each image its label, and perhaps its part, as Hugging Face's `metadata.csv` does."""

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path

from arelu_meta.config import DataConfig
from arelu_meta.data.image_folder import PARTS, find_labels, find_root, sets_of_files, splits_of_parts
from arelu_meta.data.image_io import Reading, compose
from arelu_meta.data.splits import ImageSet, Provenance, Splits, split_whole
from arelu_meta.errors import InputError, shown

_FILES, _LABELS, _SPLIT = ("file", "file_name"), ("label",), ("split",)


@dataclass(frozen=True)
class _Row:
    """One line: where it stands, its file, its label and its part, empty where there is no such column."""

    number: int
    file: Path
    label: str
    part: str


def load_labels(config: DataConfig, seed: int, seen: Provenance | None = None) -> Splits:
    """Load the images that a CSV names, split as its column says, else by the seed.

    Args:
        config: labels, root, skip_broken, range, max_pixels.
        seed: of the split, where the CSV has none.
        seen: what the model was trained on before.

    Returns:
        The three parts. Where there is val but no test, val is the test set, as in a folder.

    Raises:
        InputError: naming the row and the file.
    """
    loaded = read_labels(config)
    where = f"data.labels: {config.labels!r}"
    trained = loaded.get("", loaded.get("train"))
    if trained is None:
        raise InputError(f"{where} has the splits {', '.join(loaded)} and no train; give some images to train on")
    if len(trained.classes) < 2:
        raise InputError(f"{where}: all its labels are {trained.classes[0]!r}; at least 2 classes are needed")
    try:
        if trained is loaded.get(""):
            splits, note = split_whole(trained, seed, seen=seen), f"labels read from {config.labels}"
        else:
            places = {part: f"split {PARTS[part][0]}" for part in loaded}
            splits = splits_of_parts(loaded, places, where, seed, seen)
            note = f"labels and splits ({', '.join(loaded)}) read from {config.labels}"
    except InputError as error:
        raise InputError(str(error).replace("data.root: ", "data.labels: ")) from error
    skipped = tuple(name for images in loaded.values() for name in images.skipped)
    return replace(splits, notes=(note, *splits.notes, *trained.remarks), skipped=skipped, labelled=True)


def read_labels(config: DataConfig) -> dict[str, ImageSet]:
    """Read the images that a CSV names.

    Args:
        config: labels, root, skip_broken, range, max_pixels.

    Returns:
        `train`, `validation` and `test`, those that its column names; all images as "" where it has no such column.

    Raises:
        InputError: naming the row and the file.
    """
    table = find_labels(config)
    named = _read_table(table, config.labels or "")
    root = _root_of(table, config, named[0].file)
    where = f"data.labels: {config.labels!r}"
    found: dict[str, dict[str, list[Path]]] = {}
    first: dict[Path, int] = {}
    missing: list[_Row] = []
    for row in named:
        path = Path(os.path.normpath(root / row.file))
        said = f"{where}: row {row.number}: file {shown(str(row.file))}"
        if not path.is_relative_to(os.path.normpath(root)):
            raise InputError(f"{said} lies outside {str(root)!r}; give files below it, or another data.root")
        if first.setdefault(path, row.number) != row.number:
            raise InputError(f"{said} is in row {first[path]} already; give each file once")
        if not path.is_file():
            missing.append(row)
        found.setdefault(row.part, {}).setdefault(row.label, []).append(path)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{where}: row {missing[0].number}: file {shown(str(missing[0].file))}{more} is not in {str(root)!r}; give "
            "paths relative to the CSV's folder or to data.root"
        )
    ordered = {part: found[part] for part in ("", *PARTS) if part in found}
    sets = {part: {name: sorted(classes[name]) for name in sorted(classes)} for part, classes in ordered.items()}
    return sets_of_files(sets, root, Reading.of(config), "data.labels", places=dict.fromkeys(sets, where))


def _root_of(table: Path, config: DataConfig, first: Path) -> Path:
    """Choose what paths are relative to: data.root where it holds the first file, else the CSV's folder."""
    places = [find_root(config.root)] if config.root is not None else []
    places.append(table.parent)
    return next((place for place in places if (place / first).is_file()), places[0])


def _read_table(table: Path, given: str) -> list[_Row]:
    where = f"data.labels: {given!r}"
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            lines = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{where} cannot be read ({error}); give a CSV with the columns file,label") from error
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    at = {names: next((columns.index(name) for name in names if name in columns), None) for names in (_FILES, _LABELS)}
    if at[_FILES] is None or at[_LABELS] is None:
        told = f"has the columns {', '.join(map(shown, lines[0]))}" if lines else "is empty"
        raise InputError(f"{where} {told}; give file (or file_name) and label, and split or not")
    rows = []
    part_at = columns.index(_SPLIT[0]) if _SPLIT[0] in columns else None
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(columns):
            raise InputError(
                f"{where}: row {number} has {len(line)} values for {len(columns)} columns; quote a text that holds a "
                f"{delimiter!r}"
            )
        file_name, label = line[at[_FILES] or 0].strip(), compose(line[at[_LABELS] or 0].strip())
        if not file_name or not label:
            raise InputError(f"{where}: row {number} has no {'label' if file_name else 'file'}; give both in every row")
        part = "" if part_at is None else _part(line[part_at], f"{where}: row {number}: file {shown(file_name)}")
        rows.append(_Row(number, Path(file_name), label, part))
    if not rows:
        raise InputError(f"{where} has no row below its columns; give a file and its label in each")
    return rows


def _part(text: str, where: str) -> str:
    word = text.strip().lower()
    part = next((part for part, words in PARTS.items() if word in words), None)
    if part is None:
        raise InputError(f"{where}: split {text!r} is not allowed; give train, val or test")
    return part
