"""The study `meta`: does MAML with an activation learn new classes better, read as the authors did and honestly?"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from arelu_meta.activations.registry import create_activation
from arelu_meta.backbones.paper_nets import PAPER_NETS
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.meta_tables import conclude
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import one_thread, side_by_side
from arelu_meta.claims.scratch import run_apart
from arelu_meta.config import (
    ClaimsConfig,
    DataConfig,
    EvalConfig,
    MetaConfig,
    MetatrainConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TaskConfig,
)
from arelu_meta.data.episodes import load_class_splits
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.meta import metatrain

_WAYS, _INNER_STEPS, _BATCH_TASKS, _OUTER_LR = 5, 5, 32, 0.005  # as the authors' launcher has them
_VALIDATION_TASKS = 32
_PROBED = 3  # meta-steps
_MOST_SHOTS = 100


@dataclass(frozen=True)
class MetaTrial:
    """One run: all that decides its figures.

    Args:
        data: name or root of the images.
        model: name of the network.
        shots: support images a class, and query images as well.
        activation: in the network.
        optimizer: a name of timm's, of the outer loop; its rate is 0.005.
        lr: of the inner loop.
        seed: of the classes, the weights and the tasks.
        steps: meta-steps.
        tasks: of unseen classes at the end.
    """

    data: str
    model: str
    shots: int
    activation: str
    optimizer: str
    lr: float
    seed: int
    steps: int
    tasks: int


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name or a number is not allowed, or data is missing or has too few classes or images.
    """
    trials = list_trials(config)
    for data, shots in dict.fromkeys((trial.data, trial.shots) for trial in trials):
        load_class_splits(_data(config, data), TaskConfig(_WAYS, shots, shots), config.run.seed)
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda ledger, _: conclude(ledger.of_all(trials), config.margin),
        headline=(
            f"MAML of {trials[0].model} on {', '.join(_places(config))}, {_WAYS}-way, {config.meta.shots} shots: "
            f"{config.model.activation}, inner learning rates {config.optim.lr}, {config.meta.steps} meta-steps of "
            f"{_BATCH_TASKS} tasks, {config.meta.tasks:,} unseen tasks, {config.train.repeats} seeds"
        ),
    )


def list_trials(config: ClaimsConfig) -> list[MetaTrial]:
    """List a resolved config's runs, the first seed of everything first.

    Raises:
        InputError: naming the unknown network, activation or optimiser, or the number that is not allowed.
    """
    models = names("model.name", config.model.name)
    if len(models) > 1:
        raise InputError(f"model.name: {config.model.name!r} is not allowed; meta takes one network a study")
    if models[0] not in PAPER_NETS:
        raise InputError(f"model.name: {models[0]!r} is not known to meta; {nearest_names(models[0], PAPER_NETS)}")
    check_optimizer_name(str(config.optim.name))
    activations = names("model.activation", config.model.activation)
    for name in activations:
        create_activation(name)  # says what is wrong
    return [
        MetaTrial(
            data,
            models[0],
            shots,
            name,
            str(config.optim.name),
            lr,
            seed,
            config.meta.steps or 1,
            config.meta.tasks or 2,
        )
        for seed, data, shots, lr, name in itertools.product(
            seeds(config), _places(config), _shots(config), numbers("optim.lr", config.optim.lr), activations
        )
    ]


def _places(config: ClaimsConfig) -> list[str]:
    """List the sets: names with commas between, or one folder."""
    if config.data.name is None:
        return [str(config.data.root)]
    return names("data.name", config.data.name)


def _data(config: ClaimsConfig, place: str) -> DataConfig:
    return replace(config.data, name=None if config.data.name is None else place)


def _shots(config: ClaimsConfig) -> list[int]:
    found = []
    for number in numbers("meta.shots", config.meta.shots):
        if number != int(number) or number > _MOST_SHOTS:
            raise InputError(f"meta.shots: {number:g} is not allowed; give whole numbers from 1 to {_MOST_SHOTS}")
        found.append(int(number))
    return sorted(found)


def work(config: ClaimsConfig, trials: Sequence[MetaTrial]) -> list[list[Row]]:
    """Run trials, one after the other.

    Args:
        config: of the study; its data and device.
        trials: what to run.

    Returns:
        For each one row a meta-step: `step`, `accuracy` (mean over the batch's query images, before the step), and on
        every row of a run `best_batch` (the best of those), `test_accuracy`, `test_low`, `test_high` (on tasks of
        unseen classes, 95 % interval over these), `curve` (that accuracy after 0, 1, … inner steps) and `diverged`.
        Accuracies are fractions.
    """
    worst = {"step": 0, "accuracy": 0.0, "best_batch": 0.0, "test_accuracy": 0.0, "test_low": 0.0, "test_high": 0.0}
    return [run_apart(partial(_run, config, trial), worst | {"curve": []}) for trial in trials]


def metatrain_config(config: ClaimsConfig, trial: MetaTrial, folder: Path) -> MetatrainConfig:
    """Make a trial's config: the authors' set-up, read out after every meta-step.

    Args:
        config: of the study.
        trial: the run.
        folder: of the run.
    """
    return MetatrainConfig(
        run=RunConfig(folder=str(folder), seed=trial.seed, device=config.run.device, pictures=False),
        data=_data(config, trial.data),
        model=ModelConfig(trial.model, False, trial.activation),
        optim=OptimConfig(name=trial.optimizer, lr=_OUTER_LR, weight_decay=0.0, schedule="constant"),
        task=TaskConfig(_WAYS, trial.shots, trial.shots),
        meta=MetaConfig(inner_lr=trial.lr, inner_steps=_INNER_STEPS, steps=trial.steps, batch_tasks=_BATCH_TASKS),
        eval=EvalConfig(tasks=trial.tasks, every=1, validation_tasks=_VALIDATION_TASKS),
    )


def _run(config: ClaimsConfig, trial: MetaTrial, folder: Path) -> list[Row]:
    results = metatrain(metatrain_config(config, trial, folder))
    rows = list(csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    batches = {int(row["step"]): float(row["train_accuracy"]) for row in rows}
    ends = {name: results[name] for name in ("test_accuracy", "test_low", "test_high")}
    ends["best_batch"] = max(batches.values())
    ends["curve"] = [results[f"accuracy_after_{step}"] for step in range(_INNER_STEPS + 1)]
    return [{"step": step, "accuracy": accuracy, **ends} for step, accuracy in batches.items()]


def estimate(config: ClaimsConfig, trials: Sequence[MetaTrial]) -> float:
    """Do a few meta-steps of one run a set and number of shots, and say how long all take one after the other.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    total = 0.0
    with one_thread():
        for kind in dict.fromkeys((trial.data, trial.shots) for trial in trials):
            alike = [trial for trial in trials if (trial.data, trial.shots) == kind]
            short = replace(alike[-1], tasks=_VALIDATION_TASKS)
            work(config, [replace(short, steps=1)])  # the first call prepares kernels
            times = []
            for steps in (1, 1 + _PROBED):
                started = perf_counter()
                work(config, [replace(short, steps=steps)])
                times.append(perf_counter() - started)
            a_step = max(0.0, times[1] - times[0]) / _PROBED
            # The end: half a step a batch of unseen tasks, which are adapted to and not differentiated through.
            total += sum(times[0] + a_step * (one.steps + one.tasks / _BATCH_TASKS / 2) for one in alike)
    return total
