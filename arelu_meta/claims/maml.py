"""The study `meta`: does MAML with an activation learn new classes better, read as the authors did and honestly?"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.claims.fixed_tasks import resplit_classes
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.meta_runs import ALL, BATCH_TASKS, DIVIDED, WAYS, MetaTrial, run
from arelu_meta.claims.meta_tables import Cell, conclude
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import activation_names, names, numbers, seeds
from arelu_meta.claims.running import probe, side_by_side
from arelu_meta.config import ClaimsConfig, DataConfig, TaskConfig
from arelu_meta.errors import InputError, counted, nearest_names
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.runs.reproducibility import choose_device

_PROBED = (1, 4)  # meta-steps
_MOST_SHOTS = 100


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
    ratios = {
        (data, shots): resplit_classes(_data(config, data), TaskConfig(WAYS, shots, shots), config.run.seed)
        for data, shots in dict.fromkeys((trial.data, trial.shots) for trial in trials)
    }
    by_cell = {Cell(trial.data, trial.shots, trial.lr): ratios[trial.data, trial.shots] for trial in trials}
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=partial(estimate, config),
        conclude=lambda ledger, _: conclude(ledger.of_all(trials), config.margin, by_cell),
        headline=(
            f"MAML of {trials[0].network} on {', '.join(_places(config))}, {WAYS}-way, {config.meta.shots} shots: "
            f"{config.model.activation} as the {config.variant} have them, inner learning rates {config.optim.lr}, "
            f"{counted(config.meta.steps or 0, 'meta-step')} of {BATCH_TASKS} tasks, on all classes and on some with "
            f"{counted(config.meta.tasks or 0, 'task')} of the others, {config.train.repeats} seeds"
        ),
    )


def list_trials(config: ClaimsConfig) -> list[MetaTrial]:
    """List a resolved config's runs, the first seed of everything first, and a pair of runs for each activation.

    Raises:
        InputError: naming the unknown network, activation or optimiser, or the number that is not allowed.
    """
    networks = names("model.name", config.model.name)
    if len(networks) > 1:
        raise InputError(f"model.name: {config.model.name!r} is not allowed; meta takes one network a study")
    if networks[0] not in PAPER_NETS:
        raise InputError(f"model.name: {networks[0]!r} is not known to meta; {nearest_names(networks[0], PAPER_NETS)}")
    check_optimizer_name(str(config.optim.name))
    activations = activation_names(config)
    return [
        MetaTrial(
            data=data,
            network=networks[0],
            shots=shots,
            activation=name,
            variant=config.variant,
            optimizer=str(config.optim.name),
            lr=lr,
            seed=seed,
            steps=config.meta.steps or 1,
            classes=classes,
            tasks=(config.meta.tasks or 2) if classes == DIVIDED else 0,
        )
        for seed, data, shots, lr, name, classes in itertools.product(
            *(seeds(config), _places(config), _shots(config), numbers("optim.lr", config.optim.lr), activations),
            (ALL, DIVIDED),
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
        For each what `meta_runs.run` returns.
    """
    device = choose_device(config.run.device)
    return [run(trial, _data(config, trial.data), device) for trial in trials]


def estimate(config: ClaimsConfig, trials: Sequence[MetaTrial]) -> float:
    """Do a few meta-steps of one run a set, division and number of shots, and say how long all take one by one.

    Args:
        config: of the study.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    total = 0.0
    for kind in dict.fromkeys((trial.data, trial.classes, trial.shots) for trial in trials):
        alike = [trial for trial in trials if (trial.data, trial.classes, trial.shots) == kind]
        short = replace(alike[-1], tasks=min(BATCH_TASKS, alike[-1].tasks))
        seconds = probe(partial(_of_length, config, short), _PROBED)
        a_step = seconds(2) - seconds(1)
        # The end: half a step a batch of unseen tasks, which are adapted to and not differentiated through.
        total += sum(seconds(one.steps) + a_step * one.tasks / BATCH_TASKS / 2 for one in alike)
    return total


def _of_length(config: ClaimsConfig, trial: MetaTrial, steps: int) -> list[list[Row]]:
    return work(config, [replace(trial, steps=steps)])
