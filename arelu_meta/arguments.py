"""A task's arguments, on the command line and in YAML, as its config: checked to the last flag, without torch."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from arelu_meta import checking
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.task_list import TASKS, Task
from arelu_meta.yaml_files import read_yaml


def parse(name: str, arguments: Sequence[str]) -> Any:
    """Turn a task's arguments into its config.

    Args:
        name: a key of `TASKS`.
        arguments: what follows the task's name.

    Returns:
        The task's config, validated; None where only help was asked for (and printed).

    Raises:
        InputError: naming the flag, key or file, its value and what is allowed.
    """
    task = TASKS[name]
    positional, flags = _split_positional(task, list(arguments))
    known = _known_flags(task.config)
    if {"-h", "--help"} & set(flags):
        print(_parser(name, task).format_help(), end="")
        return None
    files = {file: _check_yaml(file, known, name) for file in _check_flags(name, flags, known)}
    in_files = {key: value for content in files.values() for key, value in content.items()}
    if positional or f"--{task.without_words}" not in flags:
        flags += _positional_flags(task, name, positional, in_files)
    given = list(zip(flags[::2], flags[1::2], strict=True))
    # An empty file is an error to jsonargparse.
    pairs = [(flag, value) for flag, value in given if flag != "--config" or files[value]]
    values = _parse_values(_parser(name, task), pairs, known)
    config = task.config(**{item.name: getattr(values, item.name) for item in fields(task.config)})
    typed = {flag.removeprefix("--"): None if value == "null" else value for flag, value in pairs}
    _keep_texts(config, in_files | typed, known)
    _check_nulls(config, known)
    checking.validate(config)
    return config


def _keep_texts(config: Any, given: dict[str, Any], known: dict[str, Any]) -> None:
    """Set texts that may be left out as they were given: jsonargparse reads some, such as `#1` or `~`, as nothing."""
    for name, value in given.items():
        if known.get(name) == str | None and isinstance(value, str):
            group, _, field_name = name.rpartition(".")
            setattr(getattr(config, group) if group else config, field_name, value)


def _check_nulls(config: Any, known: dict[str, Any]) -> None:
    for name, value in checking.flatten(config).items():
        if value is None and type(None) not in get_args(known[name]):
            raise InputError(f"{name}: null is not allowed; give a value or leave {name} out")


def _known_flags(config: type, prefix: str = "") -> dict[str, Any]:
    """Map every flag's name to its type, without making an instance: positional fields have no default."""
    known: dict[str, Any] = {}
    for key, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            known |= _known_flags(kind, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            known[prefix + key] = kind
    return known


def _parser(name: str, task: Task) -> Any:
    import jsonargparse

    shown = " ".join(_shown(task))
    parser = jsonargparse.ArgumentParser(
        prog=f"arelu-meta {name}",
        usage=f"arelu-meta {name}{f' {shown}' if shown else ''} [--config FILE] [--group.field VALUE …]",
        description=(task.config.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help="a YAML file of the same fields; flags override it")
    parser.add_class_arguments(task.config, as_group=True)
    hidden = {name for name, kind in get_type_hints(task.config).items() if is_dataclass(kind)} | set(task.positional)
    for action in parser._actions:
        # Groups (`--optim FILE`) and positional words have flags of their own in jsonargparse; users need not see them.
        if action.dest in hidden:
            action.help = argparse.SUPPRESS
    return parser


def _split_positional(task: Task, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Tell positional words from flags, and give flags without a value that are booleans the value `true`."""
    known = _known_flags(task.config)
    positional: list[str] = []
    flags: list[str] = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not (word.startswith("--") or word == "-h"):
            positional.append(word)
            continue
        flag, equals, value = word.partition("=")
        kind = known.get(flag.removeprefix("--"))
        following = arguments[index] if index < len(arguments) else None
        boolean = kind is bool or (kind is not None and "bool" in str(kind))
        if flag in {"--help", "-h"}:
            flags.append(flag)
        elif equals:
            flags += [flag, value]
        elif boolean and not _is_value_of(kind, following, task):
            flags += [flag, "true"]
        elif following is None or following.startswith("--"):
            raise InputError(_unknown_flag(flag, known) or f"{flag[2:]}: no value given; give one behind {flag}")
        else:
            flags += [flag, following]
            index += 1
    return positional, flags


def _is_value_of(kind: Any, word: str | None, task: Task) -> bool:
    if word is None or word.startswith("--"):
        return False
    # Where a task takes words of its own, such as images, one of them may stand behind a boolean.
    words = {"true", "false", "yes", "no", "on", "off", "1", "0"}
    return kind is not bool or not task.positional or word.lower() in words


def _unknown_flag(flag: str, known: dict[str, Any]) -> str | None:
    key = flag.removeprefix("--")
    if key in {*known, "config"}:
        return None
    return f"{flag}: no such flag; {_readers(key, known) or nearest_names(key, [*known, 'config'])}"


def _readers(key: str, known: dict[str, Any]) -> str | None:
    """Say which other tasks read a field, or a group of fields, that this one does not have."""

    def holds(flags: dict[str, Any]) -> bool:
        return any(flag == key or flag.startswith(f"{key}.") for flag in flags)

    readers = [] if holds(known) else [name for name, task in TASKS.items() if holds(_known_flags(task.config))]
    return f"it is read by {', '.join(readers)} alone; leave it out" if readers else None


def _check_flags(name: str, flags: list[str], known: dict[str, Any]) -> list[str]:
    """Refuse unknown flags with the nearest names; return the config files among the rest."""
    files = []
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if problem := _unknown_flag(flag, known):
            raise InputError(f"{problem} (`arelu-meta {name} --help` lists them all)")
        if flag == "--config":
            files.append(value)
    return files


def _check_yaml(file: str, known: dict[str, Any], name: str) -> dict[str, Any]:
    """Refuse a file that is no YAML or has unknown keys; return its fields by their full names."""
    content = read_yaml(file, "config")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config: {file!r} holds a {type(content).__name__}; give keys such as `optim:`")
    keys = _yaml_keys(content, known)
    for key, value in keys.items():
        if key in known:
            continue
        fields_below = [flag.removeprefix(f"{key}.") for flag in known if flag.startswith(f"{key}.")]
        if not fields_below:
            instead = _readers(key, known) or nearest_names(key, known)
            raise InputError(f"config: {file!r}: {key!r} is not a field of {name}; {instead}")
        if not isinstance(value, dict):
            raise InputError(
                f"config: {file!r}: {key}: {value!r} is not allowed; give fields below `{key}:`, "
                f"such as `{fields_below[0]}:`, or leave it out"
            )
    return keys


def _yaml_keys(content: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map every field's full name to its value; an unknown name is not looked into."""
    keys: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        section = isinstance(value, dict) and value and any(flag.startswith(f"{path}.") for flag in known)
        keys |= _yaml_keys(value, known, f"{path}.") if section else {path: value}
    return keys


def _positional_flags(task: Task, name: str, positional: list[str], in_files: dict[str, Any]) -> list[str]:
    """Give positional words the names of their fields; the last takes all that are left if it is a list."""
    flags: list[str] = []
    kinds = _known_flags(task.config)
    words = list(positional)
    for field_name in task.positional:
        takes_all = "list" in str(kinds[field_name])
        if not words and field_name in in_files:
            continue
        if not words:
            shown = field_name.split(".")[0].upper()
            raise InputError(f"{shown}: missing; usage: arelu-meta {name} {' '.join(_shown(task))}")
        if takes_all:
            import json

            flags += [f"--{field_name}", json.dumps(words)]
            words = []
        else:
            flags += [f"--{field_name}", words.pop(0)]
    if words:
        raise InputError(f"{words[0]!r}: not expected; `arelu-meta {name}` takes flags such as --run.seed 0")
    return flags


def _shown(task: Task) -> list[str]:
    """Name positional words as they are typed; a list ends in dots."""
    kinds = _known_flags(task.config)
    return [f"{word.split('.')[0].upper()}{' …' if 'list' in str(kinds[word]) else ''}" for word in task.positional]


def _parse_values(parser: Any, flags: list[tuple[str, str]], known: dict[str, Any]) -> Any:
    import jsonargparse

    # Later values win, and flags are to win over files wherever they stand.
    in_order = sorted(flags, key=lambda pair: pair[0] != "--config")
    try:
        # One word each: a value such as -inf would pass for a flag.
        return parser.instantiate(parser.parse_args([f"{flag}={value}" for flag, value in in_order]))
    except (jsonargparse.ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise InputError(_readable(str(error), known)) from error


def _readable(message: str, known: dict[str, Any]) -> str:
    """Say in a person's words what jsonargparse says of a value that has the wrong type."""
    found = re.search(r'key "([^"]+)":', message)
    value = (
        message.rpartition("Given value: ")[2] if "Given value: " in message else message.rpartition("Got value: ")[2]
    )
    if not found or found[1] not in known or value == message:
        return message
    allowed = checking.describe_type(known[found[1]])
    quoted = " (quoted in YAML)" if allowed == "a text" else ""
    return f"{found[1]}: {value.strip()!r} is not allowed; give {allowed}{quoted}"
