"""The study `mnist`: the AReLU authors' table, ours beside theirs."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from arelu_meta.activations.controls import is_control
from arelu_meta.activations.registry import ALIASES
from arelu_meta.claims.controls import explained
from arelu_meta.claims.in_memory_training import (
    Shelf,
    Tensors,
    Trial,
    anchors_of,
    build,
    load_tensors,
    opened,
    shelved,
    stackable,
    train_one,
    train_stacked,
)
from arelu_meta.claims.study import (
    Plan,
    Row,
    activation_names,
    cores,
    epochs,
    one_thread,
    read_names,
    read_numbers,
    seeds_of,
)
from arelu_meta.claims.tables import Anchor, Curves, Heatmap, Outcome, Table, described, mean_over, mean_series
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, nearest_names
from arelu_meta.statistics import Comparison, area_over_rates, compare, compare_published, correct, judge

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
            conclude=lambda log, folder: conclude(
                log.of_all(trials), config.margin, anchors_of(data, build(trials[0], *data.shape))
            ),
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
    rates = read_numbers("optim.lr", config.optim.lr)
    return [
        Trial(str(config.data.name or config.data.root), network, name, config.variant, optimizer, lr, seed, epochs)
        for epochs in [config.train.epochs or 1]
        for seed, network, optimizer, lr, name in itertools.product(
            seeds_of(config), networks, optimizers, rates, activations
        )
    ]


def _known(flag: str, text: str | None, known: Sequence[str]) -> list[str]:
    found = read_names(flag, text)
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


OURS, STANDARD, CONTROL = "arelu", "relu", "relu:gain"
AUTHORS_RUNS, AUTHORS_EPOCHS = 5, 20
_THEIR_NAMES = {"ConvMNIST": "mnist_conv", "LinearMNIST": "mnist_linear"}
_SHOWN = {"mnist_conv": "MNIST-Conv", "mnist_linear": "MNIST-Linear", "sgd": "SGD", "adam": "Adam"}


class Cell(NamedTuple):
    """Where in the table a run belongs, but for its activation."""

    network: str
    optimizer: str
    lr: float

    def __str__(self) -> str:
        return f"{_SHOWN[self.network]}, {_SHOWN[self.optimizer]}, learning rate {self.lr:g}"


@dataclass
class Cells:
    """Accuracies in per cent by cell, activation and seed, epoch by epoch.

    Args:
        rows: of finished runs.
    """

    rows: Sequence[Row]
    found: dict[Cell, dict[str, dict[int, list[float]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in sorted(self.rows, key=lambda row: row["epoch"]):
            cell = Cell(row["network"], row["optimizer"], row["lr"])
            seeds = self.found.setdefault(cell, {}).setdefault(row["activation"], {})
            seeds.setdefault(row["seed"], []).append(100 * row["accuracy"])
        self.found = dict(sorted(self.found.items(), key=lambda item: (item[0][0], item[0][1] != "sgd", -item[0][2])))
        self.epochs = max(row["epoch"] for row in self.rows)
        self.images: int | None = min((row["images"] for row in self.rows if row.get("images")), default=None)

    @property
    def readings(self) -> list[str]:
        """Name what is read of a run: after epoch 1, and the best epoch where there are several."""
        return ["after epoch 1"] + ([f"best of {self.epochs} epochs"] if self.epochs > 1 else [])

    def read(self, cell: Cell, activation: str, reading: str) -> dict[int, float]:
        """Return one value a seed, in per cent."""
        first = reading == "after epoch 1"
        return {seed: course[0] if first else max(course) for seed, course in self.found[cell][activation].items()}

    def over_rates(self, activation: str, reading: str, rates: Sequence[float]) -> dict[int, float]:
        """Return one value a seed: the mean over the log-rates, and over networks and optimisers."""
        places = dict.fromkeys(cell[:2] for cell in self.found)
        by_place = []
        for network, optimizer in places:
            cells = {lr: Cell(network, optimizer, lr) for lr in rates}
            if not all(activation in self.found.get(cell, {}) for cell in cells.values()):
                return {}
            read = {lr: self.read(cell, activation, reading) for lr, cell in cells.items()}
            seeds = set.intersection(*map(set, read.values()))
            by_place.append({seed: area_over_rates({lr: read[lr][seed] for lr in rates}) for seed in seeds})
        return mean_over(by_place)


@cache
def published() -> dict[tuple[str, float, str], dict[str, tuple[float, float]]]:
    """Read the authors' table.

    Returns:
        By network, learning rate and activation: `first` and `best`, each a mean and a standard deviation in per cent.

    Source: `published/README.md`.
    """
    text = files("arelu_meta.claims").joinpath("published", "authors_mnist_sgd.csv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(text.splitlines()):
        name = row["activation"].lower()
        key = _THEIR_NAMES[row["network"]], float(row["learning_rate"]), ALIASES.get(name, name)
        table[key] = {
            "first": (float(row["first_epoch_mean"]), float(row["first_epoch_std"])),
            "best": (float(row["best_mean"]), float(row["best_std"])),
        }
    return table


def conclude(rows: Sequence[Row], margin: float, anchors: Sequence[Anchor] = ()) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a run and epoch, with `network`, `optimizer`, `lr`, `activation`, `variant`, `data`, `seed`, `epoch`,
            `accuracy` and, where it is known, `images`.
        margin: differences within so many points do not count.
        anchors: what all are read against.
    """
    cells = Cells(rows)
    tables = [*_accuracy_tables(cells)]
    if rows[0]["data"].lower() == "mnist" and rows[0]["variant"] == "authors":
        tables += _beside_theirs(cells)
    pairs = list(_comparisons(cells, margin))
    stated = [one for one in pairs if one.primary]
    if len(pairs) > len(stated):
        tables.append(described(pairs, "AReLU against every other activation"))
    names = list(dict.fromkeys(row["activation"] for row in rows))
    tables += [explained(names)] if any(map(is_control, names)) else []
    found = Outcome(judge(stated), tables, _curves(cells), list(_maps(cells)), notes=_notes(cells))
    found.anchors = list(anchors)
    return found


