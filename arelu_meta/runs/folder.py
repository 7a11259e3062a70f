"""The run folder: config, environment, split, metrics, checkpoints, results, each written at once or not at all."""

import contextlib
import csv
import dataclasses
import errno
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from arelu_meta.config import RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.environment import environment
from arelu_meta.runs.ranks import Ranks

_MARKS = ("config.yaml", "metrics.csv", "results.json", "model.safetensors", "checkpoints")
_KEPT_CHECKPOINTS = 2
_FULL_DISK = 1 << 20  # bytes left


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it.

    Args:
        path: the file.
        write: writes the content to the path that it is given, in the same folder.

    Raises:
        RunError: if the disk refuses; the old file is intact.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp's files are private; a run folder is as open as the user's umask makes other files.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _why_not_written(error, path.parent)
        raise RunError(f"{path}: could not be written ({reason}); what was there before is intact") from error
    finally:
        temporary.unlink(missing_ok=True)


def _why_not_written(error: Exception, folder: Path) -> str:
    """Say why a write failed; torch reports a full disk by the bytes that it missed."""
    if not isinstance(error, OSError) and shutil.disk_usage(folder).free < _FULL_DISK:
        return os.strerror(errno.ENOSPC)
    return str(error).split("\n")[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, indented, non-ASCII as it is."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@dataclass
class RunFolder:
    """A run's folder on disk.

    Args:
        path: the folder; made by `start`, not before, so that a run that fails its checks leaves nothing behind.
        resumed: the state to continue from, or None.
        resumed_from: the file that it came from.
        finished: whether the run in it had ended already.
        silent: whether another process writes it.
    """

    path: Path
    resumed: dict[str, Any] | None = None
    resumed_from: Path | None = None
    finished: bool = False
    silent: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The best weights."""
        return self.path / "model.safetensors"

    def start(self, config: object, split: Mapping[str, Any]) -> None:
        """Make the folder and write what is known before the first step.

        Args:
            config: the task's config, a dataclass.
            split: what is trained, validated and tested on; JSON types.

        Raises:
            RunError: if the folder cannot be written.
        """
        if self.silent:
            self.rows = list(self.resumed["metrics"]) if self.resumed is not None else []
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run.folder: {str(self.path)!r} cannot be written ({error.strerror})") from error
        command = shlex.join(sys.argv)
        content = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)  # type: ignore[call-overload]
        write_text(self.path / "config.yaml", f"# {command}\n{content}")
        write_json(self.path / "environment.json", environment() | {"command": command})
        write_json(self.path / "split.json", dict(split))
        if self.resumed is not None:
            self._restore_metrics(self.resumed["metrics"])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.csv; the first row's keys are the header.

        Args:
            row: one value a column; floats are written with all their digits.
        """
        path = self.path / "metrics.csv"
        new = not self.rows
        self.rows.append(dict(row))
        if self.silent:
            return
        with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def _restore_metrics(self, rows: list[dict[str, Any]]) -> None:
        # Rows after the checkpoint are taken again, so each stands once.
        self.rows = []
        (self.path / "metrics.csv").unlink(missing_ok=True)
        for row in rows:
            self.append_metrics(row)

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically and drop all but the last two.

        Args:
            name: sorts by time, as in `epoch-0003`.
            state: tensors and plain Python values, so that `torch.load(weights_only=True)` reads it.

        Returns:
            The checkpoint's path.
        """
        path = self.checkpoints / f"{name}.pt"
        if self.silent:
            return path
        content = {**state, "metrics": self.rows}
        write_atomically(path, lambda temporary: torch.save(content, temporary))
        for old in sorted(self.checkpoints.glob("*.pt"))[:-_KEPT_CHECKPOINTS]:
            old.unlink()
        return path

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json: the run has ended."""
        if not self.silent:
            write_json(self.path / "results.json", dict(results))


def open_run(config: RunConfig, task: str, ranks: Ranks | None = None) -> RunFolder:
    """Choose the run's folder and look whether it may be used; nothing is written yet.

    Args:
        config: folder and resume.
        task: names the folder where none is given.
        ranks: the run's processes, of which the first writes; default: this one.

    Returns:
        The folder, with the state to resume from if there is one.

    Raises:
        InputError: if the folder holds a run already (with resume=never, or a checkpoint of another folder), cannot be
            made or written, or the checkpoint is missing.
    """
    path = Path(os.path.expanduser(config.folder)) if config.folder else default_folder(task)  # noqa: PTH111
    if ranks is not None:
        path = ranks.gather(path)[0]  # the first one's clock names it
    _check_place(path)
    folder = RunFolder(path, silent=ranks is not None and not ranks.main)
    held = [mark for mark in _MARKS if (path / mark).exists()]
    if config.resume == "never":
        if held:
            raise InputError(
                f"run.folder: {str(path)!r} already holds a run ({held[0]}); give another folder or --run.resume auto"
            )
        return folder
    if config.resume == "auto":
        if (path / "results.json").exists():
            folder.finished = True
            return folder
        saved = sorted(folder.checkpoints.glob("*.pt"))
        if saved:
            folder.resumed, folder.resumed_from = load_checkpoint(saved[-1]), saved[-1]
        return folder
    folder.resumed_from = Path(os.path.expanduser(config.resume))  # noqa: PTH111
    if held and folder.resumed_from.resolve().parent != folder.checkpoints.resolve():
        raise InputError(
            f"run.folder: {str(path)!r} already holds a run ({held[0]}), and not the one of run.resume "
            f"{config.resume!r}; give another folder"
        )
    folder.resumed = load_checkpoint(folder.resumed_from)
    return folder


def check_apart(folder: RunFolder, images: Sequence[Path]) -> None:
    """Refuse to write a run among the images that it reads: the next run would take its files for a class.

    Args:
        folder: of the run.
        images: the folders that hold the classes.

    Raises:
        InputError: naming both.
    """
    for place in images:
        if folder.path.resolve().is_relative_to(place.resolve()):
            raise InputError(
                f"run.folder: {str(folder.path)!r} lies among the images in {str(place)!r}; give another folder"
            )


@contextlib.contextmanager
def restoring(where: str, state: Mapping[str, Any], optimizer: str) -> Iterator[None]:
    """Turn what goes wrong inside the block, which restores a checkpoint's state, into one sentence.

    Args:
        where: what the sentence starts with.
        state: of the checkpoint.
        optimizer: optim.name of this run, which must be the checkpoint's.

    Raises:
        InputError: if the checkpoint does not fit the config.
    """
    try:
        if state["optimizer_name"] != optimizer:
            raise ValueError(f"its optim.name is {state['optimizer_name']!r}, not {optimizer!r}")
        yield
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where} does not fit this config ({reason}); give the config of its run") from error


