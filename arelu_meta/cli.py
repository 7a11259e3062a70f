"""The command line `arelu-meta TASK …`: it parses, validates and calls one function; no torch before that."""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arelu_meta.arguments import parse
from arelu_meta.errors import InputError, RunError, SharedRunError, nearest_names
from arelu_meta.runs.interrupts import HEARD, handling, interrupt, terminated_as_by_ctrl_c
from arelu_meta.task_list import TASKS, Task

BAD_INPUT, CANNOT_GO_ON, INTERRUPTED = 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task from the command line.

    Args:
        argv: the arguments; default: the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 the run could not go on, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(arguments))


def guarded(work: Callable[[], object]) -> int:
    """Do some work, and turn how it ended into one line and an exit status.

    Args:
        work: what to do.

    Returns:
        The exit status: 0 done, 2 bad input, 3 the run could not go on, 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold what the terminal's encoding cannot say; as on stderr, its code is shown then.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with terminated_as_by_ctrl_c():
            work()
        # What waits for the interpreter's end would fail there, where nobody can say so.
        sys.stdout.flush()
        return 0
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except RunError as error:
        return _fail(error, CANNOT_GO_ON, shared=isinstance(error, SharedRunError))
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). A run that it ends is a RunError (runs/folder.py).
        _drop_output()
        return 0
    except OSError as error:
        # A disk that fills up, a folder that may not be written: the machine's fault, said in one line.
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", CANNOT_GO_ON)
    except (MemoryError, RuntimeError) as error:
        if "does not have a deterministic implementation" in str(error):
            operation = str(error).split(" ")[0]
            return _fail(
                f"run.deterministic: {operation} has no repeatable form on this device; leave run.deterministic out",
                CANNOT_GO_ON,
            )
        if re.search(r"^DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", str(error)):
            reason = str(error).split("\n")[0].rstrip(". ")
            return _fail(
                f"a process that decodes images died ({reason}); --run.resume auto goes on, with fewer --data.workers "
                "where memory ran out",
                CANNOT_GO_ON,
            )
        if not isinstance(error, MemoryError) and not re.search("out of memory|t allocate memory", str(error)):
            raise _as_bug(error) from error.__cause__
        reason = str(error).split("\n")[0]
        return _fail(f"out of memory ({reason}); try a smaller --data.batch_size or --data.image_size", CANNOT_GO_ON)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted{f'; {error}' if str(error) else ''}", INTERRUPTED)
    except Exception as error:
        raise _as_bug(error) from error.__cause__


def _as_bug(error: Exception) -> Exception:
    """Say under a traceback what a report of it needs."""
    error.add_note("This is a bug: please report it with the whole command and what `arelu-meta env` prints.")
    return error


def _fail(error: object, status: int, shared: bool = False) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    if (shared or status in (BAD_INPUT, INTERRUPTED)) and int(os.environ.get("RANK") or 0) > 0:
        return status  # every process of the run finds the same fault; the first says it
    with contextlib.suppress(OSError):  # nobody reads it: the status still counts
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


def _drop_output() -> None:
    """Send standard output nowhere: Python would complain once more when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Leave at once when interrupted: torch swallows the exception where it imports NumPy, and goes on with half."""

    def leave(number: int, frame: Any) -> None:
        os._exit(_fail("interrupted", INTERRUPTED))

    with contextlib.ExitStack() as stack:
        for number in [getattr(signal, name) for name in HEARD if hasattr(signal, name)]:
            if signal.getsignal(number) is interrupt:  # not somebody else's, as submitit's
                stack.enter_context(handling(number, leave))
        yield


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return
    name, *rest = arguments
    if name == "--version":
        from arelu_meta import __version__

        print(__version__)
        return
    if name not in TASKS:
        raise InputError(f"task: {name!r} is not known; {nearest_names(name, TASKS)}")
    config = parse(name, rest)
    if config is not None:
        if TASKS[name].greeting:
            print(TASKS[name].greeting, flush=True)
        _function(TASKS[name])(config)


def _function(task: Task) -> Callable[[Any], object]:
    module, function = task.run.split(":")
    with _interrupted_at_once():  # nothing is written before a task's function runs
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _overview() -> str:
    lines = ["usage: arelu-meta TASK [--config FILE] [--group.field VALUE …]", "", "tasks:"]
    lines += [f"  {name:<11} {task.help}" for name, task in TASKS.items()]
    return "\n".join([*lines, "", "`arelu-meta TASK --help` lists a task's flags with their defaults."])


if __name__ == "__main__":
    sys.exit(main())
