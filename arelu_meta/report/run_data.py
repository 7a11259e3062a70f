"""Read what runs left in their folders; what is missing or damaged becomes a sentence, never a traceback."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError
from arelu_meta.validation import expanded, read_yaml

_LARGEST = 64 << 20  # bytes of a text file; more is no table of a run
_MARKS = ("results.json", "config.yaml", "metrics.csv", "split.json")
_MOST_RUNS = 2000
Row = dict[str, str]


@dataclass
class Run:
    """A run's folder, as far as it can be read.

    Args:
        folder: where it lies.
        name: as the report calls it.
        problems: what could not be read, a sentence each; grows as files are read.
    """

    folder: Path
    name: str
    problems: list[str] = field(default_factory=list)

    @cached_property
    def results(self) -> dict[str, Any]:
        """What results.json holds; empty for a run that has not ended."""
        return self._mapping("results.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What environment.json holds."""
        return self._mapping("environment.json")

    @cached_property
    def split(self) -> dict[str, Any]:
        """What split.json holds."""
        return self._mapping("split.json")

    @cached_property
    def config_text(self) -> str:
        """The text of config.yaml."""
        return self._text("config.yaml") or ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.yaml holds, by the flags' names, as in `optim.lr`."""
        if not self.config_text:
            return {}
        try:
            content = read_yaml(str(self.folder / "config.yaml"), "config.yaml")
        except InputError:
            self.problems.append("config.yaml is damaged and left out.")
            return {}
        if not isinstance(content, dict):
            return {}
        flat: dict[str, Any] = {}
        for group, values in content.items():
            if isinstance(values, dict):
                flat |= {f"{group}.{name}": value for name, value in values.items() if not isinstance(value, dict)}
            else:
                flat[str(group)] = values
        return {name: "a number of so many digits" if _is_long(value) else value for name, value in flat.items()}

    @property
    def task(self) -> str:
        """finetune, metatrain, claims, sweep or "" where nobody knows."""
        found = self.results.get("task")
        if isinstance(found, str):
            return found
        if "study" in self.config:
            return "claims"
        return "metatrain" if "meta.algorithm" in self.config else "finetune" if "train.mode" in self.config else ""

    @property
    def command(self) -> str:
        """The command that started it."""
        found = self.environment.get("command")
        if isinstance(found, str):
            return found
        first = self.config_text.split("\n", 1)[0]
        return first.removeprefix("# ") if first.startswith("# ") else ""

    @property
    def seed(self) -> Any:
        """Its seed; None where nobody knows."""
        return self.results.get("seed", self.config.get("run.seed"))

    @property
    def seeds(self) -> list[Any]:
        """All of its seeds: a study and repeated runs have several."""
        several = self.results.get("seeds")
        if isinstance(several, list) and several:
            return several
        return [] if self.seed is None else [self.seed]

    def number(self, name: str) -> float | None:
        """Take a finite number from results.json.

        Args:
            name: of the field.
        """
        value = self.results.get(name)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if fits else None  # type: ignore[arg-type]

    def text(self, name: str) -> str:
        """Take a text from results.json, empty where it is none.

        Args:
            name: of the field.
        """
        value = self.results.get(name)
        return value if isinstance(value, str) else ""

    def rows(self, name: str, needed: Sequence[str] = ()) -> list[Row]:
        """Read a CSV file.

        Args:
            name: of the file in the folder.
            needed: columns without which it is of no use.

        Returns:
            One mapping a row; none where the file is missing or damaged, which `problems` then says of the latter.
        """
        text = self._text(name)
        if text is None:
            return []
        try:
            reader = csv.DictReader(text.splitlines(keepends=True))
            found = [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]
        except csv.Error as error:
            self.problems.append(f"{name} is damaged ({error}) and left out.")
            return []
        missing = [column for column in needed if column not in (reader.fieldnames or ())]
        if missing:
            self.problems.append(f"{name} has no column {', '.join(missing)} and is left out.")
            return []
        return found

    def lines(self, name: str) -> int:
        """Count the whole lines of a text file; 0 where it is missing.

        Args:
            name: of the file in the folder.
        """
        return (self._text(name) or "").count("\n")

    def matrix(self, name: str) -> list[list[str]]:
        """Read a CSV file as plain rows, the header included; its columns may have the same name.

        Args:
            name: of the file in the folder.
        """
        text = self._text(name)
        try:
            return [] if text is None else [row for row in csv.reader(text.splitlines(keepends=True)) if row]
        except csv.Error as error:
            self.problems.append(f"{name} is damaged ({error}) and left out.")
            return []

    def _text(self, name: str) -> str | None:
        path = self.folder / name
        try:
            if not path.is_file():
                return None
            if path.stat().st_size > _LARGEST:
                self.problems.append(f"{name} is larger than {_LARGEST >> 20} MB and left out.")
                return None
            return path.read_text(encoding="utf-8", errors="replace").replace("\0", "\ufffd")
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror}) and is left out.")
            return None

    def _mapping(self, name: str) -> dict[str, Any]:
        text = self._text(name)
        if text is None:
            return {}
        try:
            content = json.loads(text, parse_int=_whole)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            self.problems.append(f"{name} is damaged and left out.")
            return {}
        return content


