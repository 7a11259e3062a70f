"""Figures as plotly takes them, and verdicts with their intervals, without colours: the page chooses those.

A trace says in `meta` what it is: `{"series": 3}` for the fourth colour, `{"depth": 0.5}` for a place on the way from
the first layer to the last, and `"band": true` for the area around a line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arelu_meta.report.page import Chart, Verdict, is_number, shown

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star", "pentagon", "hexagon")
_COLOURS = 7  # of the page's palette
_MARKED = 60  # points; a line of more is drawn without markers
_FEW = 15
_LONGEST_NAME = 44
_SUBJECT = "arelu"  # what this toolkit is about stands out among many
_CROWDED = 6  # lines; with more their bands are paler
_TICKS = ".2~%"  # as many decimals as an axis needs: one from 0 to 1 % would say 0, 0, 1, 1
_WRITTEN_CELLS = 450  # a heat map of more has no numbers in its cells
_DIGITS = 6
_FORMATS = {"percent": ".1%", "plain": ""}


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: in the legend; any text.
        x: where the points are.
        y: what they are; None leaves a gap.
        low: lower end of the band, one a point; empty for no band.
        high: upper end.
        dashed: whether it is a line to read the others against.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dashed: bool = False


def plotly_text(text: object) -> str:
    """Make plotly show a text as it is: it reads a part of HTML in every label."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())


def rounded(values: Sequence[Any]) -> list[Any]:
    """Keep as many digits as an eye can see; what is no finite number becomes a gap."""
    return [float(f"{value:.{_DIGITS}g}") if is_number(value) else None for value in values]


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    percent: bool = False,
    log_y: bool = False,
    log_x: bool = False,
    by_depth: bool = False,
    note: str = "",
) -> Chart:
    """Draw lines, each with its band.

    Args:
        title: what stands above them.
        x_label: below the horizontal axis.
        y_label: beside the vertical one.
        series: the lines.
        percent: whether y are fractions to be shown as per cent.
        log_y: whether the vertical axis is logarithmic.
        log_x: whether the horizontal axis is, too; one of learning rates is in any case.
        by_depth: whether the lines are layers, coloured from the first to the last.
        note: below the chart.
    """
    traces: list[dict[str, Any]] = []
    for number, one in enumerate(series):
        if by_depth:
            meta: dict[str, Any] = {"depth": number / max(len(series) - 1, 1)}
        else:
            meta = {"series": number % _COLOURS}
        group = f"s{number}"
        if len(one.low) and len(one.high):
            traces.append(_band(one, meta | {"faint": len(series) > _CROWDED}, group, (0, 1) if percent else None))
        bold = one.name.lower().startswith(_SUBJECT) and not by_depth and len(series) > 2
        traces.append(_line(one, meta, group, number, by_depth, bold))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plotly_text(x_label)}},
        "yaxis": {"title": {"text": plotly_text(y_label)}},
        "showlegend": len(series) > 1,
    }
    if percent:
        layout["yaxis"]["tickformat"] = _TICKS
        layout["yaxis"]["hoverformat"] = ".1%"
    if log_y:
        layout["yaxis"]["type"] = "log"
        layout["yaxis"]["exponentformat"] = "e"
    if _counts([value for one in series for value in one.x]):
        layout["xaxis"]["dtick"] = 1
    if log_x or _spans_decades([value for one in series for value in one.x]):
        layout["xaxis"]["type"] = "log"
        layout["xaxis"]["exponentformat"] = "e"  # plotly writes a rate of 1e-5 as 10μ
    height = max(380, min(700, 70 + 22 * len(series)))  # so that the legend beside it has room
    return Chart(title, _described(series, x_label, y_label, percent), traces, layout, height, note)


def _spans_decades(values: Sequence[Any]) -> bool:
    numbers = [value for value in values if is_number(value)]
    return bool(numbers) and min(numbers) > 0 and min(numbers) < 0.1 and max(numbers) >= 9 * min(numbers)


