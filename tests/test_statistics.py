"""Intervals that cover, and verdicts that are seldom false: by simulation, small and (slow) large."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from arelu_meta import statistics
from arelu_meta.statistics import (
    Comparison,
    area_over_rates,
    compare,
    compare_published,
    correct,
    groups_interval,
    holm,
    independent_difference,
    judge,
    mean_interval,
    paired_images,
    paired_tasks,
    pairs_needed,
    proportion_interval,
    rate_equivalent,
)

LEAST = 0.935  # of a nominal 95 %
Floats = NDArray[np.float64]


def _coverage(interval: Callable[[np.random.Generator], tuple[float, float]], truth: float, times: int) -> float:
    found = (interval(np.random.default_rng([number, 1])) for number in range(times))
    return sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in found) / times


def _enough(times: int, least: float = LEAST) -> float:
    """Give the share that an interval of this coverage falls below once in a thousand times."""
    return float(stats.binom.ppf(0.001, times, least)) / times


# --- One accuracy


def test_a_proportion_s_interval_is_wilsons() -> None:
    for right, images in ((8, 10), (0, 7), (1, 7), (99, 100), (5000, 10_000)):
        expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert proportion_interval(right, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_image_or_every_image_right_still_has_width_and_stays_between_0_and_1() -> None:
    assert proportion_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert proportion_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_equal_accuracies_of_few_images_have_the_width_of_their_images() -> None:
    for accuracies in ([0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 1.0], [0.0, 0.0, 0.0]):
        images = 2 * len(accuracies)
        mean, low, high = groups_interval(accuracies, images)
        assert (low, high) == pytest.approx(proportion_interval(round(mean * images), images))
        assert high - low > 0.3
        assert 0 <= low <= mean <= high <= 1


def test_scattered_seeds_on_many_images_have_student_s_interval() -> None:
    values = [0.61, 0.64, 0.58, 0.62, 0.60]
    mean, low, high = groups_interval(values, 10**6)
    assert (low, high) == pytest.approx(mean_interval(values)[1:], abs=2e-3)
    assert mean == pytest.approx(0.61)


def test_seeds_on_one_fixed_test_set_are_no_surer_than_its_images() -> None:
    values = [0.90, 0.90, 0.91]
    _, low, high = groups_interval(values, 300, distinct=100)
    alone = proportion_interval(90, 100)
    assert high - low > 0.95 * (alone[1] - alone[0])
    assert high - low > groups_interval(values, 300)[2] - groups_interval(values, 300)[1]


def _seeds(n: int, seeds: int, p: float, spread: float) -> Callable[[np.random.Generator], tuple[float, float]]:
    """Draw seeds' accuracies: each seed's own share scatters about the truth, and so do its images."""

    def interval(random: np.random.Generator) -> tuple[float, float]:
        size = p * (1 - p) / spread**2 - 1 if spread else None
        own = random.beta(p * size, (1 - p) * size, seeds) if size else np.full(seeds, p)
        return groups_interval(list(random.binomial(n, own) / n), n * seeds)[1:]

    return interval


@pytest.mark.parametrize(
    ("n", "seeds", "p", "spread"),
    [(2, 2, 0.5, 0.0), (16, 3, 0.97, 0.0), (340, 3, 0.7, 0.02), (100, 10, 0.9, 0.03), (100, 5, 0.97, 0.01)],
)
def test_the_interval_of_seeds_covers(n: int, seeds: int, p: float, spread: float) -> None:
    assert _coverage(_seeds(n, seeds, p, spread), p, 300) >= _enough(300)


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 100, 340, 2000])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("p", "spread"), [(0.3, 0.0), (0.3, 0.03), (0.7, 0.01), (0.9, 0.0), (0.9, 0.03), (0.97, 0.0), (0.97, 0.01)]
)
def test_the_interval_of_seeds_covers_over_a_grid(n: int, seeds: int, p: float, spread: float) -> None:
    # Where seeds differ in nothing but their images it covers more: up to 99 % of the time with two of them.
    found = _coverage(_seeds(n, seeds, p, spread), p, 2000)
    assert found >= _enough(2000)
    if n == 2000 and spread == 0.03:  # the seeds decide, not the images
        assert found <= 0.965 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [20, 100, 600])
@pytest.mark.parametrize("queries", [25, 75])
@pytest.mark.parametrize(("p", "spread"), [(0.3, 0.08), (0.5, 0.1), (0.7, 0.12), (0.9, 0.08), (0.98, 0.02), (0.98, 0)])
def test_the_interval_of_tasks_covers_over_a_grid(tasks: int, queries: int, p: float, spread: float) -> None:
    assert _enough(2000) <= _coverage(_seeds(queries, tasks, p, spread), p, 2000) <= 0.98


@pytest.mark.parametrize(("tasks", "queries", "p", "spread"), [(20, 75, 0.7, 0.1), (20, 5, 0.98, 0.02)])
def test_the_interval_of_tasks_covers_and_has_width_where_all_are_perfect(
    tasks: int, queries: int, p: float, spread: float
) -> None:
    assert _coverage(_seeds(queries, tasks, p, spread), p, 300) >= _enough(300)
    assert groups_interval([1.0] * tasks, tasks * queries)[1] < 1.0


def _noise_tasks(random: np.random.Generator, per_class: int, shots: int, tasks: int) -> list[float]:
    """Judge tasks of three classes of noise, by the nearest mean: the truth is a third, whatever the images."""
    pool, found = random.normal(size=(3, per_class, 20)), []
    for _ in range(tasks):
        order = random.permuted(np.tile(np.arange(per_class), (3, 1)), axis=1)
        drawn = np.take_along_axis(pool, order[..., None], axis=1)[:, : shots + 5]
        means, queries = drawn[:, :shots].mean(1), drawn[:, shots:]
        nearest = ((queries[:, :, None] - means) ** 2).sum(-1).argmin(-1)
        found.append(float((nearest == np.arange(3)[:, None]).mean()))
    return found


@pytest.mark.parametrize(("per_class", "shots", "tasks"), [(12, 5, 60), (8, 1, 60), (20, 5, 100)])
def test_tasks_of_noise_that_share_few_images_are_no_surer_than_those(per_class: int, shots: int, tasks: int) -> None:
    images = 15 * tasks
    studies = [_noise_tasks(np.random.default_rng([number, 3]), per_class, shots, tasks) for number in range(60)]
    lows = [groups_interval(one, images, 3 * per_class)[1] for one in studies]
    assert sum(low <= 1 / 3 for low in lows) / 60 >= _enough(60, 0.975)
    assert sum(groups_interval(one, images)[1] <= 1 / 3 for one in studies) / 60 < 0.9
    pairs = zip(studies[::2], studies[1::2], strict=True)
    told = [paired_tasks(first, second, 15, 3 * per_class).told for first, second in pairs]
    assert sum(told) <= 3


@pytest.mark.parametrize("n", [60, 340])
def test_the_interval_of_seeds_that_share_a_test_set_covers_what_new_images_would_give(n: int) -> None:
    # Each image is easy or hard for all seeds alike; the truth is the mean over all images that there might be.
    def interval(random: np.random.Generator) -> tuple[float, float]:
        ease = random.beta(1.6, 0.4, n)
        right = random.random((3, n)) < ease
        return groups_interval(list(right.mean(1)), 3 * n, distinct=n)[1:]

    assert _coverage(interval, 0.8, 400) >= _enough(400)


# --- Two accuracies


def _score(gained: int, lost: int, images: int, difference: float) -> float:
    """Give the score statistic by searching the likeliest share of lost images under a supposed difference."""
    share = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)[1:-1]
    likelihood = gained * np.log(share + difference) + lost * np.log(share)
    likelihood += (images - gained - lost) * np.log(1 - 2 * share - difference)
    likeliest = float(share[likelihood.argmax()])
    error = math.sqrt((2 * likeliest + difference - difference**2) / images)
    return ((gained - lost) / images - difference) / error


@pytest.mark.parametrize(("gained", "lost", "images"), [(3, 1, 20), (1, 9, 44), (12, 12, 60), (20, 5, 80)])
def test_the_same_images_differ_by_tangos_score_interval_or_by_a_little_more(
    gained: int, lost: int, images: int
) -> None:
    found, mirrored = paired_images(gained, lost, images), paired_images(lost, gained, images)
    assert 1.959 < _score(gained, lost, images, found.low) < 2.2
    assert -2.2 < _score(gained, lost, images, found.high) < -1.959
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_a_paired_difference_is_never_without_width_and_never_beyond_one() -> None:
    for gained, lost, images in ((0, 0, 1), (0, 0, 20), (20, 0, 20), (0, 20, 20), (1, 1, 2), (0, 0, 10_000)):
        found = paired_images(gained, lost, images)
        assert -1 <= found.low <= found.mean <= found.high <= 1
        assert found.high - found.low > 1e-4
    assert not paired_images(0, 0, 20).told
    assert paired_images(20, 0, 20).told


def _paired_coverage(n: int, gained: float, lost: float) -> float:
    """Give the exact coverage: the sum over all outcomes that cover the truth."""
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            chance = stats.multinomial.pmf([a, b, n - a - b], n, [gained, lost, 1 - gained - lost])
            if chance > 1e-7:
                found = paired_images(a, b, n)
                total += chance if found.low - 1e-9 <= gained - lost <= found.high + 1e-9 else 0.0
    return float(total)


@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.05), (0.3, 0.0), (0.1, 0.02)])
def test_the_paired_interval_of_twenty_images_covers(gained: float, lost: float) -> None:
    assert _paired_coverage(20, gained, lost) >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20, 40])
@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("lost", [0.0, 0.01, 0.05, 0.2, 0.4])
def test_the_paired_interval_covers_over_a_grid(n: int, gained: float, lost: float) -> None:
    # On few images it is conservative where few of them differ: up to 100 %.
    assert _paired_coverage(n, gained, lost) >= LEAST


def test_the_same_tasks_decide_between_models_that_unpaired_intervals_cannot_tell_apart() -> None:
    hard = [0.1, 0.5, 0.9, 0.3, 0.7, 0.2, 0.8] * 3
    found = paired_tasks([value + 0.05 + 0.001 * (i % 7) for i, value in enumerate(hard)], hard, 75)
    assert found.mean == pytest.approx(0.053)
    assert 0 < found.low < found.mean < found.high < 0.1
    assert paired_tasks(hard, hard[::-1], 75).low < 0 < paired_tasks(hard, hard[::-1], 75).high


def test_the_same_accuracies_on_all_tasks_are_not_said_to_be_equal_for_certain() -> None:
    found = paired_tasks([0.8] * 20, [0.8] * 20, 5)
    assert found.low < 0 < found.high
    assert found.high - found.low > 0.05


def test_independent_accuracies_near_one_have_a_lopsided_difference() -> None:
    perfect, half = (1.0, *proportion_interval(20, 20)), (0.5, *proportion_interval(10, 20))
    found = independent_difference(perfect, half)
    assert found.mean == 0.5
    assert found.high - 0.5 < 0.5 - found.low
    assert found.high < 1


def test_the_difference_of_independent_accuracies_covers() -> None:
    def interval(random: np.random.Generator) -> tuple[float, float]:
        first, second = random.binomial(50, 0.98), random.binomial(40, 0.9)
        found = independent_difference(
            (first / 50, *proportion_interval(first, 50)), (second / 40, *proportion_interval(second, 40))
        )
        return found.low, found.high

    assert _coverage(interval, 0.08, 500) >= _enough(500)


# --- Claims


def _by_seed(values: Floats) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def _study(truth: float, seed: int, pairs: int = 5, spread: float = 0.5, **options: Any) -> Comparison:
    random = np.random.default_rng(seed)
    shared = random.normal(90, 3, pairs)  # what a seed makes easy or hard for both
    ours = shared + truth + random.normal(0, spread, pairs)
    return compare("ours against", _by_seed(ours), _by_seed(shared + random.normal(0, spread, pairs)), **options)


def test_difference_and_interval_are_scipys_paired_test() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(92, 1, 5), random.normal(90, 2, 5)
    found = compare("", _by_seed(ours), _by_seed(theirs), margin=0.0)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx((ours - theirs).mean())
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.effect_size == pytest.approx((ours - theirs).mean() / (ours - theirs).std(ddof=1))


def test_a_verdict_of_a_claim_alone_is_where_its_interval_lies() -> None:
    for seed in range(200):
        one = _study(np.random.default_rng([seed, 9]).uniform(-3, 3), seed)
        inside = one.low > -1 and one.high < 1
        expected = "ahead" if one.low > 1 else "behind" if one.high < -1 else "level" if inside else "need more seeds"
        assert judge([one])[0].verdict == expected


def test_seeds_that_resplit_one_data_set_have_nadeau_and_bengios_interval() -> None:
    plain, resplit = _study(5.0, 0), _study(5.0, 0, resplit=0.5)
    factor = math.sqrt((1 / 5 + 0.5) / (1 / 5))
    assert resplit.high - resplit.low == pytest.approx(factor * (plain.high - plain.low))
    assert resplit.difference == plain.difference
    assert resplit.as_row()["resplit"] == 0.5


def test_seeds_that_resplit_cover_where_a_plain_t_does_not() -> None:
    # As correlated as the correction supposes: test / (test + train) of the variance is common to all seeds.
    ratio, times = 0.5, 600
    shared = ratio / (1 + ratio)
    covered = {0.0: 0, ratio: 0}
    for number in range(times):
        random = np.random.default_rng(number)
        values = math.sqrt(1 - shared) * random.normal(0, 1, 5) + math.sqrt(shared) * random.normal()
        for used in covered:
            one = compare("", _by_seed(values), dict.fromkeys(range(5), 0.0), resplit=used)
            covered[used] += one.low <= 0 <= one.high
    assert covered[ratio] / times >= _enough(times, 0.95)
    assert covered[0.0] / times < 0.85


def test_a_difference_of_five_points_is_found() -> None:
    assert all(judge([_study(5.0, seed)])[0].verdict == "ahead" for seed in range(100))
    assert all(judge([_study(-5.0, seed)])[0].verdict == "behind" for seed in range(100))
    assert all(judge([_study(0.0, seed, 10, 0.3)])[0].verdict == "level" for seed in range(100))


def test_pairing_sees_what_two_separate_samples_would_not() -> None:
    shared = np.array([70.0, 80, 90, 95, 60])
    ours = shared + np.array([2.0, 2.2, 1.9, 2.1, 1.8])
    assert compare("", _by_seed(ours), _by_seed(shared)).verdict == "ahead"
    assert stats.ttest_ind(ours, shared).pvalue > 0.5


def test_only_seeds_that_both_have_are_paired() -> None:
    found = compare("", {0: 5.0, 1: 6.5, 7: 99.0}, {1: 5.0, 0: 4.0, 8: 0.0})
    assert (found.n, found.difference) == (2, 1.25)


def test_two_runs_that_differ_by_much_and_unevenly_say_how_many_more_are_needed() -> None:
    (found,) = judge([compare("AReLU against ReLU", {0: 50.0, 1: 90.0}, {0: 40.0, 1: 60.0})])
    assert found.verdict == "need more seeds"
    assert found.words == f"need about {found.more_seeds} more seeds"
    assert found.words in found.sentence


def test_who_is_ahead_by_exactly_the_margin_needs_no_number_of_seeds_but_another_question() -> None:
    (found,) = judge([compare("", {0: 0.5, 1: 1.5}, {0: 0.0, 1: 0.0})])
    assert (found.verdict, found.more_seeds) == ("need more seeds", None)
    assert "no number of seeds" in found.sentence


def test_the_seeds_that_are_said_to_be_needed_bring_the_verdict_four_times_in_five() -> None:
    for truth, would_be in ((2.0, "ahead"), (0.0, "level"), (-2.0, "behind")):
        room = [abs(truth) - 1] if truth else [1.0, 1.0]
        needed = pairs_needed(math.sqrt(2) * 1.0, room)
        assert needed is not None
        found = [judge([_study(truth, seed, needed, 1.0)])[0].verdict == would_be for seed in range(400)]
        assert 0.75 < sum(found) / 400 < 0.9


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0, 7.0])
def test_pairs_needed_reach_the_power_and_one_fewer_does_not(spread: float) -> None:
    def power(pairs: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.975, pairs - 1), pairs - 1, math.sqrt(pairs) / spread))

    needed = pairs_needed(spread, [1.0])
    assert needed is not None
    assert power(needed) >= 0.79
    assert needed == 2 or power(needed - 1) < 0.8


def test_where_seeds_share_their_images_no_number_of_them_may_be_enough() -> None:
    assert pairs_needed(4.0, [1.0]) == 128
    assert pairs_needed(4.0, [1.0], resplit=0.5) is None
    assert pairs_needed(0.2, [1.0], resplit=0.5) is not None
    assert pairs_needed(0.0, [1.0]) == 2
    assert pairs_needed(1e9, [1.0]) is None
    assert pairs_needed(1.0, [0.0]) is None


def _equal(difference: float, pairs: int, images: int | None = None) -> Comparison:
    ours, theirs = ({seed: 3.0 + seed + more for seed in range(pairs)} for more in (difference, 0.0))
    return judge([compare("", ours, theirs, images=images)])[0]


def test_equal_differences_are_as_sure_as_their_images_and_without_them_as_their_signs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for difference, verdict in ((2.0, "ahead"), (-2.0, "behind"), (0.0, "level")):
            assert _equal(difference, 2).verdict == "need more seeds"
            assert _equal(difference, 3).verdict == verdict
            few, many = _equal(difference, 3, images=50), _equal(difference, 3, images=100_000)
            assert few.high - few.low > 2
            assert few.verdict == "need more seeds"
            assert many.verdict == verdict
            assert many.high > many.low


@pytest.mark.parametrize(("ours", "theirs"), [({0: 1.0}, {0: 2.0}), ({0: 1.0, 1: 2.0}, {2: 1.0}), ({}, {})])
def test_fewer_than_two_pairs_are_refused(ours: dict[int, float], theirs: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        compare("", ours, theirs)


def test_a_run_that_became_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        compare("", {0: float("nan"), 1: 2.0}, {0: 1.0, 1: 2.0})


def test_the_margin_decides_what_counts_as_ahead_and_what_as_level() -> None:
    ours, theirs = {0: 91.0, 1: 91.1, 2: 90.9}, {0: 90.5, 1: 90.5, 2: 90.4}
    assert compare("", ours, theirs).verdict == "level"
    assert compare("", ours, theirs, margin=0.1).verdict == "ahead"
    assert compare("", theirs, ours, margin=0.1).verdict == "behind"


def test_holm_multiplies_the_smallest_p_by_the_number_of_claims() -> None:
    found = judge([_study(truth, seed) for seed, truth in enumerate((0.0, 0.5, 1.0, 2.0, 0.1))])
    p = np.array([one.p for one in found])
    order = np.argsort(p)
    expected = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(5, 0, -1)))
    assert np.array([one.p_holm for one in found])[order] == pytest.approx(expected)
    assert judge([]) == []
    assert holm([]) == []


def test_what_one_claim_would_show_many_may_not_and_says_so() -> None:
    one = compare("", _by_seed(np.array([4.0, 5.5, 7.0])), _by_seed(np.zeros(3)))
    assert one.verdict == "ahead"
    many = judge([one] + [_study(1.0, seed) for seed in range(99)])
    assert many[0].verdict == "need more seeds"
    assert many[0].p == one.p
    assert "alone it would be ahead" in many[0].sentence


def test_what_is_not_primary_is_described_and_weakens_no_other_claim() -> None:
    one = compare("", _by_seed(np.array([4.0, 5.5, 7.0])), _by_seed(np.zeros(3)))
    found = judge([one] + [_study(1.0, seed, primary=False) for seed in range(99)])
    assert found[0].verdict == "ahead"
    assert "p =" not in found[1].sentence


def test_a_comparison_is_written_with_its_verdict_and_plain_types() -> None:
    row = json.loads(json.dumps(judge([_study(5.0, 0)])[0].as_row()))
    assert row["verdict"] == "ahead"
    needed = {"claim", "verdict", "words", "sentence", "difference", "low", "high", "p", "p_holm", "effect_size", "n"}
    needed |= {"margin", "unit", "runs", "primary", "resplit", "error", "more_seeds", "would_be"}
    assert needed == set(row)


# --- Null studies

Draw = Callable[[np.random.Generator, float, int, int], Iterator[Comparison]]


def _scattered(scatter: Callable[[np.random.Generator, tuple[int, int]], Floats], **options: Any) -> Draw:
    def draw(random: np.random.Generator, truth: float, claims: int, seeds: int) -> Iterator[Comparison]:
        for differences in truth + scatter(random, (claims, seeds)):
            yield compare("", _by_seed(differences), dict.fromkeys(range(seeds), 0.0), **options)

    return draw


def _binomial(images: int, p: float) -> Draw:
    def draw(random: np.random.Generator, truth: float, claims: int, seeds: int) -> Iterator[Comparison]:
        for _ in range(claims):
            ours, theirs = (
                100 * random.binomial(images, np.clip(p + sign * truth / 200, 0, 1), seeds) / images for sign in (1, -1)
            )
            yield compare("", _by_seed(ours), _by_seed(theirs), images=images)

    return draw


def _resplit(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return math.sqrt(2 / 3) * random.normal(0, 1, shape) + math.sqrt(1 / 3) * random.normal(0, 1, (shape[0], 1))


STUDIES: dict[str, Draw] = {
    "normal": _scattered(lambda random, shape: random.normal(0, 1, shape)),
    "a shared original": _scattered(lambda random, shape: random.normal(0, 1, shape) - random.normal(0, 2, shape[1])),
    "heavy tails": _scattered(lambda random, shape: random.standard_t(3, shape)),
    "unequal seeds": _scattered(lambda random, shape: random.normal(0, 1, shape) * random.uniform(0.2, 5, shape[1])),
    "split anew": _scattered(_resplit, resplit=0.5),
    "few images": _binomial(16, 0.6),
    "340 images": _binomial(340, 0.6),
    "nearly all right": _binomial(40, 0.99),
}


def _false(one: Comparison, truth: float) -> bool:
    """Return True if a verdict is not so: at the margin itself a claim is neither ahead nor level."""
    beyond = {"ahead": truth <= one.margin, "behind": truth >= -one.margin, "level": abs(truth) >= one.margin}
    return beyond.get(one.verdict, False)


def _false_studies(draw: Draw, truth: float, claims: int, seeds: int, studies: int) -> int:
    return sum(
        any(_false(one, truth) for one in judge(list(draw(np.random.default_rng([number, 7]), truth, claims, seeds))))
        for number in range(studies)
    )


@pytest.fixture
def _no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out how many seeds would be needed: it takes time and decides no verdict."""
    monkeypatch.setattr(statistics, "_more_seeds", lambda *_: None)


