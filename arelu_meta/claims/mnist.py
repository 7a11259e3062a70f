"""The study `mnist`: the AReLU authors' table, ours beside theirs."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch

from arelu_meta.claims.amounts import epochs
from arelu_meta.claims.in_memory_training import Trial, stackable, train_one, train_stacked
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.mnist_tables import conclude
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import activation_names, names, numbers, seeds
from arelu_meta.claims.running import cores, one_thread
from arelu_meta.claims.tensors import Shelf, Tensors, load_tensors, opened, shelved
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, nearest_names

_NETWORKS = ("mnist_conv", "mnist_linear")
_OPTIMIZERS = ("sgd", "adam")
_SIDE = 28
_PROBED_STEPS = 12
_STACKED_AT_ONCE = 40


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, or the data is missing.
    """
    trials = list_trials(config)
    data = load_tensors(config.data, config.run.seed, _SIDE)
    stacked = config.engine == "stacked" or (config.engine == "auto" and device.type != "cpu")
    if not stacked and device.type != "cpu":
        raise InputError(f"engine: single does not go with {device.type}; give stacked, or --run.device cpu")
    with shelved(data) as shelf:
        yield Plan(
            groups=stack(trials) if stacked else [[trial] for trial in trials],
            work=partial(work, shelf, str(device), stacked),
            processes=1 if stacked else config.processes or cores(),
            seconds=partial(estimate, data.to(device), stacked),
            conclude=lambda ledger, folder: conclude(ledger.of_all(trials), config.margin),
            headline=_headline(config, data, trials),
        )


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of everything first.

    Raises:
        InputError: naming the unknown network, optimiser or activation.
    """
    networks = _known("model.name", config.model.name, _NETWORKS)
    optimizers = _known("optim.name", config.optim.name, _OPTIMIZERS)
    activations = activation_names(config)
    rates = numbers("optim.lr", config.optim.lr)
    return [
        Trial(str(config.data.name or config.data.root), network, name, config.variant, optimizer, lr, seed, epochs)
        for epochs in [config.train.epochs or 1]
        for seed, network, optimizer, lr, name in itertools.product(
            seeds(config), networks, optimizers, rates, activations
        )
    ]


def _known(flag: str, text: str | None, known: Sequence[str]) -> list[str]:
    found = names(flag, text)
    for name in found:
        if name not in known:
            raise InputError(f"{flag}: {name!r} is not known to the study mnist; {nearest_names(name, known)}")
    return found


def _headline(config: ClaimsConfig, data: Tensors, trials: Sequence[Trial]) -> str:
    activations = list(dict.fromkeys(trial.activation for trial in trials))
    what = ", ".join(activations) if len(activations) <= 6 else f"{len(activations)} activations"
    return (
        f"{config.model.name} on {config.data.name or config.data.root} ({len(data.train_labels):,} images to train, "
        f"{len(data.test_labels):,} to test): {what} as the {config.variant} have them, {config.optim.name}, learning "
        f"rates {config.optim.lr}, {config.train.repeats} seeds, {epochs(config)}"
    )


def stack(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Group trials that differ in seed and learning rate alone, up to 40 together; chance runs alone.

    Args:
        trials: of the study.
    """
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        alone = None if stackable(trial) else (trial.lr, trial.seed)
        groups.setdefault((trial.network, trial.activation, trial.optimizer, alone), []).append(trial)
    return [
        group[start : start + _STACKED_AT_ONCE]
        for group in groups.values()
        for start in range(0, len(group), _STACKED_AT_ONCE)
    ]


def work(shelf: Shelf, device: str, stacked: bool, trials: Sequence[Trial]) -> list[list[Row]]:
    """Run trials, one after the other or stacked.

    Args:
        shelf: where the images lie.
        device: where to compute.
        stacked: whether they are vectorised; they differ in seed and learning rate alone then.
        trials: of the study.

    Returns:
        One row an epoch for each trial.
    """
    data = opened(shelf, device)
    return train_stacked(trials, data) if stacked else [train_one(trial, data) for trial in trials]


def estimate(data: Tensors, stacked: bool, trials: Sequence[Trial]) -> float:
    """Measure a few steps of each kind of run, and say how long all take one after the other.

    Args:
        data: on the device.
        stacked: whether those of a kind run together.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    share = min(1.0, _PROBED_STEPS * trials[0].batch_size / len(data.train_labels))
    few, total = data.share(share), 0.0
    with one_thread():
        for group in stack(trials) if stacked else _of_a_kind(trials):
            together = [replace(trial, epochs=1) for trial in (group if stacked else group[:1])]
            train = train_stacked if stacked else _train_first
            train(together, data.share(share / 4))  # the first call prepares kernels
            started = perf_counter()
            train(together, few)
            total += (perf_counter() - started) / share * group[0].epochs * (1 if stacked else len(group))
    return total


def _train_first(trials: Sequence[Trial], data: Tensors) -> list[list[Row]]:
    return [train_one(trials[0], data)]


def _of_a_kind(trials: Sequence[Trial]) -> list[list[Trial]]:
    kinds: dict[Any, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault((trial.network, trial.activation, trial.optimizer), []).append(trial)
    return list(kinds.values())
