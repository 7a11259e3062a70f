"""The command line `arelu-meta TASK …`: it parses, validates and calls one function; no torch before that."""

import argparse
import contextlib
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from arelu_meta import checking
from arelu_meta import config as configs
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.runs.interrupts import handling, terminated_as_by_ctrl_c
from arelu_meta.yaml_files import read_yaml

BAD_INPUT, CANNOT_GO_ON, INTERRUPTED = 2, 3, 130


@dataclass(frozen=True)
class Task:
    """One task of the command line: its config, and the function that does it, as `module:function`."""

    config: type
    run: str
    help: str
    positional: tuple[str, ...] = ()
    without_words: str = ""
    greeting: str = ""  # said before torch is imported, which takes seconds


TASKS: dict[str, Task] = {
    "demo": Task(
        configs.DemoConfig,
        "arelu_meta.demo:demo",
        "the main job on embedded data, in minutes",
        greeting="arelu_meta demo: fine-tune a pretrained backbone three ways, meta-learn two ways; a few minutes",
    ),
    "finetune": Task(configs.FinetuneConfig, "arelu_meta.finetuning:finetune", "fine-tune a backbone on your images"),
    "metatrain": Task(configs.MetatrainConfig, "arelu_meta.meta:metatrain", "meta-learn few-shot tasks"),
    "evaluate": Task(
        configs.EvaluateConfig, "arelu_meta.evaluation:evaluate_task", "evaluate a run", positional=("checkpoint",)
    ),
    "predict": Task(
        configs.PredictConfig,
        "arelu_meta.prediction:predict_task",
        "class and probability of images",
        positional=("checkpoint", "images"),
    ),
    "export": Task(
        configs.ExportConfig,
        "arelu_meta.exporting.task:export_task",
        "a run as ONNX, TorchScript or torch.export, or to the Hub",
        positional=("checkpoint",),
    ),
    "swap": Task(
        configs.SwapConfig,
        "arelu_meta.backbones.swap_task:swap_task",
        "what a swap replaces in a model",
        positional=("model.name",),
        without_words="all",
    ),
    "activations": Task(
        configs.ActivationsConfig, "arelu_meta.activations.task:activations_task", "every activation by name"
    ),
    "claims": Task(
        configs.ClaimsConfig,
        "arelu_meta.claims.task:claims_task",
        "the paper's claims as studies, judged",
        positional=("study",),
    ),
    "sweep": Task(
        configs.SweepConfig,
        "arelu_meta.sweeping.task:sweep_task",
        "many runs, on this machine or a cluster",
        positional=("spec",),
    ),
    "report": Task(
        configs.ReportConfig,
        "arelu_meta.report.task:report_task",
        "a page of a run, a study or a sweep",
        positional=("runs",),
    ),
    "bench": Task(
        configs.BenchConfig, "arelu_meta.bench.task:bench_task", "what it costs, beside peers", positional=("what",)
    ),
    "env": Task(configs.EnvConfig, "arelu_meta.runs.environment:env_task", "what a bug report needs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task from the command line.

    Args:
        argv: the arguments; default: the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 the run could not go on, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold what the terminal's encoding cannot say; as on stderr, its code is shown then.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with terminated_as_by_ctrl_c():
            _main(arguments)
        # What waits for the interpreter's end would fail there, where nobody can say so.
        sys.stdout.flush()
        return 0
    except InputError as error:
        return _fail(error, BAD_INPUT)
    except RunError as error:
        return _fail(error, CANNOT_GO_ON)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). A run that it ends is a RunError (runs/folder.py).
        _drop_output()
        return 0
    except OSError as error:
        # A disk that fills up, a folder that may not be written: the machine's fault, said in one line.
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", CANNOT_GO_ON)
    except (MemoryError, RuntimeError) as error:
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


def _fail(error: object, status: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    if status in (BAD_INPUT, INTERRUPTED) and int(os.environ.get("RANK") or 0) > 0:
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

    with handling(signal.SIGINT, leave), handling(signal.SIGTERM, leave):
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
    if flag.removeprefix("--") in {*known, "config"}:
        return None
    return f"{flag}: no such flag; {nearest_names(flag.removeprefix('--'), [*known, 'config'])}"


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
            raise InputError(f"config: {file!r}: {key!r} is not a field of {name}; {nearest_names(key, known)}")
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
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
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


if __name__ == "__main__":
    sys.exit(main())
