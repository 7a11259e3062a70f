"""What the study `meta` concludes: by the authors' reading, and on classes that training has not seen."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.meta_runs import ALL, WAYS
from arelu_meta.claims.small_lr_tables import spread
from arelu_meta.claims.tables import (
    Curves,
    Heatmap,
    Outcome,
    Series,
    Table,
    described,
    mean_series,
)
from arelu_meta.errors import counted
from arelu_meta.statistics import Comparison, compare, judge

OURS, STANDARD = "arelu", "relu"
THEIRS, HONEST = "by the best training batch", "on unseen classes"


class Cell(NamedTuple):
    """A set, the shots, and the inner learning rate."""

    data: str
    shots: int
    lr: float

    def __str__(self) -> str:
        return f"{self.data}, {counted(self.shots, 'shot')}, {self.lr:g}"


@dataclass
class Course:
    """An activation's two runs with one seed; accuracies are in per cent.

    Args:
        batches: accuracy of each meta-batch of the run on all classes, in the order of the steps.
        unseen: of the run on some classes, the mean over tasks of the others.
        half: half the width of that mean's 95 % interval over tasks.
        adaptation: accuracy on the other classes after 0, 1, … inner steps; empty for a run that diverged.
        diverged: how many of the two did.
        tasks: of the other classes.
        queries: of all these tasks; None where no run has ended.
    """

    batches: list[float] = field(default_factory=list)
    unseen: float = 0.0
    half: float = 0.0
    adaptation: list[float] = field(default_factory=list)
    diverged: int = 0
    tasks: int = 0
    queries: int | None = None


Runs = dict[Cell, dict[str, dict[int, Course]]]
"""By cell, activation and seed."""


def read_runs(rows: Sequence[Row]) -> Runs:
    """Sort read-outs into runs.

    Args:
        rows: as `meta_runs.run` returns them, with the trial's columns, those of a run in the order of its steps.
    """
    runs: Runs = {}
    for row in rows:
        seeds = runs.setdefault(Cell(row["data"], row["shots"], row["lr"]), {}).setdefault(row["activation"], {})
        course = seeds.setdefault(row["seed"], Course())
        course.diverged += bool(row.get("diverged"))
        if row["classes"] == ALL:
            course.batches.append(100 * row["accuracy"])
        else:
            course.unseen, course.half = 100 * row["accuracy"], 50 * (row["high"] - row["low"])
            course.adaptation, course.tasks = [100 * value for value in row["curve"]], row["tasks"]
            course.queries = course.tasks * WAYS * row["shots"] or None
    return runs


def reading(seeds: dict[int, Course], which: str) -> dict[int, float]:
    """Give each seed's accuracy in per cent by one of the two readings; a run that diverged counts as 0.

    Args:
        seeds: courses.
        which: `THEIRS` or `HONEST`.
    """
    return {seed: max(course.batches) if which == THEIRS else course.unseen for seed, course in seeds.items()}


def conclude(rows: Sequence[Row], margin: float, resplit: Mapping[Cell, float] | None = None) -> Outcome:
    """Judge finished runs.

    Args:
        rows: as `read_runs` takes them.
        margin: differences within so many points do not count.
        resplit: by cell, as in `compare`, where classes are divided.
    """
    runs = read_runs(rows)
    pairs = list(_comparisons(runs, margin, resplit or {}))
    stated = [one for one in pairs if one.primary]
    tables = [_readings(runs)]
    if len(pairs) > len(stated):
        tables.append(described(pairs, "AReLU against every other activation"))
    return Outcome(judge(stated), tables, [*_adaptation(runs), *_courses(runs)], list(_maps(runs)), notes=_notes(runs))


def _comparisons(runs: Runs, margin: float, resplit: Mapping[Cell, float]) -> Iterator[Comparison]:
    """Compare AReLU with every other activation by each reading; judged are unseen classes, against ReLU."""
    for (cell, contenders), which in itertools.product(runs.items(), (THEIRS, HONEST)):
        scores = {name: reading(seeds, which) for name, seeds in contenders.items()}
        ours = scores.pop(OURS, {})
        for name, theirs in scores.items():
            if len(set(ours) & set(theirs)) > 1:
                yield compare(
                    f"AReLU against {name} {which} ({cell})",
                    ours,
                    theirs,
                    margin,
                    images=next(iter(contenders[name].values())).queries if which == HONEST else None,
                    resplit=resplit.get(cell, 0.0) if which == HONEST else 0.0,
                    primary=which == HONEST and name == STANDARD,
                )


def _readings(runs: Runs) -> Table:
    rows: list[list[Any]] = []
    for cell, contenders in runs.items():
        for name, seeds in contenders.items():
            theirs, honest = reading(seeds, THEIRS), reading(seeds, HONEST)
            rows.append(
                [
                    cell.data,
                    cell.shots,
                    f"{cell.lr:g}",
                    name,
                    spread(theirs),
                    spread(honest),
                    _pooled([*seeds.values()]),
                    f"{np.mean([*theirs.values()]) - np.mean([*honest.values()]):+.1f}",
                    sum(course.diverged for course in seeds.values()),
                ]
            )
    columns = ["data", "shots", "inner rate", "activation", "best training batch", "unseen classes"]
    tasks = next(course.tasks for found in runs.values() for seeds in found.values() for course in seeds.values())
    return Table(
        "Accuracy in per cent: the authors' reading beside the honest one",
        [*columns, "95 % over tasks", "their reading is higher by", "diverged"],
        rows,
        "Best training batch: the authors' number, the best meta-batch of a run on all classes. Unseen classes: a run "
        f"on some classes, after its last step on {tasks:,} tasks a seed of the others. Mean ± standard deviation over "
        "seeds; the interval is over the tasks of these seeds alone.",
    )


def _pooled(courses: Sequence[Course]) -> str:
    """Give the 95 % interval over tasks of the mean over seeds: the seeds' tasks are drawn apart."""
    mean = float(np.mean([course.unseen for course in courses]))
    half = math.sqrt(sum(course.half**2 for course in courses)) / len(courses)
    return f"{mean - half:.1f} to {mean + half:.1f}"


