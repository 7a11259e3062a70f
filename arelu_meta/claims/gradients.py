"""The study `gradients`: does the gradient vanish less on its way to the first layer of a deep plain network?"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arelu_meta.activations.registry import create_activation
from arelu_meta.claims.in_memory_training import (
    Shelf,
    Tensors,
    accuracy,
    anchors_of,
    epoch_order,
    load_tensors,
    make_optimizer,
    opened,
    scaled,
    shelved,
)
from arelu_meta.claims.study import (
    Plan,
    Row,
    activation_names,
    one_thread,
    read_names,
    read_numbers,
    seeds_of,
    side_by_side,
)
from arelu_meta.claims.tables import (
    Curves,
    Heatmap,
    Outcome,
    Series,
    Table,
    described,
    mean_over,
    mean_series,
)
from arelu_meta.config import ClaimsConfig
from arelu_meta.errors import InputError, counted, nearest_names
from arelu_meta.statistics import Comparison, compare, judge

_OPTIMIZERS = ("sgd", "adam")
_SIDE = 28
_PROBED_STEPS = 12
_DEEPEST = 200


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
            conclude=lambda log, _: replace(
                conclude(log.of_all(trials), config.margin), anchors=anchors_of(data, build(trials[0], data))
            ),
            headline=_headline(config, trials),
        )


@dataclass(frozen=True)
class GradientTrial:
    """One run: all that decides its figures.

    Args:
        data: the set's name or root.
        network: of `PLAIN_NETS`.
        depth: hidden layers, at least 2.
        activation: a name of `list_activations()`.
        optimizer: sgd (momentum 0.9) or adam.
        lr: learning rate, constant.
        seed: of the weights and of the order of the images.
        epochs: passes over the training images.
        batch_size: images a step.
    """

    data: str
    network: str
    depth: int
    activation: str
    optimizer: str
    lr: float
    seed: int
    epochs: int
    batch_size: int = 128


def list_trials(config: ClaimsConfig) -> list[GradientTrial]:
    """List a resolved config's runs, the first seed of everything first.

    Raises:
        InputError: naming the unknown network, optimiser, activation or depth, or a second optimiser or learning rate.
    """
    networks, optimizer = read_names("model.name", config.model.name), str(config.optim.name)
    for name in networks:
        if name not in PLAIN_NETS:
            raise InputError(f"model.name: {name!r} is not known to gradients; {nearest_names(name, [*PLAIN_NETS])}")
    if optimizer not in _OPTIMIZERS:
        raise InputError(f"optim.name: {optimizer!r} is not allowed; gradients takes one of {', '.join(_OPTIMIZERS)}")
    rates = read_numbers("optim.lr", config.optim.lr)
    if len(rates) > 1:
        raise InputError(f"optim.lr: {config.optim.lr!r} is not allowed; gradients takes one learning rate a study")
    activations = activation_names(config)
    place = str(config.data.name or config.data.root)
    return [
        GradientTrial(place, network, depth, name, optimizer, rates[0], seed, config.train.epochs or 1)
        for seed, network, depth, name in itertools.product(
            seeds_of(config), networks, read_depths(config.depth), activations
        )
    ]


def read_depths(text: int | str | None) -> list[int]:
    """Read how many hidden layers networks have.

    Args:
        text: as `5,20,50`, or a single number.

    Returns:
        Each once, from few to many.

    Raises:
        InputError: if one of them is no whole number from 2 to 200.
    """
    parts = [part.strip() for part in str(text).split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and 2 <= int(part) <= _DEEPEST):
            raise InputError(f"depth: {part!r} is not allowed; give whole numbers from 2 to {_DEEPEST}, with commas")
    return sorted(set(map(int, parts)))


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


WIDTH = 64
SMALLEST = -45.0  # decades; the smallest float32 above 0 is 1.4e-45, and a gradient of 0 counts as this
READ_OUTS = 5  # after the one at the start
_LOOKED_AT = 256  # images
_SAMPLES = 4096
PLAIN_NETS = {
    "plain": "PyTorch's initial weights, as the authors' networks have them",
    "plain_even": "initial weights scaled to each activation, so that the signal keeps its size",
}


class PlainNet(nn.Module):
    """Linear layers of one width, each with its activation, and a linear layer for the classes: no shortcut, no norm.

    Args:
        inputs: values of an image.
        classes: outputs.
        depth: hidden layers.
        activation: a name of `list_activations()`; each layer has its own.
    """

    def __init__(self, inputs: int, classes: int, depth: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH if number else inputs, WIDTH) for number in range(depth))
        self.head = nn.Linear(WIDTH, classes)
        self.activations = nn.ModuleList(create_activation(activation) for _ in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        """Map images of shape (batch, …) to logits of shape (batch, classes)."""
        return self.trace(images)[0]

    def trace(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute logits as `forward` does.

        Args:
            images: shape (batch, …).

        Returns:
            Logits, and what each linear layer hands to its activation, first layer first, each (batch, WIDTH).
        """
        signal, handed = images.flatten(1), []
        for layer, activation in zip(self.layers, self.activations, strict=True):
            handed.append(layer(signal))
            # An activation may work in place: what it gets must stay as it is.
            signal = activation(handed[-1].clone())
        return self.head(signal), handed


