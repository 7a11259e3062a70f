"""What a sweep's file says: which task, which fields, which values, and how they are chosen."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from arelu_meta.cli import parse
from arelu_meta.config import FinetuneConfig, MetatrainConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.sweeping.domains import Domain, read_domain
from arelu_meta.validation import flatten, read_yaml, validate

TaskConfig = FinetuneConfig | MetatrainConfig
TASKS: dict[str, type[TaskConfig]] = {"finetune": FinetuneConfig, "metatrain": MetatrainConfig}
SEARCHES = ("grid", "random", "optuna")
# Columns of metrics.csv, each with the better direction.
METRICS = {
    "validation_accuracy": "max",
    "validation_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
}
# The sweep's own business: where a run lies, and that it goes on where it stopped.
_OURS = ("run.folder", "run.resume")
# What decides where or how a run is watched, not what it finds.
_NOT_HASHED = (*_OURS, "run.trackers", "run.checkpoint_minutes", "data.workers")
_MOST_RUNS = 100_000
_MOST_DRAWS = 50  # of one random run, until it differs from those before it


@dataclass(frozen=True)
class Halving:
    """Early stopping by successive halving (ASHA; Li et al. 2020, algorithm 2).

    Args:
        grace: rows of metrics (epochs, or validations of meta-training) that every run gets.
        factor: the best 1/factor of the runs go on at grace, grace * factor, grace * factor² … rows.
    """

    grace: int = 1
    factor: int = 3


@dataclass(frozen=True)
class Spec:
    """A sweep.

    Args:
        task: finetune or metatrain.
        base: the config that all runs share.
        parameters: field → the values it takes.
        search: grid (every combination), random, or optuna.
        samples: how many runs; a grid has as many as it has.
        seed: of random draws and of Optuna's.
        metric: a column of metrics.csv; a run's score is its best value.
        mode: max or min.
        halving: early stopping; None for none.
    """

    task: str
    base: TaskConfig
    parameters: dict[str, Domain]
    search: str = "grid"
    samples: int = 20
    seed: int = 0
    metric: str = "validation_accuracy"
    mode: str = "max"
    halving: Halving | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Args:
        parameters: field → its value in this run.
        config: of the run, without a folder.
        key: names the run by all that decides its figures.
    """

    parameters: dict[str, Any]
    config: TaskConfig = field(repr=False)
    key: str


def read_spec(file: str) -> Spec:
    """Read and check a sweep's file.

    Args:
        file: YAML; see configs/sweep/README.md.

    Raises:
        InputError: naming the field, its value and what is allowed.
    """
    content = read_yaml(file, "SPEC")
    where = f"{file}: "
    if not isinstance(content, dict):
        raise InputError(f"{where}holds {_kind(content)}; give fields such as task: and parameters:")
    _refuse_unknown(content, ["task", "config", "set", "early_stopping", *_SIMPLE, "parameters"], where)
    task = _one_of(content.get("task", "finetune"), TASKS, f"{where}task")
    arguments = _base_arguments(content, Path(file).parent, task, where)
    try:
        base = parse(task, arguments)
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    simple = {name: _simple(content[name], name, where) for name in _SIMPLE if name in content}
    metric = _one_of(simple.get("metric", "validation_accuracy"), METRICS, f"{where}metric")
    spec = Spec(
        task,
        base,
        _read_parameters(content, task, arguments, where),
        **{"mode": METRICS[metric], **simple},
        halving=_read_halving(content.get("early_stopping"), where),
    )
    _check_whole(spec, content, where)
    return spec


def make_trial(spec: Spec, parameters: Mapping[str, Any]) -> Trial:
    """Make one run of a sweep.

    Args:
        spec: the sweep.
        parameters: field → its value.

    Raises:
        InputError: if the values do not go together.
    """
    config = deepcopy(spec.base)
    for name, value in parameters.items():
        group, _, last = name.rpartition(".")
        setattr(getattr(config, group) if group else config, last, value)
    validate(config)
    flat = flatten(config)
    if flat.get("train.repeats", 1) > 1 or (flat["data.folds"] is not None and flat["data.fold"] is None):
        raise InputError(
            "train.repeats and data.folds make several runs of one; sweep over run.seed or data.fold instead"
        )
    decisive = {name: value for name, value in flat.items() if name not in _NOT_HASHED}
    text = json.dumps({"task": spec.task, **decisive}, sort_keys=True)
    return Trial(dict(parameters), config, hashlib.sha256(text.encode()).hexdigest()[:12])


def listed_trials(spec: Spec) -> list[Trial]:
    """List the runs of a grid or a random search, each once, in the order in which they start.

    Args:
        spec: the sweep; the same one gives the same list.

    Raises:
        InputError: if values do not go together.
    """
    if spec.search == "grid":
        combinations: list[dict[str, Any]] = [{}]
        for name, domain in spec.parameters.items():
            combinations = [{**one, name: value} for one in combinations for value in domain.values]
        return list({trial.key: trial for trial in (make_trial(spec, one) for one in combinations)}.values())
    return _drawn(spec)


def _drawn(spec: Spec) -> list[Trial]:
    import random

    generator = random.Random(spec.seed)
    found: dict[str, Trial] = {}
    for _ in range(spec.samples):
        for _ in range(_MOST_DRAWS):
            trial = make_trial(spec, {name: domain.draw(generator) for name, domain in spec.parameters.items()})
            if trial.key not in found:
                found[trial.key] = trial
                break
        else:
            break  # there are no more
    return list(found.values())