@pytest.mark.usefixtures("_no_forecast")
@pytest.mark.parametrize(("kind", "claims", "seeds", "truth"), [("normal", 12, 5, 1.0), ("few images", 4, 3, -1.0)])
def test_a_false_verdict_of_either_kind_stands_in_at_most_one_null_study_of_twenty(
    kind: str, claims: int, seeds: int, truth: float
) -> None:
    studies = 1200 // claims
    assert _false_studies(STUDIES[kind], truth, claims, seeds, studies) <= stats.binom.ppf(0.999, studies, 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_forecast")
@pytest.mark.parametrize("kind", STUDIES)
@pytest.mark.parametrize("claims", [1, 4, 20])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("truth", [1.0, 0.0, -1.0])
def test_null_studies_of_every_shape_seldom_have_a_false_verdict(
    kind: str, claims: int, seeds: int, truth: float
) -> None:
    studies = max(200, 2000 // claims)
    assert _false_studies(STUDIES[kind], truth, claims, seeds, studies) <= stats.binom.ppf(0.9999, studies, 0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_forecast")
@pytest.mark.parametrize(("claims", "most"), [(1, 0.15), (4, 0.25), (20, 0.45)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_differences_that_scatter_to_one_side_alone_are_as_often_wrong_as_is_said(
    claims: int, most: float, seeds: int
) -> None:
    draw = _scattered(lambda random, shape: random.exponential(1, shape) - 1)
    assert _false_studies(draw, 1.0, claims, seeds, 400) / 400 <= most


# --- Learning rates


def test_the_area_over_the_rates_is_their_mean_on_a_logarithmic_axis() -> None:
    assert area_over_rates({1e-3: 40.0, 1e-2: 60.0}) == pytest.approx(50.0)
    assert area_over_rates({1e-4: 0.0, 1e-3: 60.0, 1e-1: 60.0}) == pytest.approx((30 + 2 * 60) / 3)
    assert area_over_rates({1e-2: 33.0}) == 33.0


def test_a_shift_along_the_rates_moves_the_equivalent_and_not_the_area_of_what_is_between() -> None:
    original = {1e-4: 10.0, 1e-3: 30.0, 1e-2: 70.0, 1e-1: 20.0}
    sign, rate = rate_equivalent(original, 50.0)
    assert sign == "="
    assert rate == pytest.approx(math.sqrt(1e-3 * 1e-2))
    assert rate_equivalent(original, 5.0) == ("<", 1e-4)
    assert rate_equivalent(original, 71.0) == (">", 1e-1)
    assert rate_equivalent(original, 10.0) == ("=", 1e-4)


# --- Published cells


def test_a_published_cell_is_compared_by_scipys_welch_test() -> None:
    ours = [92.4, 92.6, 92.9, 92.5, 92.7]
    found = compare_published(ours, 92.6, 1.0, 5)
    expected = stats.ttest_ind_from_stats(np.mean(ours), np.std(ours, ddof=1), 5, 92.6, 1.0, 5, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.low < 0 < found.high
    assert found.within
    # The interval and the test are one thing: at the edge of the interval p is 0.05.
    shifted = compare_published(ours, float(np.mean(ours)) - (found.high - found.difference), 1.0, 5)
    assert shifted.p == pytest.approx(0.05, abs=1e-6)


def test_a_published_cell_far_off_is_not_within_what_the_runs_can_tell() -> None:
    assert not compare_published([90.0, 90.1, 90.2], 95.0, 0.2, 5).within
    assert compare_published([90.0, 90.0], 90.0, 0.0, 5).within
    assert not compare_published([90.0, 90.0], 91.0, 0.0, 5).within


def test_cells_are_corrected_for_their_number() -> None:
    cell = compare_published([90.0, 90.4, 90.2], 90.7, 0.2, 5)
    assert not cell.within
    assert correct([cell] * 100)[0].within
    assert correct([]) == []
