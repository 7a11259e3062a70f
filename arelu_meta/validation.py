"""What a person gives, checked before anything is read: one loop over the fields' metadata, and YAML without surprises.

The command line, config files, the Python functions and the headers of weights all go through `check_value`.
"""

import functools
import inspect
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from arelu_meta.config import Settings, reader_of
from arelu_meta.errors import InputError, nearest_names, shown

_LARGEST = 2**32 - 1  # whole numbers beyond this overflow inside torch and NumPy, each in its own way
_LARGEST_FLOAT = 2**1023
_SMALLEST_FLOAT32 = 1e-37  # below it numbers become 0 where they are used
_LARGEST_FLOAT32 = 3e38  # beyond it torch's optimisers overflow
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes; what Linux allows
_MOST_VALUES, _MOST_BYTES = 10_000, 1_000_000  # of a YAML file

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    return get_type_hints(of)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """List a config's values by their flags' names.

    Args:
        config: a dataclass of `config.py`.
        prefix: what stands before each name.

    Returns:
        `{"run.seed": 0, "optim.lr": 0.001, …}` in the fields' order.
    """
    flat: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        flat |= flatten(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name: value}
    return flat


def flags_of(config: type, prefix: str = "") -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Map every field's flag to its type and its metadata.

    Args:
        config: a class of `config.py`.
        prefix: what stands before each name.
    """
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for item in fields(config):
        hint = _hints(config)[item.name]
        below = flags_of(hint, f"{prefix}{item.name}.") if is_dataclass(hint) else None  # type: ignore[arg-type]
        found |= {prefix + item.name: (hint, item.metadata)} if below is None else below
    return found


def validate(config: object, kind: type[Settings] = Settings) -> None:
    """Check every value that can be checked without reading anything, and that the config's task reads it.

    Args:
        config: a dataclass of `config.py`; a path in it becomes its text, a number of NumPy's Python's.
        kind: its class.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    if not isinstance(config, kind):
        raise InputError(f"config: {shown(config)} is not allowed; give a {kind.__name__}")
    _check_fields(config)
    _check_together(flatten(config))
    if reader := reader_of(config):
        check_read(config, reader)


def _check_fields(config: Settings, prefix: str = "") -> None:
    for item in fields(config):
        name, hint = prefix + item.name, _hints(type(config))[item.name]  # type: ignore[arg-type]
        value = plain(getattr(config, item.name))
        if not is_dataclass(hint):
            check_value(name, value, hint, item.metadata)
            setattr(config, item.name, value)
        elif isinstance(value, Settings) and isinstance(value, hint):  # type: ignore[arg-type]
            _check_fields(value, f"{name}.")
        else:
            raise InputError(f"{name}: {shown(value)} is not allowed; give {describe_type(hint)}")


def plain(value: object) -> object:
    """Take paths as texts, and numbers of NumPy as Python's.

    Args:
        value: anything.
    """
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def expanded(path: "str | os.PathLike[str]") -> Path:
    """Return a path with `~` written out; where there is no such user it stays, and pathlib's own would raise.

    Args:
        path: as a person gave it.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def check_value(name: str, value: object, hint: Any, metadata: Mapping[str, Any]) -> None:
    """Check one value against its field.

    Args:
        name: of the field, for errors.
        value: what was given.
        hint: the field's type.
        metadata: what `config.setting` declared.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    if not _is_a(value, hint):
        raise InputError(f"{name}: {shown(value)} is not allowed; give {describe_type(hint)}")
    for one in value if get_origin(hint) is list else [value]:  # type: ignore[attr-defined]
        if isinstance(one, str):
            _check_text(name, one, metadata.get("several", False))
        elif isinstance(one, int | float) and not isinstance(one, bool):
            _check_number(name, one, metadata.get("limits", {}))
    pattern = metadata.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, str(value)):
        raise InputError(f"{name}: {shown(value)} is not known; give {metadata['words']}")


def _check_text(name: str, text: str, several: bool) -> None:
    if not text.strip():
        raise InputError(f"{name}: {text!r} is empty; give a value or leave {name} out")
    if "\0" in text or text != text.encode("utf-8", "replace").decode("utf-8"):
        raise InputError(f"{name}: {shown(text)} is no text that a file could be named by; give UTF-8 without nulls")
    parts = re.split("[/,]" if several else "/", text)
    if len(text.encode()) > _LONGEST_PATH or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise InputError(f"{name}: {text[:20] + '…'!r} is too long ({len(text)} characters) to name anything")


