"""Two runs beside each other: what differs, by how much, and whether so many images or tasks can tell."""

from arelu_meta.data.splits import count_tested
from arelu_meta.report.figures import Series, curves
from arelu_meta.report.metatrain_page import adaptation_sections
from arelu_meta.report.page import Block, Cell, Fact, Page, Paragraph, Section, Table, percent, shown
from arelu_meta.report.run_data import Run, column, number_of
from arelu_meta.report.run_sections import described, ending, scalar_maps
from arelu_meta.report.sweep_page import setting
from arelu_meta.statistics import Difference, independent_difference, paired_images, paired_tasks

# What was set or counted: a row where the two differ, and no difference; the intervals' ends have none that says much.
_NO_DIFFERENCE = {
    *("ways", "shots", "queries", "inner_steps", "inner_lr", "order", "steps", "epochs", "best_epoch", "classes"),
    *("learning_rate", "processes", "runs", "skipped", "test_classes", "test_low", "test_high", "test_n", "test_seen"),
}
_SEEDS = "One run each: the interval is over test {unit} alone, and says nothing of other seeds."


def compare_page(first: Run, second: Run) -> Page:
    """Report two runs side by side.

    Args:
        first: called A.
        second: called B.
    """
    names = first.name, second.name
    for letter, run in (("A", first), ("B", second)):
        run.name = f"{letter}: {run.name}"
    difference, how = compared(first, second) or (None, "")
    sections = [
        Section("Side by side", [*_notes(first, second, how), _results_table(first, second)]),
        Section("What was set differently", [_settings_table(first, second)]),
        Section("Curves", _curves(first, second)),
        *adaptation_sections([first, second]),
        Section("Classes", _classes(first, second)),
        Section("Alpha and beta by layer and time", _scalars(first, second)),
        ending([first, second]),
    ]
    filled = [section for section in sections if section.blocks]
    title = f"{names[0]} and {names[1]}"
    return Page(
        title, "Two runs compared", _headline(first, second, difference), _facts(first, second, difference), (), filled
    )


def compared(first: Run, second: Run) -> tuple[Difference, str] | None:
    """Compare two test accuracies: image by image where both were tested on the same, else as independent.

    Args:
        first: A.
        second: B.

    Returns:
        B minus A, and in a sentence how it was compared; None if one has not ended, or they are of different tasks.
    """
    a, b = first.number("test_accuracy"), second.number("test_accuracy")
    if a is None or b is None or first.task != second.task:
        return None
    wrong = _wrong_images(first), _wrong_images(second)
    if wrong[0] is not None and wrong[1] is not None and same_test(first, second):
        return _paired(wrong[0], wrong[1], len(first.split["test"]))
    if (tasks := _same_tasks(first, second)) is not None:
        images = len(set(map(str, first.split.get("test", ())))) or None
        queries = int(first.number("ways") or 1) * int(first.number("queries") or 1)
        how = f"Compared task by task on the same {len(tasks[0]):,} tasks, which the seed draws (Student’s interval)."
        return paired_tasks(tasks[1], tasks[0], queries, images), how
    return _independent(first, second)


def _same_tasks(first: Run, second: Run) -> tuple[list[float], list[float]] | None:
    """Take the accuracies of two meta-learners on the same tasks; None where the tasks may not be the same."""
    drawn = ("ways", "shots", "queries", "seed", "test_n")
    if first.task != "metatrain" or not same_test(first, second):
        return None
    alike = [first.number(name) == second.number(name) is not None for name in drawn]
    parts = [first.split.get(name) == second.split.get(name) for name in ("test", "test_digests")]
    settings = [
        setting(first, name) == setting(second, name) for name in ("data.name", "task.alphabets", "task.split_file")
    ]
    found = [column(run.rows("tasks.csv", ("task", "accuracy")), "accuracy") for run in (first, second)]
    values = [[one for one in accuracies if one is not None] for accuracies in found]
    whole = all(len(one) == first.number("test_n") for one in values) and len(values[0]) > 1
    return (values[0], values[1]) if all([*alike, *parts, *settings, whole]) else None


