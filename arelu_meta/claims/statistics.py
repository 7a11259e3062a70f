"""What a study may conclude: differences paired by seed, their intervals, Holm's correction, and the verdict.

All accuracies and differences here are in percentage points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from arelu_meta.intervals import CONFIDENCE

Verdict = Literal["holds", "does not hold", "cannot tell"]
MARGIN = 1.0
POWER = 0.8
_SEEN = 1.0  # the difference that `seeds_needed` is about, in points
_MOST_SEEDS, _EXACT_BELOW = 100_000, 500
_ENOUGH = 3  # pairs whose equal differences are hardly chance, on few images either


@dataclass(frozen=True)
class Comparison:
    """One claim of the form "this is ahead of that", and what the runs say of it.

    Args:
        claim: in words.
        difference: mean over pairs of this minus that, in `unit`.
        low: lower end of the 95 % interval of that mean, from the paired t.
        high: upper end.
        p: of the paired t-test that there is no difference, two-sided; of the sign test where there are two pairs of
            the same difference.
        p_holm: the same after Holm's correction over the study's comparisons; `p` until `judge` is called.
        effect_size: the mean difference in standard deviations of the differences (Cohen's d of pairs); None where
            all differences are the same.
        n: pairs.
        margin: how much counts as being ahead, in `unit`.
        seeds_needed: pairs with which a difference of 1 `unit` is found four times in five.
        unit: of the difference.
        runs: what the pairs are of, in the plural.
    """

    claim: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    effect_size: float | None
    n: int
    margin: float
    seeds_needed: int
    unit: str = "points"
    runs: str = "runs"

    @property
    def verdict(self) -> Verdict:
        """Say whether the claim holds.

        It *holds* where the interval lies above the margin and no difference is ruled out among so many comparisons;
        it *does not hold* where the interval lies below the margin. Two differences that are the same have no interval:
        on few images they often are by chance.
        """
        if self.by_chance:
            return "cannot tell"
        if self.low > self.margin and self.p_holm < 1 - CONFIDENCE:
            return "holds"
        return "does not hold" if self.high < self.margin else "cannot tell"

    @property
    def by_chance(self) -> bool:
        """Whether there are so few pairs that all of them having the same difference says nothing."""
        return self.effect_size is None and self.difference != 0 and self.n < _ENOUGH

    @property
    def sentence(self) -> str:
        """Say the verdict and the numbers behind it in one sentence."""
        verdict = f"cannot tell with {self.n} {self.runs}" if self.verdict == "cannot tell" else self.verdict
        numbers = f"{self.difference:+.1f} {self.unit} (95 % interval {self.low:+.1f} to {self.high:+.1f}"
        test = f"{self.n} pairs, p = {self.p:.2g}, {self.p_holm:.2g} after Holm"
        margin = f"{self.margin:g} {self.unit.rstrip('s') if self.margin == 1 else self.unit}"
        says = f"{self.claim}: {verdict}; {numbers}, {test}), margin {margin}"
        if self.by_chance:
            says += "; both differences are the same, so their interval says nothing, and p is of the sign test"
        if self.verdict != "cannot tell":
            return says + "."
        if self.low > self.margin and not self.by_chance:
            says += "; the interval alone lies above it, but among so many comparisons some would by chance"
        if self.seeds_needed <= self.n:  # it is the margin or Holm's correction that asks for more
            return says + "."
        return f"{says}; about {self.seeds_needed:,} pairs would show a difference of 1 {self.unit.rstrip('s')}."

    def as_row(self) -> dict[str, Any]:
        """Give JSON types, with the verdict and its sentence."""
        return {"verdict": self.verdict, "sentence": self.sentence, **asdict(self)}


def compare(
    claim: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    margin: float = MARGIN,
    unit: str = "points",
) -> Comparison:
    """Compare two contenders pair by pair: what a seed makes easy or hard for both cancels.

    Args:
        claim: what is claimed of the first, in words.
        ours: the first's value for each seed.
        theirs: the second's; only seeds that both have count.
        margin: how much counts as being ahead.
        unit: of the values.

    Raises:
        ValueError: if fewer than 2 seeds are paired, or a value is NaN or infinite.

    Source: Student 1908, the paired t; five pairs are too few for a bootstrap or for Wilcoxon's test.
    """
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        raise ValueError(f"{claim}: {len(seeds)} pairs; a paired comparison needs at least 2")
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError(f"{claim}: a value is not finite")
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-9 * max(1.0, abs(mean)):  # what is left is rounding, and no test has anything to go by
        mean = 0.0 if abs(mean) < 1e-9 else mean
        p = 1.0 if not mean else 2.0 ** (1 - len(seeds)) if len(seeds) < _ENOUGH else 0.0
        return Comparison(claim, mean, mean, mean, p, p, None, len(seeds), margin, _ENOUGH, unit)
    from scipy.stats import ttest_1samp

    test = ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    p = float(test.pvalue)
    return Comparison(
        claim,
        mean,
        float(interval.low),
        float(interval.high),
        p,
        p,
        mean / spread,
        len(seeds),
        margin,
        seeds_needed(spread),
        unit,
    )


def judge(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values of a study's comparisons for their number.

    Args:
        comparisons: all that the study concludes from.

    Returns:
        The same with `p_holm` set, in the same order.

    Source: Holm 1979, through statsmodels.
    """
    if not comparisons:
        return []
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests([one.p for one in comparisons], method="holm")[1]
    return [replace(one, p_holm=float(p)) for one, p in zip(comparisons, corrected, strict=True)]


def seeds_needed(spread: float, difference: float = _SEEN, power: float = POWER) -> int:
    """Say with how many pairs a paired t-test finds a difference.

    Args:
        spread: standard deviation of the differences between pairs, in the difference's unit.
        difference: to be found.
        power: the share of studies that would find it.

    Returns:
        At least 2, at most 100,000.

    Source: the power of the t-test, through statsmodels.
    """
    if spread <= 0:
        return 2
    from scipy.stats import norm
    from statsmodels.stats.power import TTestPower

    effect = difference / spread
    # The normal distribution's answer: too small by a pair or two where there are few.
    pairs = float(((norm.ppf(0.5 + CONFIDENCE / 2) + norm.ppf(power)) / effect) ** 2)
    if pairs > _EXACT_BELOW:
        return math.ceil(min(pairs, _MOST_SEEDS))
    needed: int = max(2, math.floor(pairs))
    while TTestPower().power(effect, needed, 1 - CONFIDENCE) < power:
        needed += 1
    return needed


@dataclass(frozen=True)
class Published:
    """Ours beside a published mean of other runs.

    Args:
        difference: our mean minus theirs.
        low: lower end of its 95 % interval.
        high: upper end.
        p: of Welch's test that there is no difference.
        p_holm: the same after Holm's correction over all cells; `p` until `correct` is called.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def within(self) -> bool:
        """Whether the difference is within what so many runs can tell, among so many cells."""
        return self.p_holm >= 1 - CONFIDENCE


def compare_published(ours: Sequence[float], mean: float, spread: float, runs: int) -> Published:
    """Compare our runs with a published mean and standard deviation; there are no pairs.

    Args:
        ours: our values, at least 2.
        mean: theirs.
        spread: their standard deviation over runs.
        runs: how many they had.

    Source: Welch 1947, through scipy.
    """
    from scipy.stats import t as student
    from scipy.stats import ttest_ind_from_stats

    values = np.asarray(ours, dtype=np.float64)
    difference = float(values.mean()) - mean
    own, other = float(values.var(ddof=1)) / len(values), spread**2 / runs
    error = math.sqrt(own + other)
    if error == 0:
        p = 1.0 if difference == 0 else 0.0
        return Published(difference, difference, difference, p, p)
    test = ttest_ind_from_stats(values.mean(), values.std(ddof=1), len(values), mean, spread, runs, equal_var=False)
    freedom = (own + other) ** 2 / (own**2 / (len(values) - 1) + other**2 / (runs - 1))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p = float(test.pvalue)
    return Published(difference, difference - half, difference + half, p, p)


def correct(cells: Sequence[Published]) -> list[Published]:
    """Correct the p-values of a table's cells for their number.

    Args:
        cells: all of the table.

    Source: Holm 1979, through statsmodels.
    """
    if not cells:
        return []
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests([one.p for one in cells], method="holm")[1]
    return [replace(one, p_holm=float(p)) for one, p in zip(cells, corrected, strict=True)]
