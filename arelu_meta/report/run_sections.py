"""What finetune and metatrain runs have in common: curves over time, scalars, gradients, and how they were made."""

from collections.abc import Sequence
from typing import Any

from arelu_meta.report.figures import Series, curves, heatmap
from arelu_meta.report.page import Block, Cell, Chart, Fact, Paragraph, Raw, Section, Table, percent
from arelu_meta.report.run_data import Row, Run, column, number_of
from arelu_meta.runs.run_folder import seen_line

# Title, meaning, format, and how far apart the colours' ends are at least: rounding is no colour.
_SCALARS = {
    "alpha": ("Alpha", "slope on the negative side, used clamped to 0.01 … 0.99", ".3f", 0.2),
    "beta": ("Beta", "slope on the positive side is 1 + sigmoid(beta)", ".3f", 0.5),
    "t": ("The gate t", "the gate of preserve: 0 is the original activation, 1 the whole residual", ".2g", 0.02),
}
_MOST_LINES = 60


def described(run: Run) -> str:
    """Name a run's model and activation in a few words.

    Args:
        run: any.
    """
    model = run.text("model") or str(run.config.get("model.name") or "a model")
    activation = run.text("activation") or run.config.get("model.activation")
    start = run.text("init") or run.config.get("model.init")
    if not activation:
        return f"{model} with its own activation"
    return f"{model} with {activation}" + (f" (start: {start})" if start else "")


def accuracy_fact(run: Run) -> Fact:
    """Show the test accuracy with its interval.

    Args:
        run: that has ended.
    """
    unit = "tasks" if run.task == "metatrain" else "images"
    counted = run.results.get("test_n")
    tested = f", {counted:,} {unit}" if isinstance(counted, int) else ""
    low, high = percent(run.number("test_low")), percent(run.number("test_high"))
    return Fact("Test accuracy", percent(run.number("test_accuracy")), f"95\u00a0% interval {low} to {high}{tested}")


def seen(run: Run) -> str:
    """Say how much of what was tested on the model had seen before, as a sentence behind another; empty for nothing.

    Args:
        run: any.
    """
    told = seen_line(run.results)
    return "" if told is None else f" {told[:1].upper()}{told[1:]}."


def duration(seconds: float | None) -> str:
    """Write seconds for a person.

    Args:
        seconds: None for unknown.
    """
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f}\u00a0s"
    minutes = round(seconds / 60)
    return f"{minutes}\u00a0min" if minutes < 120 else f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def metric_curves(rows: Sequence[Row]) -> list[Chart]:
    """Draw accuracy and loss over epochs or steps.

    Args:
        rows: of metrics.csv.

    Returns:
        A chart for each of the two that metrics.csv has.
    """
    if len(rows) < 2:  # a point is no curve
        return []
    axis = "epoch" if "epoch" in rows[0] else "step"
    x = column(rows, axis)
    charts = []
    for word, title in (("accuracy", "Accuracy"), ("loss", "Loss")):
        found = {name: column(rows, name) for name in rows[0] if name.endswith(f"_{word}")}
        series = [
            Series(name.removesuffix(f"_{word}").replace("_", " "), x, values)
            for name, values in found.items()
            if any(value is not None for value in values)
        ]
        if series:
            charts.append(curves(title, axis, word, series, percent=word == "accuracy"))
    return charts


def learning_section(run: Run) -> Section:
    """Show how the run went.

    Args:
        run: any.
    """
    rows = run.rows("metrics.csv")
    blocks: list[Block] = list(metric_curves(rows))
    if not blocks and len(rows) == 1:
        named = [f"{name.replace('_', ' ')} {value}" for name, value in rows[0].items() if value]
        blocks = [Paragraph(f"There is one row and so no curve: {', '.join(named)}.")]
    if not blocks:
        text = "metrics.csv is missing, empty or without numbers, so there are no curves."
        blocks = [Paragraph(text, warning=not run.results)]
    return Section("Learning curves", blocks)


def scalar_sections(run: Run) -> list[Section]:
    """Show alpha, beta and the gates by layer and time, and the gradients of the layers.

    Args:
        run: any; nothing is shown of what it did not record.
    """
    sections = []
    if maps := scalar_maps(run):
        told = run.text("gates")
        lead = f"{told[:1].upper()}{told[1:]}. " if told else ""
        lead += "One row a layer, the first layer at the top."
        clamped, alphas = run.results.get("alphas_clamped"), run.results.get("alphas")
        if isinstance(clamped, int) and isinstance(alphas, int):
            lead += f" {clamped} of {alphas} alphas ended outside 0.01 … 0.99, where they no longer learn."
        sections.append(Section("Alpha and beta by layer and time", maps, lead))
    if chart := gradient_chart(run):
        lead = "One line a layer, from the first (violet) to the last (green)."
        sections.append(Section("Gradient norms", [chart], lead))
    return sections


