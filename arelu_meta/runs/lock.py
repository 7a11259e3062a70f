"""One run a folder: a lock that the system lets go of when its process ends, however it ends."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from arelu_meta.errors import InputError, RunError

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
