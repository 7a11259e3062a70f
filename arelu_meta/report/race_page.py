"""The page of a race: what `arelu-meta race` wrote into results.json."""

import math
from dataclasses import replace
from typing import Any

from arelu_meta.report.figures import Series, curves, dots
from arelu_meta.report.page import Block, Budget, Chart, Fact, Page, Paragraph, Raw, Section, is_number
from arelu_meta.report.run_data import Run
from arelu_meta.report.run_sections import duration, ending
from arelu_meta.report.study_page import each, statistics, table_of, verdict_of


def race_page(run: Run, budget: Budget) -> Page:
    """Report a race.

    Args:
        run: its folder.
        budget: of pictures.
    """
    found = run.results
    sections = [
        Section("What to do now", _next(run)),
        Section("Test accuracy against the learning rate", _chart(run)),
        Section("Where the gain comes from", _gain(run)),
        Section("Recipes", list(each(run, "tables", table_of))),
        Section("How to read it", [Paragraph(str(text)) for text in found.get("notes") or []]),
        Section("The statistics behind the verdicts", statistics(run)),
    ]
    verdicts = each(run, "verdicts", verdict_of)
    sentence = run.text("sentence") or "This race has not ended; the same command with --run.resume auto goes on."
    filled = [section for section in sections if section.blocks]
    return Page("Race", "Race of recipes", sentence, _facts(run), verdicts, [*filled, ending([run])])


def _facts(run: Run) -> list[Fact]:
    facts = []
    if run.text("winner"):
        rate = run.number("learning_rate")
        facts.append(Fact("Winner", run.text("winner") or "", f"learning rate {rate:g}" if rate else ""))
    for name, label in (("test_accuracy", "Test accuracy"), ("probe_accuracy", "Probe alone"), ("chance", "Chance")):
        if (value := run.number(name)) is not None:
            facts.append(Fact(label, f"{value:.1%}"))
    if isinstance(seeds := run.results.get("seeds"), list):
        facts.append(Fact("Seeds", str(len(seeds)), "of the finals"))
    if run.number("seconds") is not None:
        facts.append(Fact("Time", duration(run.number("seconds")), f"{run.number('runs') or 0:g} runs, in race.csv"))
    return facts


def _next(run: Run) -> list[Block]:
    blocks: list[Block] = []
    if run.text("model"):
        blocks.append(Paragraph(f"The winner's model lies in {run.text('model')}, ready for predict and export."))
    if run.text("command"):
        blocks.append(Raw("The command that makes it again", run.text("command") or ""))
    if isinstance(commands := run.results.get("next"), list) and commands:
        blocks.append(Raw("Next", "\n".join(map(str, commands))))
    return blocks


def _chart(run: Run) -> list[Block]:
    try:
        return [_drawn(run.results["chart"])]
    except (KeyError, TypeError, ValueError, AttributeError):
        run.problems.append("results.json: chart is missing or damaged and is left out.")
        return []


def _drawn(found: dict[str, Any]) -> Chart:
    lines = [Series(str(one["name"]), one["x"], one["y"], one["low"], one["high"]) for one in found["series"]]
    rates = sorted({float(x) for one in lines for x in one.x})
    ends = [rates[0] / 1.5, rates[-1] * 1.5] if rates else [1e-3, 1e-1]
    chart = curves("", "learning rate", "test accuracy (%)", lines)
    traces = [dict(trace) for trace in chart.traces]
    alone = {f"s{number}": one for number, one in enumerate(lines) if len(one.x) == 1}
    for trace in traces:
        one = alone.get(trace.get("legendgroup", ""))
        if one is not None and "band" not in trace["meta"]:
            above, below = float(one.high[0] or 0) - float(one.y[0] or 0), float(one.y[0] or 0) - float(one.low[0] or 0)
            trace["error_y"] = {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below]}
    for number, (name, dash) in enumerate((("probe", "dash"), ("chance", "dot"))):
        if is_number(found.get(name)):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": "probe alone" if name == "probe" else name,
                    "x": ends,
                    "y": [found[name]] * 2,
                    "line": {"width": 2, "dash": dash},
                    "meta": {"series": 5 + number},
                }
            )
    layout = {**chart.layout, "showlegend": True}
    layout["xaxis"] = {**layout["xaxis"], "type": "log", "exponentformat": "e"}
    layout["xaxis"].pop("dtick", None)
    note = "The band is the 95 % interval of the mean over seeds."
    times = found.get("worth")
    if times:
        shown = f"worth {times['words']}"
        note += (
            f" AReLU at {times['rate']:g} is {shown}: the original is as accurate at so many times the rate (95 % "
            "interval by bootstrap over seeds)."
        )
        if times["sign"] == "=" and times["times"] > 1:
            start, end = math.log10(times["rate"]), math.log10(times["rate"] * times["times"])
            arrow = {"x": end, "y": times["accuracy"], "ax": start, "ay": times["accuracy"]}
            arrow |= {"xref": "x", "yref": "y", "axref": "x", "ayref": "y", "text": "", "showarrow": True}
            arrow |= {"arrowhead": 2, "arrowwidth": 2, "arrowcolor": "#888888"}
            text = {"x": (start + end) / 2, "y": times["accuracy"], "text": shown, "showarrow": False, "yshift": 16}
            layout["annotations"] = [arrow, text]
    alt = f"{chart.alt} Probe alone {found.get('probe'):.1f} %, chance {found.get('chance'):.1f} %."
    return Chart("", alt, traces, layout, 460, note)


def _gain(run: Run) -> list[Block]:
    bars = run.results.get("gain")
    if not isinstance(bars, list) or not bars:
        return [
            Paragraph("There was no time to take the gain apart; --race.more true, or a longer --race.budget, has it.")
        ]
    try:
        names = [str(bar["name"]) for bar in bars]
        values = [float(bar["value"]) for bar in bars]
        low, high = ([bar.get(end) for bar in bars] for end in ("low", "high"))
        chart = dots("", "points over what it is compared with", names, values, low, high)
        # Bars as thick lines from 0: the page's plotly has no other.
        beams = [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [0, value],
                "y": [place, place],
                "line": {"width": 22},
                "opacity": 0.35,
                "hoverinfo": "skip",
                "meta": {"series": 0},
            }
            for place, value in enumerate(values)
        ]
    except (KeyError, TypeError, ValueError):
        run.problems.append("results.json: gain is damaged and is left out.")
        return []
    return [replace(chart, traces=[*beams, *chart.traces], height=260)]