def _counts(values: Sequence[Any]) -> bool:
    """Say whether an axis counts a few things, as epochs: each then has its mark, and halves have none."""
    different = set(values)
    return (
        len(different) <= _FEW
        and all(is_number(value) and value == int(value) for value in different)
        and (max(different, default=0) - min(different, default=0) <= _FEW)
    )


def _line(one: Series, meta: Mapping[str, Any], group: str, number: int, by_depth: bool, bold: bool) -> dict[str, Any]:
    style = 0 if by_depth else 1 if one.dashed else number // _COLOURS
    marked = len(one.x) <= _MARKED and not one.dashed
    return {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "name": _short(one.name, _LONGEST_NAME),
        "x": _coordinates(one.x),
        "y": rounded(one.y),
        "legendgroup": group,
        "line": {"width": 4 if bold else 2, "dash": _DASHES[style % len(_DASHES)]},
        "marker": {"size": 6, "symbol": "circle" if by_depth else _SYMBOLS[number % len(_SYMBOLS)]},
        "zorder": int(bold),
        "meta": dict(meta),
    }


def _band(one: Series, meta: Mapping[str, Any], group: str, limits: tuple[float, float] | None) -> dict[str, Any]:
    def inside(value: float) -> float:
        return value if limits is None else min(max(value, limits[0]), limits[1])

    whole = [
        (x, inside(low), inside(high))
        for x, low, high in zip(_coordinates(one.x), rounded(one.low), rounded(one.high), strict=False)
        if low is not None and high is not None
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _, _ in whole] + [x for x, _, _ in reversed(whole)],
        "y": [high for _, _, high in whole] + [low for _, low, _ in reversed(whole)],
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
        "meta": {**meta, "band": True},
    }


def _coordinates(values: Sequence[Any]) -> list[Any]:
    return [(rounded([value])[0] if isinstance(value, float) else value) for value in values]


def _described(series: Sequence[Series], x_label: str, y_label: str, percent: bool) -> str:
    form = _FORMATS["percent" if percent else "plain"]
    parts = []
    for one in series[:8]:
        values = [float(value) for value in one.y if is_number(value)]
        if not values:
            continue
        ends = f"{shown(values[0], form)} to {shown(values[-1], form)}" if len(values) > 1 else shown(values[0], form)
        parts.append(f"{one.name}: {ends}")
    more = f"; and {len(series) - 8} more" if len(series) > 8 else ""
    counted = "1 line" if len(series) == 1 else f"{len(series)} lines"
    return f"Line chart of {y_label} against {x_label}, {counted}. " + "; ".join(parts) + more + "."


