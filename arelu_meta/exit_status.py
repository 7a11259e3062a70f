"""How a command ends: one line on stderr, an exit status, and streams that may be closed, full or a reader gone."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from arelu_meta.errors import InputError, RunError, SharedRunError, out_of_memory, printable
from arelu_meta.runs.signals import terminated_as_by_ctrl_c

BAD_INPUT, CANNOT_GO_ON, INTERRUPTED = 2, 3, 130


def guarded(work: Callable[[], object]) -> int:
    """Do some work, and turn how it ended into one line and an exit status.

    Args:
        work: what to do.

    Returns:
        The exit status: 0 done, 2 bad input, 3 the run could not go on, 130 interrupted.
    """
    open_streams()
    try:
        with terminated_as_by_ctrl_c():
            work()
        # What waits for the interpreter's end would fail there, where nobody can say so.
        sys.stdout.flush()
        return 0
    except InputError as error:
        return fail(error, BAD_INPUT)
    except RunError as error:
        return fail(error, CANNOT_GO_ON, shared=isinstance(error, SharedRunError))
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`).
        return 0
    except KeyboardInterrupt as error:
        return fail(f"interrupted{f'; {error}' if str(error) else ''}", INTERRUPTED)
    except Exception as error:
        if (sentence := refused_by_machine(error)) is not None:
            return fail(sentence, CANNOT_GO_ON)
        error.add_note("This is a bug: please report it with the whole command and what `arelu-meta env` prints.")
        raise
    finally:
        _close_quietly()


def refused_by_machine(error: Exception) -> str | None:
    """Say in one line what the machine refused: memory, disk, an operation; None for a bug of ours.

    Args:
        error: what ended the work.
    """
    text = str(error)
    reason = text.split("\n")[0].strip().rstrip(". ")
    if out_of_memory(error):
        return (
            f"out of memory ({reason or 'MemoryError'}); allow more, or try a smaller --data.batch_size or "
            "--data.image_size"
        )
    if isinstance(error, OSError):
        # A disk that fills up, a folder that may not be written.
        return (f"{error.filename}: " if error.filename else "") + (error.strerror or text)
    if "does not have a deterministic implementation" in text:
        operation = text.split(" ")[0]
        return f"run.deterministic: {operation} has no repeatable form on this device; leave run.deterministic out"
    if re.search(r"^DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", text):
        return (
            f"a process that decodes images died ({reason}); --run.resume auto goes on, with fewer --data.workers "
            "where memory ran out"
        )
    return None


def fail(error: object, status: int, shared: bool = False) -> int:
    """Print an error on one line, unless another process of the run prints it.

    Args:
        error: whose text is printed.
        status: the exit status.
        shared: every process of the run meets it.

    Returns:
        The status.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    # Every process of a run finds the same fault; the first says it.
    rank, processes = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    other = rank.isdecimal() and processes.isdecimal() and 0 < int(rank) < int(processes)
    if not (other and (shared or status in (BAD_INPUT, INTERRUPTED))):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: the status still counts
            print("error: " + printable(" ".join(str(error).split())), file=sys.stderr, flush=True)
    return status


class _Output(io.FileIO):
    """Standard output; where its reader stops inside `outliving_readers`, what is left goes nowhere."""

    outlives = False

    def write(self, content: Any) -> int:
        """Write, as a file does."""
        try:
            return super().write(content)
        except BrokenPipeError:
            if not _Output.outlives:
                raise
            _point_nowhere(self.fileno())
            return len(content)


class _Lines(io.TextIOWrapper):
    """Standard output's text, without what a name in it would do to a terminal; rich's own codes pass on one."""

    def write(self, text: str) -> int:
        """Write, as a file does."""
        super().write(printable(text, keep="\n\t\r\x1b" if self.isatty() else "\n\t"))
        return len(text)


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Let a run go on inside the block though nobody reads its output any more (`| head`): its folder has it all."""
    before, _Output.outlives = _Output.outlives, True
    try:
        yield
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    finally:
        _Output.outlives = before


def open_streams() -> None:
    """Give every closed standard stream a place to write to, so that no file that is opened takes its number.

    File names may hold what a terminal's encoding cannot say: its code is shown then.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        raw = _Output(sys.stdout.fileno(), "w", closefd=False)
        terminal = sys.stdout.isatty()
        sys.stdout.flush()
        sys.stdout = _Lines(io.BufferedWriter(raw), sys.stdout.encoding, "backslashreplace", None, terminal)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _close_quietly() -> None:
    """Send what cannot be written any more nowhere: Python would complain once more when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                _point_nowhere(stream.fileno())


def _point_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