def describe(spec: Spec) -> dict[str, Any]:
    """Describe a sweep in plain values, for the folder.

    Args:
        spec: the sweep.
    """
    return {
        "task": spec.task,
        "set": asdict(spec.base),
        "search": spec.search,
        "samples": spec.samples,
        "seed": spec.seed,
        "metric": spec.metric,
        "mode": spec.mode,
        "early_stopping": None if spec.halving is None else asdict(spec.halving),
        "parameters": {name: domain.plain() for name, domain in spec.parameters.items()},
    }


_SIMPLE: dict[str, Any] = {
    "search": SEARCHES,
    "samples": int,
    "seed": int,
    "metric": tuple(METRICS),
    "mode": ("max", "min"),
}


def _simple(value: Any, name: str, where: str) -> Any:
    allowed = _SIMPLE[name]
    if isinstance(allowed, tuple):
        return _one_of(value, allowed, where + name)
    return _whole(value, where + name, 0 if name == "seed" else 1, _MOST_RUNS if name == "samples" else 2**32 - 1)


def _whole(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{where}: {value!r} is not allowed; give a whole number from {low} to {high}")
    return value


def _one_of(value: Any, known: Mapping[str, Any] | Sequence[str], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{where}: {value!r} is not known; give {', '.join(known)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _refuse_unknown(content: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for name in content:
        if name not in known:
            raise InputError(f"{where}{name}: no such field; {nearest_names(str(name), known)}")


def _base_arguments(content: Mapping[str, Any], folder: Path, task: str, where: str) -> list[str]:
    """Say the shared config as the command line would."""
    arguments = []
    if content.get("config") is not None:
        if not isinstance(content["config"], str):
            raise InputError(f"{where}config: {content['config']!r} is not allowed; give a YAML file of the task")
        arguments += ["--config", str(folder / content["config"])]
    given = content.get("set") or {}
    if not isinstance(given, dict):
        raise InputError(f"{where}set: {given!r} is not allowed; give fields of {task}, as `optim.lr: 0.01`")
    for name, value in _fields(given, task, f"{where}set: ").items():
        arguments.append(f"--{name}={as_text(value)}")
    return arguments


def _fields(given: Mapping[Any, Any], task: str, where: str) -> dict[str, Any]:
    """Map fields by their full names to what was given, nested (`optim: {lr: …}`) or not (`optim.lr: …`)."""
    known = list(flatten(TASKS[task]()))
    groups = {name.rpartition(".")[0] for name in known}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in groups and isinstance(value, dict):
            below = {f"{name}.{last}": one for last, one in value.items()}
        else:
            below = {str(name): value}
        for full, one in below.items():
            if full in found:
                raise InputError(f"{where}{full}: is given twice; give it once")
            if full in _OURS:
                raise InputError(f"{where}{full}: is the sweep's own; give --run.folder to arelu-meta sweep")
            if full not in known:
                raise InputError(f"{where}{full}: no such field of {task}; {nearest_names(full, known)}")
            found[full] = one
    return found


def as_text(value: Any) -> str:
    """Say a YAML value as the command line takes it.

    Args:
        value: a plain value.
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_parameters(content: Mapping[str, Any], task: str, arguments: list[str], where: str) -> dict[str, Domain]:
    given = content.get("parameters")
    inside = f"{where}parameters: "
    if not isinstance(given, dict) or not given:
        shown = _kind(given) if not isinstance(given, dict) else "nothing"
        raise InputError(f"{inside}holds {shown}; give fields and their values, as `optim.lr: [0.001, 0.01]`")
    kinds = _kinds(TASKS[task])

    def checked(name: str, value: Any) -> Any:
        """Read a value as its flag would, beside the config that all runs share."""
        if isinstance(value, dict | list):
            raise InputError(f"{inside}{name}: {value!r} is not allowed; give one value")
        try:
            return flatten(parse(task, [*arguments, f"--{name}={as_text(value)}"]))[name]
        except InputError as error:
            raise InputError(f"{inside}{error}") from error

    return {
        name: read_domain(name, value, kinds[name], lambda one, name=name: checked(name, one), inside)  # type: ignore[misc]
        for name, value in _fields(given, task, inside).items()
    }


def _kinds(config: type, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Map every field to the types it takes."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(config).items():
        if hasattr(hint, "__dataclass_fields__"):
            found |= _kinds(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = get_args(hint) or (hint,)
    return found


def _read_halving(given: Any, where: str) -> Halving | None:
    if given is None or given is False:
        return None
    if given is True:
        return Halving()
    inside = f"{where}early_stopping"
    if not isinstance(given, dict):
        raise InputError(f"{inside}: {given!r} is not allowed; give true, false, or grace: and factor:")
    _refuse_unknown(given, ["grace", "factor"], f"{inside}: ")
    grace = _whole(given.get("grace", 1), f"{inside}: grace", 1, 10_000)
    return Halving(grace, _whole(given.get("factor", 3), f"{inside}: factor", 2, 100))


def _check_whole(spec: Spec, content: Mapping[str, Any], where: str) -> None:
    """Check what means something only beside the rest."""
    if spec.search == "grid":
        for name, domain in spec.parameters.items():
            if domain.kind != "choice":
                raise InputError(
                    f"{where}parameters: {name}: {domain.kind} has no grid; give a list, or search: random or optuna"
                )
        if "samples" in content:
            raise InputError(f"{where}samples: a grid has every combination; leave it out, or give search: random")
        runs = math.prod(len(domain.values) for domain in spec.parameters.values())
        if runs > _MOST_RUNS:
            raise InputError(f"{where}parameters: {runs} runs are too many; give at most {_MOST_RUNS}")
    if spec.search == "optuna":
        make_trial(spec, {name: domain.example() for name, domain in spec.parameters.items()})
        return
    try:
        listed_trials(spec)
    except InputError as error:
        raise InputError(f"{where}{error}") from error
