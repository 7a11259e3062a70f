"""The run folder: config, environment, split, metrics, checkpoints, results, each written at once or not at all."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from arelu_meta.config import RunConfig
from arelu_meta.errors import InputError, RunError
from arelu_meta.runs.atomic_io import (
    check_place,
    drop_unfinished,
    why_not_written,
    write_json,
    write_text,
)
from arelu_meta.runs.checkpoints import (
    check_same_config,
    check_same_images,
    list_checkpoints,
    load_checkpoint,
    load_last,
    set_aside_later,
    write_checkpoint,
)
from arelu_meta.runs.distributed import Ranks
from arelu_meta.runs.environment import environment

_MARKS = ("config.yaml", "metrics.csv", "results.json", "model.safetensors", "checkpoints")


@dataclass
class RunFolder:
    """A run's folder on disk.

    Args:
        path: the folder; made by `start`, not before, so that a run that fails its checks leaves nothing behind.
        resumed: the state to continue from, or None.
        resumed_from: the file that it came from.
        finished: whether the run in it had ended already.
        silent: whether another process writes it.
        damaged: what was wrong with later checkpoints that are not gone on from, a sentence each.
        rows: of metrics.csv.
        times: of times.csv: seconds are kept apart, since no two runs take as long.
        seen: what lay in the folder when it was opened.

    Within a `with` block, from `start` on, no other run can use the folder.
    """

    path: Path
    resumed: dict[str, Any] | None = None
    resumed_from: Path | None = None
    finished: bool = False
    silent: bool = False
    damaged: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)
    seen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._lock = FolderLock(self.path)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The best weights."""
        return self.path / "model.safetensors"

    def check_split(self, split: Mapping[str, Any]) -> None:
        """Refuse to go on with other images than the run had or another split of them, or to repeat its results so.

        Args:
            split: what is trained, validated and tested on; JSON types.

        Raises:
            InputError: naming what came or went.
        """
        if self.resumed_from is not None:
            check_same_images(self.resumed_from.parent.parent, split, f"run.resume: {str(self.resumed_from)!r}")
        elif self.finished:
            check_same_images(self.path, split, f"run.folder: {str(self.path)!r}")

    def check_same(self, resolve: Callable[[int], object]) -> None:
        """Refuse to go on with a run, or to repeat its results, under a config that would give other figures.

        Args:
            resolve: gives this run's config, its defaults resolved for a number of training images.

        Raises:
            InputError: naming the first field that differs.
        """
        if self.finished:
            check_same_config(self.path, resolve)
        elif self.resumed_from is not None:
            check_same_config(self.resumed_from.parent.parent, resolve)

    def start(self, config: object, split: Mapping[str, Any]) -> None:
        """Make the folder and write what is known before the first step.

        Args:
            config: the task's config, a dataclass.
            split: what is trained, validated and tested on; JSON types.

        Raises:
            InputError: if another run holds the folder, or was started in it after this one had looked; if the
                checkpoint that this one goes on from is of a run on other images.
            RunError: if the folder cannot be written.
        """
        self.check_split(split)
        if self.silent:
            self.rows = list(self.resumed["metrics"]) if self.resumed is not None else []
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if _contents(self.path) != self.seen:
                self._lock.release()
                raise InputError(f"run.folder: {str(self.path)!r} was used by another run just now; start again")
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"run.folder: {str(self.path)!r} cannot be written ({error.strerror})") from error
        self._clean_up()
        command = shlex.join(sys.argv)
        content = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)  # type: ignore[call-overload]
        write_text(self.path / "config.yaml", f"# {command}\n{content}")
        write_json(self.path / "environment.json", environment() | {"command": command})
        write_json(self.path / "split.json", dict(split))
        if self.resumed is not None:
            self._restore_metrics(self.resumed)

    def _clean_up(self) -> None:
        """Remove what a killed run was writing; set aside the checkpoints that this one does not go on from."""
        drop_unfinished(self.path)
        drop_unfinished(self.checkpoints)
        if self.resumed_from is not None:
            for sentence in self.damaged:
                print(f"damaged checkpoint: {sentence}; going on from {self.resumed_from.name}", flush=True)
            set_aside_later(self.checkpoints, self.resumed_from)
            # Of a run that had ended, and goes on from one of its checkpoints: until it ends again it has none.
            (self.path / "results.json").unlink(missing_ok=True)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.csv; the first row's keys are the header.

        Args:
            row: one value a column; floats are written with all their digits.

        Raises:
            RunError: if the disk refuses.
        """
        self._append("metrics.csv", self.rows, dict(row))

    def append_time(self, unit: str, number: int, seconds: float) -> None:
        """Append one row to times.csv.

        Args:
            unit: epoch or step.
            number: how many are done.
            seconds: that the run has taken so far.

        Raises:
            RunError: if the disk refuses.
        """
        self._append("times.csv", self.times, {unit: number, "seconds": round(seconds, 2)})

    def _append(self, name: str, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        path = self.path / name
        new = not rows
        rows.append(row)
        if self.silent:
            return
        try:
            with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
                file.write(_as_csv(rows, [row], header=new))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = why_not_written(error, self.path)
            raise RunError(f"{path}: could not be written ({reason}); the last checkpoint is intact") from error

    def _restore_metrics(self, state: Mapping[str, Any]) -> None:
        # Rows after the checkpoint are taken again, so each stands once.
        self.rows, self.times = list(state["metrics"]), list(state.get("times", []))
        for name, rows in (("metrics.csv", self.rows), ("times.csv", self.times)):
            if rows:
                write_text(self.path / name, _as_csv(rows, rows, header=True))
            else:
                (self.path / name).unlink(missing_ok=True)

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically, with its checksum, and drop all but the last two.

        Args:
            name: sorts by time, as in `epoch-0003`.
            state: tensors and plain Python values, so that `torch.load(weights_only=True)` reads it.

        Returns:
            The checkpoint's path.

        Raises:
            RunError: if the disk refuses; the checkpoints before it are intact.
        """
        path = self.checkpoints / f"{name}.pt"
        if not self.silent:
            write_checkpoint(path, {**state, "metrics": self.rows, "times": self.times})
        return path

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json: the run has ended."""
        if not self.silent:
            write_json(self.path / "results.json", dict(results))


def _as_csv(columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], header: bool) -> str:
    """Write rows as CSV; the columns are those of the first of `columns`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(columns[0]))
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _contents(path: Path) -> tuple[str, ...]:
    """List what makes a folder a run's, and its checkpoints."""
    marks = [mark for mark in _MARKS if (path / mark).exists()]
    return (*marks, *(found.name for found in list_checkpoints(path / "checkpoints")))


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
    check_place(path)
    main = ranks is None or ranks.main
    if main:
        check_free(path)
    folder = RunFolder(path, silent=not main, seen=_contents(path))
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
        folder.resumed, folder.resumed_from, damaged = load_last(folder.checkpoints)
        folder.damaged = tuple(damaged)
        return folder
    folder.resumed_from = Path(os.path.expanduser(config.resume))  # noqa: PTH111
    if held and folder.resumed_from.resolve().parent != folder.checkpoints.resolve():
        raise InputError(
            f"run.folder: {str(path)!r} already holds a run ({held[0]}), and not the one of run.resume "
            f"{config.resume!r}; give another folder"
        )
    folder.resumed = load_checkpoint(folder.resumed_from)
    return folder