def _accuracy_tables(cells: Cells) -> Iterator[Table]:
    for reading in cells.readings:
        for (network, optimizer), group in itertools.groupby(cells.found, key=lambda cell: cell[:2]):
            listed = list(group)
            activations = list(dict.fromkeys(name for cell in listed for name in cells.found[cell]))
            rows = [[name, *(_spread(cells, cell, name, reading) for cell in listed)] for name in activations]
            yield Table(
                f"{_SHOWN[network]}, {_SHOWN[optimizer]}: test accuracy in per cent {reading}",
                ["activation", *(f"{cell.lr:g}" for cell in listed)],
                rows,
                f"Columns are learning rates; mean ± standard deviation over {_runs(cells)} seeds.",
            )


def _spread(cells: Cells, cell: Cell, activation: str, reading: str) -> str:
    values = list(cells.read(cell, activation, reading).values())
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _runs(cells: Cells) -> int:
    return max(len(seeds) for names in cells.found.values() for seeds in names.values())


def _beside_theirs(cells: Cells) -> list[Table]:
    tables = []
    for reading in cells.readings:
        if reading != "after epoch 1" and cells.epochs != AUTHORS_EPOCHS:
            continue  # the best of fewer epochs is another figure
        which = "first" if reading == "after epoch 1" else "best"
        places = [
            (cell, name)
            for cell, names in cells.found.items()
            for name in names
            if cell.optimizer == "sgd" and (cell.network, cell.lr, name) in published()
        ]
        theirs = [published()[cell.network, cell.lr, name][which] for cell, name in places]
        ours = [list(cells.read(cell, name, reading).values()) for cell, name in places]
        found = correct([compare_published(o, *t, AUTHORS_RUNS) for o, t in zip(ours, theirs, strict=True)])
        rows = [
            [
                *(_SHOWN[cell.network], f"{cell.lr:g}", name),
                *(f"{np.mean(o):.1f} ± {np.std(o, ddof=1):.1f}", f"{t[0]:.1f} ± {t[1]:.1f}"),
                *(f"{one.difference:+.1f}", f"{one.low:+.1f} to {one.high:+.1f}", f"{one.p_holm:.2g}"),
                "yes" if one.within else "no",
            ]
            for (cell, name), o, t, one in zip(places, ours, theirs, found, strict=True)
        ]
        if rows:
            tables.append(_theirs_table(reading, rows, sum(one.within for one in found), _runs(cells)))
    return tables


