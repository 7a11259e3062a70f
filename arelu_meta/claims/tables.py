"""What a study concludes, in the form in which its folder and its page hold it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arelu_meta.runs.progress import print_table
from arelu_meta.statistics import Comparison


@dataclass
class Table:
    """A table; every row has one text or number a column.

    Args:
        title: above it.
        columns: their names.
        rows: None is an empty cell.
        note: below it: what a reader must know to read it.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass
class Series:
    """A curve with its band.

    Args:
        name: in the legend.
        x: where it was read out.
        y: means over runs.
        low: lower edge of the band, or nothing.
        high: upper edge.
        dashed: whether it is a line to read the others against.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    dashed: bool = False


@dataclass
class Anchor:
    """What all contenders of a study are read against, and nobody trained for: the probe, chance, raw pixels.

    Args:
        name: in tables and legends.
        accuracy: in per cent.
        about: what it is, in a line.
        where: a part of the titles of the curves that it is drawn into; by default all of accuracy.
    """

    name: str
    accuracy: float
    about: str
    where: str = ""


def chance(classes: int, where: str = "") -> Anchor:
    """Return the accuracy of guessing.

    Args:
        classes: how many there are to guess among.
        where: as of `Anchor`.
    """
    return Anchor("chance", 100 / classes, f"guessing among {classes} classes", where)


@dataclass
class Curves:
    """Curves over one axis, which may be logarithmic whatever its values."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False


@dataclass
class Heatmap:
    """A map; z has a row for each of y, with a value (or None) for each of x."""

    title: str
    x_label: str
    y_label: str
    x: list[str]
    y: list[str]
    z: list[list[float | None]]


@dataclass
class Picture:
    """An image file in the study's folder, and what it shows in words."""

    title: str
    alt: str
    file: str


@dataclass
class Outcome:
    """All that a study says.

    Args:
        comparisons: its claims, judged, and others that are described alone.
        tables: the most important first.
        curves: read-outs over epochs, steps or layers.
        heatmaps: such as learning rate by activation.
        images: pictures that lie in the folder.
        notes: what a reader should know.
        anchors: what is read beside the contenders, in a table and as lines.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    heatmaps: list[Heatmap] = field(default_factory=list)
    images: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)

    @property
    def claims(self) -> list[Comparison]:
        """The comparisons that are judged."""
        return [one for one in self.comparisons if one.primary]

    def complete(self) -> None:
        """Add what every study says alike: what is described and not judged, and by which test."""
        if self.anchors:
            self.tables.insert(1, _anchored(self.anchors))
        for drawn in self.curves:
            if drawn.series and "accuracy" in drawn.y_label:
                drawn.series += _lines([one for one in self.anchors if one.where in drawn.title], drawn.series)
        others = [one for one in self.comparisons if not one.primary]
        if others:
            self.tables.append(described(others, "Compared beside the claims"))
        ratios = {f"{one.resplit:.2g}": one.n for one in self.comparisons if one.resplit}
        if ratios:
            factors = ", ".join(f"1/{pairs} + {ratio}" for ratio, pairs in ratios.items())
            self.notes.append(
                "Every seed splits the same images anew, so that seeds are not independent: intervals and verdicts are "
                "by Nadeau and Bengio's corrected resampled t, with a variance factor of 1/seeds + test/train "
                f"({factors}). Some differences no number of such seeds can tell; more images can."
            )

    def as_results(self) -> dict[str, Any]:
        """Give results.json's part of it, in JSON types."""
        return {
            "verdicts": [one.as_row() for one in self.claims],
            **{
                name: [asdict(one) for one in getattr(self, name)]
                for name in ("tables", "curves", "heatmaps", "images", "anchors")
            },
            "notes": list(self.notes),
        }


def _anchored(anchors: Sequence[Anchor]) -> Table:
    rows: list[list[Any]] = [[one.where, one.name, f"{one.accuracy:.1f}", one.about] for one in anchors]
    several = any(one.where for one in anchors)
    columns = ["where", "anchor", "test accuracy (%)", "what it is"]
    note = "Whoever is not ahead of these has not been worth its training."
    skipped = 0 if several else 1
    return Table("What every contender is read against", columns[skipped:], [row[skipped:] for row in rows], note)


def _lines(anchors: Sequence[Anchor], series: Sequence[Series]) -> list[Series]:
    """Draw anchors from the first point of all curves to the last."""
    points = [value for one in series for value in one.x]
    return [Series(one.name, [min(points), max(points)], [one.accuracy] * 2, dashed=True) for one in anchors]


def mean_over(cells: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """Average cells of a table seed by seed: the seeds are the pairs, for cells are not drawn at random.

    Args:
        cells: values by seed; seeds that one of them lacks are left out.
    """
    listed = list(cells)
    shared = set.intersection(*map(set, listed)) if listed else set()
    return {seed: sum(one[seed] for one in listed) / len(listed) for seed in sorted(shared)}


def mean_series(name: str, runs: Sequence[Sequence[float]], x: Sequence[float]) -> Series:
    """Average runs, with a band of one standard deviation over them.

    Args:
        name: in the legend.
        runs: one list of values a run, each as long as x; shorter ones are left out.
        x: where they were read out.
    """
    import numpy as np

    values = np.array([run for run in runs if len(run) == len(x)], dtype=np.float64)
    mean = values.mean(0)
    if len(values) < 2:
        return Series(name, list(map(float, x)), mean.tolist())
    spread = values.std(0, ddof=1)
    return Series(name, list(map(float, x)), mean.tolist(), (mean - spread).tolist(), (mean + spread).tolist())


def described(comparisons: Sequence[Comparison], title: str, note: str = "") -> Table:
    """List comparisons that are not judged.

    Args:
        comparisons: at least one.
        title: of the table.
        note: added below it.
    """
    rows: list[list[Any]] = [
        [one.claim, f"{one.difference:+.1f}", f"{one.low:+.1f} to {one.high:+.1f}", one.unit] for one in comparisons
    ]
    about = "Paired by seed; each interval is for itself, and none is a verdict: among so many some would be by chance."
    return Table(title, ["comparison", "difference", "95 % interval", "unit"], rows, f"{about} {note}".rstrip())


def print_outcome(outcome: Outcome, folder: Path) -> None:
    """Print tables, then the verdicts, then where it all lies.

    Args:
        outcome: of the study.
        folder: of the study.
    """
    for table in outcome.tables:
        print_table(table.title, table.columns, [[_cell(value) for value in row] for row in table.rows])
        if table.note:
            print(table.note)
        print()
    for note in outcome.notes:
        print(note)
    for one in outcome.claims:
        print(one.sentence)
    print(f"written to {folder}", flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
