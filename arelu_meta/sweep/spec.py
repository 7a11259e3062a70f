"""What a sweep's file says: which task, which fields, which values, and how they are chosen."""

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from arelu_meta.cli import parse
from arelu_meta.config import FinetuneConfig, MetatrainConfig, Settings, setting
from arelu_meta.errors import InputError, nearest_names, shown
from arelu_meta.validation import check_value, flags_of, flatten, read_yaml, validate

TaskConfig = FinetuneConfig | MetatrainConfig
TASKS: dict[str, type[TaskConfig]] = {"finetune": FinetuneConfig, "metatrain": MetatrainConfig}
# The sweep's own business: where a run lies, and that it goes on where it stopped.
_OURS = ("run.folder", "run.resume")
# What decides where or how a run is watched, not what it finds.
_NOT_HASHED = (*_OURS, "run.trackers", "run.checkpoint_minutes", "data.workers")
_MOST_RUNS = 100_000
_MOST_DRAWS = 50  # of one random run, until it differs from those before it
_KINDS = "a list, or uniform:, loguniform: or int: with [low, high]"


@dataclass
class Halving(Settings):
    """Early stopping by successive halving (ASHA; Li et al. 2020, algorithm 2).

    Args:
        grace: rows of metrics (epochs, or validations of meta-training) that every run gets.
        factor: the best 1/factor of the runs go on at grace, grace * factor, grace * factor² … rows.
    """

    grace: int = setting(1, least=1, most=10_000)
    factor: int = setting(3, least=2, most=100)


@dataclass
class SweepFile(Settings):
    """A sweep's file as it stands; see configs/sweep/README.md.

    Args:
        task: what is run.
        config: a YAML file of the task that all runs share, beside this one.
        set: fields that all runs share; they override config.
        parameters: field → its values.
        search: grid (every combination), random, or optuna.
        samples: how many runs; a grid has as many as it has.
        seed: of random draws and of Optuna's.
        metric: a column of metrics.csv; a run's score is its best value.
        mode: which is better; default: min of a loss, else max.
        early_stopping: true, or the fields of `Halving`.
    """

    task: Literal["finetune", "metatrain"] = "finetune"
    config: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    search: Literal["grid", "random", "optuna"] = "grid"
    samples: int = setting(20, least=1, most=_MOST_RUNS)
    seed: int = setting(0, least=0)
    metric: Literal["validation_accuracy", "validation_loss", "train_accuracy", "train_loss"] = "validation_accuracy"
    mode: Literal["max", "min"] | None = None
    early_stopping: bool | dict[str, Any] = False


@dataclass(frozen=True)
class Domain:
    """Values of one field.

    Args:
        kind: choice, uniform, loguniform or int (whole numbers, both ends included).
        values: of a choice all, each once; else low and high.
    """

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: random.Random) -> Any:
        """Draw a value, each as likely as another (loguniform: each logarithm).

        Args:
            generator: advanced by one draw.
        """
        if self.kind == "choice":
            return generator.choice(self.values)
        low, high = self.values
        if self.kind == "int":
            return generator.randint(low, high)
        if self.kind == "uniform":
            return generator.uniform(low, high)
        # The exponential of a logarithm may round to just outside.
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)


@dataclass(frozen=True)
class Spec:
    """A sweep, checked.

    Args:
        file: what its file says.
        base: the config that all runs share.
        parameters: field → the values it takes.
        mode: max or min.
        halving: early stopping; None for none.
    """

    file: SweepFile
    base: TaskConfig
    parameters: dict[str, Domain]
    mode: str
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


