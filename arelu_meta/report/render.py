"""A report as one HTML file that loads nothing, as Markdown, and its tables as CSV."""

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from arelu_meta import __version__
from arelu_meta.errors import printable
from arelu_meta.report.figures import explain, render_verdicts
from arelu_meta.report.page import (
    Block,
    Cell,
    Chart,
    Page,
    Paragraph,
    Picture,
    Raw,
    Table,
    formats_of,
    is_number,
    shown,
)

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
            "blocks": [_html_block(b, charts) for b in one.blocks],
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


def _html_block(block: Block, charts: list[Chart]) -> dict[str, Any]:
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


_MARKS = re.compile(r"([\\`*_\[\]{}<>#|~$&])")
_ROWS = 200


def render_markdown(page: Page, html_name: str) -> str:
    """Write a page as Markdown; charts are described, and named as what the HTML page shows.

    Args:
        page: the report.
        html_name: the HTML file beside it.

    Returns:
        The whole file.
    """
    lines = [f"# {_text(page.title)}", "", f"{_text(page.kind)}. **{_text(page.headline)}**", ""]
    lines += [f"- {_text(one.label)}: {_text(one.value)}{_detail(one.detail)}" for one in page.facts]
    if page.verdicts:
        lines += ["", "## Verdicts", ""]
        lines += [
            f"- **{one.words or one.verdict}**: {_text(one.claim)}"
            + (f". {_text(one.sentence)}" if one.sentence else "")
            for one in page.verdicts
        ]
    for section in page.sections:
        lines += ["", f"## {_text(section.title)}", ""]
        if section.lead:
            lines += [_text(section.lead), ""]
        for block in section.blocks:
            lines += [*_markdown_block(block, html_name), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _detail(text: str) -> str:
    return f" ({_text(text)})" if text else ""


def _text(text: str) -> str:
    """Escape what Markdown, or HTML in it, would read as marks."""
    return _MARKS.sub(r"\\\1", printable(" ".join(text.split()))).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _markdown_block(block: Block, html_name: str) -> list[str]:
    match block:
        case Paragraph():
            return [_text(block.text)]
        case Table():
            return _table(block)
        case Chart():
            note = f" {_text(block.note)}" if block.note else ""
            return [f"**{_text(block.title)}** (chart: see {_text(html_name)}). {_text(block.alt)}{note}"]
        case Picture():
            return [f"**{_text(block.title)}** ({_text(block.file)}). {_text(block.alt)}"]
        case Raw():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            return [
                f"**{_text(block.title)}**",
                "",
                fence,
                *[printable(line, "\t") for line in block.text.splitlines()],
                fence,
            ]


def _table(table: Table) -> list[str]:
    lines = [f"**{_text(table.title)}**", "", _row(table.columns), _row(["---"] * len(table.columns), escape=False)]
    formats = formats_of(table)
    for row in table.rows[:_ROWS]:
        lines.append(_row([shown(cell, form) for cell, form in zip(row, formats, strict=True)]))
    if len(table.rows) > _ROWS:
        lines += ["", f"The first {_ROWS} of {len(table.rows)} rows."]
    return [*lines, "", _text(table.note)] if table.note else lines


def _row(cells: Sequence[str], escape: bool = True) -> str:
    return "| " + " | ".join(_text(cell) if escape else cell for cell in cells) + " |"


def csv_tables(page: Page) -> dict[str, str]:
    """Write the tables of a page that lie nowhere else as CSV, numbers with all their digits.

    Args:
        page: the report.

    Returns:
        What to put behind the page's name → the file's text: "" for the first table, `-TITLE` for the others.
    """
    found: dict[str, str] = {}
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Table) and block.csv:
                name = f"-{_slug(block.title)}" if found else ""
                while name in found:
                    name += "-more"
                found[name] = _csv([block.columns, *block.rows])
    return found


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "table"


def _csv(rows: Sequence[Sequence[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


KINDS = ("heatmap", "scatter")  # of plotly's traces, all that charts.py makes
_IN_THE_CORE = ("scatter",)
_STARTED = re.compile(r"(?<=\.register\(\[)\w+\(\)(?:,\w+\(\))+(?=\]\))")
_MODULE = re.compile(r"(\w+)=\w+\(\((?:\w+(?:,\w+)?)?\)=>\{")
_FAR = 5_000  # characters from a module's start; a kind of chart names itself sooner


@cache
def plotly_script() -> str:
    """Return plotly.js as the installed package carries it, to be put into a script element.

    Its bundle starts some fifty kinds of chart where it is loaded, which takes a browser longer than all the rest.
    Here the list of what is started names the kinds of a page alone. In a bundle that is built otherwise, nothing is
    changed: it starts slower and draws the same.

    Returns:
        The code, about 4.8 MB.
    """
    from plotly.offline import get_plotlyjs

    # A browser reads one line ending for another, and the policy's sum is over what it read.
    return starting_only(re.sub(r"\r\n?", "\n", str(get_plotlyjs())), KINDS).replace("</script", r"<\/script")


def starting_only(bundle: str, kinds: tuple[str, ...]) -> str:
    """Leave out of a bundle's list of what is started all but some kinds of chart.

    Args:
        bundle: plotly.js, minified.
        kinds: plotly's names of traces.

    Returns:
        The bundle with a shorter list; as it was where that list or one of the kinds was not found in it.
    """
    lists = list(_STARTED.finditer(bundle))
    if len(lists) != 1:
        return bundle
    given = lists[0].group().split(",")
    kept = [f"{_module_of(kind, bundle)}()" for kind in kinds if kind not in _IN_THE_CORE]
    if not set(kept) <= set(given):
        return bundle
    return bundle[: lists[0].start()] + ",".join(kept) + bundle[lists[0].end() :]


def _module_of(kind: str, bundle: str) -> str | None:
    """Find the module that the list names for a kind of chart: it passes on another one, which says its kind."""
    own = _last_module(bundle, bundle.find(f'moduleType:"trace",name:"{kind}"'))
    return _last_module(bundle, bundle.find(f"exports={own}()}}"))


def _last_module(bundle: str, before: int) -> str | None:
    found = _MODULE.findall(bundle, max(0, before - _FAR), before) if before > 0 else []
    return found[-1] if found else None
