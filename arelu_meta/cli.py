"""The command line `arelu-meta TASK …`: it parses, validates and calls one function; no torch before that."""

import argparse
import contextlib
import importlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from arelu_meta import config as configs
from arelu_meta.config import Settings
from arelu_meta.errors import InputError, nearest_names, printable, shown
from arelu_meta.exit_status import INTERRUPTED, fail, guarded, outliving_readers
from arelu_meta.runs.environment import check_environment
from arelu_meta.runs.signals import HEARD, handling, interrupt
from arelu_meta.validation import describe_type, flags_of, flatten, read_yaml, validate


@dataclass(frozen=True)
class Task:
    """One task of the command line.

    Args:
        config: its config.
        run: the function that does it, as `module:function`.
        help: in the list of tasks.
        positional: fields that words without a flag are for; one that has a default may be left out.
        without_words: the boolean that does without them.
        greeting: said before torch is imported, which takes seconds; `{data}` and any flag's name stand for values.
    """

    config: type[Settings]
    run: str
    help: str
    positional: tuple[str, ...] = ()
    without_words: str = ""
    greeting: str = ""


_RUN = ("checkpoint",)
TASKS: dict[str, Task] = {
    "demo": Task(
        configs.DemoConfig,
        "arelu_meta.demo:demo",
        "the main job on embedded data, in minutes",
        greeting="arelu_meta demo: fine-tune a pretrained backbone three ways, meta-learn two ways; a few minutes",
    ),
    "finetune": Task(
        configs.FinetuneConfig,
        "arelu_meta.finetuning.finetune:finetune",
        "fine-tune a backbone on your images",
        ("data.root",),
        greeting="fine-tuning {model.name} on {data}",
    ),
    "metatrain": Task(
        configs.MetatrainConfig,
        "arelu_meta.meta.metatrain:metatrain",
        "meta-learn few-shot tasks",
        ("data.root",),
        greeting="meta-training {model.name} on {data}",
    ),
    "evaluate": Task(configs.EvaluateConfig, "arelu_meta.evaluation:evaluate_task", "evaluate a run", _RUN),
    "predict": Task(
        configs.PredictConfig,
        "arelu_meta.prediction:predict_task",
        "class and probability of images",
        ("checkpoint", "images"),
    ),
    "export": Task(
        configs.ExportConfig,
        "arelu_meta.export.export:export_task",
        "a run as ONNX, TorchScript or torch.export, or to the Hub",
        _RUN,
    ),
    "swap": Task(
        configs.SwapConfig,
        "arelu_meta.backbones.commands:swap_task",
        "what a swap replaces in a model",
        ("model.name",),
        without_words="all",
    ),
    "activations": Task(
        configs.ActivationsConfig, "arelu_meta.activations.commands:activations_task", "every activation by name"
    ),
    "claims": Task(
        configs.ClaimsConfig, "arelu_meta.claims.study:claims_task", "the paper's claims as studies, judged", ("study",)
    ),
    "race": Task(
        configs.RaceConfig,
        "arelu_meta.claims.race:race",
        "which recipe adapts best on your images, and why",
        ("data.root",),
        greeting="racing recipes of {model.name} on {data}, for {race.budget}",
    ),
    "sweep": Task(
        configs.SweepConfig, "arelu_meta.sweep.sweep:sweep_task", "many runs, on this machine or a cluster", ("spec",)
    ),
    "report": Task(
        configs.ReportConfig, "arelu_meta.report.report:report_task", "a page of a run, a study or a sweep", ("runs",)
    ),
    "bench": Task(configs.BenchConfig, "arelu_meta.bench.command:bench_task", "what it costs, beside peers", ("what",)),
    "data": Task(
        configs.DataTaskConfig, "arelu_meta.data.commands:data_task", "where a named data set comes from", ("name",)
    ),
    "recipes": Task(configs.RecipesConfig, "arelu_meta.recipes:recipes_task", "the packaged recipes", ("name",)),
    "env": Task(configs.EnvConfig, "arelu_meta.runs.environment:env_task", "what a bug report needs"),
}
_OPTIONAL = ("data.root", "name")  # words that may be left out
_ALSO = {"study.regime": "regime"}  # a field of a study beside the word that names it
_SHORT = {"data": "data.root", "model": "model.name", **_ALSO}  # beside a last name that one field alone has

_RUNS = {
    "demo",
    "finetune",
    "metatrain",
    "claims",
    "race",
    "sweep",
}  # what these do lies in a folder, whoever reads along

