"""The study `architectures`: does an activation help mainstream networks, trained from scratch on the same budget?"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from arelu_meta.backbones.from_config import build_backbone, check_forward, check_model_config
from arelu_meta.claims.controls import ORIGINAL, PROBE
from arelu_meta.claims.small_lr import (
    FEWEST_RATES,
    Runs,
    Trial,
    contenders_of,
    course_curves,
    edge_notes,
    estimate,
    is_ours,
    model_config,
    regime_of,
    spread,
    work,
)
from arelu_meta.claims.study import (
    CLAIMS,
    Plan,
    Row,
    amount,
    epochs,
    read_names,
    read_numbers,
    resplit,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import Heatmap, Outcome, Table, mean_over
from arelu_meta.config import ClaimsConfig
from arelu_meta.data.named_datasets import load_images
from arelu_meta.errors import InputError, counted
from arelu_meta.finetuning.optimizer import check_optimizer_name
from arelu_meta.statistics import Comparison, compare, judge


@contextmanager
def plan(config: ClaimsConfig, device: torch.device) -> Iterator[Plan]:
    """Plan the study.

    Args:
        config: resolved.
        device: where to compute.

    Raises:
        InputError: if a name is unknown, the data is missing, or a network does not take its images.
    """
    trials = list_trials(config)
    _check_networks(config)
    ratio = resplit(config.data, config.run.seed)
    yield Plan(
        groups=[[trial] for trial in trials],
        work=partial(work, config),
        processes=side_by_side(config.processes, device),
        seconds=lambda missing: _seconds(config, missing),
        conclude=lambda log, folder: conclude(log.of_all(trials), config.margin, ratio),
        headline=(
            f"{config.model.name} from scratch on {config.data.root or config.data.name or 'digits'}, "
            f"{config.data.image_size} px: {config.model.activation}, {config.optim.name}, learning rates "
            f"{config.optim.lr}, {amount(config)}, {epochs(config)}, {config.train.repeats} seeds"
        ),
    )


def list_trials(config: ClaimsConfig) -> list[Trial]:
    """List a resolved config's runs, the first seed of every network first.

    Raises:
        InputError: naming the unknown model, activation, start or optimiser.
    """
    contenders = contenders_of(config, pretrained=False)
    if len(contenders) < 2:
        raise InputError(
            f"model.activation: {config.model.activation!r} leaves nothing to compare; give two, as original,arelu"
        )
    optimizers, models = read_names("optim.name", config.optim.name), read_names("model.name", config.model.name)
    if len(optimizers) > 1:
        raise InputError("optim.name: architectures takes one optimiser a study; give one")
    check_optimizer_name(optimizers[0])
    for name, contender in itertools.product(models, contenders):
        check_model_config(model_config(name, False, contender))
    regime = regime_of(config, pretrained=False)
    runs = [
        Trial(
            pipeline="finetune",
            data=config.data.root or config.data.name or "digits",
            image_size=config.data.image_size,
            batch_size=config.data.batch_size,
            per_class=config.data.per_class,
            model=model,
            pretrained=False,
            contender=contender,
            optimizer=optimizers[0],
            lr=lr,
            seed=seed,
            length=config.train.epochs or 1,
            regime=regime,
        )
        for seed, model, lr, contender in itertools.product(
            seeds_of(config), models, read_numbers("optim.lr", config.optim.lr), contenders
        )
    ]
    probes = {(one.model, one.seed): replace(one, contender=PROBE) for one in reversed(runs)}
    return sorted([*probes.values(), *runs], key=lambda one: one.seed)


def _check_networks(config: ClaimsConfig) -> None:
    """Refuse a network that cannot train on such images, before the first run."""
    images = load_images(config.data, config.run.seed).train
    for name in read_names("model.name", config.model.name):
        model, spec = build_backbone(
            model_config(name, False, "original"), images.classes, images.channels, config.data.image_size, "finetune"
        )
        check_forward(model, spec, min(config.data.batch_size, len(images)))


def _seconds(config: ClaimsConfig, trials: Any) -> float:
    """Measure a run of one epoch a network: they differ many times over."""
    by_model: dict[str, list[Trial]] = {}
    for trial in trials:
        by_model.setdefault(trial.model, []).append(trial)
    return sum(estimate(config, some) for some in by_model.values())


def conclude(rows: Sequence[Row], margin: float, resplit: float = 0.0) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a read-out, with `model`, `contender`, `lr`, `seed`, `step`, `accuracy`, `validation_accuracy` and
            `test_accuracy`.
        margin: differences within so many points do not count.
        resplit: as in `compare`.

    Returns:
        A claim over all networks a contender, which is judged, one a network, which is described (with one network it
        is judged), their table, and curves a network. Where there are several learning rates, each contender is read at
        the one that is best on validation images.
    """
    networks = list(dict.fromkeys(row["model"] for row in rows))
    runs = {name: Runs([row for row in rows if row["model"] == name]) for name in networks}
    first = runs[networks[0]]
    reference = ORIGINAL if ORIGINAL in first.contenders else first.contenders[0]
    best = {name: {one: runs[name].best_rate(one) for one in first.contenders} for name in networks}
    tested = {name: {one: runs[name].test(one, best[name][one]) for one in first.contenders} for name in networks}
    images = {name: runs[name].images(reference, best[name][reference]) for name in networks}
    comparisons = list(_comparisons(tested, images, first.contenders, reference, margin, resplit))
    return Outcome(
        judge(comparisons),
        [_table(tested, best, first.contenders, reference)],
        [course_curves(runs[name], best[name], name) for name in networks],
        [_map(runs, best)] if len(first.rates) == 1 else [_map(runs, best), *_rates(runs)],
        notes=_notes(runs, best),
        anchors=[replace(one, where=name) for name in networks for one in runs[name].anchors],
    )


