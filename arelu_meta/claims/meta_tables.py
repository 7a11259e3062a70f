"""What the study `meta` concludes: by the authors' reading, and on classes that training has not seen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.meta_runs import ALL
from arelu_meta.claims.outcome import (
    CHOSEN_ON_THE_SAME_RUNS,
    Curves,
    Heatmap,
    Outcome,
    Series,
    Table,
    mean_series,
    pairs_table,
)
from arelu_meta.claims.small_lr_tables import spread
from arelu_meta.claims.statistics import Comparison, compare, judge
from arelu_meta.errors import counted

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
    """

    batches: list[float] = field(default_factory=list)
    unseen: float = 0.0
    half: float = 0.0
    adaptation: list[float] = field(default_factory=list)
    diverged: int = 0
    tasks: int = 0


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
    return runs


def reading(seeds: dict[int, Course], which: str) -> dict[int, float]:
    """Give each seed's accuracy in per cent by one of the two readings; a run that diverged counts as 0.

    Args:
        seeds: courses.
        which: `THEIRS` or `HONEST`.
    """
    return {seed: max(course.batches) if which == THEIRS else course.unseen for seed, course in seeds.items()}


def conclude(rows: Sequence[Row], margin: float) -> Outcome:
    """Judge finished runs.

    Args:
        rows: as `read_runs` takes them.
        margin: how many points count as being ahead.
    """
    runs = read_runs(rows)
    pairs, stated = _comparisons(runs, margin)
    tables = [_readings(runs)]
    if pairs:
        tables.append(pairs_table(pairs, "Percentage points"))
    return Outcome(judge(stated), tables, [*_adaptation(runs), *_courses(runs)], list(_maps(runs)), notes=_notes(runs))


def _comparisons(runs: Runs, margin: float) -> tuple[list[Comparison], list[Comparison]]:
    """Compare AReLU with every other activation by each reading, and state ReLU and the best other."""
    pairs, stated = [], []
    for cell, contenders in runs.items():
        for which in (THEIRS, HONEST):
            scores = {name: reading(seeds, which) for name, seeds in contenders.items()}
            ours = scores.pop(OURS, {})
            found = {
                name: compare(f"AReLU is ahead of {name} {which} ({cell})", ours, theirs, margin)
                for name, theirs in scores.items()
                if len(set(ours) & set(theirs)) > 1
            }
            pairs += list(found.values())
            best = max(found, key=lambda name: np.mean([*scores[name].values()]), default=STANDARD)
            stated += [found[name] for name in dict.fromkeys([STANDARD, best]) if name in found]
    return pairs, stated


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
    chosen = [CHOSEN_ON_THE_SAME_RUNS] if any(len(contenders) > 2 for contenders in runs.values()) else []
    notes = [
        *chosen,
        "The best training batch is a maximum over as many looks as there were meta-steps, at classes that were "
        "trained on: it says how well tasks were fitted, not how well new classes are learned.",
        "Both runs of a pair differ in their classes alone: weights, settings and number of steps are the same. Of ten "
        "digits the honest run trains on five. The authors published no table of these runs to set beside ours.",
    ]
    lost = sum(course.diverged for found in runs.values() for seeds in found.values() for course in seeds.values())
    return [*notes, f"{counted(lost, 'run')} became NaN, counted as accuracy 0."] if lost else notes