Flags = dict[str, Any]  # every flag's name, and its type


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task from the command line.

    Args:
        argv: the arguments; default: the process's own.

    Returns:
        The exit status: 0 done, 2 bad input, 3 the run could not go on, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(arguments))


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return
    name, *rest = arguments
    for word in arguments:
        if re.search("[\ud800-\udfff]", word):
            raise InputError(f"{shown(word)} is not UTF-8; give UTF-8, and rename files so (convmv does)")
    if name == "--version":
        from arelu_meta import __version__

        print(__version__)
        return
    if name not in TASKS:
        raise InputError(f"task: {name!r} is not known; {nearest_names(name, TASKS)}")
    config = parse(name, rest)
    if config is not None:
        check_environment()
        with outliving_readers() if name in _RUNS else contextlib.nullcontext():
            _greet(TASKS[name], config)
            results = _function(TASKS[name])(config)
            if name in ("finetune", "metatrain") and isinstance(results, dict) and results.get("folder"):
                print("next: " + "\n      ".join(_next_commands(results)), flush=True)


def _greet(task: Task, config: Any) -> None:
    """Look for the data and say what is done, in the first tenths of a second: torch takes many times that."""
    for name, path, allowed in _read_first(config):
        if not os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111 (pathlib's raises for ~nobody)
            raise InputError(f"{name}: {path!r} does not exist; give {allowed}")
    if isinstance(getattr(config, "data", None), configs.DataConfig):
        from arelu_meta.data.image_folder import class_holders

        class_holders(config.data)
    values = flatten(config)
    values["data"] = (
        values.get("data.labels") or values.get("data.root") or values.get("data.name") or "the embedded digits"
    )
    if task.greeting and os.environ.get("RANK", "").strip("0 ") == "":  # the first process of a run speaks for all
        print(re.sub(r"\{([\w.]+)\}", lambda found: printable(str(values[found[1]])), task.greeting), flush=True)


def _read_first(config: Any) -> list[tuple[str, str, str]]:
    """List the paths that a task reads before all else: field, path, and what is allowed."""
    if isinstance(config, configs.ReportConfig):
        return [("runs", run, "the folder of a run, a study or a sweep") for run in config.runs]
    checkpoint = getattr(config, "checkpoint", None)
    if checkpoint is None or getattr(config, "support", None) is not None:  # then a model's name does, too
        return []
    return [("checkpoint", checkpoint, "a run folder or a model.safetensors")]


def _next_commands(results: dict[str, Any]) -> list[str]:
    """Write what a person would do next with a run, as commands to copy."""
    run = shlex.quote(str(results["folder"]))
    commands = [f"arelu-meta report {run}", f"arelu-meta predict {run} IMAGES", f"arelu-meta export {run}"]
    if results["task"] == "metatrain":  # its outputs mean nothing before it has seen a support set
        commands[1:] = [f"arelu-meta evaluate {run}", f"arelu-meta predict {run} IMAGES --support FOLDER"]
    return commands[:1] if results.get("runs") else commands  # the mean of several has no model


def _function(task: Task) -> Callable[[Any], object]:
    module, function = task.run.split(":")
    with _interrupted_at_once():  # nothing is written before a task's function runs
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Leave at once when interrupted: torch swallows the exception where it imports NumPy, and goes on with half."""

    def leave(number: int, frame: Any) -> None:

        os._exit(fail("interrupted", INTERRUPTED))

    with contextlib.ExitStack() as stack:
        for number in [getattr(signal, name) for name in HEARD if hasattr(signal, name)]:
            if signal.getsignal(number) is interrupt:  # not somebody else's, as submitit's
                stack.enter_context(handling(number, leave))
        yield


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
    known = {flag: hint for flag, (hint, _) in flags_of(task.config).items()}
    words, flags = _split(task, list(arguments), known, name)
    if flags is None:
        print(_parser(name, task).format_help(), end="")
        return None
    given: Flags = {}  # what files and flags say, the later over the earlier, flags over files
    for file in [value for flag, value in flags if flag == "config"]:
        given |= _of_file(file, known, name)
    named = {
        flag: None if value == "null" and type(None) in get_args(known[flag]) else value
        for flag, value in flags
        if flag != "config"
    }
    short = any(word.partition("=")[0] == "--data" for word in arguments)
    positional = _of_words(task, name, words, given | named, known)
    given |= named | positional
    if (short or positional) and "data.name" in known and "data.root" in given:
        given = _named_set(given)
    config = _make(name, task, given, known)
    validate(config)
    return config


def _split(task: Task, arguments: list[str], known: Flags, name: str) -> tuple[list[str], list[tuple[str, str]] | None]:
    """Tell words from flags with their values; flags are None where help is asked for.

    A boolean's value may be left out. A value that stands behind a flag is its value, whatever it looks like.
    """
    words: list[str] = []
    flags: list[tuple[str, str]] = []
    problem = ""  # help wins over whatever else is wrong
    while arguments:
        word = arguments.pop(0)
        if word in {"--help", "-h"}:
            return words, None
        if not word.startswith("--"):
            words.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        flag = _full_name(flag, known)
        kinds = get_args(known.get(flag)) or (known.get(flag),)
        if flag not in {*known, "config"}:
            instead = _readers(flag, known) or nearest_names(flag, [*known, "config"])
            problem = problem or f"--{flag}: no such flag; {instead} (`arelu-meta {name} --help` lists them all)"
        if equals:
            flags.append((flag, value))
        elif bool in kinds and not (arguments and _is_value(arguments[0], kinds, task)):
            flags.append((flag, "true"))
        elif not arguments or arguments[0].startswith("--"):
            problem = problem or f"{flag}: no value given; give one behind --{flag}"
        else:
            flags.append((flag, arguments.pop(0)))
    if problem:
        raise InputError(problem)
    return words, flags


def _full_name(flag: str, known: Flags) -> str:
    """Complete a short name, `lr`, where one field alone ends in it."""
    if flag in known or flag == "config":
        return flag
    found = [_SHORT[flag]] if _SHORT.get(flag) in known else [full for full in known if full.endswith(f".{flag}")]
    return found[0] if len(found) == 1 else flag


def _is_value(word: str, kinds: tuple[Any, ...], task: Task) -> bool:
    # Where a task takes words of its own, such as images, one of them may stand behind a boolean.
    booleans = {"true", "false", "yes", "no", "on", "off", "1", "0"}
    return not word.startswith("--") and (kinds != (bool,) or not task.positional or word.lower() in booleans)


def _readers(key: str, known: Flags) -> str | None:
    """Name the other tasks that have a field, or a group of fields, that this one does not have."""

    def has(flags: Flags) -> bool:
        return any(f"{flag}.".startswith(f"{key}.") for flag in flags)

    here = has(known) or any(flag.endswith(f".{key}") for flag in known)  # `--name` is meant for one of these
    readers = [] if here else [name for name, task in TASKS.items() if has(flags_of(task.config))]
    return f"it is read by {', '.join(readers)} alone; leave it out" if readers else None


def _of_file(file: str, known: Flags, task: str) -> Flags:
    """Read a config file's fields by their full names, refusing unknown ones."""
    content = read_yaml(file, "config")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config: {file!r} holds a {type(content).__name__}; give keys such as `optim:`")
    found: Flags = {}
    for key, value in _leaves(content, known):
        key = _ALSO.get(key, key)
        if key in known and key in found:
            raise InputError(f"config: {file!r}: {key!r} is given twice, dotted and nested; give it once")
        below = [flag.removeprefix(f"{key}.") for flag in known if flag.startswith(f"{key}.")]
        if key not in known and not below:
            instead = _readers(key, known) or nearest_names(key, known)
            raise InputError(f"config: {file!r}: {shown(key)} is not a field of {task}; {instead}")
        if key not in known and value != {}:
            raise InputError(
                f"config: {file!r}: {key}: {shown(value)} is not allowed; give fields below `{key}:`, "
                f"such as `{below[0]}:`, or leave it out"
            )
        if key in known:
            found[key] = _as_given(key, value, known[key])
    return found


def _leaves(content: dict[Any, Any], known: Flags, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through every field's full name and value; an unknown name is not looked into."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and any(flag.startswith(f"{path}.") for flag in known):
            yield from _leaves(value, known, f"{path}.")
        else:
            yield path, value


def _as_given(name: str, value: Any, hint: Any) -> Any:
    """Return a YAML value as a flag's text; what is no text must not pass for one."""
    kinds = (hint,) if get_origin(hint) is list else get_args(hint) or (hint,)
    if value is None and type(None) not in kinds:
        raise InputError(f"{name}: null is not allowed; give a value or leave {name} out")
    if value is not None and not isinstance(value, str) and kinds[:1] == (str,):
        raise InputError(f"{name}: {shown(value)} is not allowed; give a text (quoted in YAML)")
    if value is None or isinstance(value, str):
        return value
    return _as_yaml(value) if isinstance(value, bool | list | dict) else str(value)


def _as_yaml(value: Any) -> str:
    """Write a value as JSON that YAML reads, which takes an escaped 👍 for two halves and no control characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufeff-\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _of_words(task: Task, name: str, words: list[str], given: Flags, known: Flags) -> Flags:
    """Give words without a flag the names of their fields; the last takes all that are left if it is a list."""
    if not words and given.get(task.without_words) == "true":
        return {}
    found: Flags = {}
    for field_name in task.positional:
        takes_all = known[field_name] == list[str]
        if not words and (field_name in given or field_name in _OPTIONAL):
            continue
        if not words:
            usage = f"usage: arelu-meta {name} {' '.join(_shown_words(task))}"
            raise InputError(f"{field_name.split('.')[0].upper()}: missing; {usage}")
        found[field_name] = _as_yaml(words) if takes_all else words[0]
        words = [] if takes_all else words[1:]
    if words:
        raise InputError(f"{words[0]!r}: not expected; `arelu-meta {name}` takes flags such as --run.seed 0")
    return found


def _shown_words(task: Task) -> list[str]:
    """Name positional words as they are typed; a list ends in dots."""
    kinds = {flag: hint for flag, (hint, _) in flags_of(task.config).items()}
    found = []
    for word in task.positional:
        shown_word = word.split(".")[0].upper() + (" …" if kinds[word] == list[str] else "")
        found.append(f"[{shown_word}]" if word in _OPTIONAL else shown_word)
    return found


def _named_set(given: Flags) -> Flags:
    """Take a word for data, `finetune mnist`, as the name of a set where it is one and no folder is called so."""
    from pathlib import Path

    from arelu_meta.data.catalogue import CATALOGUE

    word = str(given["data.root"])
    if "data.name" in given or word not in CATALOGUE or CATALOGUE[word].root or Path(word).is_dir():
        return given
    return {"data.name": word, **{name: value for name, value in given.items() if name != "data.root"}}


def _make(name: str, task: Task, given: Flags, known: Flags) -> Any:
    """Make a task's config of its flags' texts."""
    import jsonargparse

    parser = _parser(name, task)
    try:
        # One word each: a value such as -inf would pass for a flag.
        words = [f"--{flag}={'null' if value is None else value}" for flag, value in given.items()]
        values = parser.instantiate(parser.parse_args(words))
    except (jsonargparse.ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise InputError(_readable(str(error), known)) from error
    config = task.config(**{item.name: getattr(values, item.name) for item in fields(task.config)})
    for flag, value in flatten(config).items():
        if value is None and type(None) not in get_args(known[flag]):
            raise InputError(f"{flag}: null is not allowed; give a value or leave {flag} out")
        if known[flag] == str | None and isinstance(given.get(flag), str):
            # jsonargparse reads some texts, such as `#1` or `~`, as nothing.
            group, _, last = flag.rpartition(".")
            setattr(getattr(config, group) if group else config, last, given[flag])
    return config


def _parser(name: str, task: Task) -> Any:
    import jsonargparse

    words = "".join(f" {word}" for word in _shown_words(task))
    parser = jsonargparse.ArgumentParser(
        prog=f"arelu-meta {name}",
        usage=f"arelu-meta {name}{words} [--config FILE] [--group.field VALUE …]",
        description=(task.config.__doc__ or "").split("\n")[0],
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help="a YAML file of the same fields; flags override it")
    parser.add_class_arguments(task.config, as_group=True)
    groups = {item for item, kind in get_type_hints(task.config).items() if is_dataclass(kind)}
    for action in parser._actions:
        # Groups (`--optim FILE`) and positional words have flags of their own in jsonargparse; users need not see them.
        if action.dest in groups | set(task.positional) - set(_OPTIONAL):
            action.help = argparse.SUPPRESS
    return parser


def _readable(message: str, known: Flags) -> str:
    """Say in a person's words what jsonargparse says of a value that has the wrong type."""
    found = re.search(r'key "([^"]+)":', message)
    _, value_there, value = message.rpartition("iven value: " if "Given value: " in message else "Got value: ")
    if not found or found[1] not in known or not value_there:
        return message
    return f"{found[1]}: {shown(value.strip())} is not allowed; give {describe_type(known[found[1]])}"


if __name__ == "__main__":
    sys.exit(main())