def _check_number(name: str, value: float, limits: Mapping[str, float]) -> None:
    largest = _LARGEST if isinstance(value, int) else _LARGEST_FLOAT32
    whole = isinstance(value, int)  # isfinite knows none of hundreds of digits
    too_large = (whole or math.isfinite(value)) and not -largest <= value <= limits.get("most", largest)
    asked = {"most": largest, **limits} if too_large else limits
    fits = (
        not too_large
        and math.isfinite(value)
        and limits.get("least", value) <= value <= limits.get("most", value)
        and not value <= limits.get("above", -math.inf)
        and not value >= limits.get("below", math.inf)
    )
    if 0 < abs(value) < _SMALLEST_FLOAT32:
        raise InputError(f"{name}: {shown(value)} is not allowed; give 0, or a number at least {_SMALLEST_FLOAT32}")
    if not fits:
        words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        allowed = " and ".join(f"{words[key]} {asked[key]}" for key in words if key in asked)
        raise InputError(f"{name}: {shown(value)} is not allowed; give a number {allowed}".rstrip())


def _is_a(value: object, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, UnionType):
        return any(_is_a(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inside)
    if origin in (list, Sequence):
        return (
            isinstance(value, origin) and not isinstance(value, str | bytes) and all(_is_a(v, inside[0]) for v in value)
        )
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is_a(v, inside[1]) for v in value.values())
    if origin is type:
        return isinstance(value, type) and (not isinstance(inside[0], type) or issubclass(value, inside[0]))
    if isinstance(value, bool):
        return hint in (bool, object)
    if isinstance(value, str) and hint is not str:  # a text is a sequence of texts to Python, and never meant as one
        return origin is None and isinstance(value, hint)
    if hint is float and isinstance(value, int):
        return abs(value) < _LARGEST_FLOAT
    return isinstance(value, origin or hint)


def describe_type(hint: Any) -> str:
    """Say in words what a field takes.

    Args:
        hint: its type.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe_type(one) for one in inside if one is not type(None)))
    if origin is Literal:
        choices = ", ".join(map(repr, inside))
        return choices if len(inside) == 1 else f"one of {choices}"
    if origin is list and inside == (str,):
        return "a list of texts"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", os.PathLike: "a path"}
    words |= {Path: "a path"}
    name = (origin or hint).__name__
    return words.get(origin or hint) or f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _check_together(flat: dict[str, Any]) -> None:
    """Check values that mean something only beside each other."""
    warmup, epochs = flat.get("optim.warmup_epochs", 0), flat.get("train.epochs")
    if epochs is not None and warmup > epochs:
        raise InputError(f"optim.warmup_epochs: {warmup} is more than train.epochs, {epochs}; give at most {epochs}")
    fold, folds = flat.get("data.fold"), flat.get("data.folds")
    if fold is not None and folds is None:
        raise InputError(f"data.fold: {fold} is one of how many? give --data.folds with it")
    if fold is not None and folds is not None and fold > folds:
        raise InputError(f"data.fold: {fold} is not allowed; give a number from 1 to data.folds, {folds}")
    if folds is not None and flat.get("train.repeats", 1) > 1:
        raise InputError(f"train.repeats: {flat['train.repeats']} does not go with data.folds; give one of them")


def check_read(config: Settings, reader: str) -> None:
    """Refuse what nobody would read: whoever gave it believes that it does something.

    Args:
        config: valid.
        reader: the task, and what of it, as fields' `read_by` names them.

    Raises:
        InputError: naming the first field that is given and not read, its value, and what reads it.
    """
    required = [item.name for item in fields(config) if item.default is item.default_factory is MISSING]
    untouched = flatten(type(config)(**{name: getattr(config, name) for name in required}))
    for name, (_, metadata) in flags_of(type(config)).items():
        value: Any = functools.reduce(getattr, name.split("."), config)
        if value in (untouched[name], *metadata.get("harmless", ())) or _is_read(metadata, reader):
            continue
        # Of other tasks their names are enough.
        task = reader.split()[0]
        readers = list(dict.fromkeys(one if one.split()[0] == task else one.split()[0] for one in metadata["read_by"]))
        who = f"; {', '.join(readers)} {'read' if len(readers) > 1 else 'reads'} it" if task not in readers else ""
        given = str(value).lower() if isinstance(value, bool) else shown(value)
        raise InputError(f"{name}: {given} is not read by {reader}{who if readers else ''}; leave {name} out")


def _is_read(metadata: Mapping[str, Any], reader: str) -> bool:
    def among(names: tuple[str, ...]) -> bool:
        return any(f"{reader} ".startswith(f"{name} ") for name in names)

    read_by = metadata.get("read_by")
    return (not read_by or among(read_by)) and not among(metadata.get("unread_by", ()))


def _choices(hint: Any) -> list[str]:
    """List the texts that a type allows, where it is a `Literal`, or one and None."""
    inside = [hint, *get_args(hint)] if get_origin(hint) in (Union, UnionType) else [hint]
    return [choice for one in inside if get_origin(one) is Literal for choice in get_args(one)]


def checked(function: F) -> F:
    """Let a function of the public API refuse arguments of a wrong type in a sentence, as the command line would.

    Args:
        function: whose arguments' types are written out.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            raise InputError(f"{function.__qualname__}: {error}; it takes {signature}") from error
        hints = _hints(function)
        for name, value in bound.arguments.items():
            same = value if isinstance(value, os.PathLike) else plain(value)  # a path is no name
            if name in hints and not _is_a(same, hints[name]):
                if isinstance(same, str) and (choices := _choices(hints[name])):
                    raise InputError(f"{name}: {shown(value)} is not known; {nearest_names(same, choices)}")
                raise InputError(f"{name}: {shown(value)} is not allowed; give {describe_type(hints[name])}")
        return function(*given, **named)

    return call  # type: ignore[return-value]