def open_fresh(config: RunConfig, task: str) -> RunFolder:
    """Choose the folder of a task that has nothing to go on from, and would write over what a run has found.

    Args:
        config: folder and resume.
        task: names the folder where none is given.

    Raises:
        InputError: if the folder holds a run, cannot be made or written, or something is to be resumed.
    """
    if config.resume != "never":
        raise InputError(
            f"run.resume: {config.resume!r} is read by tasks that train, and {task} does not; leave run.resume out"
        )
    try:
        return open_run(config, task)
    except InputError as error:
        raise InputError(str(error).replace(" or --run.resume auto", "")) from error


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
def resumable(checkpoint: Callable[[], str]) -> Iterator[None]:
    """Name the last checkpoint where a person interrupts the block, or whoever reads the output stops.

    Args:
        checkpoint: tells its path when asked; `none` before there is any.

    Raises:
        KeyboardInterrupt: as it came, with how to go on.
        RunError: if standard output is closed (`| head`).
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(checkpoint())) from None
    except BrokenPipeError as error:
        raise RunError(f"standard output was closed; {_how_to_go_on(checkpoint())}") from error


def _how_to_go_on(checkpoint: str) -> str:
    if checkpoint == "none":
        return "no checkpoint was written yet; --run.resume auto starts over"
    return f"{checkpoint} is written; --run.resume auto goes on from it"


def default_folder(task: str) -> Path:
    """Name a folder that is not there yet: runs/TASK-DATE-TIME, with a number where two start in one second."""
    base = Path("runs") / f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


LOCK_NAME = ".lock"
_HELD: dict[str, "FolderLock"] = {}  # of this process: a run that an exception left open still holds its folder


class FolderLock:
    """Keeps every other run out of a folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK_NAME
        self._lock = FileLock(self.path, timeout=0, thread_local=False)
        self._thread = threading.get_ident()

    def acquire(self) -> None:
        """Take the lock; one that this thread's last run left on the folder is given free first.

        Raises:
            InputError: if another run holds it, saying which.
            RunError: if the folder cannot be written.
        """
        older = _held_here(self.folder)
        if older is not None:
            older.release()
        holder = _holder(self.path)
        try:
            self._lock.acquire()
            self.path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        except Timeout as error:
            raise _in_use(self.folder, holder) from error
        except OSError as error:
            self._lock.release()
            raise RunError(f"run.folder: {str(self.folder)!r} cannot be written ({error.strerror})") from error
        self._thread = threading.get_ident()
        _HELD[str(self.folder.resolve())] = self

    def release(self) -> None:
        """Give the folder free; nothing is left of the lock."""
        if not self._lock.is_locked:
            return
        _HELD.pop(str(self.folder.resolve()), None)
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._lock.release()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder inside the block.

    Args:
        folder: made if it is not there.

    Raises:
        InputError: if another run holds it, saying which.
        RunError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run.folder: {str(folder)!r} cannot be written ({error.strerror})") from error
    lock = FolderLock(folder)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Refuse a folder in which a run is under way.

    Args:
        folder: need not be there.

    Raises:
        InputError: saying which process holds it.
    """
    path = folder / LOCK_NAME
    if _held_here(folder) is not None or not path.is_file():
        return  # held by this thread, which does one thing at a time: that run is over
    probe = FileLock(path, timeout=0, thread_local=False)
    holder = _holder(path)
    try:
        with probe:
            pass
    except Timeout as error:
        raise _in_use(folder, holder) from error
    except OSError:
        return  # a folder that cannot be written, which is said elsewhere


def _held_here(folder: Path) -> FolderLock | None:
    """Return the lock that this thread has left on a folder, if any; refuse what another thread of ours holds."""
    held = _HELD.get(str(folder.resolve()))
    if held is not None and held._thread != threading.get_ident():
        raise _in_use(folder, {"process": os.getpid(), "host": socket.gethostname()})
    return held


def _holder(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _in_use(folder: Path, holder: dict[str, Any]) -> InputError:
    who = f"process {holder.get('process', '?')} on {holder.get('host', 'some machine')}"
    return InputError(
        f"run.folder: {str(folder)!r} is in use by another run ({who}); wait for it or give another folder"
    )


def report_results(results: Mapping[str, Any]) -> None:
    """Print a run's test accuracy with its interval, which model was kept and why, and where it lies.

    Args:
        results: what results.json holds.
    """
    unit = "images"
    if results["task"] == "metatrain":
        unit = "tasks of unseen classes" if results.get("test_seen", 0) == 0 else "tasks"
    judged = f"{results['test_n']} {unit}"
    if results.get("normalization"):
        judged += f", {results['normalization']} normalisation"
    mean, over = "", ""
    if runs := results.get("runs"):
        mean, over, judged = "mean ", f"over {runs} runs ", f"{judged} in all"
    print(
        f"{mean}test accuracy {results['test_accuracy']:.1%} "
        f"(95 % interval {over}{results['test_low']:.1%} to {results['test_high']:.1%}, {judged})"
    )
    if (told := seen_line(results)) is not None:
        print(told)
    for name in ("kept", "gates"):
        if results.get(name):
            print(results[name])
    if results.get("folder"):
        print(f"written to {results['folder']}", flush=True)


def seen_line(results: Mapping[str, Any]) -> str | None:
    """Say in a sentence how much of what was tested on the model had seen before; None where it was nothing.

    Args:
        results: what results.json holds; of a version before 0.2 nothing is known.
    """
    unit = "test classes" if results.get("task") == "metatrain" else "test images"
    total = results.get("test_classes", results.get("test_n"))
    if "test_seen" not in results or results["test_seen"] == 0:
        return None
    if results["test_seen"] is None and total is None:
        return "not known: whether the classes of the test tasks were trained on, since the tasks were handed over"
    if results["test_seen"] is None:
        return f"not known: how many of the {total} {unit} were trained on, by a model from before version 0.2"
    return f"NOT all unseen: {results['test_seen']} of {total} {unit} were trained or validated on before"


def finished_results(folder: RunFolder, task: str) -> dict[str, Any]:
    """Say that a run had ended already, and return what it found.

    Args:
        folder: holds results.json.
        task: whose results they must be.

    Raises:
        InputError: if the results cannot be read, or are another task's.
    """
    path = folder.path / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error}); remove it to run again") from error
    found = results.get("task") if isinstance(results, dict) else None
    if found != task:
        raise InputError(
            f"run.folder: {str(folder.path)!r} holds results of {found}, not of {task}; give another folder"
        )
    if "folder" in results:
        results["folder"] = str(folder.path)  # it may have been moved since
    print(f"finished already: {folder.path}")
    try:
        report_results(results)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"run.folder: {str(path)!r} is damaged ({error!r}); remove it to run again") from error
    return results
