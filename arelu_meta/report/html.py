"""A report as one HTML file that holds all it needs: text, charts, pictures and the code that draws them."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from arelu_meta import __version__
from arelu_meta.report.blocks import Block, Cell, Chart, Page, Table, formats_of, is_number, shown
from arelu_meta.report.plotlyjs import plotly_script
from arelu_meta.report.whiskers import explain, render_verdicts

GENERATOR = "arelu_meta"
_LONG = 32  # characters; a column with more gets some width
_SHORT = 16  # characters; a column with no more is not broken
_NUMBER = r"([+\-\u2212]?[\d,]*\d(?:\.\d+)?(?:e[+-]?\d+)?)"
_FIGURE = re.compile(rf"{_NUMBER}(\u00a0%| points)?$")
_LEADING = re.compile(rf"{_NUMBER}(\u00a0%| points| (±|to|of|\().*)?$")  # as `92.1 ± 0.8`: it sorts by the number


def render_html(page: Page) -> str:
    """Write a page as HTML.

    Every text is escaped by the template. Even if one were not, the page's own policy lets the browser run the two
    scripts written here and nothing else, and load nothing.

    Args:
        page: the report.

    Returns:
        The whole file.
    """
    from jinja2 import Environment

    charts: list[Chart] = []
    sections = [
        {
            "id": f"part-{number}",
            "title": one.title,
            "lead": one.lead,
            "blocks": [_block(b, charts) for b in one.blocks],
        }
        for number, one in enumerate(page.sections, 1)
    ]
    plotly = plotly_script() if charts else ""
    script = _file("page.js")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(_file("page.html.j2")).render(
        page=page,
        sections=sections,
        verdicts=render_verdicts(page.verdicts),
        verdict_note=explain(page.verdicts),
        generator=f"{GENERATOR} {__version__}",
        policy=_policy([plotly, script] if charts else [script]),
        css=_safe(_file("page.css")),
        charts=_safe(_json_of(charts)),
        any_chart=bool(charts),
        plotly=_safe(plotly),
        script=_safe(script),
    )


def _safe(text: str) -> Any:
    """Mark our own text as HTML: it holds nothing that a user wrote, or is escaped already."""
    from markupsafe import Markup

    return Markup(text)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _checksum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _policy(scripts: Sequence[str]) -> str:
    allowed = " ".join(f"'sha256-{_checksum(text)}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json_of(charts: Sequence[Chart]) -> str:
    content = [{"traces": one.traces, "layout": one.layout, "height": one.height} for one in charts]
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A script element ends at the first `</script`, and takes `<!--` for the start of something.
    return text.replace("<", r"\u003c")


def _block(block: Block, charts: list[Chart]) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": type(block).__name__, **vars(block)}
    if isinstance(block, Chart):
        made["number"] = len(charts)
        charts.append(block)
    if isinstance(block, Table):
        formats = formats_of(block)
        made["rows"] = _rows(block, formats)
        longest = [max((len(str(row[place])) for row in block.rows), default=0) for place in range(len(formats))]
        made["long"] = {place for place, letters in enumerate(longest) if letters > _LONG}
        made["short"] = {place for place, letters in enumerate(longest) if letters <= _SHORT}
        made["numeric"] = _numeric_columns(block)
        if block.shown is not None and block.shown >= len(block.rows):
            made["shown"] = None
    return made


def _rows(table: Table, formats: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Write cells as text, each with the number that it sorts by, if all of its column have one."""
    keys = [[_number(cell) for cell in row] for row in table.rows]
    by_number = [
        all(key is not None or not row[place] for row, key in zip(table.rows, column, strict=True))
        for place, column in enumerate(zip(*keys, strict=True))
    ]
    return [
        [
            {"text": shown(cell, form), "key": key if is_number(cell) or numbers else None}
            for cell, form, key, numbers in zip(row, formats, own, by_number, strict=True)
        ]
        for row, own in zip(table.rows, keys, strict=True)
    ]


def _number(cell: Cell) -> int | float | None:
    if is_number(cell):
        return cell
    found = _LEADING.match(cell) if isinstance(cell, str) else None
    value = float(found[1].replace("\u2212", "-").replace(",", "")) if found else math.nan
    return value if math.isfinite(value) else None


def _numeric_columns(table: Table) -> set[int]:
    found = set()
    for column in range(len(table.columns)):
        cells = [row[column] for row in table.rows if row[column] is not None]
        if cells and all(is_number(cell) or _FIGURE.match(str(cell)) for cell in cells):
            found.add(column)
    return found
