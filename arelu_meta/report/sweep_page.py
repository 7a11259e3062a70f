"""The page of several runs: repeats, folds, a sweep, or any folders a person names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from arelu_meta.data.splits import count_tested
from arelu_meta.report.figures import Series, curves, dots, heatmap
from arelu_meta.report.metatrain_page import adaptation_sections
from arelu_meta.report.page import Block, Cell, Chart, Fact, Page, Section, Table, percent
from arelu_meta.report.run_data import Run, column, number_of
from arelu_meta.report.run_sections import duration, ending
from arelu_meta.statistics import groups_interval, mean_interval

_MOST_LINES = 21  # of one chart: seven colours in three dashes
_MOST_DOTS = 40
_ROWS = 25
_SAME = ("run.folder", "run.seed", "run.resume", "run.trackers", "data.fold", "train.repeats", "data.workers")
_TELLING = ("model.name", "model.activation", "model.init", "optim.lr", "meta.inner_lr")
_MOST_WORDS = 4


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed or fold alone.

    Args:
        name: by what the groups differ.
        settings: the same, one by one.
        runs: at least one.
    """

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies of those that have ended."""
        return [value for value in (run.number("test_accuracy") for run in self.runs) if value is not None]

    @property
    def validation(self) -> float | None:
        """The mean of the best validation accuracies; None without any."""
        found = [value for value in (validation_of(run) for run in self.runs) if value is not None]
        return sum(found) / len(found) if found else None

    def interval(self) -> tuple[float | None, float | None, float | None]:
        """Mean test accuracy and its 95 % interval: over runs if there are several, else over images or tasks."""
        ended = [run for run in self.runs if run.number("test_accuracy") is not None]
        if len(ended) > 1:
            return groups_interval(self.accuracies, sum(map(_tested, ended)), _distinct(ended))
        if not ended:
            return None, None, None
        return ended[0].number("test_accuracy"), ended[0].number("test_low"), ended[0].number("test_high")


def _tested(run: Run) -> int:
    """Count the images that a run was tested on; of tasks, their query images."""
    parts = [run.number(name) or 1 for name in ("test_n", "ways", "queries")]
    return max(1, round(parts[0] if run.task == "finetune" else parts[0] * parts[1] * parts[2]))


def _distinct(runs: Sequence[Run]) -> int | None:
    """Count the images that any of several runs was tested on; None where that is not known, or they are tasks."""
    listed = [run.split.get("test") for run in runs]
    if not all(isinstance(test, list) and len(test) == _tested(run) for test, run in zip(listed, runs, strict=True)):
        return None
    named = [{"test": [(run.config.get("data.root"), image) for image in run.split["test"]]} for run in runs]
    return count_tested([{**run.split, **names} for run, names in zip(runs, named, strict=True)])


def validation_of(run: Run) -> float | None:
    """Find a run's best validation accuracy.

    Args:
        run: any.
    """
    found = run.number("validation_accuracy")
    if found is not None:
        return found
    values = [value for value in column(run.rows("metrics.csv"), "validation_accuracy") if value is not None]
    return max(values, default=None)


def several_page(runs: list[Run], title: str, kind: str, whole: Run | None = None) -> Page:
    """Report several runs side by side.

    Args:
        runs: at least one.
        title: of the page.
        kind: what they are together.
        whole: the folder that holds them, where it has results of its own.
    """
    groups = grouped(runs)
    sections = [
        Section("At a glance", _glance(groups)),
        *_heat_sections(groups),
        *(Section(f"Curves{of}", group_curves(ones)) for of, ones in _by_task(groups)),
        *adaptation_sections(runs[:_MOST_LINES]),
        Section("Runs", [_runs_table(runs), *_whole_table(whole)]),
    ]
    filled = [section for section in sections if section.blocks]
    last = ending(runs, whole.problems if whole is not None else ())
    return Page(title, kind, _headline(groups, runs), _facts(groups, runs), (), [*filled, last])


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put runs together that differ by their seed or fold alone.

    Args:
        runs: in order.

    Returns:
        The groups, in the order of their first run.
    """
    differing = differing_settings(runs)
    found: dict[str, Group] = {}
    for run in runs:
        settings = {name: setting(run, name) for name in differing}
        found.setdefault(f"{run.task} {settings!r}", Group(run.name, settings, [])).runs.append(run)
    groups = list(found.values())
    if len(groups) == 1:
        return [Group("all runs", groups[0].settings, groups[0].runs)]
    return [replace(one, name=name) for one, name in zip(groups, _names(groups), strict=True)]


def _names(groups: Sequence[Group]) -> list[str]:
    """Name groups by what they differ in; by their first run's folder where that would take too many words."""
    differing = list(groups[0].settings)
    telling = [name for name in _TELLING if name in differing]
    for chosen in (differing, telling):
        phrases = [[_phrase(key, one.settings[key], differing) for key in chosen] for one in groups]
        names = [", ".join(filter(None, words)) for words in phrases]
        if 0 < len(chosen) <= _MOST_WORDS and len(set(names)) == len(names):
            return names
    return [one.runs[0].name for one in groups]


