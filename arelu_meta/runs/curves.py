"""A picture of a run's curves."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arelu_meta.runs.atomic_io import write_atomically

# Where the home folder is read-only, matplotlib would print to stderr that it keeps its cache elsewhere.
logging.getLogger("matplotlib").addHandler(logging.NullHandler())

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], x: str, panels: Mapping[str, Sequence[str]], title: str
) -> None:
    """Draw columns of the metrics against steps or epochs.

    Args:
        path: the PNG to write.
        rows: the metrics, as in metrics.csv.
        x: the column on the horizontal axis.
        panels: a title for each panel, and its columns.
        title: what stands above it all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for colour, column in zip(COLOURS, columns, strict=False):
            points = [(row[x], row[column]) for row in rows if row.get(column) is not None]
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=3, color=colour, label=column.replace("_", " ")
            )
        axes.set(title=name, xlabel=x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
