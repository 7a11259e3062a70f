"""What the study `focus` concludes: where the maps' energy lies, or how spread they are, and a strip of them."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.small_lr_tables import ORIGINAL, is_ours, spread, start_notes
from arelu_meta.claims.tables import Outcome, Picture, Table
from arelu_meta.errors import counted
from arelu_meta.statistics import Comparison, compare, judge

_STRIP = "focus.png"
_PANEL = 1.5  # inches
INSIDE, SPREAD = "inside", "entropy"


class Runs:
    """Networks by contender and seed.

    Args:
        rows: one an image, those of a network in the same order for all contenders of a seed.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.by: dict[str, dict[int, list[Row]]] = {}
        for row in rows:
            self.by.setdefault(row["contender"], {}).setdefault(row["seed"], []).append(row)
        self.contenders = list(self.by)
        self.given = bool(rows[0]["run"])  # by a person, so there is one of each, and the images are the pairs
        self.boxed = any(row["inside"] is not None and not row.get("diverged") for row in rows)

    def focus(self, contender: str) -> dict[int, float]:
        """Give the number that is judged, larger for a better focus, in per cent: by image or else by seed."""
        name, sign = (INSIDE, 100.0) if self.boxed else (SPREAD, -100.0)
        runs = self.by[contender]
        if self.given:
            rows = next(iter(runs.values()))
            return {place: sign * row[name] for place, row in enumerate(rows) if row[name] is not None}
        return {seed: sign * value for seed, rows in runs.items() if (value := mean_of(rows, name)) is not None}

    def means(self, contender: str, name: str) -> dict[int, float]:
        """Give each seed's mean over images in per cent."""
        found = {seed: mean_of(rows, name) for seed, rows in self.by[contender].items()}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Average a column over the images that have it.

    Args:
        rows: of one network.
        name: of the column.
    """
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def conclude(rows: Sequence[Row], margin: float, folder: Path, resplit: float = 0.0) -> Outcome:
    """Judge finished networks, and draw their strip into the folder.

    Args:
        rows: as `focus_study.work` returns them, with the trial's columns.
        margin: differences within so many points do not count.
        folder: of the study.
        resplit: as in `compare`.
    """
    runs = Runs(rows)
    reference = ORIGINAL if ORIGINAL in runs.contenders else runs.contenders[0]
    comparisons = list(_comparisons(runs, reference, margin, resplit))
    strip = _strip(runs, folder)
    return Outcome(judge(comparisons), [_table(runs)], images=strip, notes=_notes(runs))


def _comparisons(runs: Runs, reference: str, margin: float, resplit: float) -> Iterator[Comparison]:
    what = "energy inside the object" if runs.boxed else "entropy (less is ahead)"
    nothing_of_ours = runs.given or not any(map(is_ours, runs.contenders))
    for name in runs.contenders:
        ours, theirs = runs.focus(name), runs.focus(reference)
        if name != reference and len(set(ours) & set(theirs)) > 1:
            found = compare(
                f"Grad-CAM of {name} against {reference}, {what}",
                ours,
                theirs,
                margin,
                resplit=resplit,
                primary=is_ours(name) or nothing_of_ours,
            )
            yield replace(found, runs="images") if runs.given else found


def _table(runs: Runs) -> Table:
    rows: list[list[Any]] = []
    for name in runs.contenders:
        images = max(len(found) for found in runs.by[name].values())
        cells: list[Any] = [name, *(spread(runs.means(name, column)) for column in (INSIDE, "area", SPREAD, "right"))]
        rows.append([*cells, spread(runs.means(name, "test_accuracy")), images])
    columns = ["network", "energy inside", "area of the object", "entropy", "right on these images", "test accuracy"]
    return Table(
        "How the networks' Grad-CAM is focused, in per cent",
        [*columns, "images"],
        rows,
        "Energy inside: the share of the map inside the object, which for a map that is even everywhere is the "
        "object's area. Entropy: of the map, as a share of an even map's; lower is more focused, wherever that is. "
        "Means over images, ± standard deviation over seeds.",
    )


def _strip(runs: Runs, folder: Path) -> list[Picture]:
    """Draw the first seed's images, a row each: as the networks see it, then each network's map."""
    first = {name: [row for row in next(iter(runs.by[name].values())) if "overlay" in row] for name in runs.contenders}
    drawn = {name: rows for name, rows in first.items() if rows}
    if not drawn:
        return []
    from matplotlib.figure import Figure

    images, names = next(iter(drawn.values())), list(drawn)
    figure = Figure(figsize=(_PANEL * (len(names) + 1), _PANEL * len(images) + 0.4), layout="constrained")
    axes = figure.subplots(len(images), len(names) + 1, squeeze=False)
    for place, image in enumerate(images):
        pictures = [image["picture"], *(drawn[name][place]["overlay"] for name in names)]
        for column, (title, picture) in enumerate(zip(["image", *names], pictures, strict=True)):
            axis = axes[place][column]
            axis.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))))
            axis.set_axis_off()
            if place == 0:
                axis.set_title(title, fontsize=8, parse_math=False)
    figure.savefig(folder / _STRIP, dpi=110)
    told = "; ".join(f"{row['image']}, explained as {row['explained']}" for row in images)
    alt = (
        f"A row an image ({told}); a column each for the image and the Grad-CAM of {', '.join(names)}, bright is high."
    )
    return [Picture("Grad-CAM side by side", alt, _STRIP)]


def _notes(runs: Runs) -> list[str]:
    pairs = (
        "The pairs are images of one network each: that another training would do alike is not said."
        if runs.given
        else "The pairs are seeds, each the mean over its images; a run's own class is explained where it is known."
    )
    notes = [
        pairs,
        *start_notes(runs.contenders),
        "A map shows what moves the class's score; that it lies on the object does not prove a right reason.",
        "An image without colours over it has an empty map, since nothing raises the score; it counts as even.",
    ]
    if not runs.boxed:
        notes.append(
            "Without boxes or masks nobody knows where the object is: low entropy is a small spot, right or not."
        )
    lost = sum(bool(rows[0].get("diverged")) for found in runs.by.values() for rows in found.values())
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as the worst."] if lost else notes