def read_spec(path: str) -> Spec:
    """Read and check a sweep's file.

    Args:
        path: of the YAML file.

    Raises:
        InputError: naming the file, the field, its value and what is allowed.
    """
    content = read_yaml(path, "SPEC")
    try:
        if not isinstance(content, dict):
            kind = "nothing" if content is None else f"a {type(content).__name__}"
            raise InputError(f"holds {kind}; give fields such as task: and parameters:")
        return _checked(content, Path(path).parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _checked(content: Mapping[str, Any], folder: Path) -> Spec:
    file = _read_fields(SweepFile, {name: value for name, value in content.items() if value is not None})
    arguments = ["--config", str(folder / file.config)] if file.config is not None else []
    for name, value in _by_full_names(file.set, file.task, "set: ").items():
        arguments.append(f"--{name}={as_text(value)}")
    base = parse(file.task, arguments)
    if not file.parameters:
        raise InputError("parameters: holds nothing; give fields and their values, as `optim.lr: [0.001, 0.01]`")
    flags = flags_of(TASKS[file.task])
    given = _by_full_names(file.parameters, file.task, "parameters: ")
    parameters = {name: _read_domain(f"parameters: {name}", value, *flags[name]) for name, value in given.items()}
    mode = file.mode or ("min" if file.metric.endswith("loss") else "max")
    stopping = file.early_stopping
    halving = _read_fields(Halving, stopping, "early_stopping: ") if isinstance(stopping, dict) else None
    spec = Spec(file, base, parameters, mode, Halving() if stopping is True else halving)
    if file.search == "grid":
        for name, domain in parameters.items():
            if domain.kind != "choice":
                raise InputError(
                    f"parameters: {name}: {domain.kind} has no grid; give a list, or search: random or optuna"
                )
        if "samples" in content:
            raise InputError("samples: a grid has every combination; leave it out, or give search: random")
        runs = math.prod(len(domain.values) for domain in parameters.values())
        if runs > _MOST_RUNS:
            raise InputError(f"parameters: {runs} runs are too many; give at most {_MOST_RUNS}")
    if file.search == "optuna":
        make_trial(spec, {name: domain.values[0] for name, domain in parameters.items()})
    else:
        listed_trials(spec)
    return spec


def _read_fields(kind: type[Any], given: Mapping[Any, Any], where: str = "") -> Any:
    """Make a dataclass of a mapping, each value checked against its field."""
    known = flags_of(kind)
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{where}{name}: no such field; {nearest_names(str(name), known)}")
        check_value(f"{where}{name}", value, *known[name])
    return kind(**given)


def _by_full_names(given: Mapping[Any, Any], task: str, where: str) -> dict[str, Any]:
    """Map fields by their full names to what was given, nested (`optim: {lr: …}`) or not (`optim.lr: …`)."""
    known = flags_of(TASKS[task])
    groups = {name.rpartition(".")[0] for name in known}
    found: dict[str, Any] = {}
    for name, value in given.items():
        nested = name in groups and isinstance(value, dict)
        for full, one in ({f"{name}.{last}": one for last, one in value.items()} if nested else {name: value}).items():
            if full in found:
                raise InputError(f"{where}{full}: is given twice; give it once")
            if full in _OURS:
                raise InputError(f"{where}{full}: is the sweep's own; give --run.folder to arelu-meta sweep")
            if full not in known:
                raise InputError(f"{where}{full}: no such field of {task}; {nearest_names(str(full), known)}")
            found[full] = one
    return found


def _read_domain(name: str, given: Any, hint: Any, metadata: Mapping[str, Any]) -> Domain:
    given = {"choice": given} if isinstance(given, list) else given
    if not isinstance(given, dict) or len(given) != 1:
        raise InputError(f"{name}: {shown(given)} is not allowed; give {_KINDS}")
    kind, values = next(iter(given.items()))
    if kind not in {"choice", "uniform", "loguniform", "int"}:
        raise InputError(f"{name}: {shown(kind)} is not known; give {_KINDS}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{name}: {kind}: {shown(values)} is not allowed; give at least one value in [ ]")
    types = get_args(hint) or (hint,)
    if kind != "choice" and (int if kind == "int" else float) not in types:
        takes = "whole numbers, give int:" if int in types else "any number, give uniform:, loguniform:"
        takes = f"{takes} or a list" if {int, float} & set(types) else "no numbers, give a list"
        raise InputError(f"{name}: {kind} is not allowed; the field takes {takes}")
    read = [_read_value(name, value, hint, types, metadata) for value in values]
    if kind == "choice":
        return Domain(kind, tuple({(type(value), value): value for value in read}.values()))
    numbers = [value for value in read if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2:
        raise InputError(f"{name}: {kind}: {shown(values)} is not allowed; give [low, high]")
    if numbers[0] >= numbers[1] or (kind == "loguniform" and numbers[0] <= 0):
        need = "two numbers above 0, the lower first" if kind == "loguniform" else "two numbers, the lower first"
        raise InputError(f"{name}: {kind}: {shown(values)} is not allowed; give {need}")
    return Domain(kind, tuple(numbers))


def _read_value(name: str, value: Any, hint: Any, types: tuple[Any, ...], metadata: Mapping[str, Any]) -> Any:
    """Check a value as its flag is checked; YAML takes 1e-3 for a text."""
    if isinstance(value, dict | list):
        raise InputError(f"{name}: {shown(value)} is not allowed; give one value")
    if float in types and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    check_value(name, value, hint, metadata)
    return value


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
    text = json.dumps({"task": spec.file.task, **decisive}, sort_keys=True)
    return Trial(dict(parameters), config, hashlib.sha256(text.encode()).hexdigest()[:12])


def listed_trials(spec: Spec) -> list[Trial]:
    """List the runs of a grid or a random search, each once, in the order in which they start.

    Args:
        spec: the sweep; the same one gives the same list.

    Raises:
        InputError: if values do not go together.
    """
    if spec.file.search == "grid":
        combinations: list[dict[str, Any]] = [{}]
        for name, domain in spec.parameters.items():
            combinations = [{**one, name: value} for one in combinations for value in domain.values]
        return list({trial.key: trial for trial in (make_trial(spec, one) for one in combinations)}.values())
    generator = random.Random(spec.file.seed)
    found: dict[str, Trial] = {}
    for _ in range(spec.file.samples):
        for _ in range(_MOST_DRAWS):
            trial = make_trial(spec, {name: domain.draw(generator) for name, domain in spec.parameters.items()})
            if trial.key not in found:
                found[trial.key] = trial
                break
        else:
            break  # there are no more
    return list(found.values())


def describe(spec: Spec) -> dict[str, Any]:
    """Describe a sweep in plain values, for its folder.

    Args:
        spec: the sweep.
    """
    domains = {
        name: list(domain.values) if domain.kind == "choice" else {domain.kind: list(domain.values)}
        for name, domain in spec.parameters.items()
    }
    said = {item.name: getattr(spec.file, item.name) for item in fields(spec.file) if item.name != "config"}
    return said | {"set": asdict(spec.base), "mode": spec.mode, "parameters": domains}


def as_text(value: Any) -> str:
    """Write a YAML value as the command line takes it.

    Args:
        value: a plain value.
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
