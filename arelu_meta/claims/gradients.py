"""The study `gradients`: does the gradient vanish less on its way to the first layer of a deep plain network?"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch

from arelu_meta.claims.gradients_tables import conclude
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.plain_nets import PLAIN_NETS, GradientTrial, train
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import activation_names, depths, names, numbers, seeds
from arelu_meta.claims.running import one_thread, side_by_side
from arelu_meta.claims.tensors import Shelf, Tensors, load_tensors, opened, shelved
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, counted, nearest_names

_OPTIMIZERS = ("sgd", "adam")
_SIDE = 28
_PROBED_STEPS = 12


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name or a depth is not known, or the data is missing.
    """
    trials = list_trials(config)
    data = load_tensors(config.data, config.run.seed, _SIDE)
    with shelved(data) as shelf:
        yield Plan(
            groups=[[trial] for trial in trials],
            work=partial(work, shelf, str(device)),
            processes=side_by_side(config.processes, device),
            seconds=partial(estimate, data.to(device)),
            conclude=lambda ledger, _: conclude(ledger.of_all(trials), config.margin),
            headline=_headline(config, trials),
        )


def list_trials(config: ClaimsConfig) -> list[GradientTrial]:
    """List a resolved config's runs, the first seed of everything first.

    Raises:
        InputError: naming the unknown network, optimiser, activation or depth, or a second optimiser or learning rate.
    """
    networks, optimizer = names("model.name", config.model.name), str(config.optim.name)
    for name in networks:
        if name not in PLAIN_NETS:
            raise InputError(f"model.name: {name!r} is not known to gradients; {nearest_names(name, [*PLAIN_NETS])}")
    if optimizer not in _OPTIMIZERS:
        raise InputError(f"optim.name: {optimizer!r} is not allowed; gradients takes one of {', '.join(_OPTIMIZERS)}")
    rates = numbers("optim.lr", config.optim.lr)
    if len(rates) > 1:
        raise InputError(f"optim.lr: {config.optim.lr!r} is not allowed; gradients takes one learning rate a study")
    activations = activation_names(config)
    place = str(config.data.name or config.data.root)
    return [
        GradientTrial(place, network, depth, name, optimizer, rates[0], seed, config.train.epochs or 1)
        for seed, network, depth, name in itertools.product(seeds(config), networks, depths(config.depth), activations)
    ]


def _headline(config: ClaimsConfig, trials: Sequence[GradientTrial]) -> str:
    activations = list(dict.fromkeys(trial.activation for trial in trials))
    what = ", ".join(activations) if len(activations) <= 6 else f"{len(activations)} activations"
    return (
        f"gradients of {config.model.name}, {config.depth} layers deep, on {trials[0].data}: {what}, "
        f"{trials[0].optimizer}, learning rate {trials[0].lr:g}, {config.train.repeats} seeds, "
        f"{counted(trials[0].epochs, 'epoch')}"
    )


def work(shelf: Shelf, device: str, trials: Sequence[GradientTrial]) -> list[list[Row]]:
    """Run trials, one after the other.

    Args:
        shelf: where the images lie.
        device: where to compute.
        trials: of the study.

    Returns:
        One row a read-out and layer for each trial.
    """
    data = opened(shelf, device)
    return [train(trial, data) for trial in trials]


def estimate(data: Tensors, trials: Sequence[GradientTrial]) -> float:
    """Measure a few steps of each activation in its deepest network, and say how long all take one after the other.

    Args:
        data: on the device.
        trials: to be estimated.

    Returns:
        Seconds: a network's time grows with its depth.
    """
    share = min(1.0, _PROBED_STEPS * trials[0].batch_size / len(data.train_labels))
    total = 0.0
    with one_thread():
        for name in dict.fromkeys(trial.activation for trial in trials):
            alike = [trial for trial in trials if trial.activation == name]
            deepest = replace(max(alike, key=lambda trial: trial.depth), epochs=1)
            train(deepest, data.share(share / 4))  # the first call prepares kernels
            started = perf_counter()
            train(deepest, data.share(share))
            a_layer = (perf_counter() - started) / share / deepest.depth
            total += a_layer * sum(trial.depth * trial.epochs for trial in alike)
    return total