def same_test(first: Run, second: Run) -> bool:
    """Say whether both runs were tested on the same images or classes.

    Args:
        first: A.
        second: B.
    """
    name = "test_classes" if first.task == "metatrain" else "test"
    one, other = first.split.get(name), second.split.get(name)
    roots = first.config.get("data.root") == second.config.get("data.root")
    return isinstance(one, list) and bool(one) and one == other and roots


def _wrong_images(run: Run) -> set[str] | None:
    """Name the test images that a run took for another class; None if that is not known for certain."""
    test, mistakes = run.split.get("test"), run.results.get("mistakes")
    if not isinstance(test, list) or not isinstance(mistakes, int) or len(set(map(str, test))) != len(test):
        return None
    names = [row["image"] for row in run.rows("mistakes.csv", ("image",))]
    whole = len(names) == mistakes and len(set(names)) == mistakes and run.results.get("test_n") == len(test)
    whole = whole and count_tested([run.split]) == len(test)  # copies are not tested on twice
    return set(names) if whole and set(names) <= set(map(str, test)) else None


def _paired(a: set[str], b: set[str], images: int) -> tuple[Difference, str]:
    gained, lost = len(a - b), len(b - a)
    how = (
        f"Compared image by image on the same {images:,} test images: {gained:,} are right in B alone and {lost:,} in "
        "A alone (McNemar’s exact test, Tango’s interval)."
    )
    return paired_images(gained, lost, images), how


def _independent(first: Run, second: Run) -> tuple[Difference, str] | None:
    figures = [[run.number(f"test_{name}") for name in ("accuracy", "low", "high")] for run in (second, first)]
    known = [(a, b, c) for a, b, c in figures if a is not None and b is not None and c is not None]
    if len(known) < 2:
        return None
    how = (
        "Compared as if the two tests were independent: which image or task went right is not written down, so the "
        "interval is rather too wide where both had the same ones."
    )
    return independent_difference(known[0], known[1]), how


def _points(value: float) -> str:
    return shown(100 * value, "+.1f")


def _headline(first: Run, second: Run, difference: Difference | None) -> str:
    if difference is None:
        for run in (first, second):
            if run.number("test_accuracy") is None:
                return f"{run.name} has no test accuracy yet, so there is nothing to compare."
        return "The two runs cannot be compared by their test accuracy."
    words = f"{_points(abs(difference.mean)).lstrip('+')} points"
    unit = "tasks" if first.task == "metatrain" else "images"
    if not difference.told:
        return f"Cannot tell A and B apart on these test {unit}: the difference is {_points(difference.mean)} points."
    ahead, behind = ("B", "A") if difference.mean > 0 else ("A", "B")
    run = second if ahead == "B" else first
    return f"{ahead}, {described(run)}, is ahead of {behind} by {words} on the test {unit}."


def _facts(first: Run, second: Run, difference: Difference | None) -> list[Fact]:
    found = [
        Fact(f"Test accuracy of {letter}", percent(run.number("test_accuracy")), described(run))
        for letter, run in (("A", first), ("B", second))
    ]
    if difference is not None:
        interval = f"95\u00a0% interval {_points(difference.low)} to {_points(difference.high)}"
        found.append(Fact("B minus A, points", _points(difference.mean), interval))
        if difference.p is not None:
            found.append(Fact("p", f"{difference.p:.2g}", "that there is no difference"))
    return found


def _notes(first: Run, second: Run, how: str) -> list[Block]:
    notes: list[Block] = []
    if first.task != second.task:
        return [
            Paragraph(f"A is a {first.task or 'unknown'} run and B a {second.task or 'unknown'} run.", warning=True)
        ]
    if how:
        unit = "tasks" if first.task == "metatrain" else "images"
        notes.append(Paragraph(f"{how} {_SEEDS.format(unit=unit)}"))
        if first.split and second.split and not same_test(first, second):
            text = "The two were tested on different images or classes: the difference mixes the data and the models."
            notes.append(Paragraph(text, warning=True))
    return notes


