"""What runs may conclude: 95 % intervals of accuracies and of their differences, and the verdicts of a study.

Accuracies of images and tasks are fractions here; a study's values and differences are in points (per cent) or in
another unit, which `compare` is told.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.95
MARGIN = 1.0
POWER = 0.8
Verdict = Literal["ahead", "level", "behind", "need more seeds"]

_Z = 1.959963984540054  # of the normal distribution, at 95 %
_ALPHA = 1 - CONFIDENCE
_MOST_PAIRS = 100_000
_ENOUGH = 3  # pairs whose equal differences are hardly chance, where nobody says of how many images they are
_ROUNDING = 1e-9

# --- Intervals of one accuracy


def proportion_interval(successes: float, trials: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent images; near 0 and 1 it has width and stays inside.

    Args:
        successes: images classified rightly.
        trials: images.

    Returns:
        Low and high end, as fractions.

    Source: Wilson 1927.
    """
    share, square = successes / trials, _Z**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    # At a share of 0 or 1 an end is that share, but for rounding.
    return (max(0.0, middle - half) if share > 0 else 0.0), (min(1.0, middle + half) if share < 1 else 1.0)


def groups_interval(
    accuracies: Sequence[float], images: int, distinct: int | None = None
) -> tuple[float, float, float]:
    """Return the mean accuracy of several groups of images (seeds, folds or few-shot tasks) with its 95 % interval.

    It is Wilson's interval with as many images as would scatter like the groups' mean does, by Student's t, and never
    with more than there are: so it covers near 0 and 1, stays between them, and has width where all groups are equal.
    Between seeds that differ in nothing but their images it is wider than it need be: a few of them cannot know that.

    Args:
        accuracies: one a group, fractions; at least 2.
        images: of all groups together (of a few-shot task: its queries).
        distinct: how many of those are different images, where groups share some: seeds that are tested on one fixed
            test set, or tasks that draw from few images, scatter less than new images would; default: all.

    Returns:
        Mean, low and high end. That seeds re-split, or folds share, their training images is not in it. Of tasks that
        share images it covers at least 95 %, up to always: an image that is right in one task need not be in another.
        Of 20 tasks or fewer that are nearly all perfect, where a few are not (mean 98 %, scatter 4 points), it covers
        86 to 91 %: so few seldom show the ones that are not. Draw 100 or more there.

    Source: Korn and Graubard 1998, with Wilson's interval in Clopper and Pearson's place.
    """
    from scipy.stats import t

    values = np.asarray(accuracies, dtype=np.float64)
    mean, groups = float(values.mean()), len(values)
    alone = images if distinct is None else min(distinct, images)
    variance = float(values.var(ddof=1)) / groups + mean * (1 - mean) * (1 / alone - 1 / images)
    effective = float(alone)
    if variance > 0:
        shrunk = (_Z / float(t.ppf(0.5 + CONFIDENCE / 2, groups - 1))) ** 2
        effective = min(effective, mean * (1 - mean) / variance * shrunk)
    return mean, *proportion_interval(mean * effective, effective)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent values that are no accuracies with Student's 95 % interval.

    Args:
        values: at least 2.

    Returns:
        Mean, low and high end; all three the same where the values are.
    """
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers)))
    return mean, mean - half, mean + half


# --- Intervals of a difference of two accuracies


@dataclass(frozen=True)
class Difference:
    """One accuracy minus another, as a fraction, with its 95 % interval.

    Args:
        mean: the difference.
        low: lower end.
        high: upper end.
        p: that there is no difference, two-sided; None where no test was made.
    """

    mean: float
    low: float
    high: float
    p: float | None = None

    @property
    def told(self) -> bool:
        """Whether the interval leaves 0 out, and the test, where there is one, says so too."""
        return (self.low > 0 or self.high < 0) and (self.p is None or self.p < _ALPHA)


def paired_images(gained: int, lost: int, images: int) -> Difference:
    """Compare two models on the same images.

    Args:
        gained: images that the first classifies rightly and the second does not.
        lost: the other way round.
        images: all of them.

    Returns:
        The first's accuracy minus the second's. The interval is the wider at each end of two, either of which alone
        covers 93 % at the worst on few images; it has width where nothing was gained or lost.

    Source: Tango 1998, the score interval of paired shares; Bonett and Price 2012; McNemar 1947 for p (exact, through
    scipy).
    """
    from scipy.optimize import brentq
    from scipy.stats import binomtest

    mean = (gained - lost) / images
    middle, error = _one_more_each_way(gained, lost, images)

    def score(difference: float) -> float:
        """Give how many standard errors the found difference lies above one that is supposed."""
        a, b = 2 * images, (2 * images - gained + lost) * difference - gained - lost
        off = (math.sqrt(max(0.0, b * b + 4 * a * lost * difference * (1 - difference))) - b) / (2 * a)
        variance = images * (2 * off + difference * (1 - difference))
        apart = gained - lost - images * difference
        return apart / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, apart) if apart else 0.0

    def end(edge: float, target: float) -> float:
        if abs(mean) == 1 and mean == edge:
            return edge
        found = brentq(lambda at: max(-1e9, min(1e9, score(at))) - target, min(mean, edge), max(mean, edge))
        return float(found)

    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    low, high = min(end(-1.0, _Z), middle - _Z * error), max(end(1.0, -_Z), middle + _Z * error)
    return Difference(mean, max(-1.0, low), min(1.0, high), p)


def _one_more_each_way(gained: float, lost: float, images: int) -> tuple[float, float]:
    """Return the difference of paired shares and its standard error, with one more image gained and one more lost."""
    more, less = (gained + 1) / (images + 2), (lost + 1) / (images + 2)
    return more - less, math.sqrt((more + less - (more - less) ** 2) / (images + 2))


def paired_tasks(
    first: Sequence[float], second: Sequence[float], queries: int, distinct: int | None = None
) -> Difference:
    """Compare two models on the same few-shot tasks: what makes a task easy or hard for both cancels.

    Args:
        first: one model's accuracies, task by task.
        second: the other's on the same tasks, in the same order; at least 2.
        queries: query images of a task.
        distinct: how many different images the tasks draw from, where there are fewer than queries; default: no fewer.

    Returns:
        The mean over tasks of the first's accuracy minus the second's. The interval is Student's over the tasks, and
        no narrower than all different query images together allow, where they differ in no more than the tasks'
        accuracies show.

    Source: Student 1908, Tango 1998.
    """
    differences = [mine - theirs for mine, theirs in zip(first, second, strict=True)]
    mean, low, high = mean_interval(differences)
    images = queries * len(differences)
    images = images if distinct is None else min(distinct, images)
    share = images / len(differences)
    gained, lost = (round(share * sum(max(0.0, sign * one) for one in differences)) for sign in (1, -1))
    least = paired_images(gained, lost, images)
    return Difference(mean, max(-1.0, min(low, least.low)), min(1.0, max(high, least.high)))


def independent_difference(first: tuple[float, float, float], second: tuple[float, float, float]) -> Difference:
    """Compare two accuracies of which nothing else is known than their intervals, as of independent images.

    Args:
        first: an accuracy, and the low and high end of its interval.
        second: another.

    Returns:
        The first minus the second.

    Source: Newcombe 1998, method 10: each end from the two ends that lead there.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return Difference(a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))


