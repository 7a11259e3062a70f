"""The pictures of a fine-tuning run: confusion, confident mistakes, scalars and gradients over time."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps
from torch import Tensor

from arelu_meta.data.splits import ImageSet
from arelu_meta.finetuning.metrics import Counts, Mistake, confused_pairs
from arelu_meta.runs.atomic_io import write_atomically

MATRIX_CLASSES = 100  # A matrix of more has cells too small to see: the most confused pairs are shown instead.
PAIRS_SHOWN = 40
SHEET_COLUMNS, SHEET_IMAGES = 6, 24
_COUNTED_CLASSES = 30  # up to so many, the counts stand in the cells
_CELL = (2.1, 2.75)  # inches of an image with its caption
_THUMBNAIL = 192
_NAME_LENGTH = 22
# Fonts with more scripts than matplotlib's own, on the systems that have them.
_FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Arabic"),
    *("Arial Unicode MS", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Segoe UI"),
)


@cache
def _families() -> list[str]:
    there = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in there]


@cache
def _characters() -> frozenset[int]:
    """Find every character that one of the fonts has."""
    paths = [font_manager.findfont(name) for name in _families()]
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())


def displayable(name: str, otherwise: str, longest: int = _NAME_LENGTH) -> str:
    """Make a name fit for a picture.

    Args:
        name: of a class or a file, in any script.
        otherwise: what to show where no font here has the characters.
        longest: characters; a longer name is cut in its middle.

    Returns:
        One line.
    """
    line = " ".join(name.split())
    if not line or any(ord(character) not in _characters() for character in line):
        return otherwise
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[: longest - 1 - half]}…{line[-half:]}"


def _class_names(classes: Sequence[str]) -> list[str]:
    return [displayable(name, f"class {label}") for label, name in enumerate(classes)]


def _save(path: Path, figure: Figure) -> None:
    """Write a picture; names are no formulas, and fall back through the fonts that are there."""
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(_families())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what does not fit the layout, which is then drawn all the same
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def draw_confusion(path: Path, counts: Counts, classes: Sequence[str], title: str) -> None:
    """Draw what was taken for what: a matrix, or beyond 100 classes the most confused pairs.

    Args:
        path: the PNG to write.
        counts: shape (classes, classes); row: the true class, column: the predicted one.
        classes: the classes' names.
        title: what stands above it.
    """
    if len(classes) > MATRIX_CLASSES:
        _save(path, _pairs_figure(counts, _class_names(classes), title))
    else:
        _save(path, _matrix_figure(counts, _class_names(classes), title))


def _matrix_figure(counts: Counts, names: list[str], title: str) -> Figure:
    side = 3.5 + max(2.5, 0.26 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if len(names) <= _COUNTED_CLASSES else 7
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title}\ncolour: share of the true class", fontsize=10)
    if len(names) <= _COUNTED_CLASSES:
        for true, predicted in np.argwhere(counts):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            count = str(counts[true, predicted])
            axes.text(predicted, true, count, ha="center", va="center", color=colour, fontsize=7)
    return figure


def _pairs_figure(counts: Counts, names: list[str], title: str) -> Figure:
    pairs = confused_pairs(counts)[:PAIRS_SHOWN]
    figure = Figure(figsize=(8, 1.6 + 0.24 * max(len(pairs), 1)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(pairs)), [count for _, _, count in pairs], color="#0072B2")
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[wrong]}" for true, wrong, _ in pairs], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="test images")
    axes.set_title(f"{title}\nthe most confused of {len(names)} classes: true → predicted", fontsize=10)
    return figure


def draw_mistakes(path: Path, found: Sequence[Mistake], test: ImageSet) -> None:
    """Draw the most confident mistakes as a contact sheet, up to 24; a line of text where there is none.

    Args:
        path: the PNG to write.
        found: the mistakes, most confident first.
        test: the images; one that cannot be read any more is left grey.
    """
    shown = found[:SHEET_IMAGES]
    names = _class_names(test.classes)
    title = f"{len(shown)} most confident of {len(found)} mistakes on {len(test)} test images: true → predicted"
    if not shown:
        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, f"no mistake on {len(test)} test images", ha="center", va="center")
        _save(path, figure)
        return
    rows = math.ceil(len(shown) / SHEET_COLUMNS)
    width, height = _CELL[0] * SHEET_COLUMNS, _CELL[1] * rows + 0.4
    figure = Figure(figsize=(width, height))
    # One pair of axes in inches holds the whole sheet: a pair for each image takes seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, mistake in enumerate(shown):
        left = (place % SHEET_COLUMNS) * _CELL[0] + 0.05
        bottom = height - 0.4 - (place // SHEET_COLUMNS + 1) * _CELL[1] + 0.05
        side = _CELL[0] - 0.1
        axes.imshow(np.asarray(_thumbnail(test, mistake.index)), extent=(left, left + side, bottom, bottom + side))
        file = displayable(Path(test.names[mistake.index]).name, f"image {mistake.index}", 26)
        caption = f"{names[mistake.true]}\n→ {names[mistake.predicted]}  {mistake.probability:.0%}\n{file}"
        axes.text(left + side / 2, bottom + side + 0.05, caption, ha="center", va="bottom", fontsize=7)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.text(width / 2, height - 0.2, title, ha="center", va="center", fontsize=10)
    _save(path, figure)


def _as_picture(image: Image.Image | Tensor) -> Image.Image:
    """Show what a data set of one's own gives as a tensor: its first channel, or three, from black to white."""
    if not isinstance(image, Tensor):
        return image.convert("RGB")
    values = image.float().nan_to_num()
    values = values if values.ndim == 3 else values.reshape(1, 1, -1)
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12) * 255
    pixels = values[: 3 if len(values) >= 3 else 1].permute(1, 2, 0).byte().numpy()
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")


