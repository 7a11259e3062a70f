"""A report as Markdown, and its tables as CSV, beside the page."""

import csv
import io
import re
from collections.abc import Sequence

from arelu_meta.report.blocks import Block, Cell, Chart, Page, Paragraph, Picture, Raw, Table, formats_of, shown

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
            f"- **{one.verdict}**: {_text(one.claim)}" + (f". {_text(one.sentence)}" if one.sentence else "")
            for one in page.verdicts
        ]
    for section in page.sections:
        lines += ["", f"## {_text(section.title)}", ""]
        if section.lead:
            lines += [_text(section.lead), ""]
        for block in section.blocks:
            lines += [*_block(block, html_name), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _detail(text: str) -> str:
    return f" ({_text(text)})" if text else ""


def _text(text: str) -> str:
    """Escape what Markdown, or HTML in it, would read as marks."""
    return _MARKS.sub(r"\\\1", " ".join(text.split())).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _block(block: Block, html_name: str) -> list[str]:
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
            return [f"**{_text(block.title)}**", "", fence, *block.text.splitlines(), fence]


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
