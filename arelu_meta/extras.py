"""Packages that only some tasks need, imported late."""

import contextlib
import io
import warnings
from types import ModuleType

from arelu_meta.errors import MissingExtraError

INSTALL_LEARN2LEARN = "pip install learn2learn==0.2.0 --config-settings=--build-option=build_ext"


def import_learn2learn(what: str = "meta.engine learn2learn") -> ModuleType:
    """Import learn2learn, which takes seconds, without the notices that its own imports print.

    Args:
        what: needs it, for the error.

    Returns:
        The package.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import learn2learn
    except ImportError as error:
        raise MissingExtraError(
            f"learn2learn: cannot be imported ({error}); {what} needs it: {INSTALL_LEARN2LEARN}"
        ) from error
    return learn2learn  # type: ignore[no-any-return]