def _check_place(path: Path) -> None:
    """Refuse a folder that could not be made: found now, not when the first file is written."""
    whole = path.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    if nearest == whole and not whole.is_dir():
        raise InputError(f"run.folder: {str(path)!r} is {'a file' if path.is_file() else 'no folder'}; give a folder")
    if not nearest.is_dir():
        raise InputError(f"run.folder: {str(path)!r} lies below {str(nearest)!r}, which is no folder; give another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"run.folder: {str(path)!r} cannot be written ({str(nearest)!r} is read-only); give another")


@contextlib.contextmanager
def resumable(checkpoint: Callable[[], str]) -> Iterator[None]:
    """Name the last checkpoint where a person interrupts the block, or whoever reads the output stops.

    Args:
        checkpoint: tells its path when asked.

    Raises:
        KeyboardInterrupt: as it came, with how to go on.
        RunError: if standard output is closed (`| head`).
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{checkpoint()} is written; --run.resume auto goes on from it") from None
    except BrokenPipeError as error:
        raise RunError(
            f"standard output was closed; {checkpoint()} is written; --run.resume auto goes on from it"
        ) from error


def default_folder(task: str) -> Path:
    """Name a folder that is not there yet: runs/TASK-DATE-TIME, with a number where two start in one second."""
    base = Path("runs") / f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: a file that `RunFolder.save_checkpoint` wrote.

    Returns:
        Its state.

    Raises:
        InputError: if it is missing, or no checkpoint.
    """
    if not path.is_file():
        raise InputError(
            f"run.resume: {str(path)!r} does not exist; give never, auto or a checkpoint (checkpoints/*.pt)"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a damaged file
        # torch's own messages advise to load it without the protection.
        raise InputError(
            f"run.resume: {str(path)!r} is not a checkpoint of this toolkit (it is damaged, or holds more than tensors "
            "and plain values); give one of checkpoints/*.pt"
        ) from error
    if not isinstance(state, dict) or "metrics" not in state:
        raise InputError(f"run.resume: {str(path)!r} is not a checkpoint of this toolkit; give one of checkpoints/*.pt")
    return state