def _adaptation(runs: Runs) -> Iterator[Curves]:
    for cell, contenders in runs.items():
        series = []
        for name, seeds in contenders.items():
            whole = [course.adaptation for course in seeds.values() if course.adaptation]
            if whole:
                series.append(mean_series(name, whole, [float(step) for step in range(len(whole[0]))]))
        yield Curves(f"{cell}: adapting to unseen classes", "inner step", "accuracy (%)", series)


def _courses(runs: Runs) -> Iterator[Curves]:
    for cell, contenders in runs.items():
        series = [one for name, seeds in contenders.items() if (one := _course(name, seeds)) is not None]
        yield Curves(f"{cell}: accuracy of each meta-batch of all classes", "meta-step", "accuracy (%)", series)


def _course(name: str, seeds: dict[int, Course]) -> Series | None:
    whole = [course.batches for course in seeds.values() if len(course.batches) > 1 or not course.diverged]
    return mean_series(name, whole, [float(step + 1) for step in range(len(whole[0]))]) if whole else None


def _maps(runs: Runs) -> Iterator[Heatmap]:
    activations = list(dict.fromkeys(name for contenders in runs.values() for name in contenders))
    for which in (HONEST, THEIRS):
        found = [[[*reading(runs[cell].get(name, {}), which).values()] for cell in runs] for name in activations]
        values = [[float(np.mean(one)) if one else None for one in row] for row in found]
        yield Heatmap(f"Accuracy (%) {which}", "task", "activation", [str(cell) for cell in runs], activations, values)


def _notes(runs: Runs) -> list[str]:
    notes = [
        "The best training batch is a maximum over as many looks as there were meta-steps, at classes that were "
        "trained on: it says how well tasks were fitted, not how well new classes are learned.",
        "Both runs of a pair differ in their classes alone: weights, settings and number of steps are the same. Of ten "
        "digits the honest run trains on five. The authors published no table of these runs to set beside ours.",
    ]
    lost = sum(course.diverged for found in runs.values() for seeds in found.values() for course in seeds.values())
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as accuracy 0."] if lost else notes
