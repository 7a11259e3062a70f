"""What the study `mnist` concludes: the table, ours beside theirs, and the claims."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from arelu_meta.activations.registry import ALIASES
from arelu_meta.claims.ledger import Row
from arelu_meta.claims.tables import Curves, Heatmap, Outcome, Table, described, mean_series
from arelu_meta.statistics import Comparison, compare, compare_published, correct, judge

OURS, STANDARD = "arelu", "relu"
AUTHORS_RUNS, AUTHORS_EPOCHS = 5, 20
_NETWORKS = {"ConvMNIST": "mnist_conv", "LinearMNIST": "mnist_linear"}
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
        key = _NETWORKS[row["network"]], float(row["learning_rate"]), ALIASES.get(name, name)
        table[key] = {
            "first": (float(row["first_epoch_mean"]), float(row["first_epoch_std"])),
            "best": (float(row["best_mean"]), float(row["best_std"])),
        }
    return table


def conclude(rows: Sequence[Row], margin: float) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a run and epoch, with `network`, `optimizer`, `lr`, `activation`, `variant`, `data`, `seed`, `epoch`,
            `accuracy` and, where it is known, `images`.
        margin: differences within so many points do not count.
    """
    cells = Cells(rows)
    tables = [*_accuracy_tables(cells)]
    if rows[0]["data"].lower() == "mnist" and rows[0]["variant"] == "authors":
        tables += _beside_theirs(cells)
    pairs = list(_comparisons(cells, margin))
    stated = [one for one in pairs if one.primary]
    if len(pairs) > len(stated):
        tables.append(described(pairs, "AReLU against every other activation"))
    return Outcome(judge(stated), tables, _curves(cells), list(_maps(cells)), notes=_notes(cells))


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
    """Compare AReLU with every other activation; judged is what the paper claims: against ReLU after one epoch."""
    for reading, (cell, names) in itertools.product(cells.readings, cells.found.items()):
        ours = cells.read(cell, OURS, reading) if OURS in names else {}
        for name in names:
            theirs = cells.read(cell, name, reading)
            if name != OURS and len(set(ours) & set(theirs)) > 1:
                yield compare(
                    f"AReLU against {name} {reading} ({cell})",
                    ours,
                    theirs,
                    margin,
                    images=cells.images,
                    primary=name == STANDARD and reading == cells.readings[0],
                )


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
