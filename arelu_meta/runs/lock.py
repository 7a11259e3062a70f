"""One run a folder: a lock that the system lets go of when its process ends, however it ends.

The lock is the kernel's (POSIX, held over NFS too), so a killed run leaves none behind. The file's content says who
holds it. Where a file system does not carry locks from machine to machine, a heartbeat does: the holder touches the
file, and whoever finds it left by another machine watches whether it is still touched.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError, RunError

LOCK_NAME = ".lock"
HEARTBEAT = 5.0  # seconds
_HELD: dict[str, "FolderLock"] = {}  # of this process, which the kernel's locks do not keep from itself
_HELD_GUARD = threading.Lock()


class FolderLock:
    """Keeps every other run out of a folder.

    Args:
        folder: of the run.
        heartbeat: seconds between two touches of the file.
    """

    def __init__(self, folder: Path, heartbeat: float = HEARTBEAT) -> None:
        self.folder, self.heartbeat = folder, heartbeat
        self.path = folder / LOCK_NAME
        self._file: int | None = None
        self._key = ""
        self._thread: int | None = None
        self._stopped = threading.Event()
        self._beats: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._file is not None

    def acquire(self, tell: Callable[[str], object] = print) -> None:
        """Take the lock.

        Args:
            tell: told a line where it takes seconds to find out whether another machine's run is alive.

        Raises:
            InputError: if another run holds it, saying which.
            RunError: if the folder cannot be written.
        """
        self._key, self._thread = str(self.folder.resolve()), threading.get_ident()
        with _HELD_GUARD:
            older = _held_here(self.folder)
            _HELD[self._key] = self
        if older is not None:
            older.release()
        try:
            self._file = self._open()
            self._watch_other_machine(tell)
            self._sign()
        except BaseException:
            self._close()
            raise
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beats.start()

    def release(self) -> None:
        """Give the folder free; nothing is left of the lock."""
        if self._file is None:
            return
        self._stopped.set()
        if self._beats is not None:
            self._beats.join()
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
        with _HELD_GUARD:
            if _HELD.get(self._key) is self:
                del _HELD[self._key]

    def _open(self) -> int:
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise RunError(f"run.folder: {str(self.folder)!r} cannot be written ({error.strerror})") from error
            if not _lock(file):
                holder = _read(file)
                os.close(file)
                raise _in_use(self.folder, holder)
            # Whoever held it may have removed the file just before we had it: then ours is of no name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    return file
            os.close(file)

    def _watch_other_machine(self, tell: Callable[[str], object]) -> None:
        """Where another machine's run left its name, see whether it still touches the file."""
        assert self._file is not None
        holder = _read(self._file)
        if holder.get("host") in (None, socket.gethostname()):
            return
        seconds = 2.5 * float(holder.get("heartbeat", self.heartbeat))
        tell(f"run.folder: left by process {holder.get('process')} on {holder['host']}; waiting {seconds:.0f} s to see")
        before, until = os.fstat(self._file).st_mtime_ns, time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(0.2, self.heartbeat / 4))
            # The name, not our handle: NFS shows another machine's touch when it is looked up.
            if self.path.stat().st_mtime_ns != before:
                raise _in_use(self.folder, holder)

    def _sign(self) -> None:
        assert self._file is not None
        content = {"process": os.getpid(), "host": socket.gethostname(), "heartbeat": self.heartbeat}
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(content).encode(), 0)
        except OSError as error:
            raise RunError(f"run.folder: {str(self.folder)!r} cannot be written ({error.strerror})") from error

    def _beat(self) -> None:
        while not self._stopped.wait(self.heartbeat):
            with contextlib.suppress(OSError):  # a disk that is away for a while is no reason to stop
                os.utime(self.path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder inside the block.

    Args:
        folder: made if it is not there.

    Raises:
        InputError: if another run holds it, saying which.
        RunError: if it cannot be written.
    """
    lock = FolderLock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"run.folder: {str(folder)!r} cannot be written ({error.strerror})") from error
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Refuse a folder in which a run is under way on this machine; nothing is written.

    Args:
        folder: need not be there.

    Raises:
        InputError: saying which process holds it.
    """
    if _held_here(folder) is not None:
        return  # by this thread, which does one thing at a time: that run is over
    try:
        file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # no lock, or a folder that cannot be written, which is said elsewhere
    try:
        if not _lock(file):
            raise _in_use(folder, _read(file))
    finally:
        os.close(file)


def _held_here(folder: Path) -> FolderLock | None:
    """Return the lock that this thread has left on a folder, if any; refuse what another thread of ours holds."""
    holder = _HELD.get(str(folder.resolve()))
    if holder is not None and holder._thread != threading.get_ident():
        raise _in_use(folder, {"process": os.getpid(), "host": socket.gethostname()})
    return holder


def _lock(file: int) -> bool:
    """Take the kernel's lock on an open file; True, too, where the file system has none."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            return True
        raise
    return True


def _read(file: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _in_use(folder: Path, holder: dict[str, Any]) -> InputError:
    who = f"process {holder.get('process', '?')} on {holder.get('host', 'some machine')}"
    return InputError(
        f"run.folder: {str(folder)!r} is in use by another run ({who}); wait for it or give another folder"
    )
