"""What the study `small-lr` concludes: at the small rate, at each contender's best rate, and with the steps matched."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.integrate import trapezoid

from arelu_meta.claims.ledger import Row
from arelu_meta.claims.matched_learning_rate import STEPS
from arelu_meta.claims.tables import Curves, Heatmap, Outcome, Table, mean_series
from arelu_meta.statistics import Comparison, area_over_rates, compare, judge, rate_equivalent

ORIGINAL, MATCHED = "original", "matched:"
OPEN_STARTS = ("arelu:open", "arelu:leak")
FEWEST_RATES = 3  # of which one can be the best without being the largest or the smallest
_TARGET_SHARE = 0.9


class Runs:
    """Finished runs by contender, learning rate and seed.

    Args:
        rows: one a read-out, those of a run in the order of its steps; a matched run that was refused has one that says
            why.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.refused = {(row["contender"], row["seed"]): row["refused"] for row in rows if row.get("refused")}
        rows = [row for row in rows if not row.get("refused")]
        self.inner = any(row.get("pipeline") == "maml" for row in rows)
        """Whether learning rate and steps are those of an inner loop."""
        self.pretrained = any(row.get("pretrained") for row in rows)
        self.axis = "inner step" if self.inner else "step"
        self.by: dict[tuple[str, float], dict[int, list[Row]]] = {}
        for row in rows:
            self.by.setdefault((row["contender"], row["lr"]), {}).setdefault(row["seed"], []).append(row)
        listed = list(dict.fromkeys(name for name, _ in self.by))
        self.contenders = [name for name in listed if not name.startswith(MATCHED)]
        self.matched = [name for name in listed if name.startswith(MATCHED)]
        self.rates = sorted({lr for name, lr in self.by if name in self.contenders}, reverse=True)

    def test(self, contender: str, lr: float) -> dict[int, float]:
        """Return each seed's test accuracy in per cent."""
        return {seed: 100 * run[-1]["test_accuracy"] for seed, run in self.by.get((contender, lr), {}).items()}

    def images(self, contender: str, lr: float) -> int | None:
        """Return on how many images each seed was tested; None where that is not known."""
        found = [run[-1].get("images") for run in self.by.get((contender, lr), {}).values()]
        known = [number for number in found if number is not None]
        return min(known) if known else None

    def means(self, contender: str) -> dict[float, float]:
        """Return the mean test accuracy in per cent at each rate."""
        return {lr: float(np.mean([*self.test(contender, lr).values()])) for lr in self.rates}

    def best_rate(self, contender: str) -> float:
        """Choose the rate by the mean validation accuracy over seeds."""

        def validation(lr: float) -> float:
            return float(np.mean([run[-1]["validation_accuracy"] for run in self.by[contender, lr].values()]))

        return max(self.rates, key=validation)

    def course(self, contender: str, lr: float) -> list[list[Row]]:
        """Return the runs that were not cut short by divergence."""
        runs = self.by.get((contender, lr), {}).values()
        return [run for run in runs if len(run) > 1 or not run[0].get("diverged")]

    def diverged(self, contender: str, lr: float) -> int:
        """Count the runs that became NaN."""
        return sum(bool(run[0].get("diverged")) for run in self.by.get((contender, lr), {}).values())


def conclude(
    rows: Sequence[Row],
    small: float,
    margin: float,
    target: float | None,
    notes: Sequence[str] = (),
    resplit: float = 0.0,
) -> Outcome:
    """Judge finished runs.

    Args:
        rows: one a read-out, with `contender`, `lr`, `seed`, `step`, `accuracy`, `validation_accuracy`,
            `test_accuracy`, `rate`, `pipeline`.
        small: the small learning rate.
        margin: differences within so many points do not count.
        target: the accuracy that steps are counted to, a fraction; None for 0.9 of the original's best.
        notes: what is to be known of the data.
        resplit: as in `compare`.
    """
    runs = Runs(rows)
    best = {name: runs.best_rate(name) for name in runs.contenders}
    reference = ORIGINAL if ORIGINAL in runs.contenders else runs.contenders[0]
    aim = 100 * target if target is not None else _aim(runs, reference)
    tables = [
        _readings(runs, small, best, reference),
        _courses(runs, small, aim),
        *([_multipliers(runs, small)] if runs.matched else []),
    ]
    curves = [
        course_curves(runs, dict.fromkeys([*runs.contenders, *runs.matched], small), f"at {small:g}"),
        course_curves(runs, best, "each at its best rate"),
    ]
    comparisons = list(_comparisons(runs, small, best, reference, margin, resplit))
    said = [*_notes(runs, small, best), *start_notes(runs.contenders), *(f"Of the data: {note}." for note in notes)]
    return Outcome(judge(comparisons), tables, curves, [_map(runs)], notes=said)


def _aim(runs: Runs, reference: str) -> float | None:
    """Choose the accuracy that steps are counted to; None where the reference learned nothing that could be reached."""
    courses = [run for lr in runs.rates for run in runs.course(reference, lr)]
    highest = max((100 * row["accuracy"] for run in courses for row in run), default=0.0)
    return _TARGET_SHARE * highest if highest > 0 else None


