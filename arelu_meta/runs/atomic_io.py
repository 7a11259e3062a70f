"""Files that are written at once or not at all, whatever happens to the process or the disk."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from arelu_meta.errors import InputError, RunError

_FULL_DISK = 1 << 20  # bytes left

UNFINISHED = ".arelu-unfinished"  # what a killed process was writing ends so; a person's own .tmp files do not


def write_atomically(
    path: Path, write: Callable[[Path], object], before: Callable[[Path], object] | None = None
) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it, after a power cut too.

    Args:
        path: the file.
        write: writes the content to the path that it is given, in the same folder.
        before: is told the path of the whole content, on disk, just before it takes the file's name.

    Raises:
        RunError: if the disk refuses; the old file is intact.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if before is not None:
            before(temporary)
        # mkstemp's files are private; a run folder is as open as the user's umask makes other files.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RunError):
            raise
        reason = why_not_written(error, path.parent)
        raise RunError(f"{path}: could not be written ({reason}); what was there before is intact") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def why_not_written(error: Exception, folder: Path) -> str:
    """Say why a write failed; torch reports a full disk by the bytes that it missed.

    Args:
        error: what was raised.
        folder: that was written to.
    """
    if not folder.is_dir():
        return f"the folder {str(folder)!r} is gone"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _FULL_DISK:
            return os.strerror(errno.ENOSPC)
    return str(error).split("\n")[0]


def _sync_folder(folder: Path) -> None:
    """Bring a new name to the disk, where the file system lets folders be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_place(path: Path) -> None:
    """Refuse a folder that could not be made: found now, not when the first file is written.

    Args:
        path: of the folder.

    Raises:
        InputError: saying what is in the way.
    """
    whole = path.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    if nearest == whole and not whole.is_dir():
        raise InputError(f"run.folder: {str(path)!r} is {'a file' if path.is_file() else 'no folder'}; give a folder")
    if not nearest.is_dir():
        raise InputError(f"run.folder: {str(path)!r} lies below {str(nearest)!r}, which is no folder; give another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"run.folder: {str(path)!r} cannot be written ({str(nearest)!r} is read-only); give another")


def drop_unfinished(folder: Path) -> None:
    """Remove what `write_atomically` was writing into a folder when its process was killed.

    Args:
        folder: that no other process writes to.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8; half a character becomes its code, as JSON has it."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, indented, non-ASCII as it is."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