def build(trial: GradientTrial, data: Tensors) -> PlainNet:
    """Make a trial's network; all activations of a seed get the same weights, up to the scale in `plain_even`.

    Args:
        trial: network, depth, activation, seed.
        data: its images' size and its classes decide the first and the last layer.
    """
    torch.manual_seed(trial.seed)
    model = PlainNet(data.channels * data.side**2, data.classes, trial.depth, trial.activation)
    if trial.network == "plain_even":
        torch.manual_seed(trial.seed)  # an activation may have drawn its own start
        _scale_evenly(model, gain(trial.activation))
    return model


@torch.no_grad()
def _scale_evenly(model: PlainNet, gained: float) -> None:
    for number, layer in enumerate([*model.layers, model.head]):
        assert isinstance(layer, nn.Linear)
        layer.weight.normal_(0.0, (gained if number else 1.0) / math.sqrt(layer.in_features))
        layer.bias.zero_()


@torch.no_grad()
def gain(activation: str) -> float:
    """Find the factor on weights of variance 1 / inputs with which a normal signal keeps its mean square.

    Args:
        activation: a name of `list_activations()`.

    Returns:
        For ReLU the square root of 2.

    Source: He et al. 2015, section 2.2, for any activation.
    """
    signal = torch.randn(_SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))
    return float(create_activation(activation).eval()(signal).square().mean().rsqrt())


def gradient_norms(model: PlainNet, images: Tensor, labels: Tensor) -> list[float]:
    """Measure the gradient of the mean loss by what each hidden layer hands on; the model's own gradients stay.

    All of these have the same shape, so layers compare; the gradient of a layer's weights is this one times the
    layer's input.

    Args:
        model: as it is.
        images: shape (batch, …), floats.
        labels: shape (batch,), int64.

    Returns:
        The decimal logarithm of each layer's norm, first layer first, at least `SMALLEST`; NaN or infinite where the
        gradient is.
    """
    logits, handed = model.trace(images)
    found = torch.autograd.grad(F.cross_entropy(logits, labels), handed)
    norms = [float(one.double().norm()) for one in found]  # in float32 the squares of small ones would be 0
    return [SMALLEST if norm == 0 else max(math.log10(norm), SMALLEST) for norm in norms]  # in this order NaN stays


def train(trial: GradientTrial, data: Tensors) -> list[Row]:
    """Train a network, and look at its gradients before, during and after.

    Args:
        trial: the run.
        data: on the device to compute on.

    Returns:
        One row a read-out and layer: `step`, `layer` (from 1), `log10_norm` (None where it is not finite), and on each
        the network's `accuracy` on the test images at the end (a fraction) and the step at which it `diverged` (or
        None).
    """
    model = build(trial, data).to(data.train_images.device)
    optimizer = make_optimizer(trial.optimizer, trial.lr, model)
    looked_at = epoch_order(len(data.train_labels), trial.seed, 0)[:_LOOKED_AT]
    seen = scaled(data.train_images[looked_at]), data.train_labels[looked_at]
    torch.manual_seed(trial.seed)  # of what an activation draws while it trains, as RReLU does
    batches = [
        picked
        for epoch in range(1, trial.epochs + 1)
        for picked in epoch_order(len(data.train_labels), trial.seed, epoch).split(trial.batch_size)
    ]
    read_at = {round(part * len(batches) / READ_OUTS) for part in range(READ_OUTS + 1)}
    read: dict[int, list[float]] = {}
    diverged = None
    for step in range(len(batches) + 1):
        if step in read_at:
            read[step] = gradient_norms(model, *seen)
            if not all(map(math.isfinite, read[step])):
                diverged = step
                break
        if step < len(batches):
            _step(model, optimizer, scaled(data.train_images[batches[step]]), data.train_labels[batches[step]])
    ends = {"accuracy": accuracy(model, data), "diverged": diverged}
    return [
        {"step": step, "layer": layer, "log10_norm": value if math.isfinite(value) else None, **ends}
        for step, norms in read.items()
        for layer, value in enumerate(norms, 1)
    ]


