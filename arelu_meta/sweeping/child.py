"""The process of one run: `arelu-meta TASK …` that ends with the process that started it."""

import contextlib
import ctypes
import os
import signal
import sys

from arelu_meta.cli import main

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent is gone; the run then writes a checkpoint and ends."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