def _phrase(key: str, value: Any, names: Sequence[str]) -> str:
    if key == "model.activation":
        return "own activation" if value is None else str(value)
    if key in {"model.name", "model.init"}:
        return "" if value is None else str(value)
    return f"{_last(key, names)} {_word(value)}"


def setting(run: Run, name: str) -> Any:
    """Take a setting as the run used it: a learning rate that was looked for by its value.

    Args:
        run: any.
        name: of the flag.
    """
    if name == "model.activation":
        return run.results.get("activation") or run.config.get(name)
    if name == "model.init":
        return run.results.get("init") or run.config.get(name)
    return run.config.get(name)


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Name the flags in which runs differ, apart from the seed, the fold and the folder.

    Args:
        runs: any.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    return [name for name in names if name not in _SAME and len({repr(setting(run, name)) for run in runs}) > 1]


def _last(name: str, names: Sequence[str]) -> str:
    """Shorten `optim.lr` to `lr` where only one flag ends so."""
    short = name.split(".")[-1]
    return short if sum(other.split(".")[-1] == short for other in names) == 1 else name


def _word(value: Any) -> str:
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranked(groups: Sequence[Group]) -> list[Group]:
    """Put the best by validation first; those without any come last."""
    return sorted(groups, key=lambda one: -1.0 if one.validation is None else one.validation, reverse=True)


def _headline(groups: list[Group], runs: list[Run]) -> str:
    studies = [run for run in runs if run.task == "claims"]
    ended = [run for run in runs if run.number("test_accuracy") is not None]
    waiting = len(runs) - len(ended) - len(studies)
    left = f" {waiting} {'has' if waiting == 1 else 'have'} no result: not ended, or failed." if waiting else ""
    if studies:
        what = "is a study, which has" if len(studies) == 1 else "are studies, which have"
        left = f" {len(studies)} {what} no test accuracy but verdicts: see each one's own report.{left}"
    if not ended:
        return left.strip() if studies else f"None of {len(runs)} runs has a result."
    if len(groups) == 1:
        mean, low, high = groups[0].interval()
        over = f" (95\u00a0% interval over runs {percent(low)} to {percent(high)})" if len(ended) > 1 else ""
        return f"Test accuracy {percent(mean)}, the mean of {len(ended)} runs{over}.{left}"
    if len(_by_task(groups)) > 1:
        return f"{len(runs)} runs of different tasks; their accuracies cannot be compared.{left}"
    best = next((one for one in _ranked(groups) if one.accuracies), groups[0])
    mean, _, _ = best.interval()
    if best.validation is None:
        return f"{len(ended)} of {len(runs)} runs have a result.{left}"
    return f"Best on validation images: {best.name}, with a test accuracy of {percent(mean)}.{left}"


def _facts(groups: list[Group], runs: list[Run]) -> list[Fact]:
    accuracies = [value for group in groups for value in group.accuracies]
    found = [Fact("Runs", str(len(runs)), f"{len(groups)} settings" if len(groups) > 1 else "one setting")]
    if accuracies:
        found.append(
            Fact("Test accuracy", f"{percent(min(accuracies))} – {percent(max(accuracies))}", "least and greatest")
        )
    seconds = [value for value in (run.number("seconds") for run in runs) if value is not None]
    if seconds:
        found.append(Fact("Training time", duration(sum(seconds)), "of all runs together"))
    return found


def _glance(groups: list[Group]) -> list[Block]:
    ended = [one for one in _ranked(groups) if one.accuracies]
    if not ended:
        return []
    drawn = ended[:_MOST_DOTS] if len(ended) > 1 else [Group(run.name, {}, [run]) for run in ended[0].runs[:_MOST_DOTS]]
    intervals = [one.interval() for one in drawn if one.accuracies]
    names = [
        one.name + (f" ({len(one.accuracies)} runs)" if len(one.accuracies) > 1 else "")
        for one in drawn
        if one.accuracies
    ]
    note = "Bars: 95\u00a0% intervals over test images or tasks alone, which say nothing of other seeds."
    if len(ended) > 1:
        note = (
            "The best on validation images comes first. Bars: 95\u00a0% intervals, over runs where one setting has "
            "several, else over test images or tasks alone, which say nothing of other seeds."
        )
    if len(ended) > _MOST_DOTS:
        note += f" The first {_MOST_DOTS} of {len(ended)} settings."
    values, low, high = ([one[place] for one in intervals] for place in range(3))
    return [dots("Test accuracy", "test accuracy", names, values, low, high, percent=True, note=note)]


