"""The runs of a study that have ended, one JSON line each: what is in it is never run again."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.folder import write_text

Row = dict[str, Any]
"""One read-out of a run: accuracy after an epoch or step; plain values by column."""


def key_of(trial: Any) -> str:
    """Name a run by all that decides its figures.

    Args:
        trial: a dataclass of plain values.
    """
    return json.dumps(asdict(trial), sort_keys=True)


class Ledger:
    """Finished runs by key, on disk.

    Args:
        path: of the JSON lines; made at the first run.
        flag: what named it, for errors.

    Raises:
        InputError: if the file is damaged, other than by a last line that was cut off, which is dropped.
    """

    def __init__(self, path: Path, flag: str = "run.folder") -> None:
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        self._whole = 0  # bytes up to the end of the last whole line
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            if not line.endswith(b"\n"):
                break  # the process was killed while it wrote
            try:
                entry = json.loads(line)
                self.rows[json.dumps(entry["trial"], sort_keys=True)] = entry["rows"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{flag}: {str(path)!r} is damaged ({error!r}); remove it to run the study again"
                ) from error
            self._whole += len(line)

    def __contains__(self, trial: Any) -> bool:
        return key_of(trial) in self.rows

    def of(self, trial: Any) -> list[Row]:
        """Return a finished run's rows, each with the trial's own columns before its read-outs."""
        return [{**asdict(trial), **row} for row in self.rows[key_of(trial)]]

    def of_all(self, trials: Iterable[Any]) -> list[Row]:
        """Return the rows of several finished runs as `of` does, one run behind the other.

        Args:
            trials: each in the ledger.
        """
        return [row for trial in trials for row in self.of(trial)]

    def append(self, trial: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note a finished run: it is on disk when this returns.

        Args:
            trial: the run.
            rows: its read-outs.

        Raises:
            RunError: if the disk refuses; the runs before it are intact.
        """
        line = json.dumps({"trial": asdict(trial), "rows": list(rows)}, sort_keys=True) + "\n"
        try:
            with self.path.open("a+b") as file:
                file.seek(self._whole)
                unread = file.read()  # whole lines of a process beside this one stay; a line that was cut off goes
                file.truncate(self._whole + unread.rfind(b"\n") + 1)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
                self._whole = file.tell()
        except OSError as error:
            raise RunError(
                f"{self.path}: could not be written ({error.strerror}); the runs before are intact"
            ) from error
        self.rows[key_of(trial)] = [dict(row) for row in rows]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write read-outs as a table for other programs.

    Args:
        path: of the CSV.
        rows: by column; a column that some lack stays empty there.
    """
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_text(path, text.getvalue())
