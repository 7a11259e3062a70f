"""The study `transfer`: which activation lets a network that learned one set of images learn another?"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch

from arelu_meta.backbones.from_config import check_model_config
from arelu_meta.backbones.networks import PAPER_NETS
from arelu_meta.claims import small_lr_runs
from arelu_meta.claims.amounts import amount, epochs, resplit
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.plan import Plan
from arelu_meta.claims.recipes import names, numbers, seeds
from arelu_meta.claims.running import one_thread, side_by_side
from arelu_meta.claims.small_lr import contenders_of, distinct, small_rate
from arelu_meta.claims.small_lr_runs import model_config
from arelu_meta.claims.tensors import Shelf, opened, shelved
from arelu_meta.claims.transfer_data import PRETRAINED, PairData, backbone_config, load_pair, read_pairs
from arelu_meta.claims.transfer_nets import Trial, transfer
from arelu_meta.claims.transfer_tables import conclude
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.finetuning.optimizer import check_optimizer_name

_SOURCE_EPOCHS = {"quick": 1, "full": 5}
_PROBED = 1024  # images, to measure times on
_OPTIMIZERS = ("sgd", "adam")

Shelves = dict[str, tuple[Shelf, Shelf, Shelf]]
"""By pair: the source, the target with its validation images, the target's test."""


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where backbones compute; small networks stay on the CPU.

    Raises:
        InputError: if a name is unknown, or a set is missing.
    """
    pairs = read_pairs(config.pairs)
    small, large = list_trials(config, pairs)
    with ExitStack() as stack:
        shelves: Shelves = {}
        for pair in dict.fromkeys(trial.pair for trial in small):
            data = load_pair(config, *pairs[pair])
            parts = (stack.enter_context(shelved(part)) for part in (data.source, data.target, data.test))
            shelves[pair] = (next(parts), next(parts), next(parts))
        ratios = {pair: resplit(backbone_config(config, pairs[pair][1]).data, config.run.seed) for pair in large}
        grouped = _grouped(small) + [[trial] for trials in large.values() for trial in trials]
        of_pair = {pair: [one for one in small if one.pair == pair] for pair in shelves} | large
        yield Plan(
            groups=grouped,
            work=partial(work, config, shelves),
            processes=side_by_side(config.processes, device),
            seconds=partial(estimate, config, shelves),
            conclude=lambda ledger, folder: conclude(
                {pair: ledger.of_all(trials) for pair, trials in of_pair.items()},
                small_rate(config),
                config.margin,
                ratios,
            ),
            headline=_headline(config, small_rate(config)),
        )


def list_trials(
    config: ClaimsConfig, pairs: dict[str, tuple[str, str]]
) -> tuple[list[Trial], dict[str, list[small_lr_runs.Trial]]]:
    """List a resolved config's runs, the first seed of everything first.

    Args:
        config: resolved.
        pairs: source and target by pair.

    Returns:
        Those of small networks, and by pair those of pretrained backbones.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    contenders = contenders_of(config)
    optimizers = names("optim.name", config.optim.name)
    if len(contenders) < 2 or len(optimizers) > 1:
        raise InputError(
            "model.activation, optim.name: transfer compares activations; give two or more, and one optimiser"
        )
    networks = [name for name in names("model.name", config.model.name) if name in PAPER_NETS]
    backbones = [name for name in names("model.name", config.model.name) if name not in PAPER_NETS]
    _check_models(pairs, networks, backbones, contenders, optimizers[0])
    small, large = [], {}
    rates = numbers("optim.lr", config.optim.lr)
    for pair, (source, target) in pairs.items():
        runs = itertools.product(seeds(config), distinct(contenders, source == PRETRAINED), rates)
        if source == PRETRAINED:
            large[pair] = [_backbone_trial(config, target, backbones[0], *run) for run in runs]
            continue
        small += [
            Trial(
                pair=pair,
                network=networks[0],
                contender=contender,
                optimizer=optimizers[0],
                lr=lr,
                seed=seed,
                source_epochs=_SOURCE_EPOCHS[config.size],
                length=config.train.epochs or 1,
                per_class=config.data.per_class,
                batch_size=config.data.batch_size,
            )
            for seed, contender, lr in runs
        ]
    return small, large


