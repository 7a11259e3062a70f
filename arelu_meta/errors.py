"""The two ways in which a run ends without a bug: bad input, and a run that cannot go on."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a person gave is wrong: a flag, a file, a folder, a name.

    The message is one sentence in the form `where: what is wrong; what is allowed`.
    The command line prints it behind `error: ` and exits with status 2.
    """


class RunError(RuntimeError):
    """A run that started well cannot go on: divergence, a full disk, a dead rank.

    The command line prints the message behind `error: ` and exits with status 3.
    """


class SharedRunError(RunError):
    """A run that cannot go on, for a reason that each of its processes meets: the first of them says it."""


class MissingExtraError(InputError, ImportError):
    """A part of the toolkit needs a package that is not installed; the message says how to install it."""


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """Say which known names are spelt most like `name`.

    Args:
        name: what was asked for.
        known: every name that would have been right.
        most: how many names at the most.

    Returns:
        A phrase for an error message: `nearest: 'a', 'b'`, or `known: …` if nothing is near.
    """
    names = sorted(set(known))
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(repr(folded[candidate]) for candidate in close)
    shown = ", ".join(repr(candidate) for candidate in names[:12])
    return f"known: {shown}" + (", …" if len(names) > 12 else "")