def _by_task(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Put groups of one task together: epochs and steps share no axis."""
    tasks = list(dict.fromkeys(one.runs[0].task for one in groups))
    of = {task: f" of {task or 'other'} runs" if len(tasks) > 1 else "" for task in tasks}
    return [(of[task], [one for one in groups if one.runs[0].task == task]) for task in tasks]


def _heat_sections(groups: list[Group]) -> list[Section]:
    """Draw learning rate against activation, or whichever two settings were varied most."""
    one_task = len(_by_task(groups)) == 1
    chart = _heat_chart(groups) if one_task else None
    return [] if chart is None else [Section("Heat map", [chart])]


def _heat_chart(groups: list[Group]) -> Chart | None:
    values = {name: list(dict.fromkeys(_word(one.settings[name]) for one in groups)) for name in groups[0].settings}
    varied = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
    preferred = [name for name in ("optim.lr", "meta.inner_lr") if name in varied]
    across = (preferred or varied or [""])[0]
    down = next((name for name in ("model.activation", *varied) if name in varied and name != across), "")
    if not across or not down:
        return None
    columns = sorted(values[across], key=lambda text: (number_of(text) is None, number_of(text) or 0.0, text))
    rows = values[down]
    cells: list[list[float | None]] = []
    for row in rows:
        line: list[float | None] = []
        for place in columns:
            inside = [g for g in groups if _word(g.settings[across]) == place and _word(g.settings[down]) == row]
            found = [value for group in inside for value in group.accuracies]
            line.append(sum(found) / len(found) if found else None)
        cells.append(line)
    if sum(value is not None for line in cells for value in line) < 3:
        return None
    title = f"Test accuracy by {_last(across, list(values))} and {_last(down, list(values))}"
    note = "Mean over the runs of a cell." + (" Other settings vary inside a cell too." if len(varied) > 2 else "")
    return heatmap(title, across, down, columns, rows, cells, ".1%", "test accuracy", top_down=True, note=note)


def group_curves(groups: Sequence[Group], most: int = _MOST_LINES) -> list[Block]:
    """Draw validation accuracy and training loss over time, a line a setting, with a band where there are seeds.

    Args:
        groups: of one task.
        most: lines of a chart; the best on validation images are drawn.
    """
    found: list[Block] = []
    for name, title in (("validation_accuracy", "Validation accuracy"), ("train_loss", "Training loss")):
        drawn = [made for made in (_mean_curve(one, name) for one in _ranked(groups)) if made is not None]
        if drawn:
            banded = any(len(series.low) for series, _ in drawn[:most])
            note = "Line: mean over runs of one setting; band: its 95\u00a0% interval." if banded else ""
            if len(drawn) > most:
                note = f"The {most} best on validation images of {len(drawn)} settings. {note}".strip()
            axis = drawn[0][1]
            label = title.lower()
            lines = [series for series, _ in drawn[:most]]
            found.append(curves(title, axis, label, lines, percent="accuracy" in name, note=note))
    return found


def _mean_curve(group: Group, name: str) -> tuple[Series, str] | None:
    at: dict[float, list[float]] = {}
    axis = "epoch"
    for run in group.runs:
        rows = run.rows("metrics.csv")
        axis = "epoch" if not rows or "epoch" in rows[0] else "step"
        for x, y in zip(column(rows, axis), column(rows, name), strict=True):
            if x is not None and y is not None:
                at.setdefault(x, []).append(y)
    if not at:
        return None
    xs = sorted(at)
    if all(len(at[x]) < 2 for x in xs):
        return Series(group.name, xs, [at[x][0] for x in xs]), axis
    bands = [mean_interval(at[x]) if len(at[x]) > 1 else (at[x][0], at[x][0], at[x][0]) for x in xs]
    ys, low, high = ([one[place] for one in bands] for place in range(3))
    return Series(f"{group.name} ({len(group.runs)} runs)", xs, ys, low, high), axis


def _runs_table(runs: Sequence[Run]) -> Table:
    differing = differing_settings(runs)
    if len({run.task for run in runs}) > 1:  # then nearly everything differs
        differing = [name for name in differing if name in _TELLING]
    columns = ["run", *(_last(name, differing) for name in differing), "seed", "test accuracy", "95 % low", "95 % high"]
    columns += ["validation accuracy", "seconds"]
    rows: list[list[Cell]] = []
    for run in runs:
        figures = [run.number(name) for name in ("test_accuracy", "test_low", "test_high")]
        settings = [_cell(setting(run, name)) for name in differing]
        rows.append([run.name, *settings, _cell(run.seed), *figures, validation_of(run), run.number("seconds")])
    formats = dict.fromkeys(columns[-5:-1], ".1%") | {"seconds": ".0f"}
    note = "Each interval is over the run’s own test images or tasks."
    return Table("All runs", columns, rows, formats, note, csv=True, shown=_ROWS)


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _whole_table(whole: Run | None) -> list[Block]:
    """Show a sweep's own table, which also knows of runs that failed."""
    rows = whole.rows("results.csv") if whole is not None else []
    if not rows:
        return []
    columns = list(rows[0])
    cells: list[list[Cell]] = [[_number_or_text(row.get(name, "")) for name in columns] for row in rows]
    return [Table("The sweep’s own table (results.csv)", columns, cells, shown=_ROWS)]


def _number_or_text(text: str) -> Cell:
    number = number_of(text)
    return number if number is not None else (text or None)