def is_ours(contender: str) -> bool:
    """Return True if a contender is an AReLU, by whatever start: what the claims are about."""
    return contender.partition(":")[0] == "arelu"


def _comparisons(
    runs: Runs, small: float, best: dict[str, float], reference: str, margin: float, resplit: float
) -> Iterator[Comparison]:
    """Make the three readings of each contender against the reference; the matched one explains and is not judged."""
    nothing_of_ours = not any(map(is_ours, runs.contenders))
    readings = [(f"at {small:g}", dict.fromkeys(runs.contenders, small))]
    if len(runs.rates) >= FEWEST_RATES:
        readings.append(("each at its best rate", best))
    for name in runs.contenders:
        if name == reference:
            continue
        for where, rates in readings:
            shown = f" ({rates[name]:g} and {rates[reference]:g})" if rates is best else ""
            yield compare(
                f"{name} against {reference} {where}{shown}",
                runs.test(name, rates[name]),
                runs.test(reference, rates[reference]),
                margin,
                images=runs.images(name, rates[name]),
                resplit=resplit,
                primary=is_ours(name) or nothing_of_ours,
            )
        ours, theirs = runs.test(name, small), runs.test(MATCHED + name, small)
        if len(ours.keys() & theirs.keys()) > 1:
            yield compare(
                f"{name} at {small:g} against {reference} whose first {runs.axis}s move the logits as far",
                ours,
                theirs,
                margin,
                images=runs.images(name, small),
                resplit=resplit,
                primary=False,
            )


def _readings(runs: Runs, small: float, best: dict[str, float], reference: str) -> Table:
    several, chosen = len(runs.rates) > 1, len(runs.rates) >= FEWEST_RATES
    rows = []
    for name in runs.contenders:
        row = [name, *(spread(runs.test(name, lr)) for lr in runs.rates)]
        row += [f"{best[name]:g}", spread(runs.test(name, best[name]))] if chosen else []
        row += [f"{area_over_rates(runs.means(name)):.1f}", _worth(runs, name, small, reference)] if several else []
        rows.append(row)
    width = len(rows[0])
    for name in runs.matched:
        row = [name, *("" if lr != small else spread(runs.test(name, lr)) for lr in runs.rates)]
        rows.append([*row, *[""] * (width - len(row))])
    columns = ["contender", *(f"{lr:g}" for lr in runs.rates), *(["best rate", "there"] if chosen else [])]
    columns += ["over all rates", f"at {small:g} as {reference} at"] if several else []
    notes = [f"Mean ± standard deviation over seeds; the small rate is {small:g}"]
    notes[0] += "; the best rate is chosen on validation." if chosen else "."
    if several:
        notes.append(
            "Over all rates: the mean over the log-rates, the area under the curve by its width. The last column is "
            f"the learning-rate equivalent: the rate at which {reference} is as accurate, between two rates on a line."
        )
    if runs.matched:
        notes.append(
            f"A row {MATCHED}X is the original at a rate where its first {runs.axis}s move the logits as far as X's."
        )
    title = "Test accuracy in per cent, over learning rates" + (" and at each one's best" if chosen else "")
    return Table(title, columns, rows, " ".join(notes))


def _worth(runs: Runs, contender: str, small: float, reference: str) -> str:
    """Write the learning-rate equivalent of a contender at the small rate."""
    if contender == reference:
        return ""
    sign, rate = rate_equivalent(runs.means(reference), runs.means(contender)[small])
    return f"{rate:.2g} (× {rate / small:.2g})" if sign == "=" else f"{sign} {rate:.2g}"


def spread(values: dict[int, float]) -> str:
    """Write mean and standard deviation over seeds.

    Args:
        values: by seed.
    """
    found = list(values.values())
    if not found:
        return ""
    return f"{np.mean(found):.1f}" + (f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else "")


def _courses(runs: Runs, small: float, aim: float | None) -> Table:
    rows = []
    for name in [*runs.contenders, *runs.matched]:
        courses = runs.course(name, small)
        areas = {number: _area(run) for number, run in enumerate(courses)}
        rows.append([name, spread(areas), *_reaching(courses, aim), runs.diverged(name, small)])
    goal = "a target" if aim is None else f"{aim:.1f} %"
    return Table(
        f"The course at {small:g}",
        ["contender", "mean accuracy over the course", f"{runs.axis}s to {goal}", "runs that reach it", "diverged"],
        rows,
        "The mean over the course is the area under accuracy against steps, divided by the steps.",
    )


def _reaching(courses: Sequence[Sequence[Row]], aim: float | None) -> list[str]:
    """Say after how many steps runs reach the target, and how many of them do."""
    if aim is None:
        return ["", ""]
    reached = [step for run in courses if (step := _steps_to(run, aim)) is not None]
    return [f"{np.mean(reached):.0f}" if reached else "never", f"{len(reached)} of {len(courses)}"]


