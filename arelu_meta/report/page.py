"""What a report is made of, whatever it is written as: text, tables, figures and pictures, in sections."""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

Cell = str | float | int | bool | None
_SMALL = 1e-3  # a column with smaller numbers has no common number of decimals
VERDICTS = ("ahead", "level", "behind", "need more seeds")


@dataclass(frozen=True)
class Paragraph:
    """A sentence or a few.

    Args:
        text: plain text.
        warning: whether something is wrong or missing.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted.

    Args:
        title: what stands above it.
        columns: the columns' names.
        rows: one cell a column; None is an empty cell.
        formats: a column's format, as `.1%` or `.3g`; without one its numbers get as many decimals as they need.
        note: what stands below it.
        csv: whether it is written beside the page too (tables that lie in the run folder as CSV are not).
        shown: rows on the page at first; the rest waits behind a button. None shows all.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    formats: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    csv: bool = False
    shown: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart that plotly draws in the browser.

    Args:
        title: what stands above it.
        alt: what a person who cannot see it must know, in a sentence or two.
        traces: plotly's, as plain values; colours are chosen on the page (see charts.py).
        layout: plotly's, likewise.
        height: in pixels.
        note: what stands below it.
    """

    title: str
    alt: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Args:
        title: what stands above it.
        alt: what it shows, in words.
        source: a data URI.
        width: in pixels.
        height: in pixels.
        file: its path, for Markdown.
    """

    title: str
    alt: str
    source: str
    width: int
    height: int
    file: str


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim.

    Args:
        claim: the claim in words.
        verdict: one of `VERDICTS`.
        sentence: the finding, with its numbers.
        difference: mean difference, in `unit` (accuracy: percentage points).
        low: lower end of its 95 % interval.
        high: upper end.
        margin: how large a difference counts, on either side.
        unit: of the difference.
        words: the verdict as it is shown; default: the same.
    """

    claim: str
    verdict: str
    sentence: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    unit: str = "points"
    words: str = ""


@dataclass(frozen=True)
class Raw:
    """Text as a machine wrote it: a command, a config.

    Args:
        title: what stands above it.
        text: any text.
        folded: whether it waits behind its title.
    """

    title: str
    text: str
    folded: bool = False


Block = Paragraph | Table | Chart | Picture | Raw


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title: its heading.
        blocks: what it holds, in order.
        lead: a sentence below the heading.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Fact:
    """A number that is seen at first sight.

    Args:
        label: what it is.
        value: as it is shown.
        detail: a few words below it.
    """

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: the page's name.
        kind: what it is of: a fine-tuning run, a study …
        headline: the answer in one sentence.
        facts: the numbers behind it.
        verdicts: a study's.
        sections: the rest, in order.
    """

    title: str
    kind: str
    headline: str
    facts: Sequence[Fact] = ()
    verdicts: Sequence[Verdict] = ()
    sections: Sequence[Section] = ()


def formats_of(table: Table) -> list[str]:
    """Choose a format for each column: its own, or as few decimals as its numbers need, the same for all.

    Args:
        table: any.
    """
    return [
        table.formats.get(name) or _common_format([row[place] for row in table.rows])
        for place, name in enumerate(table.columns)
    ]


def _common_format(cells: Sequence[Cell]) -> str:
    numbers = [float(cell) for cell in cells if is_number(cell)]
    sizes = [abs(number) for number in numbers if number]
    if not sizes or all(isinstance(cell, int) for cell in cells if is_number(cell)):
        return ""
    if min(sizes) < _SMALL or all(number == float(f"{number:.2g}") for number in numbers):
        return ".3g"
    most = 1 if max(sizes) >= 100 else 2 if max(sizes) >= 1 else 4
    for decimals in range(most):
        if all(number == round(number, decimals) for number in numbers):
            return f".{decimals}f"
    return f".{most}f"


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a value is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Cell, form: str = "") -> str:
    """Write a cell for a person.

    Args:
        value: the cell.
        form: a format as `.1%`; default: 4 digits for a number with a fraction.

    Returns:
        One text; empty for None and for a number that is not finite.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    text = f"{value:{form or ('.4g' if isinstance(value, float) else '')}}"
    if not text.strip("+-0.% "):  # nothing is left of it: a sign would say more than is known
        text = text.lstrip("+-")
    # A real minus sign is as wide as a digit; that of an exponent stays.
    return ("\u2212" + text[1:] if text.startswith("-") else text).replace("%", "\u00a0%")


def percent(value: object) -> str:
    """Write a fraction as per cent with one digit; a dash where it is no number."""
    return shown(value, ".1%") if is_number(value) else "–"


_WIDEST, _HIGHEST = 1600, 4000
_QUALITY = 85
_DRAWN = 400_000  # bytes of a PNG, up to which it stays as it is


@dataclass
class Budget:
    """How many bytes of pictures a page may still take.

    Args:
        left: bytes.
    """

    left: int = 7_000_000


def picture(path: Path, title: str, alt: str, budget: Budget) -> Picture | Paragraph:
    """Take a picture into the page.

    Args:
        path: any image file.
        title: what stands above it.
        alt: what it shows, in words.
        budget: what the page may still take; made smaller.

    Returns:
        The picture, or a sentence that says why it is not there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as an image too large to be one
            content, kind, width, height = _encoded(path)
    except Exception as error:  # Pillow raises whatever a damaged file makes it meet
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read as a picture"
        return Paragraph(f"{title}: {path.name} {reason} and is left out.", warning=True)
    if len(content) > budget.left:
        return Paragraph(f"{title}: left out, the page would become too large; it lies in {path.name}.", warning=True)
    budget.left -= len(content)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(title, alt, source, width, height, path.name)


def _encoded(path: Path) -> tuple[bytes, str, int, int]:
    """Read a picture; one of photographs, which PNG writes large, becomes WebP."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        width, height = image.size
        if image.format == "PNG" and path.stat().st_size <= _DRAWN and width <= _WIDEST and height <= _HIGHEST:
            return path.read_bytes(), "png", width, height
        small = image.convert("RGB")
    small.thumbnail((_WIDEST, _HIGHEST))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue(), "webp", *small.size