def _step(model: PlainNet, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


OURS, STANDARD = "arelu", "relu"
READINGS = ("at the start", "over training")
_UNIT = "decades"


class Cell(NamedTuple):
    """A network and its depth."""

    network: str
    depth: int

    def __str__(self) -> str:
        return f"{self.network}, {self.depth} layers"


@dataclass
class Course:
    """One run.

    Args:
        norms: by step, the decimal logarithm of each layer's gradient norm, first layer first; all finite.
        accuracy: on the test images at the end, in per cent.
        diverged: whether a gradient was not finite.
    """

    norms: dict[int, list[float]]
    accuracy: float
    diverged: bool

    def ratio(self, reading: str) -> float | None:
        """Give log10 of the first layer's norm over the last one's; below 0 it vanishes, above 0 it explodes.

        Args:
            reading: of `READINGS`; over training it is the mean of the read-outs after the start.

        Returns:
            None where there is no finite read-out.
        """
        picked = [norms for step, norms in self.norms.items() if (step == 0) == (reading == READINGS[0])]
        return float(np.mean([norms[0] - norms[-1] for norms in picked])) if picked else None


Runs = dict[Cell, dict[str, dict[int, Course]]]
"""By cell, activation and seed."""


def read_runs(rows: Sequence[Row]) -> Runs:
    """Sort read-outs into runs.

    Args:
        rows: one a run, step and layer, with `network`, `depth`, `activation`, `seed`, `step`, `layer`, `log10_norm`,
            `accuracy`, `diverged`.
    """
    runs: Runs = {}
    for row in sorted(rows, key=lambda row: (row["step"], row["layer"])):
        seeds = runs.setdefault(Cell(row["network"], row["depth"]), {}).setdefault(row["activation"], {})
        ended = row["diverged"] is not None
        course = seeds.setdefault(row["seed"], Course({}, 100 * row["accuracy"], ended))
        if not ended or row["step"] < row["diverged"]:
            course.norms.setdefault(row["step"], []).append(row["log10_norm"])
    return dict(sorted(runs.items()))


def ratios(seeds: dict[int, Course], reading: str) -> dict[int, float]:
    """Give each seed's ratio, where it has one."""
    found = {seed: course.ratio(reading) for seed, course in seeds.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def kept(seeds: dict[int, Course], reading: str) -> dict[int, float]:
    """Give each seed's ratio, but 0 where it explodes: a gradient that grows is no merit where vanishing is judged."""
    return _lost(seeds) | {seed: min(0.0, value) for seed, value in ratios(seeds, reading).items()}


def evenness(seeds: dict[int, Course], reading: str) -> dict[int, float]:
    """Give how far each seed's ratio is from 0, on either side, as a number below 0."""
    return _lost(seeds) | {seed: -abs(value) for seed, value in ratios(seeds, reading).items()}


def _lost(seeds: dict[int, Course]) -> dict[int, float]:
    """Give runs that diverged the worst score there is; those with a read-out before are judged by it instead."""
    return {seed: SMALLEST for seed, course in seeds.items() if course.diverged}


def conclude(rows: Sequence[Row], margin: float) -> Outcome:
    """Judge finished runs.

    Args:
        rows: as `read_runs` takes them.
        margin: differences within so many decades do not count.
    """
    runs = read_runs(rows)
    pairs = list(_comparisons(runs, margin))
    stated = [one for one in pairs if one.primary]
    tables = [*_ratio_tables(runs), _accuracies(runs)]
    if len(pairs) > len(stated):
        tables.append(described(pairs, "AReLU against every other activation", "Decades are powers of ten."))
    return Outcome(judge(stated), tables, list(_curves(runs)), list(_maps(runs)), notes=_notes(runs))


def _comparisons(runs: Runs, margin: float) -> Iterator[Comparison]:
    """Compare AReLU with every other activation; the claims: what training saw, against ReLU, over all networks."""
    scores = {"what is lost": kept, "how uneven it is": evenness}
    for (what, score), reading in itertools.product(scores.items(), READINGS):
        found = {cell: {name: score(seeds, reading) for name, seeds in one.items()} for cell, one in runs.items()}
        claimed = reading == READINGS[1] and all({OURS, STANDARD} <= one.keys() for one in found.values())
        where = f"over {len(runs)} networks" if len(runs) > 1 else str(next(iter(runs)))
        ours, theirs = (mean_over(one.get(name, {}) for one in found.values()) for name in (OURS, STANDARD))
        if claimed and len(ours.keys() & theirs.keys()) > 1:
            yield compare(
                f"AReLU's gradient against {STANDARD}'s, {what} {reading} ({where})", ours, theirs, margin, _UNIT
            )
        for cell, by_name in found.items():
            ours = by_name.get(OURS, {})
            for name, theirs in by_name.items():
                same = claimed and len(runs) == 1 and name == STANDARD
                if name != OURS and not same and len(ours.keys() & theirs.keys()) > 1:
                    claim = f"AReLU's gradient against {name}'s, {what} {reading} ({cell})"
                    yield compare(claim, ours, theirs, margin, _UNIT, primary=False)


def _ratio_tables(runs: Runs) -> Iterator[Table]:
    for reading in READINGS:
        yield _table(
            runs,
            f"log10 of the first layer's gradient norm over the last hidden layer's, {reading}",
            {cell: {name: ratios(seeds, reading) for name, seeds in found.items()} for cell, found in runs.items()},
            "Below 0 the gradient vanishes on its way to the first layer (-3: a thousandth is left), above 0 it "
            "explodes, at 0 it is even. A gradient of exactly 0 counts as the smallest float32.",
        )


def _accuracies(runs: Runs) -> Table:
    values = {
        cell: {name: {seed: course.accuracy for seed, course in seeds.items()} for name, seeds in found.items()}
        for cell, found in runs.items()
    }
    note = "Whether the network learned at all: an even gradient that is tiny everywhere does not help."
    return _table(runs, "Test accuracy in per cent at the end", values, note)


def _table(runs: Runs, title: str, values: dict[Cell, dict[str, dict[int, float]]], note: str) -> Table:
    rows = [[name, *(_spread(values[cell].get(name, {})) for cell in runs)] for name in _activations(runs)]
    note = f"{note} Mean ± standard deviation over seeds."
    return Table(title, ["activation", *map(str, runs)], rows, note)


def _activations(runs: Runs) -> list[str]:
    return list(dict.fromkeys(name for contenders in runs.values() for name in contenders))


def _spread(by_seed: dict[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _curves(runs: Runs) -> Iterator[Curves]:
    """Draw, for each cell, the norm by layer at the start and the ratio by step."""
    for cell, contenders in runs.items():
        layers, steps = list(range(1, cell.depth + 1)), sorted({s for c in _courses(contenders) for s in c.norms})
        at_start = [
            mean_series(name, started, layers)
            for name, seeds in contenders.items()
            if (started := [course.norms[0] for course in seeds.values() if 0 in course.norms])
        ]
        yield Curves(f"{cell}: gradient norm by layer at the start", "layer", "log10 of the norm", at_start)
        yield Curves(
            f"{cell}: the gradient's way through the network, by step",
            "step",
            "log10 of first over last",
            [one for name, seeds in contenders.items() if (one := _by_step(name, seeds, steps)) is not None],
        )


def _by_step(name: str, seeds: dict[int, Course], steps: list[int]) -> Series | None:
    """Average over the seeds that did not diverge."""
    whole = [course for course in seeds.values() if len(course.norms) == len(steps)]
    values = [[course.norms[step][0] - course.norms[step][-1] for step in steps] for course in whole]
    return mean_series(name, values, steps) if values and steps else None


def _courses(contenders: dict[str, dict[int, Course]]) -> Iterator[Course]:
    for seeds in contenders.values():
        yield from seeds.values()


def _maps(runs: Runs) -> Iterator[Heatmap]:
    for network in dict.fromkeys(cell.network for cell in runs):
        cells, activations = [cell for cell in runs if cell.network == network], _activations(runs)
        found = [[[*ratios(runs[cell].get(name, {}), READINGS[1]).values()] for cell in cells] for name in activations]
        yield Heatmap(
            f"{network}: log10 of first over last layer's gradient norm, over training",
            "layers",
            "activation",
            [str(cell.depth) for cell in cells],
            activations,
            [[float(np.mean(values)) if values else None for values in row] for row in found],
        )


def _notes(runs: Runs) -> list[str]:
    notes = [
        "A layer's gradient is that of the mean loss by what the layer hands to its activation, on the same training "
        "images throughout: these have one shape in all hidden layers. 'What is lost' counts no growth as merit; 'how "
        "uneven it is' counts what explodes as well. Ahead is who loses less, or is nearer to even.",
        "plain has PyTorch's initial weights, which shrink the signal of every activation; plain_even scales them to "
        "each activation, which separates the activation's shape from its size.",
    ]
    lost = [
        f"{name} ({cell}, seed {seed})"
        for cell, contenders in runs.items()
        for name, seeds in contenders.items()
        for seed, course in seeds.items()
        if course.diverged
    ]
    if lost:
        notes.append(
            "Diverged, and judged by the read-outs before; one that has none of a reading counts there as the worst, "
            f"{SMALLEST:g} decades, and its cell of the table of ratios lacks it: {', '.join(lost)}."
        )
    return notes