def read_yaml(file: str, where: str) -> Any:
    """Read a YAML file that a person wrote.

    Args:
        file: its path.
        where: the flag that named it, for errors.

    Returns:
        Plain values, as `yaml.safe_load` makes them; a key that stands twice is an error.

    Raises:
        InputError: if it cannot be read, is no YAML, or stands for too many values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # such as `!!int ""`
                kind = node.tag.rpartition(":")[2]
                reason = f" ({error})" if isinstance(error, ValueError) else ""
                raise yaml.MarkedYAMLError(
                    problem=f"{shown(node.value)} is no {kind}{reason}", problem_mark=node.start_mark
                ) from error

    if not os.path.isfile(file):  # noqa: PTH113 (pathlib's raises where the name is too long)
        raise InputError(f"{where}: {file!r} does not exist or is not a file; give a YAML file")
    if os.path.getsize(file) > _MOST_BYTES:  # noqa: PTH202
        raise InputError(f"{where}: {file!r} has more than {_MOST_BYTES} bytes; give a YAML file that a person wrote")
    try:
        loader = Loader(Path(file).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if _check_node(node, {}) > _MOST_VALUES:
            raise InputError(
                f"{where}: {file!r} holds more than {_MOST_VALUES} values, its aliases written out; give fewer"
            )
        return None if node is None else loader.construct_document(node)
    except OSError as error:
        raise InputError(f"{where}: {file!r} cannot be read ({error.strerror}); give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" (line {mark.line + 1})"
        raise InputError(f"{where}: {file!r} is not YAML: {error.problem or error.context}{place}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {file!r} is not YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: {file!r} is nested too deeply; give a YAML file that a person wrote") from error


def _check_node(node: Any, known: dict[int, int]) -> int:
    """Count the values that YAML stands for once its aliases are written out, which a few lines can make billions.

    Before anything is made of them; a key that stands twice is refused: YAML's own reader keeps the last without a
    word.
    """
    import yaml

    if known.get(id(node)) == 0:
        raise yaml.MarkedYAMLError(problem="it contains itself", problem_mark=node.start_mark)
    if isinstance(node, yaml.CollectionNode) and id(node) not in known:
        known[id(node)] = 0  # until it has been walked through
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_check_node(part, known) for part in parts)
    return known.get(id(node), 1)