def _check_models(
    pairs: dict[str, tuple[str, str]], networks: list[str], backbones: list[str], contenders: list[str], optimizer: str
) -> None:
    pretrained = [source == PRETRAINED for source, _ in pairs.values()]
    for needed, found, what in (
        (not all(pretrained), networks, f"small network, as {next(iter(PAPER_NETS))}"),
        (any(pretrained), backbones, "pretrained backbone, as tf_efficientnet_lite0"),
    ):
        if needed and len(found) != 1:
            raise InputError(f"model.name: {', '.join(found)!r} is not allowed for these pairs; give one {what}")
    if not all(pretrained) and optimizer not in _OPTIMIZERS:
        raise InputError(
            f"optim.name: {optimizer!r} is not known to small networks; {nearest_names(optimizer, _OPTIMIZERS)}"
        )
    check_optimizer_name(optimizer)
    for name in contenders if any(pretrained) else []:
        check_model_config(model_config(backbones[0], True, name))


def _backbone_trial(
    config: ClaimsConfig, target: str, model: str, seed: int, contender: str, lr: float
) -> small_lr_runs.Trial:
    return small_lr_runs.Trial(
        pipeline="finetune",
        data=target,
        image_size=config.data.image_size,
        batch_size=config.data.batch_size,
        per_class=config.data.per_class,
        model=model,
        pretrained=True,
        contender=contender,
        optimizer=names("optim.name", config.optim.name)[0],
        lr=lr,
        seed=seed,
        length=config.train.epochs or 1,
    )


def _grouped(trials: Sequence[Trial]) -> list[list[Any]]:
    """Put together what goes on from the same network."""
    groups: dict[Any, list[Any]] = {}
    for trial in trials:
        groups.setdefault((trial.seed, trial.pair, trial.contender), []).append(trial)
    return list(groups.values())


def work(config: ClaimsConfig, shelves: Shelves, trials: Sequence[Any]) -> list[list[Row]]:
    """Run trials that belong together.

    Args:
        config: of the study.
        shelves: where the small sets lie.
        trials: of one group.

    Returns:
        What `transfer` or the study `small-lr` returns.
    """
    if isinstance(trials[0], Trial):
        return transfer(trials, PairData(*(opened(shelf, "cpu") for shelf in shelves[trials[0].pair])))
    return small_lr_runs.work(backbone_config(config, trials[0].data), trials)


def estimate(config: ClaimsConfig, shelves: Shelves, trials: Sequence[Any]) -> float:
    """Measure a little of each kind of run, and say how long all take one after the other.

    Args:
        config: of the study.
        shelves: where the small sets lie.
        trials: to be estimated.

    Returns:
        Seconds.
    """
    total = 0.0
    small = [trial for trial in trials if isinstance(trial, Trial)]
    for group in _grouped(small):
        data = PairData(*(opened(shelf, "cpu") for shelf in shelves[group[0].pair]))
        images = group[0].source_epochs * len(data.source.train_labels)
        images += sum(trial.length for trial in group) * len(data.target.train_labels)
        total += images * _seconds_an_image(group[0], data)
    others: dict[str, list[small_lr_runs.Trial]] = {}
    for trial in trials:
        if not isinstance(trial, Trial):
            others.setdefault(trial.data, []).append(trial)
    return total + sum(small_lr_runs.estimate(backbone_config(config, target), some) for target, some in others.items())


_measured: dict[tuple[str, str], float] = {}


def _seconds_an_image(trial: Trial, data: PairData) -> float:
    key = (trial.pair, trial.contender)
    if key not in _measured:
        few = data.source.share(min(1.0, _PROBED / len(data.source.train_labels)))
        short = replace(trial, source_epochs=1, length=0)
        with one_thread():
            run: Callable[[], object] = partial(transfer, [short], PairData(few, few.share(0.1), few.share(0.1)))
            run()
            started = perf_counter()
            run()
            _measured[key] = (perf_counter() - started) / len(few.train_labels)
    return _measured[key]


def _headline(config: ClaimsConfig, small: float) -> str:
    return (
        f"transfer {config.pairs}: {config.model.activation}, {config.optim.name}, learning rates {config.optim.lr} "
        f"(the small one is {small:g}), {amount(config)}, {epochs(config)}, {config.train.repeats} seeds"
    )