Tested = dict[str, dict[str, dict[int, float]]]
"""Test accuracy in per cent, by network, contender and seed."""


def _comparisons(
    tested: Tested,
    images: dict[str, int | None],
    contenders: list[str],
    reference: str,
    margin: float,
    resplit: float,
) -> Iterator[Comparison]:
    """Compare each contender with the reference; the claims are of the first two AReLUs, over all networks."""
    others, several = [name for name in contenders if name != reference], len(tested) > 1
    claimed = ([name for name in others if is_ours(name)] or others)[:CLAIMS]
    everywhere = sum(number for number in images.values() if number is not None) or None
    for one in others:
        if several:
            ours, theirs = (mean_over(found[name] for found in tested.values()) for name in (one, reference))
            claim = f"{one} against {reference} over {len(tested)} networks"
            yield compare(claim, ours, theirs, margin, images=everywhere, resplit=resplit, primary=one in claimed)
        for network, found in tested.items():
            yield compare(
                f"{one} against {reference} in {network}",
                found[one],
                found[reference],
                margin,
                images=images[network],
                resplit=resplit,
                primary=one in claimed and not several,
            )


def _table(tested: Tested, best: dict[str, dict[str, float]], contenders: list[str], reference: str) -> Table:
    rows = []
    for network, found in tested.items():
        means = {one: np.mean([*found[one].values()]) for one in contenders}
        others = [one for one in contenders if one != reference]
        rows.append(
            [
                network,
                *(f"{spread(found[one])} (at {best[network][one]:g})" for one in contenders),
                *(f"{means[one] - means[reference]:+.1f}" for one in others),
            ]
        )
    return Table(
        "Test accuracy in per cent, from scratch",
        ["network", *contenders, *(f"{one} − {reference}" for one in contenders if one != reference)],
        rows,
        "Mean ± standard deviation over seeds, at the learning rate that is best on validation images.",
    )


def _map(runs: dict[str, Runs], best: dict[str, dict[str, float]]) -> Heatmap:
    contenders = next(iter(runs.values())).contenders
    values: list[list[float | None]] = [
        [float(np.mean([*one.test(name, best[network][name]).values()])) for name in contenders]
        for network, one in runs.items()
    ]
    return Heatmap("Test accuracy (%)", "activation", "network", contenders, list(runs), values)


def _rates(runs: dict[str, Runs]) -> Iterator[Heatmap]:
    for network, one in runs.items():
        values: list[list[float | None]] = [
            [float(np.mean([*one.test(name, lr).values()])) for lr in one.rates] for name in one.contenders
        ]
        rates = [f"{lr:g}" for lr in one.rates]
        yield Heatmap(f"{network}: test accuracy (%)", "learning rate", "activation", rates, one.contenders, values)


def _notes(runs: dict[str, Runs], best: dict[str, dict[str, float]]) -> list[str]:
    notes = ["The pairs are seeds; that other networks would do alike is not said by the interval over these."]
    if 1 < len(next(iter(runs.values())).rates) < FEWEST_RATES:
        notes.append("Of two rates the better one on validation images is read; none is called the best.")
    lost = sum(one.diverged(name, lr) for one in runs.values() for name in one.contenders for lr in one.rates)
    at_edge = [name for name, one in runs.items() if edge_notes(one, best[name])]
    if at_edge:
        notes.append(f"A best rate is the largest or smallest that was tried in {', '.join(at_edge)}: look beyond it.")
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as accuracy 0."] if lost else notes