def heatmap(
    title: str,
    x_label: str,
    y_label: str,
    x: Sequence[object],
    y: Sequence[object],
    z: Sequence[Sequence[float | None]],
    form: str = ".3g",
    value_label: str = "",
    colours: str = "sequential",
    limits: tuple[float, float] | None = None,
    top_down: bool = False,
    written: bool = True,
    text: Sequence[Sequence[str]] | None = None,
    note: str = "",
) -> Chart:
    """Draw a table of numbers as colours, with the numbers in the cells where they fit.

    Args:
        title: what stands above it.
        x_label: below the columns.
        y_label: beside the rows.
        x: the columns' names; two may be the same.
        y: the rows' names.
        z: one row of numbers a name in y; None for an empty cell.
        form: the numbers' format.
        value_label: what a number is, beside the colours.
        colours: sequential, or diverging (around 0).
        limits: the numbers at the colours' ends; default: the least and the greatest.
        top_down: whether the first row is at the top.
        written: whether the numbers stand in the cells if they fit.
        text: what stands in the cells instead of the numbers.
        note: below the chart.
    """
    cells = [rounded(list(row)) for row in z]
    texts = text or [[shown(value, form) for value in row] for row in cells]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": list(range(len(x))),
        "y": list(range(len(y))),
        "z": cells,
        "text": [[plotly_text(one) for one in row] for row in texts],
        "customdata": [[[plotly_text(column), plotly_text(row)] for column in x] for row in y],
        "hovertemplate": f"{plotly_text(x_label)}: %{{customdata[0]}}<br>{plotly_text(y_label)}: %{{customdata[1]}}"
        "<br><b>%{text}</b><extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "textfont": {"size": 12 if len(y) <= 20 else 10},
        "colorbar": {"title": {"text": plotly_text(value_label), "side": "right"}, "thickness": 12},
        "meta": {"colours": colours},
    }
    if written and len(x) * len(y) <= _WRITTEN_CELLS:
        trace["texttemplate"] = "%{text}"
    if form.endswith("%"):
        trace["colorbar"]["tickformat"] = _TICKS
    if limits is not None:
        trace["zmin"], trace["zmax"] = limits
    if colours == "diverging":
        trace["zmid"] = 0
    layout = {
        "xaxis": _named_axis(x_label, x),
        "yaxis": _named_axis(y_label, y) | ({"autorange": "reversed"} if top_down else {}),
    }
    height = max(260, min(900, 150 + (26 if len(y) <= 20 else 17) * len(y)))
    return Chart(title, _described_map(x_label, y_label, x, y, cells, form), [trace], layout, height, note)


def _named_axis(label: str, names: Sequence[object], longest: int = 28) -> dict[str, Any]:
    # Positions with names beside them: names that look like numbers, or are the same, stay apart.
    step = max(1, -(-len(names) // 60))
    chosen = range(0, len(names), step)
    return {
        "title": {"text": plotly_text(label)},
        "tickmode": "array",
        "tickvals": list(chosen),
        "ticktext": [_short(names[index], longest) for index in chosen],
        "ticklabeloverflow": "allow",
        "showgrid": False,
        "zeroline": False,
    }


def _short(name: object, longest: int) -> str:
    """Shorten a name in its middle, and make plotly show it as it is: shortened after that, an entity might be cut."""
    text = " ".join(str(name).split())
    return plotly_text(text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 + 1 :]}")


def _described_map(
    x_label: str, y_label: str, x: Sequence[object], y: Sequence[object], cells: Sequence[Sequence[Any]], form: str
) -> str:
    found = [(value, i, j) for i, row in enumerate(cells) for j, value in enumerate(row) if value is not None]
    size = f"Heat map of {len(y)} rows ({y_label}) and {len(x)} columns ({x_label})"
    if not found:
        return f"{size}, all empty."
    (least, i, j), (most, k, m) = min(found), max(found)
    return f"{size}. Highest {shown(most, form)} at {y[k]}, {x[m]}; lowest {shown(least, form)} at {y[i]}, {x[j]}."


def dots(
    title: str,
    x_label: str,
    names: Sequence[str],
    values: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    percent: bool = False,
    note: str = "",
) -> Chart:
    """Draw one value a name as a dot with its interval as a bar, the first name at the top.

    Args:
        title: what stands above it.
        x_label: what the values are.
        names: one a row.
        values: the dots.
        low: the bars' lower ends.
        high: their upper ends.
        percent: whether values are fractions to be shown as per cent.
        note: below the chart.
    """
    form = ".1%" if percent else ".4g"
    below = [None if a is None or b is None else a - b for a, b in zip(values, low, strict=True)]
    above = [None if a is None or b is None else b - a for a, b in zip(values, high, strict=True)]
    told = [
        shown(value, form) + (f" ({shown(a, form)} to {shown(b, form)})" if a is not None and b is not None else "")
        for value, a, b in zip(values, low, high, strict=True)
    ]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(values),
        "y": list(range(len(names))),
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": rounded(above),
            "arrayminus": rounded(below),
            "thickness": 2,
            "width": 4,
        },
        "text": [f"{plotly_text(name)}<br><b>{one}</b>" for name, one in zip(names, told, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 9},
        "meta": {"series": 0},
    }
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plotly_text(x_label)}} | ({"tickformat": _TICKS} if percent else {}),
        "yaxis": _named_axis("", names, longest=36) | {"range": [len(names) - 0.5, -0.5], "showgrid": True},
        "showlegend": False,
    }
    described = "; ".join(f"{name}: {one}" for name, one in list(zip(names, told, strict=True))[:12])
    alt = f"Dot chart of {x_label}, {len(names)} rows. {described}{' …' if len(names) > 12 else ''}."
    return Chart(title, alt, [trace], layout, max(170, min(900, 110 + 30 * len(names))), note)


