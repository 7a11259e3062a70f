"""A run of a study in a folder that goes with it."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from arelu_meta.claims.ledger import Row
from arelu_meta.errors import RunError


def run_apart(run: Callable[[Path], list[Row]], worst: Row) -> list[Row]:
    """Do a run in a folder of its own, which is removed, and let it print nothing.

    Args:
        run: writes into the folder, which is not there yet, and returns its rows.
        worst: the one row of a run that could not go on; `diverged` is added and says why.
    """
    parent = Path(tempfile.mkdtemp(prefix="arelu-meta-"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return run(parent / "run")
    except RunError as error:
        return [{**worst, "diverged": str(error).split(";")[0]}]
    finally:
        shutil.rmtree(parent)
