"""What a study reads off accuracies over learning rates: area, peak, width, regret, steps, worth."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arelu_meta.statistics import area_over_rates, rate_equivalent

Accuracies = Mapping[float, float]
"""By learning rate, in points or fractions."""

WITHIN = 0.9
_RESAMPLES = 2000

__all__ = ["Worth", "area_over_rates", "peak", "regret", "steps_to", "width_within", "worth"]


def peak(accuracies: Accuracies) -> tuple[float, float]:
    """Return the best learning rate and the accuracy there; of equal ones the smaller rate.

    Args:
        accuracies: at least 1.
    """
    rate = min(accuracies, key=lambda one: (-accuracies[one], one))
    return rate, accuracies[rate]


def width_within(accuracies: Accuracies, share: float = WITHIN) -> float:
    """Return over how many decades of the learning rate the accuracy is within a share of the best one.

    Args:
        accuracies: at least 1.
        share: of the best accuracy.

    Returns:
        Decades, on straight lines over the log-rate between the rates that were tried; what lies beyond the smallest
        and the largest is not counted.
    """
    rates = sorted(accuracies)
    bound = share * max(accuracies.values())
    width = 0.0
    for low, high in itertools.pairwise(rates):
        below, above = accuracies[low] - bound, accuracies[high] - bound
        span = math.log10(high / low)
        if below >= 0 and above >= 0:
            width += span
        elif below >= 0 or above >= 0:
            width += span * max(below, above) / abs(above - below)
    return width


def regret(accuracies: Accuracies) -> float:
    """Return how much is lost on average by a rate that is drawn from the grid instead of the best one.

    Args:
        accuracies: at least 1.
    """
    values = list(accuracies.values())
    return max(values) - sum(values) / len(values)


def steps_to(course: Sequence[tuple[int, float]], target: float) -> int | None:
    """Return the first step at which a course reaches an accuracy, such as the probe's; None where it never does.

    Args:
        course: steps with the accuracies after them, in order.
        target: in the unit of the course.
    """
    return next((step for step, accuracy in course if accuracy >= target), None)


@dataclass(frozen=True)
class Worth:
    """A learning-rate equivalent: at its rate a contender is as accurate as the reference at `times` that rate.

    Args:
        times: the factor.
        low: lower end of its 95 % interval by bootstrap over seeds; `times` with one seed.
        high: upper end; infinite where some resamples never get there.
        sign: `=`; `>` where the reference never gets there within its rates, `<` where it is there at the smallest.
    """

    times: float
    low: float
    high: float
    sign: str = "="

    @property
    def words(self) -> str:
        """Say it as `× 8.1 (5.2 to 12)`."""
        shown = f"× {self.sign if self.sign != '=' else ''}{self.times:.2g}"
        if self.low == self.high == self.times or self.sign != "=":
            return shown
        high = f"{self.high:.2g}" if math.isfinite(self.high) else "more"
        return f"{shown} ({self.low:.2g} to {high})"


def worth(
    ours: Mapping[float, Mapping[int, float]],
    theirs: Mapping[float, Mapping[int, float]],
    rate: float,
    resamples: int = _RESAMPLES,
) -> Worth:
    """Find how many times as fast the reference would have to learn to be as accurate as a contender at a small rate.

    Args:
        ours: the contender's accuracies by learning rate and seed.
        theirs: the reference's; only seeds that both have at every rate count, paired.
        rate: the contender's rate.
        resamples: of the seeds, for the interval.

    Raises:
        ValueError: if no seed is in all of them.

    Source: Efron and Tibshirani 1993, the percentile bootstrap, over seeds.
    """
    seeds = sorted(set.intersection(set(ours[rate]), *(set(one) for one in theirs.values())))
    if not seeds:
        raise ValueError("no seed is there at every rate")
    rates = sorted(theirs)
    own = np.array([ours[rate][seed] for seed in seeds])
    others = np.array([[theirs[one][seed] for seed in seeds] for one in rates])

    def at(chosen: NDArray[np.int64]) -> tuple[str, float]:
        means = dict(zip(rates, others[:, chosen].mean(1).tolist(), strict=True))
        return rate_equivalent(means, float(own[chosen].mean()))

    sign, found = at(np.arange(len(seeds)))
    if len(seeds) == 1:
        return Worth(found / rate, found / rate, found / rate, sign)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        one_sign, one = at(random.integers(len(seeds), size=len(seeds)))
        drawn.append(math.inf if one_sign == ">" else one / rate)
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return Worth(found / rate, float(min(low, found / rate)), float(max(high, found / rate)), sign)