def scalar_maps(run: Run) -> list[Chart]:
    """Draw each scalar of scalars.csv as a map of layers over time.

    Args:
        run: any.
    """
    rows = run.rows("scalars.csv", ("path",))
    if not rows:
        return []
    axis = "epoch" if "epoch" in rows[0] else "step"
    times = list(dict.fromkeys(row.get(axis, "") for row in rows))
    layers = list(dict.fromkeys(row["path"] for row in rows))
    maps = []
    for name, (title, meaning, form, least) in _SCALARS.items():
        values = {(row["path"], row.get(axis, "")): number_of(row.get(name)) for row in rows}
        found = [value for value in values.values() if value is not None]
        if not found:
            continue
        cells = [[values.get((layer, time)) for time in times] for layer in layers]
        limits = _limits(found, least, around_zero=name == "t")
        note, colours = f"{name}: {meaning}.", "diverging" if name == "t" else "sequential"
        made = heatmap(
            title, axis, "layer", times, layers, cells, form, name, colours, limits, top_down=True, note=note
        )
        maps.append(made)
    return maps


def _limits(values: Sequence[float], least: float, around_zero: bool) -> tuple[float, float]:
    """Choose the numbers at the colours' ends, at least so far apart."""
    if around_zero:
        furthest = max(*(abs(value) for value in values), least)
        return -furthest, furthest
    short = max(0.0, least - (max(values) - min(values))) / 2
    return min(values) - short, max(values) + short


def gradient_chart(run: Run) -> Chart | None:
    """Draw the gradient norms of the layers over the steps.

    Args:
        run: any.

    Returns:
        None where there is no gradients.csv.
    """
    rows = run.rows("gradients.csv", ("step", "layer", "norm"))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    if not layers:
        return None
    # Of very many layers, evenly many: the lines would cover each other.
    step = -(-len(layers) // _MOST_LINES)
    series = []
    for layer in layers[::step]:
        own = [row for row in rows if row["layer"] == layer]
        norms = [value if value else None for value in column(own, "norm")]  # a logarithm has no place for 0
        series.append(Series(layer, column(own, "step"), norms))
    note = "Norm of all gradients of a layer together, before clipping; a norm of exactly 0 has no point."
    if step > 1:
        note += f" Of {len(layers)} layers, every {step}th is drawn."
    return curves("Gradient norm", "step", "norm", series, log_y=True, by_depth=True, note=note)


def facts_around(run: Run, own: Sequence[Fact]) -> list[Fact]:
    """List the facts of a run that has ended: its accuracy, what its task adds, its time; nothing of another.

    Args:
        run: any.
        own: what the task adds.
    """
    if run.number("test_accuracy") is None:
        return []
    seconds = run.number("seconds")
    time = [] if seconds is None else [Fact("Training time", duration(seconds))]
    return [accuracy_fact(run), *own, *time]


def figures_section(run: Run) -> list[Section]:
    """List every figure of results.json.

    Args:
        run: any.
    """
    plain = {
        name: value for name, value in run.results.items() if value is None or isinstance(value, str | int | float)
    }
    rows: list[list[Cell]] = [[name, value] for name, value in plain.items() if name != "folder"]
    table = Table("results.json", ["name", "value"], rows, {"value": ".6g"}, csv=True, shown=15)
    return [Section("Every figure", [table], "Shares are fractions, times are in seconds.")] if rows else []


def ending(runs: Sequence[Run], problems: Sequence[str] = ()) -> Section:
    """Show commands, seeds, configs and the machine; what could not be read comes first.

    Args:
        runs: of the page.
        problems: further sentences of what could not be read.
    """
    commands = list(dict.fromkeys(run.command for run in runs if run.command))
    seeds = list(dict.fromkeys(str(seed) for run in runs for seed in run.seeds))
    own = [sentence if len(runs) == 1 else f"{run.name}: {sentence}" for run in runs for sentence in run.problems]
    blocks: list[Block] = [Paragraph(sentence, warning=True) for sentence in [*dict.fromkeys(own), *problems]]
    if commands:
        more = f"\n… and {len(commands) - 20} more" if len(commands) > 20 else ""
        blocks.append(Raw("Command" if len(commands) == 1 else "Commands", "\n".join(commands[:20]) + more))
    if seeds:
        shown = ", ".join(seeds[:50]) + (f" … ({len(seeds)} in all)" if len(seeds) > 50 else "")
        blocks.append(Paragraph(f"Seed{'s' if len(seeds) > 1 else ''}: {shown}."))
    if environment := _environment(runs):
        blocks.append(environment)
    if len(runs) == 1 and runs[0].config_text:
        blocks.append(Raw("Every setting (config.yaml)", runs[0].config_text[:20_000], folded=True))
    return Section("Environment, command and seeds", blocks or [Paragraph("Nothing was written down of these.")])


def _environment(runs: Sequence[Run]) -> Table | None:
    """List the software and the machine; where runs differ, each value once."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for key, value in run.environment.items():
            text = _listed(value)
            if key != "command" and text not in names.setdefault(str(key), []):
                names[str(key)].append(text)
    rows: list[list[Cell]] = [[key, " | ".join(values[:5])] for key, values in names.items()]
    return Table("Environment", ["what", "value"], rows) if rows else None


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