_SIGNS = {"ahead": "✓", "level": "=", "behind": "✗", "need more seeds": "?"}
_NEAR = 6.0  # per cent of the width in which a label would run out of the picture


def render_verdicts(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Prepare verdicts for the page's template.

    Args:
        verdicts: in order.
    """
    scales = {one.unit: _Scale([other for other in verdicts if other.unit == one.unit]) for one in verdicts}
    return [
        {
            "claim": one.claim,
            "verdict": one.words or one.verdict,
            "style": one.verdict.replace(" ", "-"),
            "sign": _SIGNS[one.verdict],
            "sentence": one.sentence,
            "whisker": _whisker(one, scales[one.unit]),
        }
        for one in verdicts
    ]


def explain(verdicts: Sequence[Verdict]) -> str:
    """Say how the lines below the verdicts are read; empty where there are none.

    Args:
        verdicts: of the page.
    """
    if not any(is_number(one.difference) for one in verdicts):
        return ""
    return (
        "Each line shows a mean difference (dot) with its 95 % interval (bar), on one scale; the dashed lines are the "
        "margin, the smallest difference that counts. The first is ahead where the whole bar lies right of both lines, "
        "behind where it lies left of both, and level between them; with many claims it takes more than that."
    )


class _Scale:
    """Where a value lies between the least and the greatest, in per cent."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        values = [value for one in verdicts for value in (one.difference, one.low, one.high, one.margin)]
        values += [-one.margin for one in verdicts if is_number(one.margin)]
        ends = [value for value in values if is_number(value)] + [0.0]
        span = (max(ends) - min(ends)) or 1.0
        self.least, self.span = min(ends) - 0.04 * span, 1.08 * span

    def place(self, value: float) -> float:
        return round(100 * (value - self.least) / self.span, 2)

    def anchor(self, value: float) -> str:
        place = self.place(value)
        return "start" if place < _NEAR else "end" if place > 100 - _NEAR else "middle"


def _whisker(one: Verdict, scale: _Scale) -> dict[str, Any] | None:
    middle = one.difference
    if not is_number(middle):
        return None
    low = one.low if is_number(one.low) else middle
    high = one.high if is_number(one.high) else middle
    margin = one.margin if is_number(one.margin) else None
    made: dict[str, Any] = {
        "zero": scale.place(0.0),
        "zero_anchor": scale.anchor(0.0),
        "low": scale.place(low),
        "high": scale.place(high),
        "dot": scale.place(middle),
        "told": f"difference {middle:+.3g} {one.unit}, 95 % interval {low:+.3g} to {high:+.3g}",
        "margin": None,
        "margin_below": None,
        "margin_text": "",
    }
    if margin is not None:
        apart = scale.place(margin) - scale.place(0.0) > 3 * _NEAR
        made |= {"margin": scale.place(margin), "margin_below": scale.place(-margin)}
        made |= {"margin_anchor": scale.anchor(margin)}
        unit = one.unit.rstrip("s") if margin == 1 else one.unit
        made |= {"margin_text": f"margin {shown(margin)} {unit}" if apart else ""}
    return made
