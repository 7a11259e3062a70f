"""The page of a meta-training run."""

import itertools

from arelu_meta.errors import counted
from arelu_meta.report.figures import Series, curves
from arelu_meta.report.finetune_page import unfinished
from arelu_meta.report.page import Cell, Fact, Page, Paragraph, Section, Table, percent
from arelu_meta.report.run_data import Run
from arelu_meta.report.run_sections import (
    described,
    ending,
    facts_around,
    figures_section,
    learning_section,
    scalar_sections,
    seen,
)


def metatrain_page(run: Run) -> Page:
    """Report a meta-training run.

    Args:
        run: its folder; it need not have ended.
    """
    sections = [*adaptation_sections([run]), learning_section(run), *scalar_sections(run), *_class_sections(run)]
    sections += figures_section(run)
    return Page(run.name, "Meta-training run", headline(run), facts(run), (), [*sections, ending([run])])


def task_words(run: Run) -> str:
    """Say which tasks a run is of, as in `5-way 1-shot`.

    Args:
        run: any.
    """
    ways = run.results.get("ways", run.config.get("task.ways"))
    shots = run.results.get("shots", run.config.get("task.shots"))
    return f"{ways}-way {shots}-shot" if isinstance(ways, int) and isinstance(shots, int) else "few-shot"


def headline(run: Run) -> str:
    """Say in a sentence how well it learns new classes.

    Args:
        run: any.
    """
    accuracy = run.number("test_accuracy")
    if accuracy is None:
        return unfinished(run, "step", run.config.get("meta.steps"))
    chance = run.number("ways")
    guessing = f" (guessing: {percent(1 / chance)})" if chance else ""
    algorithm = run.text("algorithm") or "the meta-learner"
    return (
        f"{described(run)}, by {algorithm}, gets {percent(accuracy)} of the query images right in {task_words(run)} "
        f"tasks{' of unseen classes' if not run.results.get('test_seen') else ''}{guessing}.{seen(run)}"
    )


def facts(run: Run) -> list[Fact]:
    """Pick the numbers that are seen at first sight.

    Args:
        run: any.
    """
    found = []
    curve = adaptation(run)
    if len(curve) > 1:
        found.append(Fact("Before adapting", percent(curve[0]), _after(len(curve) - 1, curve[-1])))
    if run.text("normalization"):
        found.append(Fact("Normalisation", run.text("normalization"), "transductive sees the other queries"))
    if run.number("inner_lr") is not None:
        found.append(Fact("Inner learning rate", f"{run.number('inner_lr'):g}"))
    return facts_around(run, found)


def _after(steps: int, accuracy: float) -> str:
    return f"after {counted(steps, 'inner step')}: {percent(accuracy)}"


def adaptation(run: Run) -> list[float]:
    """Take the accuracy on unseen classes after 0, 1, … inner steps from results.json.

    Args:
        run: any.
    """
    found: list[float] = []
    for step in itertools.count():
        value = run.number(f"accuracy_after_{step}")
        if value is None:
            return found
        found.append(value)
    raise AssertionError  # count() has no end


def adaptation_sections(runs: list[Run]) -> list[Section]:
    """Draw accuracy on unseen classes over inner steps, a line a run.

    Args:
        runs: those without such a curve are left out.
    """
    found = [(run, adaptation(run)) for run in runs]
    series = [Series(run.name, list(range(len(curve))), curve) for run, curve in found if len(curve) > 1]
    if not series:
        return []
    note = "Mean over test tasks of unseen classes after each inner gradient step on the support images."
    title = "Accuracy after each inner step"
    chart = curves(title, "inner steps", "accuracy", series, percent=True, note=note)
    return [Section("Adaptation", [chart])]


def _class_sections(run: Run) -> list[Section]:
    """List the classes that tasks were made of."""
    rows: list[list[Cell]] = []
    for part in ("train", "validation", "test"):
        names = run.split.get(f"{part}_classes")
        if isinstance(names, list) and names:
            rows.append([part, len(names), ", ".join(map(str, names[:12])) + (" …" if len(names) > 12 else "")])
    if not rows:
        return []
    formats = {"classes": ".0f"}
    notes = [Paragraph(note) for note in run.text("notes").split("; ") if note]
    table = Table("Classes that tasks are made of", ["part", "classes", "their names"], rows, formats)
    return [Section("Classes", [*notes, table])]
