"""What the study `gradients` concludes: how many powers of ten the gradient loses on its way to the first layer."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.plain_nets import SMALLEST
from arelu_meta.claims.tables import (
    Curves,
    Heatmap,
    Outcome,
    Series,
    Table,
    described,
    mean_series,
)
from arelu_meta.statistics import Comparison, compare, judge

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
    """Compare AReLU with every other activation; judged is what training saw, against ReLU."""
    readings = itertools.product((("what is lost", kept), ("how uneven it is", evenness)), READINGS)
    for (cell, contenders), ((what, score), reading) in itertools.product(runs.items(), list(readings)):
        scores = {name: score(seeds, reading) for name, seeds in contenders.items()}
        ours = scores.pop(OURS, {})
        for name, theirs in scores.items():
            if len(set(ours) & set(theirs)) > 1:
                claim = f"AReLU's gradient against {name}'s, {what} {reading} ({cell})"
                judged = name == STANDARD and reading == READINGS[1]
                yield compare(claim, ours, theirs, margin, _UNIT, primary=judged)


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