def _results_table(first: Run, second: Run) -> Table:
    rows: list[list[Cell]] = []
    for name in dict.fromkeys([*first.results, *second.results]):
        a, b = first.number(name), second.number(name)
        fixed = name in _NO_DIFFERENCE
        if (a is None and b is None) or name in {"seed", "folder"} or (fixed and a == b):
            continue
        share = all(value is None or 0 <= value <= 1 for value in (a, b)) and _is_share(name)
        cells = [_figure(value, share) for value in (a, b)]
        change = (
            None if a is None or b is None or fixed else (_points(b - a) + " points" if share else shown(b - a, "+.4g"))
        )
        rows.append([name.replace("_", " "), *cells, change])
    if not rows:
        rows = [["test accuracy", None, None, None]]
    return Table("Results", ["figure", "A", "B", "B minus A"], rows, csv=True)


def _is_share(name: str) -> bool:
    return any(word in name for word in ("accuracy", "recall", "test_low", "test_high", "top5", "ece", "f1"))


def _figure(value: float | None, share: bool) -> str | None:
    if value is None:
        return None
    return percent(value) if share else f"{value:.4g}"


def _settings_table(first: Run, second: Run) -> Block:
    names = dict.fromkeys([*first.config, *second.config])
    rows: list[list[Cell]] = [
        [name, _said(setting(first, name)), _said(setting(second, name))]
        for name in names
        if name != "run.folder" and repr(setting(first, name)) != repr(setting(second, name))
    ]
    if not names:
        return Paragraph("Neither run has a config.yaml that can be read.", warning=True)
    if not rows:
        return Paragraph("Nothing but the folder: the two have the same settings.")
    return Table("Settings that differ", ["flag", "A", "B"], rows)


def _said(value: object) -> str:
    return "default" if value is None else str(value)


def _curves(first: Run, second: Run) -> list[Block]:
    found: list[Block] = []
    both = [(run, run.rows("metrics.csv")) for run in (first, second)]
    axes = {"epoch" if "epoch" in rows[0] else "step" for _, rows in both if rows}
    if len(axes) != 1:
        return found
    axis = axes.pop()
    titles = {"validation_accuracy": "Validation accuracy", "train_accuracy": "Training accuracy"}
    titles |= {"train_loss": "Training loss", "validation_loss": "Validation loss"}
    for name, title in titles.items():
        series = [Series(run.name, column(rows, axis), column(rows, name)) for run, rows in both]
        series = [one for one in series if any(value is not None for value in one.y)]
        if any(len(one.x) > 1 for one in series):
            found.append(curves(title, axis, title.lower(), series, percent="accuracy" in name))
    return found


def _classes(first: Run, second: Run) -> list[Block]:
    """Put each class's recall side by side, if both runs have the same classes, each name once."""
    recalls = []
    for run in (first, second):
        rows = run.rows("per_class.csv", ("class", "recall"))
        recalls.append({row["class"]: number_of(row["recall"]) for row in rows})
        if len(recalls[-1]) != len(rows):
            return []
    if not recalls[0] or recalls[0].keys() != recalls[1].keys():
        return []
    rows_made: list[list[Cell]] = []
    for name, a in recalls[0].items():
        b = recalls[1][name]
        rows_made.append([name, a, b, None if a is None or b is None else 100 * (b - a)])
    columns = ["class", "recall of A", "recall of B", "B minus A, points"]
    formats = {columns[1]: ".1%", columns[2]: ".1%", columns[3]: "+.1f"}
    note = "A class has few test images: single differences are mostly chance."
    return [Table("Recall of each class", columns, rows_made, formats, note, csv=True, shown=25)]


def _scalars(first: Run, second: Run) -> list[Block]:
    from dataclasses import replace

    return [replace(chart, title=f"{chart.title}: {run.name}") for run in (first, second) for chart in scalar_maps(run)]