def _area(run: Sequence[Row]) -> float:
    steps, accuracies = [row["step"] for row in run], [100 * row["accuracy"] for row in run]
    width = steps[-1] - steps[0]
    return float(trapezoid(accuracies, steps) / width) if width else accuracies[-1]


def _steps_to(run: Sequence[Row], aim: float) -> int | None:
    return next((int(row["step"]) for row in run if 100 * row["accuracy"] >= aim), None)


def _multipliers(runs: Runs, small: float) -> Table:
    rows = []
    for name in runs.matched:
        factors = [run[-1]["rate"] / small for run in runs.course(name, small)]
        mean = f"{np.exp(np.mean(np.log(factors))):.3g}" if factors else "it became NaN"
        rows.append([name.removeprefix(MATCHED), mean])
    how = (
        "the inner learning rate multiplied, before meta-training"
        if runs.inner
        else "all learning rates multiplied alike"
    )
    return Table(
        f"How many times as fast the original has to learn at {small:g} for its first {runs.axis}s to go as far",
        ["as", "times (geometric mean over seeds)"],
        rows,
        f"By the root mean square of the change of the logits after {STEPS} {runs.axis}s, {how}.",
    )


def course_curves(runs: Runs, rates: dict[str, float], where: str) -> Curves:
    """Draw accuracy against steps.

    Args:
        runs: finished.
        rates: the learning rate of each contender that is drawn.
        where: the end of the title.
    """
    series = []
    for name, lr in rates.items():
        courses = runs.course(name, lr)
        if courses:
            steps = [float(row["step"]) for row in max(courses, key=len)]
            accuracies = [[100 * row["accuracy"] for row in run] for run in courses]
            shown = f"{name}, {lr:g}" if len(set(rates.values())) > 1 else name
            series.append(mean_series(shown, accuracies, steps))
    what = "accuracy on unseen tasks (%)" if runs.inner else "validation accuracy (%)"
    return Curves(f"Accuracy by {runs.axis}, {where}", runs.axis, what, series)


def _map(runs: Runs) -> Heatmap:
    values: list[list[float | None]] = [
        [float(np.mean([*runs.test(name, lr).values()])) for lr in runs.rates] for name in runs.contenders
    ]
    rate = "inner learning rate" if runs.inner else "learning rate"
    return Heatmap("Test accuracy (%)", rate, "contender", [f"{lr:g}" for lr in runs.rates], runs.contenders, values)


def _notes(runs: Runs, small: float, best: dict[str, float]) -> list[str]:
    others = [f"the rate at which {ORIGINAL} is as accurate"] * (len(runs.rates) > 1)
    others += ["what is left with the steps matched"] * bool(runs.matched)
    read = f"read {' and '.join(others)} as well" if others else "other rates were not tried"
    notes = [f"A contender can be ahead at the small rate and still not be the best choice: {read}."]
    if 1 < len(runs.rates) < FEWEST_RATES:
        notes.append(f"Of {len(runs.rates)} rates none is called the best: that takes {FEWEST_RATES}.")
    kept = [name for name in runs.contenders if keeps_function(name, runs.pretrained)]
    if kept and ORIGINAL in runs.contenders:
        notes.append(f"{', '.join(kept)} begins as the original does: no rate has to be matched.")
    for (name, seed), reason in runs.refused.items():
        notes.append(f"{name}, seed {seed}, is refused: {reason}.")
    if any(runs.diverged(name, lr) for name in [*runs.contenders, *runs.matched] for lr in runs.rates):
        notes.append("Runs that became NaN count as accuracy 0.")
    return notes + (edge_notes(runs, best) if len(runs.rates) >= FEWEST_RATES else [])


def keeps_function(contender: str, pretrained: bool) -> bool:
    """Return True if a contender begins as the original's function.

    Args:
        contender: `original`, an activation, or `arelu:START`.
        pretrained: whether it starts from pretrained weights, which says how an AReLU without a start starts.
    """
    return contender == "arelu:preserve" or (contender == "arelu" and pretrained)


def start_notes(contenders: Sequence[str]) -> list[str]:
    """Say on which images a contender's start was once chosen, where that makes it look better than it is.

    Args:
        contenders: of the study.
    """
    found = [name for name in contenders if name in OPEN_STARTS]
    return [
        f"{name} opens its gates to 0.2, which was chosen on test images of flowers17 (seed 0): its figures there are "
        "too good, and cifar10-subset, which had no part in it, is the better witness."
        for name in found
    ]


def edge_notes(runs: Runs, best: dict[str, float]) -> list[str]:
    """Say whose best learning rate is the largest or the smallest that was tried: a better one may lie beyond.

    Who diverged at every rate has no best one.

    Args:
        runs: finished.
        best: each contender's best rate.
    """
    edges = {max(runs.rates): "largest", min(runs.rates): "smallest"} if len(runs.rates) > 1 else {}
    at_edge = {
        edge: [name for name, lr in best.items() if lr == rate and runs.course(name, lr)]
        for rate, edge in edges.items()
    }
    return [
        f"The best rate of {', '.join(found)} is the {edge} that was tried; a better one may lie beyond it."
        for edge, found in at_edge.items()
        if found
    ]