def _thumbnail(test: ImageSet, index: int) -> Image.Image:
    try:
        image = _as_picture(test[index][0])
    except (OSError, ValueError):  # moved or damaged since it was predicted
        return Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "lightgrey")
    # Small ones are enlarged, pixel by pixel: of CIFAR's 32 pixels a spot would be left.
    way = Image.Resampling.NEAREST if max(image.size) < _THUMBNAIL else Image.Resampling.LANCZOS
    image = ImageOps.contain(image, (_THUMBNAIL, _THUMBNAIL), way)
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "white")
    square.paste(image, ((_THUMBNAIL - image.width) // 2, (_THUMBNAIL - image.height) // 2))
    return square


def draw_scalars(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Draw alpha, beta and t of every AReLU over the epochs, coloured by depth.

    Args:
        path: the PNG to write.
        rows: of `ScalarRecorder`; nothing is drawn where there is none.
    """
    if not rows:
        return
    panels = {"alpha": 2, "beta": 3} | ({"t": 4} if any(row[4] is not None for row in rows) else {})
    layers = list(dict.fromkeys(row[1] for row in rows))
    figure = Figure(figsize=(4.6 * len(panels) + 1, 4), layout="constrained")
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, column) in zip(subplots, panels.items(), strict=True):
        _lines(axes, {layer: [(row[0], row[column]) for row in rows if row[1] == layer] for layer in layers})
        axes.set(title=name, xlabel="epoch")
    _depth_bar(figure, subplots, layers)
    _save(path, figure)


def draw_gradients(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Draw the norm of each layer's gradients over the steps, coloured by depth.

    Args:
        path: the PNG to write.
        rows: of `GradientRecorder`; nothing is drawn where there is none.
    """
    if not rows:
        return
    layers = list(dict.fromkeys(row[1] for row in rows))
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    _lines(axes, {layer: [(row[0], row[2] or math.nan) for row in rows if row[1] == layer] for layer in layers})
    if any(row[2] > 0 for row in rows):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own would be formulas
    axes.set(title="norm of the gradients, layer by layer", xlabel="step")
    _depth_bar(figure, [axes], layers)
    _save(path, figure)


def _lines(axes: Axes, layers: Mapping[str, Sequence[tuple[Any, Any]]]) -> None:
    for depth, points in enumerate(layers.values()):
        along = [(x, math.nan if y is None else y) for x, y in points]
        colour = colormaps["viridis"](depth / max(len(layers) - 1, 1))
        axes.plot(*zip(*along, strict=True), color=colour, marker="o", markersize=2.5, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _depth_bar(figure: Figure, subplots: Sequence[Axes], layers: Sequence[str]) -> None:
    """Say which colour is which depth, by the names of the first, the middle and the last layer."""
    bar = figure.colorbar(ScalarMappable(Normalize(0, max(len(layers) - 1, 1)), "viridis"), ax=list(subplots))
    ticks = sorted({0, len(layers) // 2, len(layers) - 1})
    bar.set_ticks(ticks, labels=[displayable(layers[tick], f"layer {tick}", 30) for tick in ticks])