def _is_long(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 64


def _whole(digits: str) -> int | float:
    """Read a whole number; one of hundreds of digits, which no run writes, as infinite: nothing is done with it."""
    return int(digits) if len(digits) < 20 else float(digits)


def number_of(text: object) -> float | None:
    """Read a finite number from a cell of a CSV file; None where it holds none.

    Args:
        text: the cell.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def column(rows: Sequence[Row], name: str) -> list[float | None]:
    """Take a column's numbers.

    Args:
        rows: of `Run.rows`.
        name: of the column.
    """
    return [number_of(row.get(name)) for row in rows]


def holds_run(folder: Path) -> bool:
    """Say whether a folder is one of a run, a study or a sweep: one of their files lies in it.

    Args:
        folder: any path.
    """
    return any((folder / mark).is_file() for mark in _MARKS)


def open_folder(given: str | Path) -> Run:
    """Look at a folder that a person named.

    Args:
        given: a run, a study, a sweep, or a folder of runs.

    Raises:
        InputError: if it is no folder, or holds no run.
    """
    path = expanded(given)
    try:
        there, directory = path.exists(), path.is_dir()
    except OSError as error:
        raise InputError(f"runs: {str(given)!r} cannot be read ({error.strerror}); give a run's folder") from error
    if not there:
        raise InputError(f"runs: {str(given)!r} does not exist; give the folder of a run, a study or a sweep")
    if not directory:
        raise InputError(f"runs: {str(given)!r} is a file; give the folder of a run, a study or a sweep")
    try:
        known = holds_run(path) or bool(runs_below(path))
    except OSError as error:
        raise InputError(f"runs: {str(given)!r} cannot be read ({error.strerror}); give a run's folder") from error
    if not known:
        raise InputError(
            f"runs: {str(given)!r} holds no run (none of {', '.join(_MARKS)}); give the folder of a run, a study or a "
            "sweep"
        )
    return Run(path, path.resolve().name or str(path))


def runs_below(folder: Path, deepest: int = 3) -> list[Run]:
    """Find the runs inside a folder, by name, without looking into a run that was found.

    Args:
        folder: of a sweep, of repeats or folds, or any folder of runs.
        deepest: how many folders down.

    Returns:
        At most 2,000, named by their path below the folder.
    """
    found: list[Run] = []
    pending = [(one, 1) for one in _folders(folder)]
    while pending and len(found) < _MOST_RUNS:
        place, depth = pending.pop(0)
        if holds_run(place):
            found.append(Run(place, place.relative_to(folder).as_posix()))
        elif depth < deepest:
            pending += [(one, depth + 1) for one in _folders(place)]
    return sorted(found, key=lambda run: _natural(run.name))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    except PermissionError:
        return []


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort seed-2 before seed-10."""
    import re

    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