# --- A study's claims


@dataclass(frozen=True)
class Comparison:
    """One contender against another, and what the runs say of it.

    Args:
        claim: who against whom, read where, in words.
        difference: mean over pairs of the first minus the second, in `unit`.
        low: lower end of the 95 % interval of that mean.
        high: upper end.
        p: the smallest error rate at which the claim would get a verdict if it were alone: twice the smallest p of the
            one-sided tests for ahead, behind and level.
        p_holm: the same after Holm's correction over the study's primary claims; `p` until `judge` is called.
        effect_size: the mean difference in standard deviations of the differences (Cohen's d of pairs); None where
            all differences are the same.
        n: pairs.
        margin: differences within it, on either side, do not count.
        unit: of the difference.
        runs: what the pairs are of, in the plural.
        primary: whether the study judges the claim; others are described alone.
        resplit: test images a training image, where every seed splits one data set anew; 0 where the test set is fixed.
        error: the mean's standard error.
        more_seeds: about how many pairs more would bring a verdict if the difference is as found; None where there is
            one, or no number of pairs would.
        would_be: the verdict that p is of.
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
    unit: str = "points"
    runs: str = "seeds"
    primary: bool = True
    resplit: float = 0.0
    error: float = 0.0
    more_seeds: int | None = None
    would_be: Verdict = "level"

    @property
    def verdict(self) -> Verdict:
        """Judge the claim: ahead or behind by more than the margin, level within it, or open."""
        return self.would_be if self.p_holm < _ALPHA else "need more seeds"

    @property
    def words(self) -> str:
        """The verdict in words, with how many seeds are missing."""
        if self.verdict != "need more seeds":
            return self.verdict
        if self.more_seeds is None:
            return f"no number of {self.runs} like these would tell"
        return f"need about {self.more_seeds:,} more {self.runs}"

    @property
    def numbers(self) -> str:
        """The difference, its interval and the pairs, in words."""
        return f"{self.difference:+.1f} {self.unit} (95 % interval {self.low:+.1f} to {self.high:+.1f}, {self.n} pairs)"

    @property
    def sentence(self) -> str:
        """Say the verdict and the numbers behind it in one sentence; of a claim that is not primary, the numbers."""
        if not self.primary:
            return f"{self.claim}: {self.numbers}."
        margin = f"{self.margin:g} {self.unit.rstrip('s') if self.margin == 1 else self.unit}"
        says = f"{self.claim}: {self.words}; {self.numbers}, p = {self.p_holm:.2g} after Holm, margin {margin}"
        if self.verdict == "need more seeds" and self.p < _ALPHA:
            says += f"; alone it would be {self.would_be}, but among so many claims some would be by chance"
        return says + "."

    def as_row(self) -> dict[str, Any]:
        """Give JSON types, with the verdict and its sentence."""
        return {"verdict": self.verdict, "words": self.words, "sentence": self.sentence, **asdict(self)}


def compare(
    claim: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    margin: float = MARGIN,
    unit: str = "points",
    *,
    images: int | None = None,
    resplit: float = 0.0,
    primary: bool = True,
) -> Comparison:
    """Compare two contenders pair by pair: what a seed makes easy or hard for both cancels.

    Args:
        claim: who against whom, in words.
        ours: the first's value for each seed.
        theirs: the second's; only seeds that both have count.
        margin: differences within it, on either side, do not count.
        unit: of the values.
        images: that each value is a share of, in points: the difference cannot be surer than so many images are; None
            where the values are no such shares.
        resplit: test images a training image, where every seed splits one data set anew: such seeds share images, and
            their mean scatters more than independent ones'; 0 for a fixed test set.
        primary: whether the study is to judge the claim, and not only to describe it.

    Returns:
        The comparison, whose verdict `judge` decides. It is made for differences that scatter to both sides. Where
        they scatter far to one side alone (exponential ones) and the truth is the margin itself, a false verdict stands
        in 11 to 12 % of studies of one claim, 17 to 22 % of 4 and 20 to 41 % of 20, with 3 to 10 seeds: such a study
        needs another question, as of medians, and not more seeds.

    Raises:
        ValueError: if fewer than 2 seeds are paired, or a value is NaN or infinite.

    Source: Student 1908, the paired t; Nadeau and Bengio 2003, the corrected resampled t (variance factor 1/n +
    test/train); Schuirmann 1987, two one-sided tests for level.
    """
    from scipy.stats import t as student

    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        raise ValueError(f"{claim}: {len(seeds)} pairs; a paired comparison needs at least 2")
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError(f"{claim}: a value is not finite")
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= _ROUNDING * max(1.0, abs(mean)):  # what is left is rounding
        spread, mean = 0.0, 0.0 if abs(mean) < _ROUNDING else mean
    error = spread * math.sqrt(1 / len(seeds) + resplit)
    if images is not None:  # of which as few as possible are other ones
        gained, lost = (images / 100 * float(np.maximum(0, sign * differences).sum()) for sign in (1, -1))
        error = max(error, 100 * _one_more_each_way(gained, lost, images * len(seeds))[1])
    freedom = len(seeds) - 1
    tests = {
        "ahead": _one_sided(mean - margin, error, freedom),
        "behind": _one_sided(-mean - margin, error, freedom),
        "level": max(_one_sided(margin - mean, error, freedom), _one_sided(margin + mean, error, freedom)),
    }
    would_be = min(tests, key=lambda name: tests[name])
    p, half = min(1.0, 2 * tests[would_be]), float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    return Comparison(
        claim,
        mean,
        mean - half,
        mean + half,
        p,
        p,
        mean / spread if spread else None,
        len(seeds),
        margin,
        unit,
        primary=primary,
        resplit=resplit,
        error=error,
        would_be=would_be,  # type: ignore[arg-type]
    )


def _one_sided(above: float, error: float, freedom: int) -> float:
    """Return the p of the test that a mean is not above a bound.

    Args:
        above: how far above it was found.
        error: the mean's standard error; where there is none, the sign test speaks, and three equal signs are enough.
        freedom: degrees of freedom.
    """
    from scipy.stats import t as student

    if error > 0:
        return float(student.sf(above / error, freedom))
    if above <= 0:
        return 1.0
    return 0.0 if freedom + 1 >= _ENOUGH else 0.5 ** (freedom + 1)


def judge(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Give a study's claims their verdicts: all of them together are wrong, either way, in at most 5 % of studies.

    Args:
        comparisons: all of the study; those that are not primary have no part in the correction.

    Returns:
        The same in the same order, the primary ones with `p_holm` and, where they stay open, `more_seeds`.

    Source: Holm 1979, over the claims' two-sided p: each holds for both directions at once.
    """
    primary = [one for one in comparisons if one.primary]
    corrected = iter(holm([one.p for one in primary]))
    judged = [replace(one, p_holm=next(corrected), more_seeds=None) if one.primary else one for one in comparisons]
    undecided = sum(one.primary and one.p_holm >= _ALPHA for one in judged)
    return [
        replace(one, more_seeds=_more_seeds(one, undecided)) if one.primary and one.p_holm >= _ALPHA else one
        for one in judged
    ]


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number.

    Args:
        values: any number of them.

    Source: Holm 1979.
    """
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    found = np.empty(len(values))
    found[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(one) for one in found]


def _more_seeds(one: Comparison, undecided: int) -> int | None:
    """Say how many pairs more bring a verdict four times in five if the difference is as found, beside other claims."""
    beyond = abs(one.difference) - one.margin
    bounds = (beyond,) if beyond > 0 else (-beyond, one.margin + abs(one.difference))  # level lies between two
    spread = one.error / math.sqrt(1 / one.n + one.resplit)
    needed = pairs_needed(spread, bounds, _ALPHA / undecided, one.resplit)
    return None if needed is None else max(1, needed - one.n)


def pairs_needed(
    spread: float, room: Sequence[float], rate: float = _ALPHA, resplit: float = 0.0, power: float = POWER
) -> int | None:
    """Return about how many pairs bring a verdict.

    Args:
        spread: standard deviation of the differences between pairs, in the difference's unit.
        room: how far the true difference lies from each bound that has to be told from it.
        rate: error rate of the verdict, of both directions together.
        resplit: as in `compare`.
        power: the share of studies that would find it.

    Returns:
        At least 2; None where more than 100,000 are needed, or no number of them is enough.

    Source: the noncentral t in its normal approximation, Johnson and Welch 1940.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    def found(pairs: int) -> float:
        freedom, error = pairs - 1, spread * math.sqrt(1 / pairs + resplit)
        critical = float(student.isf(rate / 2, freedom))
        scale = math.sqrt(1 + critical**2 / (2 * freedom))
        missed = [float(norm.sf((one / error - critical * (1 - 1 / (4 * freedom))) / scale)) for one in room]
        return 1 - sum(missed)

    if min(room) <= 0:
        return None
    if spread <= 0:
        return 2
    few, many = 1, 2
    while found(many) < power:
        if many >= _MOST_PAIRS:
            return None
        few, many = many, min(2 * many, _MOST_PAIRS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if found(middle) >= power else (middle, many)
    return many


# --- Learning rates


def area_over_rates(accuracies: Mapping[float, float]) -> float:
    """Return the mean accuracy over the logarithm of the learning rate: what a rate costs that nobody has tuned.

    Args:
        accuracies: by learning rate; at least 1.

    Returns:
        The area under the accuracy over the log-rates, by trapezoids, divided by their width.
    """
    rates = sorted(accuracies)
    if len(rates) == 1:
        return accuracies[rates[0]]
    places = np.log([*rates])
    values = np.array([accuracies[rate] for rate in rates])
    return float(((values[1:] + values[:-1]) / 2 * np.diff(places)).sum() / (places[-1] - places[0]))


def rate_equivalent(accuracies: Mapping[float, float], reached: float) -> tuple[str, float]:
    """Find the learning rate at which a contender would be as accurate as another is at a smaller one.

    Args:
        accuracies: the contender's, by learning rate.
        reached: the other's accuracy.

    Returns:
        `=` and the smallest rate at which it gets there, between two rates on a straight line over the log-rate; `<`
        and the smallest rate where it is there already, `>` and the largest where it never gets there.
    """
    rates = sorted(accuracies)
    if accuracies[rates[0]] >= reached:
        return ("=" if accuracies[rates[0]] == reached else "<"), rates[0]
    for below, above in itertools.pairwise(rates):
        if accuracies[above] >= reached:
            share = (reached - accuracies[below]) / (accuracies[above] - accuracies[below])
            return "=", below * (above / below) ** share
    return ">", rates[-1]


# --- Ours beside a published mean


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
        return self.p_holm >= _ALPHA


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
    """Correct the p-values of a table's cells for their number, by Holm.

    Args:
        cells: all of the table.
    """
    return [replace(one, p_holm=p) for one, p in zip(cells, holm([one.p for one in cells]), strict=True)]