def _theirs_table(reading: str, rows: list[list[str]], within: int, runs: int) -> Table:
    return Table(
        f"Ours beside the authors' own, SGD, {reading}: {within} of {len(rows)} cells agree",
        ["network", "lr", "activation", "ours", "theirs", "difference", "95 % interval", "p (Holm)", "agree"],
        rows,
        f"Test accuracy in per cent, mean ± standard deviation over {runs} of our runs and {AUTHORS_RUNS} of theirs. "
        f"Cells agree where the difference is within what {runs} + {AUTHORS_RUNS} runs can tell: Welch's test with "
        "Holm's correction over the table does not reject that there is none. Theirs are from their repository.",
    )


def _comparisons(cells: Cells, margin: float) -> Iterator[Comparison]:
    """Compare AReLU with every other activation, in every cell, and over all of them in the study's claims.

    These are two at most, after epoch 1, over the log-rates: AReLU against ReLU, as the paper has it, and against what
    explains that (ReLU times AReLU's own slope at the start), or else against ReLU at the smallest rate.
    """
    first, names = cells.readings[0], list(dict.fromkeys(name for found in cells.found.values() for name in found))
    rates = sorted({cell.lr for cell in cells.found})
    claims = [(STANDARD, rates)] * (STANDARD in names)
    claims += (
        [(CONTROL, rates)] if CONTROL in names else [(STANDARD, rates[:1])] * (STANDARD in names and len(rates) > 1)
    )
    several = len(cells.found) > 1
    for name, over in claims:
        ours, theirs = (cells.over_rates(one, first, over) for one in (OURS, name))
        if len(set(ours) & set(theirs)) > 1:
            where = "over all learning rates" if over == rates else f"at the learning rate {rates[0]:g}"
            claim = f"AReLU against {name} {first} ({where if several else next(iter(cells.found))})"
            yield compare(claim, ours, theirs, margin, images=cells.images)
    for reading, (cell, activations) in itertools.product(cells.readings, cells.found.items()):
        ours = cells.read(cell, OURS, reading) if OURS in activations else {}
        for name in activations:
            theirs = cells.read(cell, name, reading)
            judged = not several and reading == first and name in (STANDARD, CONTROL)
            if name != OURS and not judged and len(set(ours) & set(theirs)) > 1:
                claim = f"AReLU against {name} {reading} ({cell})"
                yield compare(claim, ours, theirs, margin, images=cells.images, primary=False)


def _curves(cells: Cells) -> list[Curves]:
    if cells.epochs == 1:
        return []
    epochs = list(range(1, cells.epochs + 1))
    return [
        Curves(
            f"{cell}: test accuracy by epoch",
            "epoch",
            "test accuracy (%)",
            [mean_series(name, list(seeds.values()), epochs) for name, seeds in names.items()],
        )
        for cell, names in cells.found.items()
    ]


def _maps(cells: Cells) -> Iterator[Heatmap]:
    for (network, optimizer), group in itertools.groupby(cells.found, key=lambda cell: cell[:2]):
        listed = list(group)
        activations = list(dict.fromkeys(name for cell in listed for name in cells.found[cell]))
        values: list[list[float | None]] = [
            [float(np.mean([*cells.read(cell, name, "after epoch 1").values()])) for cell in listed]
            for name in activations
        ]
        yield Heatmap(
            f"{_SHOWN[network]}, {_SHOWN[optimizer]}: test accuracy (%) after epoch 1",
            "learning rate",
            "activation",
            [f"{cell.lr:g}" for cell in listed],
            activations,
            values,
        )


def _notes(cells: Cells) -> list[str]:
    if cells.epochs == 1:
        return []
    return ["The best epoch is chosen on the test images, as the authors did: read it as an upper bound."]
