"""The ways in which a run ends without a bug, and the words of what is said then."""

import contextlib
import difflib
import io
import re
import warnings
from collections.abc import Iterable
from types import ModuleType

INSTALL_LEARN2LEARN = "pip install learn2learn==0.2.0 --config-settings=--build-option=build_ext"
_LONGEST_SHOWN = 100
# Control characters, what ends a line, what turns the direction of the text behind it, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Something a person gave is wrong: a flag, a file, a folder, a name.

    The message is one sentence in the form `where: what is wrong; what is allowed`.
    The command line prints it behind `error: ` and exits with status 2.

    Example:
        >>> from arelu_meta import InputError, create_activation
        >>> try:
        ...     create_activation("arrelu")
        ... except InputError as error:
        ...     print(str(error).split(";")[0])
        activation: 'arrelu' is not known
    """


class RunError(RuntimeError):
    """A run that started well cannot go on: divergence, a full disk, a dead rank.

    The command line prints the message behind `error: ` and exits with status 3.

    Example:
        >>> from arelu_meta import RunError, finetune
        >>> try:
        ...     results = finetune("photos")  # doctest: +SKIP
        ... except RunError as error:
        ...     print(error)
    """


class SharedRunError(RunError):
    """A run that cannot go on, for a reason that each of its processes meets: the first of them says it."""


class MissingExtraError(InputError, ImportError):
    """A part of the toolkit needs a package that is not installed; the message says how to install it."""


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, which each library does in a way of its own.

    Args:
        error: any.
    """
    said = "out of memory|[Cc]annot allocate memory|t allocate memory|std::bad_alloc|failed to map segment"
    return isinstance(error, MemoryError) or re.search(said, str(error)) is not None


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """Name the known names that are spelt most like `name`.

    Args:
        name: what was asked for.
        known: every name that would have been right.
        most: how many names at the most.

    Returns:
        A phrase for an error message: `nearest: 'a', 'b'`, or `known: …` if nothing is near.
    """
    names = sorted(set(known))

    def likeness(candidate: str) -> tuple[float, int]:
        asked, other = name.lower(), candidate.lower()
        last = other.rpartition(".")[2]  # `lr` is meant for optim.lr
        ratio = 1.0 if asked == last else difflib.SequenceMatcher(None, other, asked).ratio()
        return ratio, sum(a == b for a, b in zip(asked, other, strict=False))

    close = sorted([(likeness(one), one) for one in names], key=lambda pair: (*(-part for part in pair[0]), pair[1]))
    if found := [one for (ratio, _), one in close[:most] if ratio >= 0.5]:
        return "nearest: " + ", ".join(map(repr, found))
    shown = ", ".join(repr(candidate) for candidate in names[:12])
    return f"known: {shown}" + (", …" if len(names) > 12 else "")


def shown(value: object) -> str:
    """Write a value for an error: on one line, without what a terminal would act on, and not at any length.

    Args:
        value: anything.
    """
    try:
        text = repr(value)
    except ValueError:  # Python prints no longer ones
        return "a number of so many digits"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def printable(text: str, keep: str = "") -> str:
    r"""Write a name for a line of output: a newline in it becomes `\n`, what a terminal would act on its code.

    Args:
        text: of a file, a class, an untrusted header.
        keep: characters that stay.
    """
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def counted(number: int, noun: str) -> str:
    """Write how many there are: `1 epoch`, `1,000 epochs`.

    Args:
        number: of them.
        noun: in the singular; its plural ends in s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
